"""English retention, chapter 13: EleutherAI's lm-eval harness on the project's own English items, or on public benchmarks, by one call.

Items come from scenarios of the dev and test split, so no model of the run has read them.
"""

import random
import re

from .data import curate, load_pool, load_split
from .files import UserError, write_jsonl, write_text
from .hardware import detect

LOCAL = ("english_order", "english_cloze")
TASKS = (*LOCAL, "arc_challenge", "hellaswag", "mmlu")
SENTENCE = re.compile(r"[A-Z][^.!?:;\"“”]+[.!?]")
WORD = re.compile(r"[A-Za-z]{4,}(?=[.!?]$)")


def english_items(scenarios, ids, count, seed):
    """Return {"english_order", "english_cloze"} -> items of question, choices, label, scenario_id; `count` at most of both together.

    From the longest sentence of each English answer. order: the sentence among three in which two neighbouring words changed
    places. cloze: its last word among the last words of three others. A guess is right in one of four.
    """
    rng, own = random.Random(seed), sorted((s for s in scenarios if s["id"] in ids and "english" in s), key=lambda s: s["id"])
    rng.shuffle(own)
    longest = {s["id"]: max(SENTENCE.findall(s["english"]["response"]), key=len, default="") for s in own}
    last = {name: WORD.search(sentence).group() for name, sentence in longest.items() if WORD.search(sentence)}
    order, cloze = [], []
    for name, sentence in longest.items():
        words = sentence.split()
        changed = {" ".join([*words[:i], words[i + 1], words[i], *words[i + 2:]]) for i in range(1, len(words) - 2)} - {sentence}
        if len(changed) >= 3:
            order.append(_item(name, "", sentence, rng.sample(sorted(changed), 3), rng))
        if name in last and len(words) > 4:
            wrong = rng.sample(sorted(set(last.values()) - {last[name]}), 3)
            cloze.append(_item(name, " ".join(words[:-1]), last[name], wrong, rng))
    order = order[:max(count // 2, count - len(cloze))]
    return {"english_order": order, "english_cloze": cloze[:count - len(order)]}


def _item(scenario_id, question, right, wrong, rng):
    choices = rng.sample([right, *wrong], 4)
    return {"scenario_id": scenario_id, "question": question, "choices": choices, "label": choices.index(right)}


def write_tasks(knobs, run):
    """Return the folder of lm-eval task files (YAML and items) of the project's own English items, made anew each time."""
    import yaml

    scenarios, _ = curate(load_pool(), knobs)
    ids = {pair["scenario_id"] for split in ("dev", "test") for pair in load_split(run, split)}
    folder = run.root / "english_items"
    for name, items in english_items(scenarios, ids, knobs.retention_items, knobs.data_seed).items():
        data = write_jsonl(folder / f"{name}.jsonl", items)
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
                "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "label",
                "target_delimiter": "" if name == "english_order" else " ",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                "metadata": {"version": 1.0}}
        write_text(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))
    return folder


def retention(model, tokenizer, tasks, folder, limit=None):
    """Return task -> [{"right": 0 or 1, "group"}] per item: lm-eval's plain accuracy (acc), zero-shot.

    Items of one scenario are one group. `folder` holds local task files (`write_tasks`); public tasks are downloaded by lm-eval, which asks
    the first part of each, `limit` of it (None: all).
    """
    import contextlib
    import io

    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("chapter 13 needs the package lm-eval: pip install 'lm-eval[hf]'.") from None
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise UserError(f"retention_tasks has {unknown[0]!r}; choose from {', '.join(TASKS)}.")
    manager = TaskManager(include_path=str(folder), include_defaults=any(task not in LOCAL for task in tasks))
    with contextlib.redirect_stderr(io.StringIO()):  # a bar per model is enough, and lm-eval draws three
        found = simple_evaluate(model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8 if detect().gpu else 32), tasks=list(tasks), task_manager=manager,
                                limit=limit, bootstrap_iters=0, log_samples=True, random_seed=0, numpy_random_seed=0,
                                torch_random_seed=0)
    scores = {task: [] for task in tasks}
    for name, samples in found["samples"].items():
        task = next(task for task in tasks if name == task or name.startswith(task + "_"))
        scores[task] += [{"right": float(sample["acc"]), "group": sample["doc"].get("scenario_id") or f"{name}-{sample['doc_id']}"}
                         for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    return scores
