"""Self-instruct with one global pool (Alif), chapter 02: ask a teacher for tasks, read its answers, keep what is good and new.

A `Loop` makes requests and takes answers; `collect` runs it with a teacher (`teacher.api_teacher`, or the recorded answers). What a
teacher writes is data: it is cleaned and filtered, never executed.
"""

import random
import re

from .data import DIACRITICS, DIALECTS, clean_text
from .dedup import GreedyPool, words_of
from .files import read_jsonl, write_jsonl
from .judge import is_arabic, judged_dialect
from .knobs import read_yaml
from .paths import DATA
from .teacher import AnswerLog, ask_missing

FOLDER = DATA / "self_instruct"
TASKS = ("generation", "qa", "translation", "reasoning", "ethics", "classification", "sentiment")
PARTS = {"التعليمة": "instruction", "المدخل": "input", "الجواب": "output"}
START = re.compile(r"^[ \t]*\d+[ \t]*[.)-][ \t]*(?=(?:النوع|التعليمة)[ \t]*:)", re.MULTILINE)  # \d: also Arabic-Indic digits
LABEL = re.compile(r"^[ \t]*(النوع|التعليمة|المدخل|الجواب)[ \t]*:", re.MULTILINE)
CONTROL = re.compile(r"[<>{}\[\]|`\\]|https?:|www\.|###|(?:التعليمة|المدخل|الجواب|النوع)\s*:|\b(?:system|assistant|user)\s*:", re.IGNORECASE)
TO_MACHINES = re.compile(r"\b(?:تجاهل\w*|انس\w*) (?:كل )?(?:\w+ )?(?:التعليمات|الأوامر|ما سبق)|نموذج لغوي|ذكاء اصطناعي|\b(?:ignore|disregard) .{0,20}"
                         r"(?:instructions?|prompts?)|language model|system prompt", re.IGNORECASE)
BEYOND_TEXT = re.compile(r"\b(?:ال|لل|ب|ل)?(?:صورة|صور|فيديو|فيديوهات|مقطع|خريطة|ملف|رابط|لوحة|رسمة)\b|\bارسم\w*\b|\b(?:برنامج|كود) (?:ب|بلغة )?(?:بايثون|جافا|سي)")
FEWEST_WORDS = 3  # of instruction and input; the released code asks for 4 of the instruction, but Arabic writes "and-I-gave-it-to-him" as one word


# ---- what is asked --------------------------------------------------------------------------------------------------

def load_prompts():
    """Return the prompts as a dict: tasks, dialects, own (a prompt per task), one, form."""
    return read_yaml(FOLDER / "prompts.yaml")


def load_seeds():
    """Return the written seed examples: rows with id, task, dialect, instruction, input, output."""
    return read_jsonl(FOLDER / "seeds.jsonl", required=("id", "task", "dialect", "instruction", "input", "output"))


def make_plan(requests, prompt="own"):
    """Return (task, dialect, turn) for that many requests: dialects and tasks in turn; with one prompt for all the task is None."""
    kinds = [(task, dialect) for task in (TASKS if prompt == "own" else (None,)) for dialect in DIALECTS]
    return [(*kinds[number % len(kinds)], number // len(kinds)) for number in range(requests)]


def format_items(items, tasks=None):
    """Return items numbered from 1 in the form that a teacher must keep; `tasks` maps a task to its word, to name each item's."""
    kinds = [f"النوع: {tasks[item['task']]}\n" if tasks else "" for item in items]
    return "\n\n".join(f"{number}. {kind}" + "\n".join(f"{label}: {item[part]}".rstrip() for label, part in PARTS.items())
                       for number, (kind, item) in enumerate(zip(kinds, items), 1))


def recorded_teacher(prompt="own"):
    """Return a teacher that gives the answers shipped in data/, in order per task and dialect, and the plan that uses all of them."""
    answers = {}
    for row in read_jsonl(FOLDER / "answers.jsonl", required=("prompt", "task", "dialect", "model", "finish", "text")):
        if row["prompt"] == prompt:
            answers.setdefault((row["task"], row["dialect"]), []).append(row)

    def ask(request):
        row = answers[request["task"], request["dialect"]][request["turn"]]
        return {"text": row["text"], "finish": row["finish"], "prompt_tokens": 0, "completion_tokens": 0}  # not recorded

    return ask, make_plan(sum(map(len, answers.values())), prompt)


# ---- what is answered -----------------------------------------------------------------------------------------------

def parse(answer, request, tasks):
    """Return the candidates of an answer in order; each has a `reason` when its form already rules it out, else ''.

    `tasks` maps the word for a task to the task. The last item of an answer that ran out of tokens is dropped as truncated.
    """
    text = answer["text"] or ""
    marks = list(START.finditer(text))
    blocks = [text[mark.end():following.start() if following else len(text)] for mark, following in zip(marks, [*marks[1:], None])]
    found = []
    for place, block in enumerate(blocks or [text]):
        labels = list(LABEL.finditer(block))
        fields = {label.group(1): block[label.end():following.start() if following else len(block)]
                  for label, following in zip(labels, [*labels[1:], None])}
        task = request["task"] or tasks.get(clean_text(fields.get("النوع", "")))
        item = {part: clean_text(fields.get(label, "")) for label, part in PARTS.items()}
        whole = bool(blocks) and task and set(PARTS) <= set(fields) and len(labels) == len(fields)
        reason = "truncated" if answer["finish"] == "length" and place == max(0, len(blocks) - 1) else "" if whole else "malformed"
        found.append({"id": f"{request['number']}-{place}", "request": request["number"], "task": task, "dialect": request["dialect"], **item, "reason": reason}
                     | ({"text": clean_text(block)[:200]} if reason == "malformed" else {}))
    return found


def fault_of(item, max_words):
    """Return why an item is not kept, by its text alone, or ''."""
    asked = f"{item['instruction']} {item['input']}"
    every = f"{asked} {item['output']}"
    if CONTROL.search(every) or TO_MACHINES.search(every):
        return "markup or control text"
    if len(asked.split()) < FEWEST_WORDS or not words_of(item["instruction"]):
        return "too short"
    if max(len(item[part].split()) for part in item if part in PARTS.values()) > max_words:
        return "too long"
    if not words_of(item["output"]):
        return "no answer"
    if not item["instruction"][0].isalnum():
        return "begins with a mark"
    if BEYOND_TEXT.search(DIACRITICS.sub("", item["instruction"])):
        return "beyond text"
    return "" if is_arabic(item["instruction"]) and any(map(is_arabic, spoken(item))) else "not Arabic"


def spoken(item):
    """Return the texts of which one must be in the dialect: the whole item, but for translation either side of it."""
    sides = (item["output"], item["input"]) if item["task"] == "translation" else (f"{item['input']} {item['output']}",)
    return [f"{item['instruction']} {side}" for side in sides]


def pool_words(item):
    """Return the words by which items are compared: of instruction and input, with the spellings that people mix up folded together."""
    text = DIACRITICS.sub("", f"{item['instruction']} {item['input']}")
    return words_of(text.translate(str.maketrans("أإآىة", "ااايه")))


def dialect_judge(regions, dialects):
    """Return what a `Loop` asks about dialect: texts -> (labels, P(Saudi or Gulf) times P(dialect) with the columns DIALECTS)."""
    def judge(texts):
        region, dialect = regions.probabilities(texts), dialects.probabilities(texts)
        return judged_dialect(texts, region, dialect), region[:, [list(regions.labels).index("GLF")]] * dialect

    return judge


def probability_of(items, judge):
    """Return per item (how sure the judge is that it is in its dialect, the judge's label): the better of its `spoken` texts."""
    found = []
    if items:
        texts = [spoken(item) for item in items]
        answers = zip(*judge([text for some in texts for text in some]))
        for item, some in zip(items, texts):
            heard = [(float(shares[DIALECTS.index(item["dialect"])]), str(label)) for label, shares in (next(answers) for _ in some)]
            found.append((max(heard)[0], heard[0][1]))
    return found


class Pools:
    """One pool over all tasks (scope "global") or a pool per task ("task"); the seeds are in it from the beginning."""

    def __init__(self, seeds, threshold, scope="global"):
        self.threshold, self.scope, self.pools, self.items = threshold, scope, {}, {}
        for seed in seeds:
            self.add(seed)

    def find(self, item):
        """Return the item of its pool that this one repeats, or None."""
        key = "all" if self.scope == "global" else item["task"]
        near = self.pools[key].find(pool_words(item)) if key in self.pools else None
        return None if near is None else self.items[key][near]

    def add(self, item):
        """Return None when the item joins its pool, else the item there that it repeats."""
        key = "all" if self.scope == "global" else item["task"]
        near = self.pools.setdefault(key, GreedyPool(self.threshold)).add(pool_words(item))
        if near is None:
            self.items.setdefault(key, []).append(item)
        return None if near is None else self.items[key][near]


class Loop:
    """The state of a run, a function of the answers alone: candidates with their reasons, and what was kept.

    `judge` is made by `dialect_judge`. `forbidden` are items that nothing kept may repeat: the test split.
    """

    def __init__(self, seeds, judge, knobs, prompt="own", scope="global", forbidden=()):
        self.seeds, self.judge, self.knobs, self.prompt = seeds, judge, knobs, prompt
        self.prompts = load_prompts()
        self.pools = Pools(seeds, knobs.rouge_l_threshold, scope)
        self.forbidden = Pools(forbidden, knobs.rouge_l_threshold)
        self.candidates, self.kept = [], []

    def request(self, number, task, dialect, turn):
        """Return a request: its prompt has some written seeds and some kept items as examples, in random order.

        While too little is kept, written seeds stand in for the missing ones. The same state gives the same request.
        """
        knobs, rng = self.knobs, random.Random(f"{self.knobs.data_seed}-{number}")
        written, made = ([item for item in items if item["dialect"] == dialect and task in (None, item["task"])] for items in (self.seeds, self.kept))
        machine = min(knobs.instruct_machine_seeds, len(made))
        examples = rng.sample(written, min(len(written), knobs.instruct_human_seeds + knobs.instruct_machine_seeds - machine)) + rng.sample(made, machine)
        rng.shuffle(examples)
        template = self.prompts["own"][task] if task else self.prompts["one"]
        text = (template + self.prompts["form"]).format(items=knobs.instruct_items, dialect=self.prompts["dialects"][dialect])
        text += "\n" + format_items(examples, None if task else self.prompts["tasks"])
        return {"number": number, "task": task, "dialect": dialect, "turn": turn, "prompt": text}

    def take(self, request, answer):
        """Return the candidates of an answer, each with the reason why it is not kept, or ''; keep the others."""
        found = parse(answer, request, {word: task for task, word in self.prompts["tasks"].items()})
        for item in found:
            item["reason"] = item["reason"] or fault_of(item, self.knobs.instruct_max_words)
        clean = [item for item in found if not item["reason"]]
        for item, (probability, label) in zip(clean, probability_of(clean, self.judge)):
            if probability < self.knobs.instruct_judge_floor:
                item["reason"] = f"judged {label}" if label != item["dialect"] else "judged unsure"
            elif self.forbidden.find(item):
                item["reason"] = "repeats the test split"
            elif near := self.pools.add(item):
                item.update(reason="repeats the pool", near=near["id"], near_task=near["task"])
        self.candidates += found
        self.kept += [item for item in found if not item["reason"]]
        return found


# ---- running it -----------------------------------------------------------------------------------------------------

def collect(loop, teacher, plan, folder=None):
    """Run the loop over a plan (`make_plan`) and return its usage: requests, prompt_tokens, completion_tokens, usd, stopped.

    With a folder every answer is appended to answers.jsonl before it is used, and what is there is not asked again: a run that was
    killed goes on where it was, and a finished one asks nothing. Kept items are in kept.jsonl, all candidates in candidates.jsonl.
    Stops before a round of requests that would go beyond the budget.
    """
    knobs, log = loop.knobs, AnswerLog(folder)
    usage = {"requests": 0, "asked": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0, "stopped": ""}
    dearest = 0.0
    for start in range(0, len(plan), knobs.instruct_concurrency):
        if usage["usd"] + dearest > knobs.instruct_budget_usd:
            usage["stopped"] = f"the budget of {knobs.instruct_budget_usd} USD would be passed after {usage['requests']} of {len(plan)} requests"
            break
        batch = [loop.request(start + i, *one) for i, one in enumerate(plan[start:start + knobs.instruct_concurrency])]
        asked = ask_missing(teacher, log, batch, knobs.instruct_concurrency)
        before = usage["usd"]
        for request in batch:
            answer = log.answers[request["number"]]
            loop.take(request, answer)
            for key in ("prompt_tokens", "completion_tokens"):
                usage[key] += answer[key]
            usage["usd"] += (answer["prompt_tokens"] * knobs.teacher_usd_in + answer["completion_tokens"] * knobs.teacher_usd_out) / 1e6
        usage["requests"], usage["asked"] = usage["requests"] + len(batch), usage["asked"] + asked
        dearest = max(dearest, usage["usd"] - before)
    if folder:
        write_jsonl(folder / "candidates.jsonl", loop.candidates)
        write_jsonl(folder / "kept.jsonl", loop.kept)
    return usage
