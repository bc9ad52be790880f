"""The global pool in two stages: when it is the global pool and when not, and the pipeline run for real, stopped, and resumed."""

import builtins
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialectbook import pool_pipeline, self_instruct
from dialectbook.dedup import rouge_l
from dialectbook.files import UserError, read_jsonl
from dialectbook.pool_pipeline import after_shards, compare_shards, in_shards, pool_executor, shard_numbers, write_shards

CHAIN = ["كيف اطبخ رز البرياني اليوم", "اطبخ رز البرياني اليوم بسرعة", "رز البرياني اليوم بسرعة لضيوفي", "البرياني اليوم بسرعة لضيوفي الكرام"]  # each repeats its neighbours only
SLURM = {"time": "01:00:00", "partition": "cpu", "venv_path": "env/bin/activate", "mem_per_cpu_gb": 4}


def near(first, second, threshold=0.7):
    return rouge_l(first, second) >= threshold - 1e-12


def items_of(texts):
    return [{"id": f"x-{i}", "task": "qa", "instruction": text, "input": "", "output": "طيب"} for i, text in enumerate(texts)]


def in_stages(lists, shard_of, threshold=0.7, exact=False):
    """The positions that the shards leave, and those that both stages keep."""
    marks = in_shards(lists, shard_of, threshold)
    return [i for i, mark in enumerate(marks) if mark is None], after_shards(lists, marks, threshold, exact)


def kept_by(executor, path):
    executor.run()
    return [row["position"] for row in read_jsonl(path)]


# ---- what two stages keep ------------------------------------------------------------------------------------------

def test_a_chain_of_repetitions_differs():
    """t repeats u, u repeats v of another shard: the shard drops t for u, stage two drops u for v, and the global pool would keep t."""
    lists = [text.split() for text in CHAIN]
    assert [near(lists[i], lists[j]) for i, j in ((0, 1), (1, 2), (2, 3), (0, 2), (0, 3), (1, 3))] == [True] * 3 + [False] * 3
    assert in_stages(lists, [0] * 4) == ([0, 2], [0, 2])
    assert in_stages(lists, [0, 1, 1, 0]) == ([0, 1, 3], [0, 3]), "2 is lost, and 3, which repeats 2 only, is kept instead"
    assert in_stages(lists, [0, 1, 1, 0], exact=True) == ([0, 1, 3], [0, 2])
    assert in_stages(lists, [0, 0, 1, 1])[1] == [0, 2], "in blocks this chain is safe"
    found = compare_shards(items_of(CHAIN), (1, 2), orders=[("blocks", None), *(("random", seed) for seed in range(20))])
    assert {(row["lost"], row["kept instead"]) for row in found if row["shards are"] == "blocks" or row["shards"] == 1} == {(0, 0)}
    assert (1, 1) in {(row["lost"], row["kept instead"]) for row in found} and {row["one pool"] for row in found} == {2}
    assert all(row["after the shards"] - row["repetitions left"] == row["two stages"] == 2 + row["kept instead"] - row["lost"] for row in found)


@given(texts=st.lists(st.lists(st.sampled_from("ابتجحدر"), max_size=8), max_size=30), numbers=st.lists(st.integers(0, 3), min_size=30, max_size=30),
       threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_when_two_stages_are_the_global_pool(texts, numbers, threshold):
    """Exactly when no shard removes what the global pool keeps; in any case nothing that is kept repeats anything kept, and `exact` is exact."""
    shard_of = numbers[:len(texts)]
    whole, again = in_stages(texts, [0] * len(texts), threshold)
    left, kept = in_stages(texts, shard_of, threshold)
    assert whole == again and (kept == whole) == (set(whole) <= set(left))
    assert not any(near(texts[i], texts[j], threshold) for i in kept for j in kept if i < j)
    assert in_stages(texts, shard_of, threshold, exact=True) == (left, whole)


@given(texts=st.lists(st.lists(st.sampled_from("ابتجحدر"), max_size=8), max_size=30), shards=st.integers(1, 4))
def test_linked_texts_in_one_shard_are_safe(texts, shards):
    """When whatever is linked by repetitions lies in one shard, the shards alone are the global pool; so are two stages on exact copies."""
    group = list(range(len(texts)))
    for i, words in enumerate(texts):
        for j in range(i):
            if near(words, texts[j]):
                old, new = group[i], group[j]
                group = [new if one == old else one for one in group]
    whole = in_stages(texts, [0] * len(texts))[0]
    assert in_stages(texts, [one % shards for one in group]) == (whole, whole)
    assert in_stages(texts, [i % shards for i in range(len(texts))], 1.0)[1] == in_stages(texts, [0] * len(texts), 1.0)[0]


def test_shards_are_equal_and_in_order():
    assert shard_numbers(10, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3] and shard_numbers(0, 4).tolist() == []
    drawn = shard_numbers(1000, 4, seed=0)
    assert sorted(drawn) == sorted(shard_numbers(1000, 4)) and drawn.tolist() == shard_numbers(1000, 4, seed=0).tolist() != shard_numbers(1000, 4).tolist()


# ---- the pipeline --------------------------------------------------------------------------------------------------

@pytest.fixture
def seeds():
    """The written seeds, every third again with a word more: repetitions in a shard and across shards."""
    seeds = self_instruct.load_seeds()
    return [*seeds, *({**seed, "id": seed["id"] + "-again", "instruction": seed["instruction"] + " طيب؟"} for seed in seeds[::3])]


@pytest.mark.parametrize("exact", [False, True])
def test_pipeline_on_this_machine(tmp_path, seeds, exact):
    """datatrove's local executor, two tasks at a time, keeps what the stages in memory keep, and the rows come out as they went in."""
    items = [*seeds, *items_of(CHAIN)]
    shards = write_shards(items, tmp_path / "shards", 2, seed=1)
    left, kept = in_stages([self_instruct.pool_words(item) for item in items], shard_numbers(len(items), 2, 1), exact=exact)
    executor, path = pool_executor(shards, tmp_path / "out", exact=exact)
    assert (executor.tasks, executor.depends.tasks, executor.depends.workers) == (1, 2, 2)
    assert kept_by(executor, path) == kept and len(kept) < len(left) < len(items)
    assert read_jsonl(path) == [{**items[i], "position": i} for i in kept]
    stats = json.loads((path.parents[1] / "logs/shards/stats.json").read_text(encoding="utf-8"))
    assert stats[0]["stats"]["doc_len"]["n"] == len(items), "datatrove's own count of what was read"


def test_spellings_are_folded(tmp_path):
    """The pipeline compares as chapter 02 does: أ is ا, ة is ه, instruction and input together."""
    items = items_of(["أبغى أروح المدرسة بدري اليوم", "ابغي اروح المدرسه بدري اليوم", "صنفها", "صنفها"])
    items[2]["input"], items[3]["input"] = "المطعم زحمة بس الأكل يستاهل", "التوصيل تأخر وجاني بارد مرة"
    executor, path = pool_executor(write_shards(items, tmp_path / "shards", 2), tmp_path / "out", workers=1)
    assert kept_by(executor, path) == [0, 2, 3]


def test_a_run_that_stops_goes_on(tmp_path, seeds, monkeypatch):
    """The second shard fails halfway: the next run leaves the first shard as it is, does the second and then the pool, and a third run does nothing."""
    shards = write_shards(seeds, tmp_path / "shards", 2)
    executor, path = pool_executor(shards, tmp_path / "out", workers=1)
    real, calls = pool_pipeline.KeyedPool.add, []

    def failing(pool, *row):
        calls.append(row)
        if len(calls) > len(seeds) * 3 // 4:
            raise MemoryError("no room")
        return real(pool, *row)

    monkeypatch.setattr(pool_pipeline.KeyedPool, "add", failing)
    with pytest.raises(MemoryError):
        executor.run()
    monkeypatch.setattr(pool_pipeline.KeyedPool, "add", lambda pool, *row: calls.append(row) or real(pool, *row))
    first, second = (path.parents[1] / f"shards/{rank:05d}.jsonl" for rank in range(2))
    before = first.stat().st_mtime_ns
    assert second.exists() and len(read_jsonl(second)) < len(read_jsonl(first)) and not path.exists()
    calls.clear()
    kept = kept_by(*pool_executor(shards, tmp_path / "out", workers=1))
    assert first.stat().st_mtime_ns == before and len(calls) == len(seeds) // 2 + len(read_jsonl(first)) + len(read_jsonl(second))
    assert kept == in_stages([self_instruct.pool_words(item) for item in seeds], shard_numbers(len(seeds), 2))[1]
    calls.clear()
    assert kept_by(*pool_executor(shards, tmp_path / "out", workers=1)) == kept and calls == []
    assert pool_executor(shards, tmp_path / "out", threshold=0.9)[1] != path, "another threshold is another result"


def test_slurm_settings(tmp_path, seeds):
    """Two array jobs, the second after the first, with the settings given; nothing is submitted here."""
    shards = write_shards(seeds, tmp_path / "shards", 4)
    executor, _ = pool_executor(shards, tmp_path / "out", slurm=SLURM | {"workers": 3})
    for job, name, tasks in ((executor.depends, "dialectbook-shards", 4), (executor, "dialectbook-pool", 1)):
        sent = job.get_sbatch_args(tasks)
        assert type(job).__name__ == "SlurmPipelineExecutor" and job.tasks == tasks and job.skip_completed
        assert (sent["job-name"], sent["time"], sent["partition"], sent["mem-per-cpu"], sent["array"]) == (name, "01:00:00", "cpu", "4G", f"0-{tasks - 1}%3")
        assert "source env/bin/activate" in job.get_launch_file_contents(sent, "true")
    executor.depends_job_id = "17"
    assert executor.dependency == "afterok:17", "the pool waits until every shard has ended well"


# ---- mistakes ------------------------------------------------------------------------------------------------------

def test_mistakes_are_one_sentence(tmp_path, seeds, monkeypatch):
    shards = write_shards(seeds, tmp_path / "shards", 2)
    with pytest.raises(UserError, match="lacks 'partition'"):
        pool_executor(shards, tmp_path / "out", slurm={"time": "01:00:00"})
    with pytest.raises(UserError, match="holds no .jsonl file"):
        pool_executor(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="holds 00001.jsonl, which is none of these 1 shards"):
        write_shards(seeds, shards, 1)
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: real("no_such_package" if name.startswith("datatrove") else name, *rest))
    with pytest.raises(UserError, match=r"pip install 'dialectbook\[scale\]'"):
        pool_executor(shards, tmp_path / "out")


@pytest.mark.parametrize(("change", "words"), [({"position": 0}, "positions must rise"), ({"input": None}, "the key 'input' is missing")])
def test_rows_that_are_no_shard(tmp_path, change, words):
    """Shards made by hand may lack a key or be in another order: the task stops and says so."""
    shards = write_shards(items_of(CHAIN), tmp_path / "shards", 1)
    rows = read_jsonl(shards / "00000.jsonl")
    rows[2] = {key: value for key, value in (rows[2] | change).items() if value is not None}
    (shards / "00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        pool_executor(shards, tmp_path / "out", workers=1)[0].run()
