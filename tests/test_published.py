"""Chapter 17: the arithmetic on published figures, to the digits that were published or derived from them."""

import pytest

from dialectbook.knobs import load_knobs
from dialectbook.published import (AUDIT_KEYS, against_paper, audit, buckets_needed, compare_counts, counts_behind, counts_of_percentages,
                                   denominators, floor_split, gains_unrounded, human_designs, label_shares, loss_curve, losses_per,
                                   lowest_losses, paired_range, recovered_lengths, released, sources, split_rows)


@pytest.fixture(scope="module")
def figures():
    return released()


def test_counts_and_labels_agree(figures):
    """Two prints of the same thing: Saudi % in the paper, label counts in the notebooks; a typing mistake breaks one of them."""
    counts = counts_of_percentages(figures)
    for model, labels in figures["labels"].items():
        assert counts[model, "Saudi"] == [labels["GLF"]] and sum(labels.values()) == figures["outputs"] == 836
        assert counts[model, "MSA leak"] == [], "a mean probability is no share"
    assert [counts[model, "low confidence"] for model in figures["names"]] == [[60], [38], [41], [113], [81], [113], [58], [87]]
    assert counts_behind(50, 836) == [418] and counts_behind(33.33, 3) == [1] and counts_behind(0, 836) == [0]


def test_wilson_intervals(figures):
    shares = label_shares(figures)
    expected = {("base", "GLF"): (47.97, 44.60, 51.35), ("token", "GLF"): (84.21, 81.58, 86.53), ("no_token", "GLF"): (80.50, 77.68, 83.05),
                ("token", "MSA"): (5.14, 3.84, 6.86), ("no_token", "MSA"): (8.85, 7.11, 10.97), ("jais", "MSA"): (45.57, 42.23, 48.96)}
    for key, percentages in expected.items():
        assert [round(100 * shares[key][name], 2) for name in ("value", "low", "high")] == list(percentages)


def test_token_against_no_token():
    saudi, msa, dialect = compare_counts(673, 704, 836, 836), compare_counts(74, 43, 836, 836), compare_counts(673, 704, 762, 793)
    assert (round(saudi["z"], 3), round(saudi["p_z"], 4), round(saudi["p_fisher"], 3)) == (1.989, 0.0467, 0.054)
    assert (round(saudi["difference"], 2), round(saudi["low"], 2), round(saudi["high"], 2)) == (3.71, 0.06, 7.36)
    assert (round(msa["z"], 3), round(msa["p_z"], 4), round(msa["p_fisher"], 4)) == (-2.972, 0.0030, 0.0039)
    assert (round(msa["low"], 2), round(msa["high"], 2)) == (-6.15, -1.27) and round(dialect["p_z"], 2) == 0.78
    assert round(compare_counts(401, 704, 836, 836)["z"], 2) == 15.65
    assert 704 - 673 == 74 - 43 == 31


def test_pairing_bounds():
    """With all agreements known to be agreements, 31 against 0 is decisive; with as few as possible it is 163 against 132."""
    from scipy.stats import binomtest

    assert paired_range(673, 704, 836) == [binomtest(0, 31).pvalue, binomtest(132, 295).pvalue]
    assert paired_range(704, 673, 836) == paired_range(673, 704, 836)


def test_splits(figures):
    rows = split_rows(figures)
    assert sum(row["n"] for row in rows) == sum(row["Hijazi"] + row["Najdi"] for row in rows) == 6546 != figures["pairs"]
    assert (sum(row["Hijazi"] for row in rows), sum(row["Najdi"] for row in rows)) == (3392, 3154)
    assert [round(row["share %"], 2) for row in rows] == [78.25, 8.98, 12.77] and [row["of these in capitals"] for row in rows] == [11, 0, 38]
    assert floor_split([10, 10], [0.8, 0.1, 0.1]) == [16, 2, 2] and floor_split([1, 9], [0.8, 0.1, 0.1]) == [7, 0, 3]
    assert [round(x) for x in buckets_needed(5122, 588, 6546, [0.8, 0.1, 0.1])] == [131, 78]
    topics = sorted(figures["top_topics"].values(), reverse=True)
    assert (sum(topics[:5]), sum(topics)) == (2123, 3894) and round(100 * 2123 / 5466, 1) == 38.8 and round(100 * 2123 / 3894, 1) == 54.5


def test_human_ratings(figures):
    printed = [percent for row in figures["human_percent"].values() for percent in row.values()]
    assert len(printed) == 12 and denominators(printed, 2399) == [1200]
    rows = human_designs(figures)
    assert [(row["denominator"], row["percentages that fit"] == 12) for row in rows] == [
        (600, False), (1500, False), (480, False), (1200, True), (1200, True)]
    assert [round(row["Token, dialect, as a rating"], 2) for row in rows[3:]] == [3.75, 3.44]


def test_self_bleu_scales(figures):
    """In one column of Table II some values are divided by 100: those of one and more."""
    for row in figures["self_bleu"].values():
        divisor = 100 if row["repository"] >= 1 else 1
        assert row["paper"] == pytest.approx(row["repository"] / divisor, abs=0.0006)
    ratios = {m: figures["self_bleu"][m]["paper"] / figures["self_bleu"]["base"]["paper"] for m in ("no_token", "token")}
    assert {m: round(r) for m, r in ratios.items()} == {"no_token": 35, "token": 39}


def test_lengths_from_distinct(figures):
    """The fractions give the lengths; No-Token has a second solution, which only the time per output rules out."""
    found = [(row["model"], row["bigrams"], row["trigrams"], round(row["mean words"], 1), row["outputs of at most 2 words"]) for row in recovered_lengths(figures)]
    names = figures["names"]
    assert found == [(names["base"], 61773, 60938, 74.9, 1), (names["no_token"], 18001, 17166, 22.5, 1),
                     (names["no_token"], 72004, 71525, 87.1, 357), (names["token"], 19456, 18621, 24.3, 1)]


def test_losses(figures):
    losses = losses_per(figures)
    assert round(losses["token"]["nats per example"], 1) == 164.7 and round(losses["no_token"]["nats per example"], 1) == 168.2
    lower = {key: round(100 * (1 - losses["token"][key] / losses["no_token"][key]), 1) for key in ("nats per token", "nats per example")}
    assert lower == {"nats per token": 9.9, "nats per example": 2.1}


def test_figure_six_is_smoothed(figures):
    for row, point in zip(loss_curve(figures, "no_token"), figures["figure_six"]["no_token"]["first"]):
        assert row["smoothed"] == pytest.approx(point, abs=1e-4)
    lowest = lowest_losses(figures)
    assert {name: (row["log"], row["log, step"], row["smoothed here"], row["smoothed, step"]) for name, row in lowest.items()} == {
        "no_token": (2.100609, 86, 2.141, 111), "token": (1.892531, 97, 1.922, 111)}
    assert all(row["smoothed here"] == row["figure 6"] for row in lowest.values())


def test_gains(figures):
    gains = gains_unrounded(figures)
    assert round(gains["chrF"], 4) == 3.5235 and round(gains["BERTScore"], 5) == 0.05904
    assert round(figures["chrf"]["token"] - figures["chrf"]["base"], 2) == figures["chrf"]["difference"] == 3.53


def test_verdicts_follow_from_the_figures(figures):
    verdicts = {row["figure"]: row["verdict"] for row in against_paper(figures)}
    assert [name for name, verdict in verdicts.items() if verdict == "exact"] == [
        "Saudi %: a share of 836 outputs", "low confidence %: a share of 836 outputs", "tag echo %: a share of 836 outputs", "BERTScore, Token − base"]


def test_every_figure_and_item_has_its_source():
    """A figure without a source cannot be checked by a reader, an item with a hole says nothing."""
    assert all(row["source"] for row in sources())
    items = audit()
    assert [entry["number"] for entry in items] == list(range(1, 36))
    for entry in items:
        assert tuple(sorted(entry)) == tuple(sorted(AUDIT_KEYS))
        assert all(isinstance(entry[key], str) and entry[key].strip() for key in AUDIT_KEYS if key != "number"), entry["number"]
        assert entry["changes"].split()[0].strip(":") in ("Yes", "No", "Open"), entry["number"]


def test_the_topics_of_the_paper_stand_alike_in_both_files():
    """The curation's proportions and chapter 17 read the same figure of the paper."""
    proportions = load_knobs("tiny")[0].topic_pairs
    assert {topic: n for topic, n in proportions.items() if topic != "other"} == released()["top_topics"]
    assert sum(proportions.values()) == released()["pairs"]
