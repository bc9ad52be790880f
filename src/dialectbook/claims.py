"""The ledger, chapter 18: every claim of the three papers as data (params/claims/*.yaml), tested against the result files of a run.

A claim says by `test` how it is decided. Four ways, one function each, and one for what is open:
  figure       the published figures themselves decide: what is computed from them is compared with what is printed
  difference   a test of a chapter decides: direction expected, Holm's correction of that chapter
  bound        a measured share decides: its interval against a bound
  level        a measured level against the published one; only real models can do that
  none         nothing in this book decides it yet; `needs` says what would
"""

from .files import UserError, read_json
from .hardware import GPU_PROFILES
from .knobs import read_yaml
from .paths import PARAMS

VERDICTS = ("exact", "inconsistent", "reproduced", "not reproduced", "twin supports", "twin contradicts", "twin inconclusive", "not run here")
KEYS = ("id", "where", "claim", "published", "chapter", "test", "why")
PAPERS = {"saudi_dialect_allam": "Saudi-Dialect-ALLaM", "allam": "ALLaM", "alif": "Alif"}
CHAPTER_RESULTS = "results/{}.json"


def load_claims(folder=PARAMS / "claims"):
    """Return all claims as a list of dicts with KEYS and `paper`, in the order of the files.

    Raises UserError for a key that is missing or unknown, a test without a function, or an id used twice.
    """
    claims, seen = [], set()
    for name, paper in PAPERS.items():
        path = folder / f"{name}.yaml"
        for claim in read_yaml(path):
            where = f"{path}, claim {claim.get('id')!r}"
            if set(claim) != set(KEYS):
                raise UserError(f"{where}: its keys are {', '.join(claim)}; a claim has {', '.join(KEYS)}.")
            if claim["test"].get("by") not in WAYS:
                raise UserError(f"{where}: test by {claim['test'].get('by')!r} is unknown; choose one of {', '.join(WAYS)}.")
            if claim["id"] in seen:
                raise UserError(f"{where}: the id is used twice; ids must be unique.")
            seen.add(claim["id"])
            claims.append({"paper": paper, **claim})
    return claims


def evaluate_claims(run):
    """Return the ledger of a run: one dict per claim (DESIGN.md, contracts), decided from the result files alone.

    Keys: id, paper, claim, published, measured, interval ([low, high] or None), n, p_value (after Holm), verdict, evidence, why, needs
    (what would decide a claim that is "not run here").
    """
    profile, ledger = run.root.name, []
    results = {}
    for claim in load_claims():
        file = CHAPTER_RESULTS.format(claim["chapter"])
        if file not in results and claim["test"]["by"] != "none":
            results[file] = read_json(run.root / file, claim["chapter"])
        twin = profile not in GPU_PROFILES and not claim["test"].get("recorded")  # recorded answers are a large model's, in every profile
        decided = WAYS[claim["test"]["by"]](claim, results.get(file), twin)
        at = claim["test"].get("at")
        ledger.append({**{key: claim[key] for key in ("id", "paper", "where", "claim", "published")},
                       "measured": None, "interval": None, "n": None, "p_value": None, "needs": None, **decided,
                       "evidence": f"{file}: {path_text(at)}" if at else None, "chapter": claim["chapter"], "why": claim["why"]})
    return ledger


# ---- ways of deciding ----------------------------------------------------------------------------------------------

def by_figure(claim, results, twin):
    """Return the verdict of printed figures on each other: exact if the computed one is the printed one to the printed digits."""
    test = claim["test"]
    measured = find(results, test["at"], claim["id"])
    if isinstance(measured, dict):  # a row of chapter 17's own comparison
        measured, same = measured["here"], measured["verdict"] == test["equals"]
    elif isinstance(test["equals"], (bool, str, list)):
        same = measured == test["equals"]
    else:
        same = abs(measured - test["equals"]) <= test["tolerance"] + 1e-12
    return {"measured": measured, "verdict": "exact" if same else "inconsistent"}


def by_difference(claim, results, twin):
    """Return the verdict of a chapter's test: difference, interval, n and p come from its row."""
    row = find(results, claim["test"]["at"], claim["id"], missing=None)
    if row is None:
        return not_run("the profile does not ask this; run `make book PROFILE=laptop`")
    return {"measured": row["difference"], "interval": [row["low"], row["high"]], "n": row["n"], "p_value": row.get("p_holm", row["p"]),
            "verdict": verdict_of(row, claim["test"]["expect"], twin, claim["test"].get("margin"))}


def by_bound(claim, results, twin):
    """Return the verdict of a share against a bound: decided when its whole interval lies on one side."""
    test, row = claim["test"], find(results, claim["test"]["at"], claim["id"])
    inside, outside = (row["high"] <= test["at_most"], row["low"] > test["at_most"]) if "at_most" in test else (
        row["low"] >= test["at_least"], row["high"] < test["at_least"])
    return {"measured": row["value"], "interval": [row["low"], row["high"]], "n": row["n"], "verdict": named(inside, outside, twin)}


def by_level(claim, results, twin):
    """Return the verdict of a column of Table II against the published value: reproduced if its interval over seeds reaches within
    the tolerance (with one seed: if the value does).

    The twin is another model, so it cannot decide: "not run here", with its value left out.
    """
    test = claim["test"]
    if twin:
        return not_run("make book PROFILE=a100")
    row = find(results, test["at"], claim["id"])
    low, high = (row["faithful"] if row[side] is None else row[side] for side in ("low", "high"))
    near = low - test["tolerance"] <= test["equals"] <= high + test["tolerance"]
    return {"measured": row["faithful"], "interval": None if row["low"] is None else [low, high], "verdict": "reproduced" if near else "not reproduced"}


def by_none(claim, results, twin):
    return not_run(claim["test"]["needs"])


WAYS = {"figure": by_figure, "difference": by_difference, "bound": by_bound, "level": by_level, "none": by_none}


def verdict_of(row, expect, twin, margin=None, level=0.05):
    """Return the verdict on a direction from a test's row (difference, low, high, p or p_holm).

    expect is "higher" or "lower" (second against first; decided by p after Holm), or "same": decided by the interval, which must lie
    within ± margin for a yes and outside it for a no. Where the row has "seeds", its difference in each training seed, they must agree.
    """
    if row["low"] is None:
        return named(False, False, twin)
    if expect == "same":
        return named(-margin <= row["low"] and row["high"] <= margin, row["low"] > margin or row["high"] < -margin, twin)
    sure = row.get("p_holm", row["p"]) < level and len({difference > 0 for difference in row.get("seeds", [])}) < 2
    right = (row["difference"] > 0) == (expect == "higher")
    return named(sure and right, sure and not right, twin)


def named(yes, no, twin):
    """Return the word for yes, no or neither; what a real model leaves open is not reproduced."""
    if twin:
        return "twin supports" if yes else "twin contradicts" if no else "twin inconclusive"
    return "reproduced" if yes else "not reproduced"


def not_run(needs):
    return {"verdict": "not run here", "needs": needs}


# ---- looking up and showing ----------------------------------------------------------------------------------------

MISSING = object()


def find(results, path, claim, missing=MISSING):
    """Return what lies at a path in a results file: keys, list positions, or a mapping that picks the list's first row that has it.

    Raises UserError that names the claim when nothing is there, unless `missing` says what to return.
    """
    value = results
    for step in path:
        try:
            value = next(row for row in value if step.items() <= row.items()) if isinstance(step, dict) else value[step]
        except (KeyError, IndexError, TypeError, StopIteration):
            if missing is not MISSING:
                return missing
            raise UserError(f"claim {claim!r}: the results hold nothing at {path_text(path)}; run the chapter again, or mend the path "
                            "in params/claims.") from None
    return value


def path_text(path):
    """Return a path as text: tests[first = no_token, second = token]."""
    return "".join(f"[{', '.join(f'{key} = {value}' for key, value in step.items())}]" if isinstance(step, dict) else f"{' › ' if i else ''}{step}"
                   for i, step in enumerate(path))


def scoreboard(ledger):
    """Return one row per verdict that occurs and one for all: how many claims of each paper, and of all papers, have it."""
    rows = []
    for verdict in (*VERDICTS, "all"):
        mine = [claim["paper"] for claim in ledger if verdict in (claim["verdict"], "all")]
        if mine:
            rows.append({"verdict": verdict, **{paper: mine.count(paper) for paper in PAPERS.values()}, "all": len(mine)})
    return rows


def number(value):
    """Return a measured value as text: four figures, yes or no, or a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def ledger_rows(ledger):
    """Return the ledger as rows of a table for readers."""
    def measured(claim):
        interval = claim["interval"]
        return number(claim["measured"]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")

    def p_value(p):
        return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"

    return [{"claim": f"{c['claim']} ({c['where']})", "published": c["published"], "measured [95 %]": measured(c), "verdict": c["verdict"],
             "p (Holm)": p_value(c["p_value"]), "n": number(c["n"]), "how, and why so": c["why"] + (f"\nTo decide it: {c['needs']}" if c["needs"] else ""),
             "paper": c["paper"], "chapter": c["chapter"][:2], "id": c["id"]} for c in ledger]
