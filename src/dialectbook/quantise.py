"""Quantisation, chapter 16: the tuned model in 8 and 4 bits (bitsandbytes) against its own precision: size, speed, quality."""

import gc
import importlib.metadata
import tempfile
import time
from pathlib import Path

import numpy as np

from .data import prompts_of_test
from .files import UserError
from .model import ALLAM_7B, count_parameters, identity_of, load_base, load_model, load_tokenizer, load_tuned, response_logp
from .preference import outcomes
from .sample import sample_responses

EXPERIMENT = "token"
VARIANTS = {0: "own precision", 8: "8-bit (LLM.int8)", 4: "4-bit (NF4)"}
NF4_BLOCK, NF4_SCALES = 64, 256  # weights that share a scale; scales that share a scale of theirs (double quantisation)
WORK = {"answering one prompt": 1, "answering 16 prompts at once": 16, "scoring 16 responses": 16}  # batch size
NEW_TOKENS = 24  # of each answer whose speed is measured


# ---- variants ------------------------------------------------------------------------------------------------------

def load_variants(knobs, run, seed):
    """Return {0: the tuned model in its own precision, 8: its 8-bit variant, 4: its 4-bit variant}, as `quantise_bits` asks; {} for none.

    The adapter is merged into its base first, and what is quantised is the merged model: the layers change, not an adapter beside
    them. `knobs` are those of the experiment. Raises UserError where the base is in 4 bits already.
    """
    if not knobs.quantise_bits:
        print("quantise_bits is empty: this profile compares nothing here (in profile t4 the base is in 4 bits from the start).")
        return {}
    if knobs.quantization != "none":
        raise UserError(f"quantization = {knobs.quantization!r} loads the base in 4 bits, so there is no own precision to compare with "
                        "quantise_bits; set quantise_bits = [], or quantization = 'none' where memory allows.")
    tuned = load_tuned(knobs, run, EXPERIMENT, seed).merge_and_unload()
    with tempfile.TemporaryDirectory(dir=run.root, prefix="merged-", ignore_cleanup_errors=True) as folder:
        tuned.save_pretrained(folder)
        del tuned
        gc.collect()  # 7 billion weights leave the GPU before three variants of them arrive
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
        scale = layer.state.SCB if weight.SCB is None else weight.SCB  # where it lies after and before the first use
        return weight.data.float() * scale.float()[:, None] / 127
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


def by_hand_rows(models):
    """Return `size_by_hand` of ALLaM-7B in 16 bits, on the meta device, and of the variants' own precision, in percent of it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        allam = LlamaForCausalLM(LlamaConfig(**ALLAM_7B))
    rows = []
    own = [("this profile's model", model, model.dtype.itemsize) for model in list(models.values())[:1]]
    for name, model, own_bytes in [("ALLaM-7B", allam, 2), *own]:
        size, weights = size_by_hand(model, own_bytes), count_parameters(model)[0]
        linear = sum(layer.weight.numel() for layer in layers_of(model).values())
        rows.append({"model": name, "weights": weights, "in linear layers %": 100 * linear / weights, "bytes a weight, own precision": own_bytes,
                     "own precision (MB)": round(size[0] / 1e6), **{f"{VARIANTS[bits]} %": 100 * size[bits] / size[0] for bits in (8, 4)}})
    return rows


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
    "base bits" are those of the untuned base in its own precision, the same for all. {} where nothing is compared.
    """
    if not knobs.quantise_bits:
        return {}
    tokenizer = load_tokenizer(knobs, run)
    rows = prompts_of_test(knobs.model_copy(update={"test_scenarios": knobs.quantise_test_scenarios}), run)
    texts = [row["prompt"] for row in rows], [row["response"] for row in rows]

    def score(model):
        return -response_logp(model, tokenizer, *texts, bf16=False) / np.log(2)

    base = score(load_base(knobs, run).eval())
    results = {bits: [] for bits in (0, *knobs.quantise_bits)}
    for seed in knobs.seeds:
        models = load_variants(knobs, run, seed)
        for bits, model in models.items():
            folder = run.root / "quantised" / f"{EXPERIMENT}-{bits or 'own'}" / f"seed-{seed}"
            made_from = f"{identity_of(knobs, run, EXPERIMENT, seed)}, {bits} bits, bitsandbytes {importlib.metadata.version('bitsandbytes')}"
            answers = sample_responses(model, tokenizer, rows, knobs, folder, seed, made_from)
            results[bits].append({"seed": seed, "dialect": np.array([row["dialect"] for row in rows]), **outcomes(knobs, run, answers),
                                  "bits": score(model), "base bits": base, "characters": np.array([len(text) for text in texts[1]])})
        models.clear()
    return results
