"""What can be wrong with an answer, by rule: the error analysis of chapter 09 (the paper, section V-F, names some and counts none)."""

import re
from collections import Counter

from .data import DIALECTS
from .dedup import rouge_l, words_of
from .metrics import ECHO

RULES = {
    "MSA leak": "the judge labels the answer MSA",
    "wrong dialect": "the judge gives it the other Saudi dialect",
    "other region": "the judge gives it another region's dialect",
    "other script": "most of its letters are not Arabic",
    "repetition loop": "three words in a row occur three times or more, or one word four times in a row",
    "echo": "it holds a tag or a heading of the template, or repeats the instruction (ROUGE-L of 0.7 or more)",
    "over-long": "it ran into the limit of tokens without an end, or has more than three times the words of its reference",
    "empty": "it has no word",
}
HEADING = re.compile(r"###\s*(?:Instruction|Response)")


def failures(rows, produced):
    """Return rule -> a list of yes/no, one per row of predictions.jsonl; `produced` are the judged labels (`judge.judged_dialect`).

    An answer can break several rules; an empty one breaks only that one.
    """
    found = {rule: [] for rule in RULES}
    for row, label in zip(rows, produced):
        text = row["prediction"]
        words = words_of(text)
        broken = {
            "MSA leak": label == "MSA", "wrong dialect": label in DIALECTS and label != row["dialect"],
            "other region": label in ("LEV", "EGY", "MAGH"), "other script": label == "OTHER", "repetition loop": loops(words),
            "echo": bool(ECHO.search(text) or HEADING.search(text)) or rouge_l(words, words_of(instruction_of(row["prompt"]))) >= 0.7,
            "over-long": row["cut"] or len(text.split()) > 3 * len(row["reference"].split()), "empty": False,
        } if words else {**dict.fromkeys(RULES, False), "empty": True}
        for rule in RULES:
            found[rule].append(bool(broken[rule]))
    return found


def loops(words):
    """Return whether a list of words repeats itself: a trigram three times or more, or one word four times in a row."""
    trigrams = Counter(zip(words, words[1:], words[2:]))
    return bool(trigrams) and max(trigrams.values()) >= 3 or any(len(set(words[i:i + 4])) == 1 for i in range(len(words) - 3))


def instruction_of(prompt):
    """Return the instruction inside a prompt of `data.format_prompt`, without its tag."""
    return ECHO.sub("", prompt.removeprefix("### Instruction:\n").split("\n\n### Response:")[0])
