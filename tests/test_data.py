"""The dataset: reading, cleaning, de-duplication, splitting; each kind of bad input gets one clear sentence."""

import csv
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialectbook import data, describe
from dialectbook.dedup import rouge_l, rouge_l_filter, words_of
from dialectbook.files import UserError, read_jsonl, write_json, write_text
from dialectbook.knobs import load_knobs
from dialectbook.paths import Run


def scenario(number=0, **changes):
    texts = {version: {"instruction": f"سؤال {version} رقم {number}", "response": f"جواب {version} رقم {number}"} for version in data.VERSIONS}
    return {"id": f"t-{number:04d}", "topic": "food", "task": "advice", "length": "short", **texts, **changes}


@pytest.fixture(scope="module")
def curated():
    """The shipped pool after the curation of the first run."""
    pool = data.load_pool()
    return pool, *data.curate(pool, load_knobs("tiny")[0])


def test_shipped_pool_is_whole(curated):
    """The size and balance of the paper's dataset, from a pool that is larger."""
    pool, kept, removed = curated
    knobs, _ = load_knobs("tiny")
    assert len(pool) >= 3000 and len(kept) == 2733 == len(pool) - len(removed)
    assert sum(row["step"] == "near-duplicate" for row in removed) <= 0.08 * len(pool)
    topics = Counter(s["topic"] for s in kept)
    assert len(topics) == 18 and not set(topics) & set(knobs.banned_topics)
    assert all(abs(topics[t] / 2733 - n / 5466) < 0.001 for t, n in knobs.topic_pairs.items() if t != "other")
    assert sum("english" in s for s in kept) >= 1000
    assert sum(s["names_dialect"] for s in kept) <= 0.15 * len(kept)
    assert len(Counter(s["task"] for s in kept)) >= 8


def test_card_says_what_the_folder_holds(curated):
    """Numbers typed into a data card go stale with the first change of the data."""
    card, (pool, kept, _) = (data.DATA / "README.md").read_text(encoding="utf-8"), curated
    assert f"{len(pool):,} everyday questions" in card and f"{sum('english' in s for s in pool):,} of them with English" in card
    assert f"| {len(pool):,}; {len(kept):,} |" in card
    for region, count in Counter(row["region"] for row in data.load_regions()).items():
        assert f"{region} {count}" in card
    for name, figure in describe.difference_figures(kept).items():
        value, low, high = ((1 if "overlap" in name else 100) * figure[key] for key in ("value", "low", "high"))
        line = next(line for line in card.splitlines() if line.startswith(f"| {name}"))
        assert f"{value:.2f}{'' if 'overlap' in name else ' %'} [{low:.2f}, {high:.2f}]" in line
    second, third = describe.reading_figures()
    assert all(f"| {row['line']} | {row['corrected']} | {row['rejected']} |" in card for row in second)
    assert all("| " + " | ".join(row.values()) + " |" in card for row in third)


def test_readings_name_scenarios_of_the_pool(curated):
    """A record of corrections that names scenarios that do not exist proves nothing."""
    pool, kept, _ = curated
    second, third = (describe.read_csv(data.DATA / name) for name in ("review.csv", "third_reading.csv"))
    rejected = {row["id"] for row in second if row["outcome"] == "rejected"}
    assert {row["id"] for row in second} - rejected <= {s["id"] for s in pool} and not rejected & {s["id"] for s in pool}
    assert {row["line"] for row in second} <= set(describe.CHECKLIST)
    assert {row["id"] for row in third} <= {s["id"] for s in kept} and Counter(row["version"] for row in third) == {"HIJAZI": 100, "NAJDI": 100}


def test_lengths_are_what_they_say(curated):
    """`length` is a stratum of the split, so it must follow from the texts; the data card gives the bounds."""
    for s in curated[0]:
        words = sum(len(s[dialect.lower()]["response"].split()) for dialect in data.DIALECTS) / 2
        assert s["length"] == ("short" if words < 15.75 else "medium" if words < 40.75 else "long"), s["id"]


def test_the_two_dialects_differ_and_vary(curated):
    """Not one dialect with a handful of replacements, and no list of variations on one theme (data/README.md, Figures)."""
    for name, figure in describe.difference_figures(curated[1]).items():
        assert figure["value"] <= figure["at_most"], name
    for name, figure in describe.variety_figures(curated[1]).items():
        assert figure.get("at_least", 0) <= figure["value"] <= figure.get("at_most", float("inf")), name


def test_shipped_regions():
    """The judge needs enough of every region."""
    counts = Counter(row["region"] for row in data.load_regions())
    assert min(counts[name] for name in ("EGY", "LEV", "MAGH")) >= 800 and counts["GLF"] >= 300
    assert len({row["text"] for row in data.load_regions()}) == sum(counts.values())


@pytest.mark.parametrize(("text", "groups", "found"), [
    ("إيش تسوي دحين؟", ["HIJAZI"], ["إيش", "دحين"]), ("وش تسوون الحين", ["NAJDI"], ["وش", "تسوون", "الحين"]), ("حيروحوا بكرة", ["HIJAZI"], ["حيروحوا"]),
    ("حياك الله حتى حنا", ["HIJAZI"], []), ("وحنا جينا", ["NAJDI"], ["وحنا"]), ("يكون التمرين", ["NAJDI"], []), ("إيشبك", ["HIJAZI"], []), ("", ["NAJDI"], [])])
def test_markers(text, groups, found):
    """A marker is a whole word; words that only look like one (حياك, يكون) are excepted in data/markers.csv."""
    assert describe.find_markers(text, groups) == found


def test_marker_list_is_sound():
    """Each entry has a gloss, no form stands twice, and a wrong group is named."""
    with open(data.DATA / "markers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["gloss"] for row in rows) and len({row["form"] for row in rows}) == len(rows)


def test_unknown_marker_group_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("dialect,form,except,gloss,note\nHIJAZY,إيش,,what,\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: dialect = 'HIJAZY' is not one of HIJAZI"):
        describe.load_markers(tmp_path / "m.csv")


def test_balance_follows_the_paper():
    """The curated set has the paper's proportions, whatever the pool's; a topic that is too small is named."""
    paper = {"a": 300, "b": 100, "other": 200}
    rows = [scenario(i, topic=topic) for i, topic in enumerate("a" * 60 + "b" * 60 + "c" * 60 + "d" * 60)]
    assert data.topic_quotas(rows, 60, paper) == {"a": 30, "b": 10, "c": 10, "d": 10}
    with pytest.raises(UserError, match="topic a: 60 scenarios are left.*is 100"):
        data.topic_quotas(rows, 200, paper)


def test_too_small_a_pool_is_no_full_dataset():
    """A pool that cannot fill the size asked for must say so, not pass for the whole dataset."""
    with pytest.raises(UserError, match="topic food: 1 scenarios are left.*or lower the knob scenarios"):
        data.curate([scenario(1)], load_knobs("tiny")[0])


def test_datasets_reads_the_folder(tmp_path):
    """The dataset card promises that datasets.load_dataset reads the folder as it is."""
    import datasets

    datasets.disable_progress_bars()
    pool = datasets.load_dataset(str(data.DATA), cache_dir=str(tmp_path))["train"]
    assert pool.num_rows == len(data.load_pool()) and set(data.VERSIONS) <= set(pool.column_names)
    regions = datasets.load_dataset(str(data.DATA), "regions", cache_dir=str(tmp_path))["train"]
    assert regions.num_rows == len(data.load_regions())


@pytest.mark.parametrize(("dirty", "clean"), [
    ("كيـــف\u200f حالك", "كيف حالك"), ("<DIALECT=HIJAZI>كيف", "كيف"), ("قال <najdi> كيف", "قال كيف"), ("\u202bهلا\u202c  والله\n", "هلا والله"),
    ("ـــ", ""), ("\ufeffمرحبا", "مرحبا"), ("a\u00a0b", "a b"), ("5 < 7", "5 < 7")])
def test_clean_text(dirty, clean):
    """Invisible marks and tags inside texts went into training and were echoed."""
    assert data.clean_text(dirty) == clean


def test_diacritics_go_only_when_asked():
    assert data.clean_text("يزّنوا حَرَكات") == "يزّنوا حَرَكات" and data.clean_text("يزّنوا حَرَكات", keep_diacritics=False) == "يزنوا حركات"


@pytest.mark.parametrize("label", ["HIJAZI", "hijazi", " Hijazi ", "<DIALECT=HIJAZI>", "<HIJAZI>", "حجازي"])
def test_labels_become_canonical(label):
    """Audit item 7: upper-case labels were strata of their own and fell into the test set."""
    assert data.canonical_dialect(label) == "HIJAZI"


def test_wrong_label_is_named():
    with pytest.raises(UserError, match="row 3.*'Gulf'.*HIJAZI, NAJDI"):
        data.canonical_dialect("Gulf", "row 3")


def test_malformed_line_is_named(tmp_path):
    """A broken line must be found by file and line, not by a traceback of the JSON library."""
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": 2,\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not valid JSON"):
        read_jsonl(tmp_path / "a.jsonl")


def test_bom_and_empty_lines_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"id": 1}\n\n{"id": 2}', encoding="utf-8")
    assert read_jsonl(tmp_path / "a.jsonl") == [{"id": 1}, {"id": 2}]


def test_other_bad_files(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_jsonl(tmp_path / "latin.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: found list"):
        read_jsonl(tmp_path / "list.jsonl")
    with pytest.raises(UserError, match="the key 'msa' is missing"):
        read_jsonl_of(tmp_path, {k: v for k, v in scenario().items() if k != "msa"})
    with pytest.raises(UserError, match="is missing"):
        read_jsonl(tmp_path / "none.jsonl")


def read_jsonl_of(folder, *scenarios):
    pool = folder / "pool"
    pool.mkdir(exist_ok=True)
    (pool / "p.jsonl").write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in scenarios), encoding="utf-8")
    return data.load_pool(pool)


def test_bad_scenarios_are_named(tmp_path):
    """Duplicate ids, unknown lengths and empty pools each name file, id and what is allowed."""
    with pytest.raises(UserError, match="'t-0001' is used twice"):
        read_jsonl_of(tmp_path, scenario(1), scenario(1))
    with pytest.raises(UserError, match="length = 'tiny' of t-0002 is not one of short, medium, long"):
        read_jsonl_of(tmp_path, scenario(2, length="tiny"))
    with pytest.raises(UserError, match="hijazi of t-0003 must be an object"):
        read_jsonl_of(tmp_path, scenario(3, hijazi="text"))
    with pytest.raises(UserError, match=r"holds no \.jsonl file"):
        data.load_pool(tmp_path / "empty")


def test_empty_banned_and_long_are_removed():
    """Each step of the curation removes what it says and records why; a text of tatweel only is empty."""
    knobs, _ = load_knobs("tiny", overrides={"scenarios": 0})
    bad = [scenario(1, najdi={"instruction": "سؤال", "response": "ـــ \u200f"}), scenario(2, topic="politics_governance"),
           scenario(3, msa={"instruction": "كلمة " * 200, "response": "جواب"})]
    kept, removed = data.curate([scenario(9, hijazi={"instruction": "وحدة تانية خالص", "response": "نعم"}), *bad], knobs)
    assert [s["id"] for s in kept] == ["t-0009"]
    assert {(r["id"], r["step"]) for r in removed} == {("t-0001", "empty"), ("t-0002", "banned topic"), ("t-0003", "over-long")}


def test_split_is_exact_and_grouped():
    """Audit item 6: rounding down per bucket gave 78/9/13; and both versions of a scenario must stay together."""
    rng = random.Random(1)
    many = [scenario(i, topic=rng.choice("abcdefgh"), length=rng.choice(data.LENGTHS)) for i in range(997)]
    splits = data.split_scenarios(many, [0.8, 0.1, 0.1], 42)
    assert [len(splits[name]) for name in data.SPLITS] == data.largest_remainder(997, [0.8, 0.1, 0.1]) == [797, 100, 100]
    ids = [s["id"] for part in splits.values() for s in part]
    assert len(ids) == len(set(ids)) == 997
    for topic in "abcdefgh":
        whole = sum(s["topic"] == topic for s in many) / 997
        assert abs(sum(s["topic"] == topic for s in splits["test"]) / 100 - whole) < 0.05
    assert splits == data.split_scenarios(many, [0.8, 0.1, 0.1], 42)


@given(total=st.integers(1, 5000), weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_largest_remainder(total, weights):
    """Sizes sum to the total and are each within one of the exact share."""
    shares = [w / sum(weights) for w in weights]
    sizes = data.largest_remainder(total, shares)
    assert sum(sizes) == total
    assert all(abs(size - total * share) < 1 + 1e-6 for size, share in zip(sizes, shares))


WORDS = "كيف ليش متى وين فين أسوي أبغى قهوة بيت سوق اليوم بكرة".split()


@given(texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), max_size=40), threshold=st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_rouge_l_filter_is_the_greedy_loop(texts, threshold):
    """The pruned filter must keep exactly what the plain loop keeps."""
    kept = []
    for i, text in enumerate(texts):
        if all(rouge_l(words_of(text), words_of(texts[j])) < threshold - 1e-12 for j in kept):
            kept.append(i)
    assert rouge_l_filter(texts, threshold) == kept


def test_rouge_l_filter_on_real_texts():
    """The same, on instructions of the pool with repetitions put in."""
    texts = [s["hijazi"]["instruction"] for s in data.load_pool()[:300]]
    texts += [text + " لو سمحت" for text in texts[:40]]
    kept = []
    for i, text in enumerate(texts):
        if all(rouge_l(words_of(text), words_of(texts[j])) < 0.7 - 1e-12 for j in kept):
            kept.append(i)
    assert rouge_l_filter(texts, 0.7) == kept and len(kept) < len(texts)


def test_rouge_l_is_two_lcs_over_lengths():
    """rouge_score's own tokenizer drops Arabic letters: two identical Arabic texts scored 0."""
    a, b = "كيف حالك اليوم يا خويا".split(), "كيف حال خويا اليوم".split()
    assert rouge_l(a, a) == 1 and rouge_l(a, b) == pytest.approx(2 * 2 / 9) and rouge_l([], []) == 0


def test_ask_both_ways_and_half():
    """Training asks a random half of the scenarios in MSA, both dialects alike; the test asks every pair both ways."""
    pairs = data.to_pairs([scenario(i) for i in range(20)])
    train = data.ask(pairs, "mixed", "none")
    assert len(train) == 40 and sum(r["instruction_kind"] == "neutral" for r in train) == 20
    kinds = {}
    for row in train:
        kinds.setdefault(row["scenario_id"], set()).add(row["instruction_kind"])
    assert all(len(found) == 1 for found in kinds.values())
    test = data.ask(pairs, "mixed", "prefix", both=True)
    assert len(test) == 80 and all(f"<DIALECT={row['dialect']}>" in row["prompt"] for row in test)
    assert not any("DIALECT" in row["prompt"] for row in train)


def test_missing_and_one_sided_splits(tmp_path, monkeypatch):
    """A missing split names the chapter that makes it; a split of one dialect cannot train or test control."""
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(tmp_path))
    run = Run("tiny")
    with pytest.raises(UserError, match="Chapter 01_dataset_curation makes it"):
        data.load_split(run, "train")
    rows = data.to_pairs([scenario(1)])
    run.data.mkdir(parents=True)
    for bad, message in (([rows[0]], "found only HIJAZI"), ([rows[0], {**rows[1], "response": " "}], "row 2: the response is empty"),
                         ([rows[0], {**rows[1], "dialect": "GULF"}], "row 2: the dialect 'GULF'")):
        run.split("train").write_text("".join(json.dumps(r) + "\n" for r in bad), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            data.load_split(run, "train")


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    """A write that fails half-way must leave the earlier result and no temporary file."""
    import os

    path = write_json(tmp_path / "result.json", {"old": True})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*earlier file, if any, is unchanged"):
        write_text(path, "new")
    assert json.loads(path.read_text()) == {"old": True} and list(tmp_path.iterdir()) == [path]
