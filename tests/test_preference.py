"""Preference alignment: pairs without test data, the right reference, and trainings that are neither repeated nor lost."""

import numpy as np
import pytest
from safetensors.torch import load_file

from dialectbook import preference
from dialectbook.data import clean_scenario, load_pool
from dialectbook.files import UserError
from dialectbook.knobs import load_knobs
from dialectbook.model import response_logp
from dialectbook.preference import align, answers_before, dev_rewards, load_adapter, preference_pairs
from dialectbook.sft import train_adapter
from small_run import small_run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Knobs of experiment token, and a run with splits, an untrained base and a tuned adapter."""
    knobs, _ = load_knobs("smoke", "token", {"lora_dropout": 0.0})
    run, splits = small_run(tmp_path_factory, knobs, [clean_scenario(s, False) for s in load_pool()[:80]])
    train_adapter(knobs, run, "token", 1)
    return knobs, run, splits


def test_pairs_hold_no_test_scenario(smoke):
    """What is aligned on is never what is asked afterwards; both answers speak about one scenario."""
    knobs, run, splits = smoke
    test = {scenario["id"] for scenario in splits["test"]}
    by_id = {scenario["id"]: scenario for some in splits.values() for scenario in some}
    for rejected in ("msa", "other"):
        for split in ("train", "dev"):
            rows = preference_pairs(knobs.model_copy(update={"dpo_pairs": 0}), run, split, rejected)
            assert rows and not test & {row["scenario_id"] for row in rows}
            for row in rows:
                scenario, other = by_id[row["scenario_id"]], {"HIJAZI": "najdi", "NAJDI": "hijazi"}[row["dialect"]]
                assert row["chosen"] == scenario[row["dialect"].lower()]["response"] != row["rejected"]
                assert row["rejected"] == scenario["msa" if rejected == "msa" else other]["response"]
                assert f"<DIALECT={row['dialect']}>" in row["prompt"]
    assert len(preference_pairs(knobs, run, "train")) <= knobs.dpo_pairs
    with pytest.raises(UserError, match="choose one of"):
        preference_pairs(knobs, run, "train", "english")


def test_reference_is_the_tuned_adapter(smoke):
    """Against the bare base the rewards would be those of the supervised tuning: before the first step they must be zero."""
    knobs, run, _ = smoke
    record = align(knobs, run, "token", "msa", 0.1, 1)
    assert record["train"][0]["step"] == 1 and abs(record["train"][0]["margin"]) < 1e-3
    folder = preference.folder_of(run, "token", "msa", 0.1, 1) / "adapter"
    assert {path.name for path in folder.iterdir()} >= {"adapter_model.safetensors", "recipe.json"} and not (folder / "ref").exists()
    tuned, aligned = load_file(run.experiment("token", 1) / "adapter/adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors")
    assert tuned.keys() == aligned.keys() and any((tuned[key] != aligned[key]).any() for key in tuned)


def test_dev_margins_follow_from_likelihoods(smoke):
    """The margin is beta times the gain in log-odds of chosen over rejected, against the adapter of chapter 06."""
    from dialectbook.model import load_tokenizer

    knobs, run, _ = smoke
    record = align(knobs, run, "token", "msa", 0.1, 1)
    rows, tokenizer = preference_pairs(knobs, run, "dev"), load_tokenizer(knobs, run)
    gain = 0
    for sign, folder in ((1, preference.folder_of(run, "token", "msa", 0.1, 1)), (-1, run.experiment("token", 1))):
        model = load_adapter(knobs, run, folder / "adapter").eval()
        odds = [response_logp(model, tokenizer, [row["prompt"] for row in rows], [row[key] for row in rows]) for key in ("chosen", "rejected")]
        gain = gain + sign * (odds[0] - odds[1])
    assert [row["margin"] for row in record["dev"]] == pytest.approx(list(0.1 * gain), abs=0.02)


def test_a_finished_alignment_is_read_and_a_killed_one_resumes(smoke, monkeypatch):
    knobs, run, _ = smoke
    record = align(knobs, run, "token", "msa", 0.1, 1)
    monkeypatch.setattr(preference, "dev_rewards", lambda *_: pytest.fail("trained again"))
    assert align(knobs, run, "token", "msa", 0.1, 1) == record
    with pytest.raises(pytest.fail.Exception):  # killed after training, before its result was written
        align(knobs, run, "token", "msa", 0.2, 1)
    seen = []
    monkeypatch.setattr(preference, "dev_rewards", dev_rewards)
    monkeypatch.setattr(preference, "last_checkpoint", lambda work, real=preference.last_checkpoint: seen.append(real(work)) or seen[-1])
    resumed = align(knobs, run, "token", "msa", 0.2, 1)
    assert seen[0] and resumed["steps"] == record["steps"]
    margins = np.array([row["margin"] for row in resumed["dev"]])
    assert np.isfinite(margins).all() and (margins != 0).any()


def test_missing_inputs_name_their_chapter(smoke):
    knobs, run, _ = smoke
    with pytest.raises(UserError, match="06_lora_sft"):
        align(knobs, run, "token", "msa", 0.1, 7)
    with pytest.raises(UserError, match="07_sampling"):
        answers_before(knobs, run, "token", 1)
