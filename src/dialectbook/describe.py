"""Describing a dataset, chapter 01: frequent words, how far the two dialects differ, how varied the texts are.

Markers are the words of `data/markers.csv`: an aid for finding what to read again, not the definition of a dialect.
"""

import csv
import re
from collections import Counter
from functools import lru_cache

import numpy as np

from .data import DIACRITICS, DIALECTS
from .files import UserError
from .metrics import distinct_at_budget
from .paths import DATA
from .stats import wilson

GROUPS = (*DIALECTS, "SAUDI", "EGY", "LEV", "MAGH", "GLF")  # SAUDI: said in both regions


def words_in(text):
    """Return the words of a text: runs of letters, without diacritics, digits and punctuation."""
    return re.findall(r"[^\W\d_]+", DIACRITICS.sub("", text))


def count_words(texts, stop_words=()):
    """Return a Counter of the words of the texts that have two letters or more, without stop-words."""
    counts = Counter(word for text in texts for word in words_in(text) if len(word) > 1)
    for word in stop_words:
        counts.pop(word, None)
    return counts


def word_overlap(first, second):
    """Return the Jaccard overlap of the word sets of two texts, 0 to 1."""
    a, b = set(count_words([first])), set(count_words([second]))
    return len(a & b) / len(a | b) if a | b else 1.0


# ---- markers -------------------------------------------------------------------------------------------------------

@lru_cache
def load_markers(path=DATA / "markers.csv"):
    """Return group -> a pattern that matches a whole word. A star in a form stands for letters; `except` lists what it must not match."""
    forms = {group: ([], []) for group in GROUPS}
    for number, row in enumerate(read_csv(path), 2):
        if row["dialect"] not in GROUPS:
            raise UserError(f"{path}, line {number}: dialect = {row['dialect']!r} is not one of {', '.join(GROUPS)}.")
        forms[row["dialect"]][0].append(_pattern(row["form"]))
        forms[row["dialect"]][1].extend(map(_pattern, row["except"].split()))
    return {group: re.compile(f"(?![وف]?(?:{'|'.join(but) or '(?!)'})$)[وف]?(?:{'|'.join(these)})")
            for group, (these, but) in forms.items()}


def find_markers(text, groups):
    """Return the words of a text that are markers of one of the groups; a prefixed و or ف may stand before them.

    >>> find_markers("إيش تسوي دحين؟", ["HIJAZI"])
    ['إيش', 'دحين']
    """
    patterns = [load_markers()[group] for group in groups]
    return [word for word in words_in(text) if any(pattern.fullmatch(word) for pattern in patterns)]


def foreign_markers(text, dialect):
    """Return the words of a text that are markers of the other Saudi dialect or of another region."""
    return find_markers(text, [group for group in GROUPS if group not in (dialect, "SAUDI")])


def own_markers(text, dialect):
    """Return the words of a text that are markers of its dialect or of both Saudi dialects."""
    return find_markers(text, [dialect, "SAUDI"])


def _pattern(form):
    return re.escape(DIACRITICS.sub("", form)).replace(r"\*", r"\w+")


# ---- figures -------------------------------------------------------------------------------------------------------

def difference_figures(scenarios):
    """Return name -> {"value", "low", "high", "n", "at_most"}: how far the Hijazi and the Najdi responses differ.

    Shares are 0 to 1 with Wilson intervals; the overlap is a median with its quartiles. `at_most` is what this dataset asks
    of itself.
    """
    responses = [(s[dialect.lower()]["response"], dialect) for s in scenarios for dialect in DIALECTS]
    overlaps = [word_overlap(s["hijazi"]["response"], s["najdi"]["response"]) for s in scenarios]
    low, middle, high = np.quantile(overlaps, [0.25, 0.5, 0.75])

    def share(hits, at_most):
        return {**wilson(sum(hits), len(hits)), "at_most": at_most}

    return {
        "pairs with identical responses": share([s["hijazi"]["response"] == s["najdi"]["response"] for s in scenarios], 0.01),
        "median word overlap of the two responses (quartiles)":
            {"value": float(middle), "low": float(low), "high": float(high), "n": len(overlaps), "at_most": 0.5},
        "responses with a marker of another dialect": share([bool(foreign_markers(*one)) for one in responses], 0.01),
        "responses with no dialect marker": share([not own_markers(*one) for one in responses], 0.03),
    }


def variety_figures(scenarios, budget=20_000, seed=0):
    """Return name -> {"value", "n", "at_least" or "at_most"}: how varied the dialect texts are.

    distinct-2 is taken over `budget` bigrams of randomly drawn responses, words without diacritics and punctuation.
    """
    responses = [" ".join(words_in(s[dialect.lower()]["response"])) for s in scenarios for dialect in DIALECTS]
    openings = Counter(" ".join(text.split()[:3]) for text in responses)
    opening, count = openings.most_common(1)[0]
    types = {word for s in scenarios for dialect in DIALECTS for part in s[dialect.lower()].values() for word in words_in(part)}
    distinct = distinct_at_budget(responses, 2, budget, seed=seed)
    return {
        f"distinct-2 of {distinct['ngrams']:,} bigrams": {"value": distinct["value"], "n": len(responses), "at_least": 0.75},
        f"responses that begin with the commonest trigram ({opening})": {"value": count / len(responses), "n": len(responses), "at_most": 0.015},
        "different words in both dialects": {"value": len(types), "n": 2 * len(responses), "at_least": 15_000},
    }


# ---- readings ------------------------------------------------------------------------------------------------------

CHECKLIST = ("dialect", "msa_leak", "fact", "fit", "stereotype", "private", "writing")


def reading_figures(folder=DATA):
    """Return (second, third): one row per line of the checklist, from `review.csv` and `third_reading.csv`.

    second: scenarios corrected and rejected, each counted once under the line of its first change. third: responses with a
    fault per 100 of the sample and the Wilson 95 % interval, per dialect.
    """
    first_change = {}
    for row in read_csv(folder / "review.csv"):
        first_change.setdefault(row["id"], row)
    second = [{"line": line, **{outcome: sum(row["line"] == line and row["outcome"] == outcome for row in first_change.values())
                                for outcome in ("corrected", "rejected")}} for line in CHECKLIST]
    sample, third = read_csv(folder / "third_reading.csv"), []
    for name, lines in (*((line, [line]) for line in CHECKLIST), ("any of them", CHECKLIST)):
        entry = {"line": name}
        for dialect in DIALECTS:
            faults = [any(row[line] == "1" for line in lines) for row in sample if row["version"] == dialect]
            share = wilson(sum(faults), len(faults))
            entry[f"{dialect} (n = {len(faults)})"] = f"{100 * share['value']:.0f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
        third.append(entry)
    return second, third


def read_csv(path):
    """Return the rows of a CSV file with a header, as dicts of text."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
