"""What chapter 03 shows: fertility, context, speed and tag cost of expanded tokenizers, and starts of the new embeddings."""

import numpy as np

from .english import continued
from .findings import compare_runs, draw_curve, finding, mean_bits, tokens_to_reach
from .show import COLOURS, new_figure, save_figure
from .vocabulary import STARTS, expand_model, measure, step_seconds

NAMES = {"msa": "MSA", "hijazi": "Hijazi", "najdi": "Najdi", "english": "English"}
PAINT = {"msa": "#666666", "hijazi": COLOURS["HIJAZI"], "najdi": COLOURS["NAJDI"], "english": "#56B4E9", "pieces": "#D55E00",
         "exponential": "#E69F00", "all": "#0072B2", "random": "#666666"}
TAGS = ("<DIALECT=HIJAZI>", "<DIALECT=NAJDI>")


def measure_all(tokenizers, documents):
    """Return version -> size -> `vocabulary.measure` of the documents, for tokenizers by size of the added vocabulary."""
    return {name: {size: measure(one, [text for _, text in documents[name]]) for size, one in tokenizers.items()} for name in NAMES}


def fertility_rows(measured):
    """Return the measures as rows of a table."""
    return [{"text": NAMES[name], "added tokens": size, "tokens per word": m["fertility"], "words kept whole %": 100 * m["whole"],
             "single bytes %": 100 * m["bytes"], "tokens": m["tokens"], "words": m["words"]}
            for name, some in measured.items() for size, m in some.items()]


def draw_fertility(run, measured, knees):
    """Draw tokens per word and words kept whole against the size of the added vocabulary; knees are circled."""
    figure, (left, right) = new_figure(width=7.5, columns=2)
    sizes = list(measured["msa"])
    for name, some in measured.items():
        left.plot(range(len(sizes)), [m["fertility"] for m in some.values()], "o-", color=PAINT[name], label=NAMES[name], markersize=4)
        right.plot(range(len(sizes)), [100 * m["whole"] for m in some.values()], "o-", color=PAINT[name], markersize=4)
        if name in knees:
            left.plot(sizes.index(knees[name]), some[knees[name]]["fertility"], "o", color=PAINT[name], markersize=11, fillstyle="none")
    left.set(ylabel="tokens per word (log)", yscale="log", title="fewer is better; circle: knee")
    left.set_yticks([1, 2, 3, 5, 10], [1, 2, 3, 5, 10])
    left.minorticks_off()
    right.set(ylabel="words kept whole (%)", title="more is better")
    for axis in (left, right):
        axis.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes], rotation=45)
        axis.set_xlabel("added Arabic tokens")
    left.legend()
    save_figure(figure, run, "fertility", fertility_rows(measured), of_model=False)


def speed_rows(model, tokenizers, measured, context=2048):
    """Return per size: parameters, words in the context, time of a training step and Arabic characters per second."""
    rows, before = [], tokenizers[0]
    for size, one in tokenizers.items():
        model, before = expand_model(model, before, one, "all") if size else model, one
        median, low, high = step_seconds(model)
        characters = 512 * measured["msa"][size]["characters_per_token"]
        rows.append({"added tokens": size, "parameters": model.num_parameters(),
                     f"MSA words in {context:,} tokens": round(context / measured["msa"][size]["fertility"]),
                     "English words": round(context / measured["english"][size]["fertility"]), "milliseconds per step": 1000 * median,
                     "MSA characters per second": round(characters / median), "quartiles": f"{characters / high:,.0f} to {characters / low:,.0f}"})
    return rows


def tag_rows(tokenizers, pairs):
    """Return per tokenizer what a training pair costs without a tag, and what its plain tag adds."""
    rows = []
    for name, one in tokenizers.items():
        ids = one([pair["instruction"] + pair["response"] for pair in pairs], add_special_tokens=False)["input_ids"]
        pair_tokens = sum(map(len, ids)) / len(ids)
        cost = [len(one(tag, add_special_tokens=False)["input_ids"]) for tag in TAGS]
        rows.append({"tokenizer": name, "tokens per training pair": pair_tokens, **dict(zip(TAGS, cost)), "one special token": 1,
                     "share of the plain tag %": 100 * np.mean(cost) / (pair_tokens + np.mean(cost))})
    return rows


# ---- starts of the new embeddings ----------------------------------------------------------------------------------

def run_starts(knobs, run, read, held_out, additions):
    """Return (records, reference): model -> start -> one record per seed, and model -> records with the old tokenizer.

    Models: the English twin; the same after it has met some Arabic; that one with an output matrix of its own.
    """
    models = {"English only": {}}
    if knobs.met_tokens:
        models |= {"has met Arabic": {"met": knobs.met_tokens}, "has met Arabic, untied": {"met": knobs.met_tokens, "tied": False}}
    common = {"held_out": {"MSA": held_out["MSA"]}, "additions": additions, "tokens": knobs.start_tokens}
    records = {name: {start: [continued(knobs, run, read, seed=seed, start=start, **common, **options) for seed in knobs.seeds]
                      for start in STARTS} for name, options in models.items()}
    reference = {name: [continued(knobs, run, read, seed=seed, start="", points=(0, 1), **common, **options) for seed in knobs.seeds]
                 for name, options in models.items() if "tied" not in options}
    return records, {name: reference.get(name, list(reference.values())[-1]) for name in models}


def unit_rows(records, reference):
    """Return loss per token and bits per character of one model with the old and the expanded tokenizer."""
    rows = []
    for name, record in (("English", reference[0]), ("expanded", records["pieces"][0])):
        bits, tokens = sum(record["text_bits"]["MSA"]), record["test_tokens"]["MSA"]
        rows.append({"tokenizer": name, "training tokens": record["settings"]["tokens"], "test tokens": tokens,
                     "loss per token (nats)": bits * np.log(2) / tokens, "bits per character": record["curve"][-1]["bits"]["MSA"]})
    return rows


def draw_starts(run, records, reference):
    """Draw bits per character of MSA against training tokens, one panel per model, one line per start."""
    figure, axes = new_figure(width=3.1 * len(records) + 0.5, columns=len(records))
    axes = np.atleast_1d(axes)
    for axis, (name, some) in zip(axes, records.items()):
        for start, runs in some.items():
            draw_curve(axis, runs, "MSA", PAINT[start], STARTS[start])
        level, top = mean_bits(reference[name], "MSA"), max(mean_bits(runs, "MSA", 0) for runs in some.values())
        if level < top:
            axis.axhline(level, color="black", linestyle=":", label="old tokenizer, at the end")
        axis.set(title=name, xlabel="training tokens")
        axis.ticklabel_format(axis="x", style="plain")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("bits per character, MSA (band: all seeds)")
    save_figure(figure, run, "starts", [
        {"model": name, "start": STARTS[start], "seed": record["settings"]["seed"], "tokens": point["tokens"], "bits": point["bits"]["MSA"]}
        for name, some in records.items() for start, runs in some.items() for record in runs for point in record["curve"]])


def start_rows(records, reference):
    """Return per model and start: bits per character at step 0 and at the end, and tokens to the old tokenizer's final level."""
    rows = []
    for name, some in records.items():
        for start, runs in some.items():
            reached = [tokens_to_reach(record["curve"], "MSA", old["curve"][-1]["bits"]["MSA"]) for record, old in zip(runs, reference[name])]
            rows.append({"model": name, "start": STARTS[start], "at step 0": mean_bits(runs, "MSA", 0), "at the end": mean_bits(runs, "MSA"),
                         "old tokenizer at the end": mean_bits(reference[name], "MSA"),
                         "tokens to reach that, each seed": ", ".join("not reached" if t is None else f"{t:,.0f}" for t in reached)})
    return rows


def findings(old, new, unread, records, resamples):
    """Return the chapter's tests: fertility of old against expanded, and the mean of pieces against each other start."""
    tests = []
    for name, label in NAMES.items():
        was, now = (np.array(measure(one, [text for _, text in unread[name]])["per_text"]) for one in (old, new))
        words = was[:, 1].mean()
        tests.append(finding(f"fertility_{name}", f"tokens per word, {label}: English tokenizer, expanded", was[:, 0] / words,
                             now[:, 0] / words, [i for i, _ in unread[name]], np.zeros(len(was)), resamples, "lower"))
    for name, some in records.items():
        slug = name.replace(",", "").replace(" ", "_").lower()
        for rival in ("random", "all", "exponential"):
            for when, at in (("step 0", "start_bits"), ("end", "text_bits")):
                tests.append(compare_runs(f"start_pieces_vs_{rival}_{slug}_{when.replace(' ', '')}",
                                          f"{name}, {when}: {STARTS[rival]}, {STARTS['pieces']}", some[rival], some["pieces"], "MSA",
                                          resamples, (at, at)))
    return tests
