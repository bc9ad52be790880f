"""The global pool of chapter 02 in two stages, for more items than one machine can take, as a pipeline of `datatrove`.

Stage one: every shard goes through a pool of its own, shards side by side. Stage two: what they keep goes through one pool, in the
order of all items, which finds the repetitions across shards. No two items of the result are near each other.

It is the global pool exactly when no shard removes an item that the global pool keeps: then both pools hold the same members
whenever stage two decides, so it decides alike. A shard can remove such an item: t repeats u of its shard, u repeats v of another
shard, and t does not repeat v. Then u goes in stage two, t was gone before, and what repeats t only may stay. It cannot happen in
one shard, nor where whatever is linked by repetitions lies in one shard, nor where repeating is transitive, as with exact copies.

`exact` mends it: a shard marks what it would remove with the item that it repeats, and stage two looks again at marked items whose
mark did not stay. Stage two then reads every item, but searches only for few more. Either way it holds all that is kept in one
memory: what the shards save is the search for what they remove.
"""

import heapq
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from .dedup import GreedyPool
from .files import UserError, fingerprint, write_jsonl
from .self_instruct import pool_words

ROW = ("id", "instruction", "input", "position")


class KeyedPool:
    """A `GreedyPool` whose members have keys."""

    def __init__(self, threshold=0.7):
        self.pool, self.keys, self.members = GreedyPool(threshold), [], set()

    def add(self, key, words, mark=None):
        """Return None when the text (a list of words) joins, else the key of a member that it repeats.

        `mark` is a key that the text is known to repeat: when that is a member, nothing is searched.
        """
        if mark in self.members:
            return mark
        near = self.pool.add(words)
        if near is not None:
            return self.keys[near]
        self.keys.append(key)
        self.members.add(key)
        return None


# ---- in memory, to compare ------------------------------------------------------------------------------------------

def shard_numbers(size, shards, seed=None):
    """Return the shard of each of `size` items, shards of equal size: blocks in order, or drawn at random when there is a seed."""
    blocks = np.arange(size) * shards // max(1, size)
    return blocks if seed is None else np.random.default_rng([seed, shards]).permutation(blocks)


def in_shards(lists, shard_of, threshold=0.7):
    """Return per text (a list of words) None when the pool of its shard keeps it, else the position of the text that it repeats there."""
    pools = defaultdict(partial(KeyedPool, threshold))
    return [pools[shard].add(position, words) for position, (words, shard) in enumerate(zip(lists, shard_of))]


def after_shards(lists, marks, threshold=0.7, exact=False):
    """Return the positions that one pool keeps of what the shards left, by the marks of `in_shards`; with `exact`, of all."""
    pool = KeyedPool(threshold)
    return [i for i, mark in enumerate(marks) if (exact or mark is None) and pool.add(i, lists[i], mark) is None]


def compare_shards(items, counts, threshold=0.7, orders=(("blocks", None), ("random", 0))):
    """Return a row per order (name, seed) and number of shards: repetitions that the shards leave, and how two stages differ from one pool.

    lost: items of the one pool that two stages do not keep; kept instead: the other way round.
    """
    lists, rows = [pool_words(item) for item in items], []
    whole = _kept(in_shards(lists, [0] * len(lists), threshold))
    for order, seed in orders:
        for shards in counts:
            marks = in_shards(lists, shard_numbers(len(lists), shards, seed), threshold)
            left = _kept(marks)
            kept = whole if whole <= left else set(after_shards(lists, marks, threshold))  # they are then the same, without the work
            rows.append({"shards are": order, "shards": shards, "n": len(lists), "one pool": len(whole), "after the shards": len(left),
                         "repetitions left": len(left) - len(kept), "two stages": len(kept), "lost": len(whole - kept), "kept instead": len(kept - whole)})
    return rows


def _kept(marks):
    return {position for position, mark in enumerate(marks) if mark is None}


# ---- on disk, with datatrove ----------------------------------------------------------------------------------------

def write_shards(items, folder, shards, seed=None):
    """Write items as shards 00000.jsonl, 00001.jsonl, …, each row with its `position` among all; return the folder.

    Blocks in order, or drawn at random when there is a seed. Raises UserError when the folder holds other files.
    """
    folder, rows = Path(folder), defaultdict(list)
    for position, (item, shard) in enumerate(zip(items, shard_numbers(len(items), shards, seed))):
        rows[f"{shard:05d}.jsonl"].append({**item, "position": position})
    others = sorted(path.name for path in folder.glob("*") if path.name not in rows)
    if others:
        raise UserError(f"{folder} holds {others[0]}, which is none of these {shards} shards; name a new folder, or remove what is there.")
    for name, some in rows.items():
        write_jsonl(folder / name, some)
    return folder


def pool_step(data, rank, world_size, threshold, mark):
    """Yield the documents whose items join one pool; with `mark` the others too, each with the position that it `repeats`."""
    pool, last = KeyedPool(threshold), -1
    for document in data:
        item = document.metadata
        if item["position"] <= last:
            raise UserError(f"item {item['id']}: its position {item['position']} stands after {last}; within a shard positions must rise.")
        last = item["position"]
        near = pool.add(last, pool_words(item), item.pop("repeats", None))
        if near is not None:
            item["repeats"] = near
        if near is None or mark:
            yield document


def in_order(data, rank, world_size, reader):
    """Yield the documents of all files of a reader, each in order of position, in the order of all."""
    yield from heapq.merge(*map(reader.read_file, reader.data_folder.list_files()), key=lambda document: document.metadata["position"])


def pool_executor(shards, folder, threshold=0.7, exact=False, workers=2, slurm=None):
    """Return (executor, path): datatrove's executor, whose `run()` does both stages, and the file of what is kept.

    `shards` is a folder of `write_shards`, with one task per file. Without `slurm` the tasks run on this machine, so many workers at a
    time; with it (settings of datatrove's SlurmPipelineExecutor: time, partition, …) `run()` submits two jobs, the second waiting for the
    first. Finished tasks are not run again; other shards or settings get another subfolder of `folder`.
    """
    shards = Path(shards)
    tasks = len(list(shards.glob("*.jsonl")))
    if not tasks:
        raise UserError(f"{shards} holds no .jsonl file; `write_shards` makes the shards.")
    missing = [name for name in ("time", "partition") if slurm is not None and name not in slurm]
    if missing:
        raise UserError(f"slurm = {slurm} lacks {missing[0]!r}; it needs time and partition, for example {{'time': '04:00:00', 'partition': 'cpu'}}.")
    root = Path(folder) / fingerprint({"threshold": threshold, "exact": exact}, [shards])
    try:
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter

        first, second = (JsonlReader(str(path), adapter=_to_document, add_file_path=False, glob_pattern="*.jsonl") for path in (shards, root / "shards"))
        shard_writer, pool_writer = (JsonlWriter(str(root / stage), compression=None, adapter=_to_row) for stage in ("shards", "pool"))
    except ImportError:
        raise UserError("a pool in shards needs the packages datatrove and orjson: pip install 'dialectbook[scale]'.") from None

    def executor(stage, tasks, pipeline, depends=None):
        settings = {"pipeline": pipeline, "tasks": tasks, "depends": depends, "logging_dir": str(root / "logs" / stage)}
        if slurm is None:
            return LocalPipelineExecutor(**settings, workers=min(workers, tasks))
        return SlurmPipelineExecutor(**settings, **{"job_name": f"dialectbook-{stage}", **slurm})

    stage_one = executor("shards", tasks, [first, partial(pool_step, threshold=threshold, mark=exact), shard_writer])
    stage_two = [partial(in_order, reader=second), partial(pool_step, threshold=threshold, mark=False), pool_writer]
    return executor("pool", 1, stage_two, stage_one), root / "pool/00000.jsonl"


def _to_document(_, row, path, line):
    missing = [key for key in ROW if key not in row]
    if missing:
        raise UserError(f"{path}, line {line + 1}: the key {missing[0]!r} is missing; a row of a shard needs {', '.join(ROW)}.")
    return {"id": row["id"], "text": f"{row['instruction']} {row['input']}", "metadata": row}


def _to_row(_, document):
    return document.metadata
