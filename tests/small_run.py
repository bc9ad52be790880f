"""A run small enough for a test: splits, and a base that nobody has trained."""

import pytest

from dialectbook.data import split_scenarios, to_pairs
from dialectbook.files import mark_finished, write_jsonl
from dialectbook.model import build_twin, train_tokenizer
from dialectbook.paths import Run


def small_run(tmp_path_factory, knobs, scenarios):
    """Return (run, splits) of profile smoke in a folder of its own: the scenarios in three splits, and an untrained base of 600 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIALECTBOOK_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run("smoke")
    splits = split_scenarios(scenarios, knobs.split_shares, knobs.data_seed)
    for name, some in splits.items():
        write_jsonl(run.split(name), to_pairs(some))
    tokenizer = train_tokenizer([pair["response"] for pair in to_pairs(splits["train"])], 600)
    build_twin(knobs, tokenizer).save_pretrained(run.base)
    tokenizer.save_pretrained(run.base)
    mark_finished(run.base, "test")
    return run, splits
