"""The ledger: every claim has a test that can fall either way, and verdicts follow from result files alone."""

import json
import re

import pytest
import yaml

from dialectbook import claims
from dialectbook.claims import PAPERS, VERDICTS, evaluate_claims, find, load_claims, named, scoreboard, verdict_of
from dialectbook.files import UserError, write_json
from dialectbook.paths import NOTEBOOKS, PARAMS, Run

TEST = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.001, "p_holm": 0.01, "n": 100}


def test_ledger_is_whole():
    """At least 60 claims over three papers; each key filled, each way of deciding used with what it needs."""
    ledger = load_claims()
    assert len(ledger) >= 60 and {claim["paper"] for claim in ledger} == set(PAPERS.values())
    needed = {"figure": {"at", "equals"}, "difference": {"at", "expect"}, "bound": {"at"}, "level": {"at", "equals", "tolerance"}, "none": {"needs"}}
    for claim in ledger:
        assert all(str(claim[key]).strip() for key in claims.KEYS), claim["id"]
        test = claim["test"]
        assert needed[test["by"]] <= set(test), claim["id"]
        assert test["by"] == "none" or (NOTEBOOKS / f"{claim['chapter']}.ipynb").is_file(), f"{claim['id']}: no chapter makes its results"
        if test["by"] == "difference":
            assert test["expect"] in ("higher", "lower") or (test["expect"] == "same" and test["margin"] > 0)
        if test["by"] == "bound":
            assert len({"at_most", "at_least"} & set(test)) == 1
        if test["by"] == "figure" and not isinstance(test["equals"], (bool, str, list)):
            assert test["tolerance"] >= 0


@pytest.mark.parametrize(("change", "message"), [
    ({"test": {"by": "feeling"}}, "test by 'feeling' is unknown; choose one of figure"), ({"why": None}, "its keys are"), ({}, "the id is used twice")])
def test_mistakes_in_a_claim_are_one_sentence(tmp_path, change, message):
    """A claim without an evaluator, with a key missing or an id used twice must not reach the page."""
    entry = {key: "x" for key in claims.KEYS} | {"test": {"by": "none", "needs": "x"}} | change
    entry = {key: value for key, value in entry.items() if value is not None}
    for name in PAPERS:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump([entry] * (2 if not change else 1)), encoding="utf-8")
        break
    with pytest.raises(UserError, match=message) as error:
        load_claims(tmp_path)
    assert "\n" not in str(error.value)


def test_directions():
    """p after Holm decides, not the raw one; the interval decides sameness; twin and model have words of their own."""
    assert verdict_of(TEST, "higher", True) == "twin supports" and verdict_of(TEST, "lower", True) == "twin contradicts"
    assert verdict_of({**TEST, "p_holm": 0.2}, "higher", True) == "twin inconclusive"
    assert verdict_of(TEST, "higher", False) == "reproduced" and verdict_of(TEST, "lower", False) == "not reproduced"
    assert verdict_of(TEST, "same", True, margin=0.2) == "twin supports" and verdict_of(TEST, "same", True, margin=0.1) == "twin inconclusive"
    assert verdict_of(TEST, "same", True, margin=0.04) == "twin contradicts"
    assert [verdict_of({**TEST, "seeds": seeds}, "higher", True) for seeds in ([0.1, 0.2], [0.2, -0.1])] == ["twin supports", "twin inconclusive"]
    assert verdict_of({"difference": 0.1, "low": None, "high": None, "p": None, "n": 1}, "lower", True) == "twin inconclusive", "one seed"
    assert named(True, False, False) == "reproduced" and named(False, False, False) == "not reproduced"


def test_ways_of_deciding():
    """Each way gives each of its verdicts on made-up results."""
    def decide(test, results, twin=True):
        return claims.WAYS[test["by"]]({"id": "x", "test": test}, results, twin)["verdict"]

    figure = {"by": "figure", "at": ["a"], "equals": 3.53, "tolerance": 0.005}
    assert [decide(figure, {"a": a}) for a in (3.5349, 3.54, 3.5249)] == ["exact", "inconsistent", "inconsistent"]
    assert [decide({"by": "figure", "at": ["a"], "equals": True}, {"a": a}) for a in (True, False)] == ["exact", "inconsistent"]
    row = {"by": "figure", "at": ["a"], "equals": "exact"}
    assert [decide(row, {"a": {"here": "8 fit", "verdict": v}}) for v in ("exact", "inconsistent")] == ["exact", "inconsistent"]
    bound = {"by": "bound", "at": ["a"], "at_most": 0.01}
    rows = [{"value": v, "low": v - 0.002, "high": v + 0.002, "n": 9} for v in (0.005, 0.01, 0.02)]
    assert [decide(bound, {"a": row}) for row in rows] == ["twin supports", "twin inconclusive", "twin contradicts"]
    assert [decide({"by": "bound", "at": ["a"], "at_least": 0.01}, {"a": row}) for row in rows] == ["twin contradicts", "twin inconclusive", "twin supports"]
    level = {"by": "level", "at": ["a"], "equals": 80, "tolerance": 5}
    row = {"faithful": 90.0, "low": 86.0, "high": 94.0}
    assert decide(level, {"a": row}) == "not run here", "the twin is another model"
    assert [decide(level, {"a": r}, False) for r in (row, {**row, "low": 84.0}, {**row, "low": None, "high": None})] == ["not reproduced", "reproduced", "not reproduced"]
    assert decide({"by": "difference", "at": ["tests", {"first": "b"}], "expect": "higher"}, {"tests": []}) == "not run here"
    assert decide({"by": "none", "needs": "raters"}, None) == "not run here"


def test_paths_pick_rows_and_name_the_claim():
    results = {"tests": [{"first": "a", "x": 1}, {"first": "b", "x": 2}]}
    assert find(results, ["tests", {"first": "b"}, "x"], "c") == 2
    with pytest.raises(UserError, match=r"claim 'c': the results hold nothing at tests\[first = z\]"):
        find(results, ["tests", {"first": "z"}], "c")


def build_results(folder, flip=False):
    """Write result files that hold just what the claims ask for: every direction as expected, or with `flip` against it."""
    results = {}
    for claim in load_claims():
        test, chapter = claim["test"], claim["chapter"]
        if test["by"] == "none":
            continue
        sign = -1 if flip else 1
        sign *= -1 if test.get("expect") == "lower" else 1
        leaf = {"figure": {"here": "x", "verdict": "exact"} if test.get("equals") == "exact" else test.get("equals"), "level": {"faithful": 1.0, "low": 0.5, "high": 1.5},
                "difference": {**TEST, "difference": 0.1 * sign} if test.get("expect") != "same" else {**TEST, "low": 100.0 * flip, "high": 100.0 * flip},
                "bound": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9} if ("at_most" in test) != flip else {"value": 1.0, "low": 1.0, "high": 1.0, "n": 9}}[test["by"]]
        put(results.setdefault(chapter, {}), test["at"], leaf)
    for chapter, result in results.items():
        write_json(folder / f"results/{chapter}.json", result)


def put(container, path, leaf):
    """Put a leaf where `claims.find` will look."""
    for step, following in zip(path, [*path[1:], None]):
        if isinstance(step, dict):
            row = next((row for row in container if step.items() <= row.items()), None)
            if row is None:
                container.append(row := dict(step))
            if following is None:
                row |= leaf
            container = row
        elif isinstance(step, int):
            container.extend({} for _ in range(step + 1 - len(container)))
            container = container[step]
        elif following is None:
            container[step] = dict(leaf) if isinstance(leaf, dict) else leaf
        else:
            container = container.setdefault(step, [] if isinstance(following, (dict, int)) else {})


def test_verdicts_follow_the_result_files(tmp_path, monkeypatch):
    """Turning every difference and share round must turn every verdict of the twin round; the others must not move."""
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(tmp_path))
    run, seen = Run("tiny"), []
    for flip in (False, True):
        build_results(run.root, flip)
        seen.append({claim["id"]: claim["verdict"] for claim in evaluate_claims(run)})
    tests = {claim["id"]: claim["test"] for claim in load_claims()}
    for name, test in tests.items():
        way = "recorded" if test.get("recorded") else test["by"]
        expected = {"figure": ["exact"] * 2, "difference": ["twin supports", "twin contradicts"], "bound": ["twin supports", "twin contradicts"], "recorded": ["reproduced", "not reproduced"],
                    "level": ["not run here"] * 2, "none": ["not run here"] * 2}[way]
        assert [verdicts[name] for verdicts in seen] == expected, name
    ledger = evaluate_claims(run)
    assert all(set(claim) >= {"id", "paper", "claim", "published", "measured", "interval", "p_value", "verdict", "evidence"} for claim in ledger)
    assert all(claim["needs"] for claim in ledger if claim["verdict"] == "not run here")
    board = scoreboard(ledger)
    assert board[-1]["all"] == len(ledger) == sum(row["all"] for row in board[:-1]) == sum(board[-1][paper] for paper in PAPERS.values())
    assert [row["verdict"] for row in board] == [v for v in VERDICTS if v in set(seen[1].values())] + ["all"]


def test_missing_results_name_the_chapter(tmp_path, monkeypatch):
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(tmp_path))
    with pytest.raises(UserError, match="Chapter 09_results makes it"):
        evaluate_claims(Run("tiny"))


def test_printed_values_are_those_of_the_published_figures():
    """A level in the ledger and the figure of chapter 17 are typed twice: they must agree."""
    from dialectbook.published import released

    figures = released()
    theirs = {"Base, tagged": "base", "No-Token": "no_token", "Token": "token"}
    levels = [claim for claim in load_claims() if claim["test"]["by"] == "level"]
    assert len(levels) == 27
    for claim in levels:
        row = claim["test"]["at"][1]
        model, column = theirs[row["experiment"]], row["column"].removesuffix(" %")
        printed = figures["self_bleu"][model]["repository"] if column == "Self-BLEU" else {**figures["percent"][model], **figures["text_metrics"][model]}[column]
        assert claim["test"]["equals"] == printed == float(claim["published"]), claim["id"]
    human = {claim["id"]: float(claim["published"]) for claim in load_claims() if re.match("saudi-human-(dialect|fluency|task)", claim["id"])}
    assert human == {f"saudi-human-{what}-{m.replace('_', '-')}": figures["human_percent"][m][what] for m in ("token", "no_token") for what in ("dialect", "fluency", "task")}


def test_files_are_readable_as_data():
    for name in PAPERS:
        text = (PARAMS / "claims" / f"{name}.yaml").read_text(encoding="utf-8")
        assert json.dumps(yaml.safe_load(text)) and not re.search(r"\d[eE]-\d", text)
