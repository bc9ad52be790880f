"""Knobs and profiles: a typing mistake gets one sentence that names file, key, what was found and what is allowed."""

import re

import pytest

from dialectbook import hardware, knobs
from dialectbook.files import UserError
from dialectbook.hardware import Hardware, pick_profile
from dialectbook.knobs import load_knobs

CPU = Hardware("", 0.0, (0, 0), 2, 24.0)
A100 = Hardware("NVIDIA A100-SXM4-40GB", 39.6, (8, 0), 12, 80.0)
T4 = Hardware("Tesla T4", 15.0, (7, 5), 2, 12.0)


@pytest.mark.parametrize(("overrides", "message"), [
    ({"learnin_rate": 1.0e-3}, "overrides: 'learnin_rate' is no knob; did you mean 'learning_rate'"),
    ({"learning_rate": "2e-4"}, r"learning_rate = '2e-4' \(str\).*write it without quotes and with a point, e.g. 2.0e-04"),
    ({"num_epochs": 0}, "num_epochs = 0.*greater than or equal to 1"),
    ({"num_epochs": 1.5}, "num_epochs = 1.5"),
    ({"packing": "true"}, r"packing = 'true' \(str\)"),
    ({"instruction_kind_test": "msa"}, "'dialect', 'neutral' or 'mixed'"),
    ({"top_p": 1.2}, "less than or equal to 1"),
    ({"split_shares": [0.8, 0.1, 0.2]}, "sum to 1"),
    ({"topic_pairs": {"food_cooking": 3}}, "the key 'other'"),
    ({"twin_heads": 3}, "must divide twin_hidden_size"),
    ({"lora_targets": []}, "at least 1 item"),
    ({"seeds": []}, "at least 1 item")])
def test_wrong_knobs(overrides, message):
    """2e-4 in YAML is a text, and papermill only logs an unknown parameter."""
    with pytest.raises(UserError, match=message) as error:
        load_knobs("tiny", "", overrides)
    assert "\n" not in str(error.value)


def test_unknown_profile_and_experiment():
    with pytest.raises(UserError, match="profile 'tinny' is unknown; choose one of: auto, a100, laptop, smoke, t4, tiny"):
        pick_profile("tinny", CPU)
    with pytest.raises(UserError, match="experiment 'tokn' is unknown.*base, base_tagged, no_token, token"):
        load_knobs("tiny", "tokn")


def test_broken_yaml_is_named(tmp_path, monkeypatch):
    """A tab or an open bracket in a parameter file must be found by file and line."""
    (tmp_path / "paper.yaml").write_text("lora_r: {value: 32\nlora_alpha: 3\n")
    monkeypatch.setattr(knobs, "PARAMS", tmp_path)
    with pytest.raises(UserError, match=r"paper\.yaml, line 2: not valid YAML"):
        knobs.read_yaml(tmp_path / "paper.yaml")


def test_text_number_in_a_profile_file(tmp_path, monkeypatch):
    """The same mistake in a profile names the profile's file."""
    for path in knobs.PARAMS.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(re.sub(r"(\n  learning_rate: \{value: )\d\.\de-3", r"\g<1>3e-3", text), encoding="utf-8")
    monkeypatch.setattr(knobs, "PARAMS", tmp_path)
    with pytest.raises(UserError, match=r"tiny\.yaml: learning_rate = '3e-3'"):
        load_knobs("tiny")


def test_layers_of_values():
    """paper < profile < experiment < overrides, and the table says which."""
    chosen, table = load_knobs("tiny", "no_token", {"lora_r": 8})
    rows = {row["knob"]: row for row in table}
    assert (chosen.lora_r, chosen.tag_train, chosen.base_model, chosen.lora_alpha) == (8, "none", "twin", 64)
    assert rows["lora_r"]["paper"] == 32 and rows["lora_r"]["reason"] == "set by the reader"
    assert "experiment no_token" in rows["tag_train"]["reason"]


def test_asking_another_way_keeps_the_model():
    """An experiment that asks the same model otherwise must share its adapters and training settings."""
    known = knobs.experiments()
    assert known["token_swapped"]["model_of"] == "token" and known["token"]["model_of"] == "token"
    for name, entry in known.items():
        model, own = (load_knobs("tiny", one)[0] for one in (entry["model_of"], name))
        changed = {key for key in type(own).model_fields if getattr(own, key) != getattr(model, key)}
        assert changed <= {"tag_test", "sampling_round"} and bool(changed) == (entry["model_of"] != name), name


def test_unknown_model_of_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "experiments.yaml").write_text("a: {about: x, model_of: b, changes: {}}")
    monkeypatch.setattr(knobs, "PARAMS", tmp_path)
    with pytest.raises(UserError, match="model_of = 'b' of a is unknown; it must be one of a"):
        knobs.experiments()


def test_auto_picks_by_hardware():
    assert [pick_profile("auto", machine)[0] for machine in (CPU, T4, A100)] == ["tiny", "t4", "a100"]


def test_gpu_profile_without_gpu():
    """Asking for a100 on a laptop must fail at once, before anything is downloaded."""
    for name in hardware.GPU_PROFILES:
        with pytest.raises(UserError, match=f"profile '{name}' needs an NVIDIA GPU and none was found"):
            pick_profile(name, CPU)
    with pytest.raises(UserError, match="use profile 't4'"):
        pick_profile("a100", T4)


def test_published_parameter_counts():
    """The counts of the papers' logs, to the last digit, without memory."""
    from dialectbook.model import ALLAM_7B, LLAMA_31_8B, count_with_lora

    seven = load_knobs("a100")[0].lora_targets
    assert count_with_lora(ALLAM_7B, r=32, lora_alpha=64, target_modules=seven) == (7_000_559_616, 7_080_513_536, 79_953_920)
    assert count_with_lora(LLAMA_31_8B, r=128, lora_alpha=32, target_modules=seven, modules_to_save=["embed_tokens", "lm_head"]) == (
        8_030_261_248, 9_416_478_720, 1_386_217_472)
