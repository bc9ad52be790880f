"""Quantisation, chapter 16: the tuned model in 8 and 4 bits (bitsandbytes) against its own precision: size, speed, quality."""

import gc
import importlib.metadata
import tempfile
import time
from pathlib import Path

import numpy as np

from .data import DIALECTS, prompts_of_test
from .files import UserError
from .findings import finding
from .model import identity_of, load_model, load_tokenizer, load_tuned
from .preference import outcomes, response_logp
from .sample import sample_responses
from .show import COLOURS, NAMES, interval, new_figure, save_figure
from .stats import bootstrap_mean

EXPERIMENT = "token"
VARIANTS = {0: "own precision", 8: "8-bit (LLM.int8)", 4: "4-bit (NF4)"}
NF4_BLOCK, NF4_SCALES = 64, 256  # weights that share a scale; scales that share a scale of theirs (double quantisation)
MEASURES = {"bits": "lower", "requested-dialect accuracy": "higher", "MSA share": "lower", "chrF++": "higher"}  # and which way is better
SHARES = ("requested-dialect accuracy", "MSA share")  # shown in percent
LABELS = {"bits": "bits per character", "requested-dialect accuracy": "requested-dialect accuracy (points)", "MSA share": "MSA share (points)"}
WORK = {"answering one prompt": 1, "answering 16 prompts at once": 16, "scoring 16 responses": 16}  # batch size
NEW_TOKENS = 32  # of each answer whose speed is measured


# ---- variants ------------------------------------------------------------------------------------------------------

def load_variants(knobs, run, seed):
    """Return {0: the tuned model in its own precision, 8: its 8-bit variant, 4: its 4-bit variant}, as `quantise_bits` asks; {} for none.

    The adapter is merged into its base first, and what is quantised is the merged model: the layers change, not an adapter beside
    them. `knobs` are those of the experiment. Raises UserError where the base is in 4 bits already.
    """
    if not knobs.quantise_bits:
        return {}
    if knobs.quantization != "none":
        raise UserError(f"quantization = {knobs.quantization!r} loads the base in 4 bits, so there is no own precision to compare with "
                        "quantise_bits; set quantise_bits = [], or quantization = 'none' where memory allows.")
    tuned = load_tuned(knobs, run, EXPERIMENT, seed).merge_and_unload()
    with tempfile.TemporaryDirectory(dir=run.root, prefix="merged-", ignore_cleanup_errors=True) as folder:
        tuned.save_pretrained(folder)
        del tuned
        return {bits: load_model(knobs, folder, bits).eval() for bits in (0, *knobs.quantise_bits)}


def layers_of(model):
    """Return name -> layer of the linear layers that are quantised: all but the output head."""
    import torch

    head = model.get_output_embeddings()
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and layer is not head}


def dequantised(layer):
    """Return the weights that a layer stands for as a float32 matrix, whatever they are kept in."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if hasattr(weight, "SCB"):
        return weight.data.float() * weight.SCB.float()[:, None] / 127
    return weight.data.float()


# ---- size ----------------------------------------------------------------------------------------------------------

def memory_of(model):
    """Return bytes in memory per part of a model, scales included; a tensor that two parts share counts once."""
    parts, seen = {"linear layers": 0, "embeddings and head": 0, "norms": 0}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            part = "embeddings and head" if "embed" in name or "lm_head" in name else "norms" if "norm" in name else "linear layers"
            parts[part] += tensor.nbytes
    return parts


def disk_of(model):
    """Return bytes of the model saved as safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def bits_per_weight(bits, columns):
    """Return bits per weight of a linear layer with this many columns, scales included.

    LLM.int8 keeps a float32 scale per row, NF4 an 8-bit scale per 64 weights and a float32 one per 256 of these.
    """
    return 8 + 32 / columns if bits == 8 else 4 + 8 / NF4_BLOCK + 32 / (NF4_BLOCK * NF4_SCALES)


def size_by_hand(model, own_bytes):
    """Return {bits: bytes}: what the weights of a model must take, from its shapes alone (also those of a model on the meta device)."""
    shapes = [tuple(layer.weight.shape) for layer in layers_of(model).values()]
    linear = sum(rows * columns for rows, columns in shapes)
    rest = sum(weight.numel() for weight in model.parameters()) - linear
    return {bits: own_bytes * rest + (own_bytes * linear if not bits else
                                      sum(rows * columns * bits_per_weight(bits, columns) for rows, columns in shapes) / 8)
            for bits in VARIANTS}


def size_rows(models):
    """Return one row per variant: megabytes on disk and in memory by part, by hand, and the share of its own precision's file."""
    rows = []
    for bits, model in models.items():
        parts = {name: size / 1e6 for name, size in memory_of(model).items()}
        by_hand = size_by_hand(models[0], models[0].dtype.itemsize)[bits] / 1e6
        rows.append({"bits": bits, "variant": VARIANTS[bits], "file (MB)": disk_of(model) / 1e6, "memory (MB)": sum(parts.values()),
                     **{f"{name} (MB)": size for name, size in parts.items()}, "by hand (MB)": by_hand})
    return [{**row, "file %": 100 * row["file (MB)"] / rows[0]["file (MB)"]} for row in rows]


# ---- speed ---------------------------------------------------------------------------------------------------------

def speeds(models, tokenizer, rows, repeats):
    """Return one row per kind of work, repeat and variant: tokens per second, and its ratio to own precision in the same repeat.

    The variants take turns, forwards and backwards, after one round that does not count. Answers are greedy and all of
    NEW_TOKENS tokens. `rows` are test prompts with their responses.
    """
    import torch

    texts = [(row["prompt"], row["response"]) for row in rows[:max(WORK.values())]]
    read = sum(len(tokenizer(prompt + response)["input_ids"]) for prompt, response in texts)

    def tokens_per_second(model, work):
        some = texts[:WORK[work]]
        batch = tokenizer([prompt for prompt, _ in some], return_tensors="pt", padding=True, padding_side="left").to(model.device)
        start = time.perf_counter()
        if work.startswith("scoring"):
            response_logp(model, tokenizer, *map(list, zip(*some)), batch_size=len(some), bf16=False)
        else:
            with torch.inference_mode():
                model.generate(**batch, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (read if work.startswith("scoring") else NEW_TOKENS * len(some)) / (time.perf_counter() - start)

    measured = []
    for work in WORK:
        for repeat in range(-1, repeats):
            turn = {bits: tokens_per_second(models[bits], work) for bits in sorted(models, reverse=bool(repeat % 2))}
            measured += [{"work": work, "repeat": repeat, "bits": bits, "tokens per second": turn[bits], "ratio": turn[bits] / turn[0]}
                         for bits in models if repeat >= 0]
    return measured


def speed_rows(measured):
    """Return one row per kind of work and variant: median tokens per second, median ratio and its range over the repeats."""
    rows = []
    for work in WORK:
        for bits in dict.fromkeys(row["bits"] for row in measured):
            some = [row for row in measured if (row["work"], row["bits"]) == (work, bits)]
            ratios = [row["ratio"] for row in some]
            rows.append({"work": work, "variant": VARIANTS[bits], "tokens per second": float(np.median([row["tokens per second"] for row in some])),
                         "ratio to own precision": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios), "repeats": len(some)})
    return rows


# ---- quality -------------------------------------------------------------------------------------------------------

def quality(knobs, run):
    """Return {bits: one dict per seed} with the `outcomes` of each variant's answers, and bits and characters of each reference response.

    All variants answer the same prompts in the same batches with the same random numbers. Answers are kept and not made again.
    {} where nothing is compared.
    """
    if not knobs.quantise_bits:
        return {}
    tokenizer = load_tokenizer(knobs, run)
    rows = prompts_of_test(knobs.model_copy(update={"test_scenarios": knobs.quantise_test_scenarios}), run)
    results = {bits: [] for bits in (0, *knobs.quantise_bits)}
    for seed in knobs.seeds:
        models = load_variants(knobs, run, seed)
        for bits, model in models.items():
            folder = run.root / "quantised" / f"{EXPERIMENT}-{bits or 'own'}" / f"seed-{seed}"
            made_from = f"{identity_of(knobs, run, EXPERIMENT, seed)}, {bits} bits, bitsandbytes {importlib.metadata.version('bitsandbytes')}"
            answers = sample_responses(model, tokenizer, rows, knobs, folder, seed, made_from)
            logp = response_logp(model, tokenizer, [row["prompt"] for row in rows], [row["response"] for row in rows], bf16=False)
            results[bits].append({"seed": seed, "dialect": np.array([row["dialect"] for row in rows]), **outcomes(knobs, run, answers),
                                  "bits": -logp / np.log(2), "characters": np.array([len(row["response"]) for row in rows])})
        models.clear()
        gc.collect()  # a model of 7 billion leaves the GPU before the next seed's arrives
    return results


def values_of(some, measure, dialect):
    """Return (values, scenarios, seeds) of the answers in one dialect ("both": in either) over all seeds, as arrays.

    "bits" is divided by the mean length, so that its mean is that of all characters together; shares are 0 or 1.
    """
    chosen = [np.isin(one["dialect"], DIALECTS if dialect == "both" else [dialect]) for one in some]
    values = np.concatenate([one[measure][keep] for one, keep in zip(some, chosen)])
    if measure == "bits":
        values = values / np.concatenate([one["characters"][keep] for one, keep in zip(some, chosen)]).mean()
    return (values, np.concatenate([np.array(one["scenario"])[keep] for one, keep in zip(some, chosen)]),
            np.concatenate([np.full(keep.sum(), one["seed"]) for one, keep in zip(some, chosen)]))


def quality_rows(results, resamples):
    """Return one row per variant and dialect: each measure with its 95 % interval over scenarios, and the answers that stay word for word."""
    rows = []
    for bits, some in results.items():
        for dialect in DIALECTS:
            row = {"variant": VARIANTS[bits], "dialect": NAMES[dialect], "seeds": len(some), "n": len(values_of(some, "bits", dialect)[0])}
            for measure in MEASURES:
                values, scenarios, _ = values_of(some, measure, dialect)
                scale, digits = (100, 1) if measure in SHARES else (1, 3 if measure == "bits" else 1)
                row[LABELS.get(measure, measure).replace("points", "%")] = interval(dict(zip(
                    ("value", "low", "high"), (scale * v for v in bootstrap_mean(values, scenarios, resamples)))), digits)
            same = [a == b for one, own in zip(some, results[0]) for a, b, d in zip(one["texts"], own["texts"], one["dialect"]) if d == dialect]
            rows.append(row | {"same answer as own precision %": 100 * float(np.mean(same)) if bits else None})
    return rows


def test_id(bits, dialect, measure):
    """Return the id of a test, such as int8_hijazi_bits; int8 and int4 stand for 8 and 4 bits."""
    return f"int{bits}_{dialect}_{measure}".lower().replace("++", "").replace(" ", "_").replace("-", "_")


def findings(results, resamples):
    """Return the chapter's tests: each measure in own precision and quantised, per dialect and for both; then whether one dialect loses more."""
    tests = []
    for bits in list(results)[1:]:
        for dialect in (*DIALECTS, "both"):
            for measure, better in MEASURES.items():
                first, scenarios, seeds = values_of(results[0], measure, dialect)
                what = f"{NAMES.get(dialect, 'Both')}, {'bits per character' if measure == 'bits' else measure}: own precision, {VARIANTS[bits]}"
                tests.append(finding(test_id(bits, dialect, measure), what, first, values_of(results[bits], measure, dialect)[0],
                                     scenarios, seeds, resamples, better))
        lost = [values_of(results[bits], "bits", dialect)[0] - values_of(results[0], "bits", dialect)[0] for dialect in DIALECTS]
        _, scenarios, seeds = values_of(results[0], "bits", DIALECTS[0])  # each question is there in both dialects, in the same order
        tests.append(finding(test_id(bits, "hijazi_against_najdi", "bits"), f"bits per character lost, {VARIANTS[bits]}: Hijazi, Najdi",
                             *lost, scenarios, seeds, resamples))
    return tests


# ---- figures -------------------------------------------------------------------------------------------------------

def draw_size(run, sizes, tests, measured, margin):
    """Draw bits per character lost against the size of the file, and the speed of each variant as a ratio with its range."""
    if not tests:
        return
    figure, (left, right) = new_figure(width=9, columns=2)
    lost = {test["id"]: test for test in tests}
    own = {"difference": 0.0, "low": 0.0, "high": 0.0}
    rows = [{"dialect": dialect, "variant": size["variant"], "file (MB)": size["file (MB)"], **{
        key: lost.get(f"int{size['bits']}_{dialect.lower()}_bits", own)[key] for key in own}} for dialect in DIALECTS for size in sizes]
    for dialect, marker, aside in zip(DIALECTS, "os", (-0.01, 0.01)):
        x, y, low, high = (np.array([row[key] for row in rows if row["dialect"] == dialect]) for key in ("file (MB)", *own))
        left.errorbar(x + aside * x.max(), y, yerr=[y - low, high - y], color=COLOURS[dialect], marker=marker, markersize=5, capsize=2, label=NAMES[dialect])
    left.axhspan(-margin, margin, color="#666666", alpha=0.12, linewidth=0, label="margin of the claim")
    for size in sizes:
        left.annotate(size["variant"], (size["file (MB)"], 0), (0, -30), textcoords="offset points", ha="center", fontsize=7)
    left.set(xlabel="file (MB)", ylabel="bits per character lost", xlim=(0, 1.15 * max(size["file (MB)"] for size in sizes)))
    left.legend(fontsize=7)
    ratios = [row for row in speed_rows(measured) if row["variant"] != VARIANTS[0]]
    for place, row in enumerate(ratios):
        middle = row["ratio to own precision"]
        right.errorbar(middle, place, xerr=[[middle - row["lowest"]], [row["highest"] - middle]], fmt="D", color="#0072B2", markersize=5, capsize=2)
    right.axvline(1, color="black", linewidth=0.8)
    right.set(yticks=range(len(ratios)), xlabel="speed, own precision = 1: median and range of the repeats", xscale="log")
    right.set_yticklabels([f"{row['work']},\n{row['variant']}" for row in ratios], fontsize=7)
    right.invert_yaxis()
    save_figure(figure, run, "quantised_size", rows)


def draw_losses(run, tests):
    """Draw what each variant changes per dialect and measure, with 95 % intervals."""
    if not tests:
        return
    figure, axes = new_figure(width=10, height=2.6, columns=len(MEASURES))
    by_id = {test["id"]: test for test in tests}
    places = [(bits, dialect) for bits in (8, 4) for dialect in (*DIALECTS, "both") if test_id(bits, dialect, "bits") in by_id]
    for axis, measure in zip(axes, MEASURES):
        for place, (bits, dialect) in enumerate(places):
            value, low, high = ((100 if measure in SHARES else 1) * by_id[test_id(bits, dialect, measure)][key] for key in ("difference", "low", "high"))
            axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=COLOURS.get(dialect, "black"), markersize=5, capsize=2)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=LABELS.get(measure, measure), yticks=range(len(places)))
        axis.set_yticklabels([f"{bits}-bit, {NAMES.get(dialect, 'both')}" for bits, dialect in places] if measure == "bits" else [], fontsize=7)
        axis.invert_yaxis()
    save_figure(figure, run, "quantised_losses", [{key: test[key] for key in ("id", "what", "first", "second", "difference", "low", "high", "p", "n")}
                                                  for test in tests])
