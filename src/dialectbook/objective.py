"""Objective metrics per task, chapter 15: exact match, token F1, chrF++ and BERTScore on written items that no model has read.

Exact match and token F1 are those of SQuAD (Rajpurkar and others 2016) with a normalisation for Arabic, `answer_words`.
"""

import re
import unicodedata
from collections import Counter

import numpy as np

from .data import DIALECTS, INVISIBLE, clean_text, format_prompt, load_split
from .dedup import highest_rouge_l, words_of
from .files import UserError
from .judge import load_dialect_judge, load_region_judge
from .metrics import chrf_per_answer
from .model import identity_of, load_base, load_tokenizer, load_tuned
from .sample import sample_responses
from .self_instruct import TASKS, Loop, Pools, collect, dialect_judge, load_seeds, pool_words, recorded_teacher
from .stats import wilson

EXPERIMENTS = ("base", "no_token", "token")
COMPARED = (("base", "token"), ("no_token", "token"))
METRICS = {"exact match": "share", "token F1": "0 to 1", "chrF++": "0 to 100, per answer", "BERTScore": "raw F1"}
CLASSED = ("classification", "sentiment")  # tasks whose instruction offers the classes
CLASS_SHARES = ("names a class", "right class alone")
SHARES = ("exact match", *CLASS_SHARES)
FLOOR = "another item's answer"
FOLD = str.maketrans("٠١٢٣٤٥٦٧٨٩ىةٱ", "0123456789يها")


# ---- metrics, one value per answer ---------------------------------------------------------------------------------

def answer_words(text):
    """Return the words that exact match and token F1 compare: what people spell at will is folded together.

    Lower case, without punctuation (which separates words), diacritics, hamza and madda on letters, tatweel and invisible
    marks; ى as ي, ة as ه, Arabic digits as 0 to 9; without a, an and the, as SQuAD does. The Arabic article is a part of
    its word and stays.

    >>> answer_words("الإجابةُ: ١٢ ريالاً!")
    ['الاجابه', '12', 'ريالا']
    """
    letters = [one for one in unicodedata.normalize("NFKD", INVISIBLE.sub("", text)) if not unicodedata.combining(one)]
    return [word for word in words_of("".join(letters).translate(FOLD)) if word not in ("a", "an", "the")]


def exact_match(predictions, references):
    """Return per text 1 if its `answer_words` are those of its reference, else 0."""
    return np.array([float(answer_words(p) == answer_words(r)) for p, r in zip(predictions, references)])


def token_f1(predictions, references):
    """Return per text the F1 of the words it shares with its reference, 0 to 1; 1 if both have none."""
    return np.array([_f1(answer_words(p), answer_words(r)) for p, r in zip(predictions, references)])


def _f1(words, wanted):
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if words or wanted else 1.0


def metrics_of(bertscore):
    """Return name -> function(predictions, references) with one value per text, for each of METRICS; takes a BertScorer."""
    return dict(zip(METRICS, (exact_match, token_f1, chrf_per_answer, bertscore)))


# ---- classes ---------------------------------------------------------------------------------------------------------

def offered_classes(item):
    """Return the classes that an instruction offers, as tuples of `answer_words`, or [] when the right one is not among them.

    They stand after its last colon or question mark, separated by ولا or a comma; without such a mark the first class is the
    last word of its part.

    >>> offered_classes({"instruction": "صنّف الرسالة: شكوى ولا شكر", "output": "شكر"})
    [('شكوي',), ('شكر',)]
    """
    parts = re.split("[:؟]", item["instruction"].strip(" ؟.!"))
    offered = re.split(r"\s+ولا\s+|،", parts[-1])
    if len(parts) == 1:
        offered[0] = (offered[0].split() or [""])[-1]
    classes = [tuple(answer_words(one)) for one in offered]
    return classes if len(classes) > 1 and all(classes) and tuple(answer_words(item["output"])) in classes else []


def named_classes(text, classes):
    """Return the set of classes whose words stand in a text one after the other; the longest counts where one holds another."""
    words, named, place = answer_words(text), set(), 0
    while place < len(words):
        here = max((one for one in classes if tuple(words[place:place + len(one)]) == one), key=len, default=None)
        named |= {here} if here else set()
        place += len(here) if here else 1
    return named


def class_scores(texts, items):
    """Return per answer whether it names an offered class at all, and whether it names the right one and no other (0 or 1)."""
    named = [named_classes(text, offered_classes(item)) for text, item in zip(texts, items)]
    right = [{tuple(answer_words(item["output"]))} for item in items]
    return {"names a class": np.array([float(bool(some)) for some in named]),
            "right class alone": np.array([float(some == one) for some, one in zip(named, right)])}


def class_baselines(items):
    """Return per task with classes what exact match is without reading the text: a random offered class, the commonest answer.

    The commonest answer is taken from these items themselves, which flatters it.
    """
    rows = []
    for task in CLASSED:
        mine = [item for item in items if item["task"] == task]
        answer, count = Counter(item["output"] for item in mine).most_common(1)[0]
        rows.append({"task": task, "items": len(mine),
                     "random class": float(np.mean([1 / len(offered_classes(item)) for item in mine])), "commonest": answer,
                     "commonest answer": wilson(count, len(mine))})
    return rows


# ---- the items -------------------------------------------------------------------------------------------------------

def question_of(item):
    """Return what a model is asked: the instruction, and the input on a line of its own."""
    return f"{item['instruction']}\n{item['input']}".strip()


def training_questions(knobs, run):
    """Return every instruction that models were trained or chosen on, in the dialects and in MSA (train and dev splits)."""
    pairs = load_split(run, "train") + load_split(run, "dev")
    return sorted({pair[key] for pair in pairs for key in ("instruction", "instruction_msa")})


def nearest_training(knobs, run, items):
    """Return per item the highest ROUGE-L (spellings folded) of its question with any training instruction."""
    known = [pool_words({"instruction": text, "input": ""}) for text in training_questions(knobs, run)]
    return highest_rouge_l([pool_words(item) for item in items], known)


def recorded_loops(knobs, run):
    """Return prompt -> the loop of chapter 02 after all recorded answers to it."""
    judge, loops = dialect_judge(load_region_judge(knobs, run), load_dialect_judge(run)), {}
    for prompt in ("own", "one"):
        loops[prompt] = Loop(load_seeds(), judge, knobs, prompt)
        collect(loops[prompt], *recorded_teacher(prompt))
    return loops


def held_out_items(knobs, run, loops):
    """Return the items, equally many of each task and dialect: written seeds, then what the loops (`recorded_loops`) kept.

    `objective_items` of each, or as many as every one has (0). An item is left out when it repeats a training instruction or an
    earlier item (ROUGE-L), or when its task has classes and its instruction does not offer the right one.
    """
    found = load_seeds() + [{**item, "id": f"{prompt}-{item['id']}"} for prompt, loop in loops.items() for item in loop.kept]
    near, pools = nearest_training(knobs, run, found), Pools([], knobs.rouge_l_threshold)
    cells = {(task, dialect): [] for task in TASKS for dialect in DIALECTS}
    for item, rouge in zip(found, near):
        scored = item["task"] not in CLASSED or offered_classes(item)
        if rouge < knobs.rouge_l_threshold - 1e-9 and scored and pools.add(item) is None:
            texts = {part: clean_text(item[part], knobs.keep_diacritics) for part in ("instruction", "input", "output")}
            cells[item["task"], item["dialect"]].append({key: item[key] for key in ("id", "task", "dialect")} | texts)
    most = min(map(len, cells.values()))
    if knobs.objective_items == 1 or knobs.objective_items > most:
        raise UserError(f"objective_items = {knobs.objective_items} is not allowed: each task and dialect has {most} items; "
                        f"write a number from 2 to {most}, or 0 for all of these.")
    return [item for some in cells.values() for item in some[:knobs.objective_items or most]]


def second_answers(loops):
    """Return pairs of answers to one free question: that of an item left out since it repeats another, and that of the other.

    Both are of one task and dialect, and their questions are the same up to the pool's threshold: now and then a word that
    matters differs. They are as near to a second reference as the data comes.
    """
    pairs = []
    for loop in loops.values():
        known = {item["id"]: item for item in [*loop.seeds, *loop.kept]}
        for item in loop.candidates:
            near = known[item["near"]] if item["reason"] == "repeats the pool" else None
            if near and item["task"] not in CLASSED and (item["task"], item["dialect"]) == (near["task"], near["dialect"]):
                first, second = (clean_text(one["output"], loop.knobs.keep_diacritics) for one in (near, item))
                pairs.append({"label": "two answers to one question", "first": first, "second": second,
                              "question": question_of(near), "asked again": question_of(item)})
    return pairs


def other_answers(items):
    """Return per item the reference of another item of its task and dialect: what a metric gives to the mere kind of text."""
    cells = {}
    for item in items:
        cells.setdefault((item["task"], item["dialect"]), []).append(item)
    following = {item["id"]: after["output"] for some in cells.values() for item, after in zip(some, [*some[1:], some[0]])}
    return [following[item["id"]] for item in items]


# ---- answers and scores ----------------------------------------------------------------------------------------------

def rows_of(items, tag):
    """Return the items as rows of `sample.sample_responses`: one prompt each, with the experiment's tag, and the reference."""
    return [{"scenario_id": item["id"], "dialect": item["dialect"], "task": item["task"], "instruction_kind": "dialect",
             "topic": "", "length": "", "names_dialect": bool(re.search("حجاز|نجد", item["instruction"])),
             "prompt": format_prompt(question_of(item), item["dialect"], tag), "response": item["output"]} for item in items]


def answers_of(knobs, run, experiment, seed, items):
    """Return the experiment's answers to the items, sampled as in chapter 07; kept answers are not sampled again."""
    model = load_tuned(knobs, run, experiment, seed) if knobs.tune else load_base(knobs, run).eval()
    rows = sample_responses(model, load_tokenizer(knobs, run), rows_of(items, knobs.tag_test), knobs,
                            run.root / "objective" / experiment / f"seed-{seed}", seed, identity_of(knobs, run, experiment, seed))
    return [row["prediction"] for row in rows]


def run_all(knobs_of, run, items, metrics):
    """Return experiment -> {"texts", and each metric as an array}, rows being seeds and columns items; and the same of FLOOR.

    `knobs_of` has the knobs of each experiment, `metrics` is made by `metrics_of`.
    """
    texts = {name: [answers_of(knobs, run, name, seed, items) for seed in knobs.seeds] for name, knobs in knobs_of.items()}
    texts[FLOOR], references = [other_answers(items)], [item["output"] for item in items]
    results = {}
    for name, some in texts.items():
        scores = [{metric: score(t, references) for metric, score in metrics.items()} | class_scores(t, items) for t in some]
        results[name] = {"texts": some, **{metric: np.array([one[metric] for one in scores]) for metric in scores[0]}}
    return results
