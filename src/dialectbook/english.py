"""An English model learns Arabic, chapters 03 and 11: texts of two languages, mixtures, continued pre-training, bits per character.

On a CPU the English model is a twin, trained here on the English texts of the training split and on nothing else.
"""

import random
from pathlib import Path

import numpy as np

from .data import VERSIONS
from .files import fingerprint, is_finished, mark_finished, read_json, read_jsonl, write_json
from .hardware import PAD_TO, detect, has_bf16
from .model import build_twin, from_hub, train_tokenizer
from .paths import DATA
from .pretrain import in_batch, pretrain
from .vocabulary import expand_model, expand_tokenizer, freeze_but_new

CODE = (__file__, str(Path(__file__).with_name("vocabulary.py")))  # a change in either asks for new runs
POINTS = (0, 1 / 4, 1 / 2, 1)  # shares of a run at which bits per character are measured


# ---- texts ---------------------------------------------------------------------------------------------------------

def documents(scenarios, pairs):
    """Return {"english", "msa", "hijazi", "najdi"} -> [(scenario id, text)] of the scenarios of these pairs, and of no other."""
    ids = {pair["scenario_id"] for pair in pairs}
    return {version: [(s["id"], s[version]["instruction"] + "\n" + s[version]["response"]) for s in scenarios
                      if s["id"] in ids and version in s] for version in ("english", *VERSIONS)}


def held_out_texts(scenarios, test_pairs, count, seed):
    """Return (texts, ids): "MSA" and "English" texts of the same test scenarios and "Mixed" sentences, at most `count` of each.

    ids are those of the scenarios. Mixed sentences (data/code_switched.jsonl) switch between a Saudi dialect and English inside the
    sentence, as people type; they are used for nothing but this test.
    """
    rng, ids = random.Random(seed), {pair["scenario_id"] for pair in test_pairs}
    both = sorted((s for s in scenarios if s["id"] in ids and "english" in s), key=lambda s: s["id"])
    both = rng.sample(both, min(count, len(both)))
    switched = [row["text"] for row in read_jsonl(DATA / "code_switched.jsonl", ("id", "dialect", "text"))]
    texts = {name: [s[version]["instruction"] + "\n" + s[version]["response"] for s in both] for name, version in (("MSA", "msa"), ("English", "english"))}
    return texts | {"Mixed": rng.sample(switched, min(count, len(switched)))}, [s["id"] for s in both]


def mixture(texts, tokenizer, share, parallel, tokens, row_tokens, seed):
    """Return (rows, characters): training rows of equal length with this share of Arabic tokens, and the characters in them.

    Arabic is MSA first, then Hijazi and Najdi once all MSA is used; scenarios that have English come first. With
    `parallel` the MSA and the English text of one scenario stand together as one text where both are in the mixture;
    without, the same texts are shuffled singly. Nothing else differs between the two.
    """
    rng = random.Random(seed)
    translated = {i for i, _ in texts["english"]}
    order = rng.sample(sorted(translated), len(translated))
    rest = sorted({i for i, _ in texts["msa"]} - translated)
    order += rng.sample(rest, len(rest))
    by_version = {version: dict(some) for version, some in texts.items()}

    def take(versions, budget):
        taken, count = {}, 0
        while count < budget:
            for version in versions:
                for i in order:
                    if i in by_version[version] and count < budget:
                        taken[len(taken)] = (i, version, by_version[version][i])
                        count += len(tokenizer(framed(tokenizer, by_version[version][i]))["input_ids"])
        return list(taken.values())

    arabic = take(VERSIONS, share * tokens)
    english = take(("english",), (1 - share) * tokens)
    units = [[text] for _, _, text in arabic + english]
    if parallel:
        waiting = {}
        for i, version, text in english:
            waiting.setdefault(i, []).append(text)
        units = [[text, waiting[i].pop()] if version == "msa" and waiting.get(i) else [text] for i, version, text in arabic]
        units += [[text] for left in waiting.values() for text in left]
    rng.shuffle(units)
    stream, characters = [], 0
    for unit in units:
        stream += tokenizer(framed(tokenizer, "\n".join(unit)))["input_ids"]
        characters += sum(map(len, unit))
    rows = [stream[start:start + row_tokens] for start in range(0, min(len(stream), tokens) - row_tokens + 1, row_tokens)]
    return rows, round(characters * row_tokens * len(rows) / len(stream))


# ---- models --------------------------------------------------------------------------------------------------------

def english_tokenizer(knobs, texts):
    """Return the English model's tokenizer: the twin's, trained on the English `documents`, or the hub's."""
    from transformers import AutoTokenizer

    if knobs.english_model == "twin":
        return train_tokenizer([text for _, text in texts["english"]], knobs.english_vocab_size)
    tokenizer = from_hub(AutoTokenizer.from_pretrained, knobs.english_model, knobs.english_revision, "english_model",
                         trust_remote_code=knobs.trust_remote_code)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def load_english(knobs, run, texts, size=0, met=0):
    """Return (model, tokenizer) of the English model: the twin of this hidden size, or the hub's, with weights in float32.

    `texts` are the `documents` of the training split: a twin that is not there yet is trained on the English ones. With
    `met` it has then also read that many tokens, half English, half Arabic in the old tokenizer's bytes: a model that has
    met some Arabic before its vocabulary grows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = english_tokenizer(knobs, texts)
    options = {"dtype": torch.float32, "use_safetensors": True, "attn_implementation": "sdpa" if detect().device == "cuda" else "eager"}
    if knobs.english_model != "twin":
        return from_hub(AutoModelForCausalLM.from_pretrained, knobs.english_model, knobs.english_revision, "english_model",
                        trust_remote_code=knobs.trust_remote_code, **options).to(detect().device), tokenizer
    size = size or knobs.english_sizes[0]
    folder = run.english / f"hidden-{size}"
    shape = knobs.model_copy(update={"twin_hidden_size": size, "pretrain_tokens": knobs.english_tokens, "vocab_size": len(tokenizer)})
    pretrain(build_twin(shape, tokenizer), tokenizer, [text for _, text in texts["english"]], {}, folder, shape)
    model = AutoModelForCausalLM.from_pretrained(folder, **options).to(detect().device)
    if not met:
        return model, tokenizer
    recipe = fingerprint({"met": met, "texts": texts, "knobs": training_settings(knobs)}, [folder / "recipe.json", *CODE])
    folder = folder.with_name(f"{folder.name}-met")
    if not is_finished(folder, recipe):
        rows, _ = mixture(texts, tokenizer, 0.5, False, met, knobs.balance_row_tokens, knobs.data_seed)
        continue_training(model, tokenizer, rows, len(rows) // knobs.balance_batch_size, 0, len(tokenizer), knobs, knobs.data_seed)
        model.save_pretrained(folder)
        mark_finished(folder, recipe)
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(detect().device), tokenizer


def training_settings(knobs):
    """Return the knobs that every training here depends on: not how much text chapter 11 reads (`balance_tokens`, `balance_texts`)."""
    return {key: value for key, value in knobs.model_dump().items()
            if key.startswith(("balance_", "english_", "added_tokens")) and key not in ("balance_tokens", "balance_texts")}


def untie(model):
    """Return the model with an output matrix of its own, a copy of the input's: it computes the same until it is trained."""
    import torch

    if model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    return model


def framed(tokenizer, text):
    """Return the text with its end token, and a begin token if the tokenizer adds none: then the first token is predicted too."""
    begin = tokenizer.bos_token or tokenizer.eos_token
    return ("" if tokenizer("a")["input_ids"][0] == tokenizer.convert_tokens_to_ids(begin) else begin) + text + tokenizer.eos_token


def text_bits(model, tokenizer, texts, batch_size=16):
    """Return the negative log2-likelihood (bits) of each text, its end included: an array in the order of the texts."""
    import torch

    bits, order = np.zeros(len(texts)), sorted(range(len(texts)), key=lambda i: len(texts[i]))
    model.eval()
    for start in range(0, len(texts), batch_size):
        chosen = order[start:start + batch_size]
        batch = tokenizer([framed(tokenizer, texts[i]) for i in chosen], return_tensors="pt", padding=True, truncation=True,
                          max_length=1024, padding_side="right", pad_to_multiple_of=PAD_TO).to(model.device)
        mask = batch["attention_mask"][:, 1:].bool()
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=has_bf16()):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][mask]
        losses = torch.zeros(mask.shape, device=model.device)
        losses[mask] = torch.nn.functional.cross_entropy(logits.float(), batch["input_ids"][:, 1:][mask], reduction="none")
        bits[chosen] = losses.sum(1).cpu().numpy() / np.log(2)
    return bits


# ---- continued pre-training ----------------------------------------------------------------------------------------

def continued(knobs, run, texts, held_out, additions, seed, start="pieces", share=1.0, parallel=False, frozen=0.0, size=0,
              tied=True, met=0, tokens=0, points=POINTS):
    """Return the record of one continued pre-training of the English model: a curve of bits per character, bits of each text.

    `start` is one of `vocabulary.STARTS`, or "" for the old tokenizer; `frozen` is the share of the run in which only the
    new embeddings learn; `met` as in `load_english`. The learning rate is constant, so each point of the curve is the end of a shorter run. A record
    with the same recipe (settings, texts, English model, arithmetic, code) is read, not made again.
    """
    import torch
    from transformers import set_seed

    size, tokens = size or knobs.english_sizes[0], tokens or knobs.balance_tokens
    settings = {"start": start, "share": share, "parallel": parallel, "frozen": frozen, "size": size, "tied": tied, "met": met,
                "seed": seed, "tokens": tokens, "points": points, "bf16": has_bf16(), **training_settings(knobs)}
    recipe = fingerprint({**settings, "texts": texts, "held_out": held_out, "additions": additions}, CODE)
    folder = run.english / f"run-{recipe}"
    if is_finished(folder, recipe):
        return read_json(folder / "recipe.json")

    set_seed(seed)
    model, tokenizer = load_english(knobs, run, texts, size, met)
    model, old_size = model if tied else untie(model), len(tokenizer)
    if start:
        new = expand_tokenizer(tokenizer, additions, knobs.added_tokens)
        model = expand_model(model, tokenizer, new, start, seed)
        tokenizer = new
    rows, characters = mixture(texts, tokenizer, share, parallel, tokens, knobs.balance_row_tokens, seed)
    steps = max(1, len(rows) // knobs.balance_batch_size)
    frozen_steps = round(frozen * steps)
    lengths = {name: np.array([len(text) for text in some]) for name, some in held_out.items()}
    curve, bits = [], {}

    def look(step):
        if step in {round(point * steps) for point in points}:
            bits.update({name: text_bits(model, tokenizer, some) for name, some in held_out.items()})
            curve.append({"step": step, "tokens": round(step * tokens / steps), "characters": round(step * characters / steps),
                          "bits": {name: float(bits[name].sum() / lengths[name].sum()) for name in bits}})

    look(0)
    at_start = {name: values.tolist() for name, values in bits.items()}
    continue_training(model, tokenizer, rows, steps, frozen_steps, old_size, knobs, seed, look)
    record = {"recipe": recipe, "settings": settings, "curve": curve, "characters": characters, "tokenizer": len(tokenizer),
              "test_tokens": {name: sum(len(ids) for ids in tokenizer(some)["input_ids"]) for name, some in held_out.items()},
              "start_bits": at_start, "text_bits": {name: values.tolist() for name, values in bits.items()},
              "text_characters": {name: values.tolist() for name, values in lengths.items()}}
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    write_json(folder / "recipe.json", record)
    return record


def continue_training(model, tokenizer, rows, steps, frozen_steps, first_new, knobs, seed, look=lambda step: None):
    """Train the model on the rows with transformers' Trainer, calling `look(step)` after each step.

    In the first `frozen_steps` only the embeddings of new tokens learn.
    """
    import gc
    import tempfile

    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    gpu = torch.cuda.is_available()

    class Look(TrainerCallback):
        def on_step_end(self, arguments, state, control, **_):
            look(done + state.global_step)
            model.train()

    gc.freeze()  # the Trainer collects garbage each time: a quarter of a second through torch and all texts
    size = knobs.balance_batch_size
    for done, count in ((0, frozen_steps), (frozen_steps, steps - frozen_steps)):
        if not count:
            continue
        own = rows[done * size:(done + count) * size]
        dataset = Dataset.from_dict({"input_ids": own, "labels": own})
        hooks = freeze_but_new(model, first_new) if not done and frozen_steps else []
        with tempfile.TemporaryDirectory() as work:
            arguments = TrainingArguments(
                output_dir=work, max_steps=count, per_device_train_batch_size=knobs.balance_batch_size,
                learning_rate=knobs.balance_learning_rate, lr_scheduler_type="constant_with_warmup", warmup_steps=0.05,
                adam_beta2=0.98, weight_decay=0.0, save_strategy="no", logging_strategy="no", report_to="none", seed=seed + done,
                bf16=has_bf16(), fp16=gpu and not has_bf16(), use_cpu=not gpu, disable_tqdm=in_batch())
            trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=default_data_collator,
                              callbacks=[Look()])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        for hook in hooks:
            hook.remove()
        for weight in model.parameters():
            weight.requires_grad_(True)
