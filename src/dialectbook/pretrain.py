"""Pre-training of the CPU twin, chapter 04: a small Llama that knows mostly MSA, as the real base does."""

import os
import random
import shutil

from .data import VERSIONS, curate, format_prompt, load_pool, load_regions, load_split, split_regions
from .files import fingerprint, is_finished, mark_finished, read_json, write_json
from .hardware import PAD_TO, has_bf16


def training_texts(knobs, run):
    """Return (texts, scenarios, regions): what tokenizer and twin learn from in this run, the curated scenarios, and the
    other regions' sentences among the texts."""
    scenarios, _ = curate(load_pool(), knobs)
    regions, _ = split_regions(load_regions(knobs.keep_diacritics), knobs.data_seed)
    texts = corpus(scenarios, load_split(run, "train"), regions, knobs.pretrain_dialect_share, knobs.data_seed)
    return texts, scenarios, regions


def corpus(pool, train_pairs, regions, dialect_share, seed):
    """Return the texts of the twin's pre-training, from scenarios of the training split only.

    Every training scenario gives its MSA version (and its English one); a random `dialect_share` of them also gives its
    dialect versions, and their responses once more as plain sentences of HIJAZ and NAJD beside the sentences of the other
    regions. Half of all texts carry a header of what they are, <TOPIC=…> or <REGION=…>, as pages of the web do. So the
    twin has met the names of the two regions, as a real base has, but never the tag <DIALECT=…>.
    Nothing of dev or test enters: a test proves it.
    """
    rng = random.Random(seed)
    ids = {pair["scenario_id"] for pair in train_pairs}
    chosen = set(rng.sample(sorted(ids), round(dialect_share * len(ids))))
    texts = [format_prompt(rng.choice(["", f"<TOPIC={s['topic'].upper()}>"]) + s[version]["instruction"]) + s[version]["response"]
             for s in pool if s["id"] in ids for version in (*VERSIONS, "english")
             if version in s and (s["id"] in chosen or version in ("msa", "english"))]
    sentences = [(region, s[version]["response"]) for s in pool if s["id"] in chosen
                 for region, version in (("HIJAZ", "hijazi"), ("NAJD", "najdi"))]
    sentences += [(row["region"], row["text"]) for row in regions]
    return texts + [rng.choice(["", f"<REGION={region}>"]) + text for region, text in sentences]


def pretrain(model, tokenizer, texts, held_out, folder, knobs):
    """Return the training history; leaves the model in `folder`. Finished work is not repeated, a killed run resumes.

    `held_out` maps a name to texts whose bits per character are measured at the end.
    """
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments, set_seed

    settings = {key: value for key, value in knobs.model_dump().items() if key.startswith(("twin_", "pretrain_", "vocab"))}
    recipe = fingerprint({"settings": settings, "texts": texts, "held_out": held_out, "tokenizer": tokenizer.backend_tokenizer.to_str(),
                          "bf16": has_bf16()}, [__file__])
    if is_finished(folder, recipe):
        return read_json(folder / "history.json")

    rows = [tokenizer(text + tokenizer.eos_token, truncation=True, max_length=512)["input_ids"] for text in texts]
    epochs = max(1, round(knobs.pretrain_tokens / sum(map(len, rows))))
    work = folder.with_name(f"{folder.name}.unfinished-{recipe}")
    set_seed(knobs.data_seed)
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=knobs.pretrain_batch_size, num_train_epochs=epochs,
        learning_rate=knobs.pretrain_learning_rate, lr_scheduler_type="cosine", warmup_steps=0.05, adam_beta2=0.98,
        weight_decay=knobs.pretrain_weight_decay, train_sampling_strategy="group_by_length", logging_steps=10, save_strategy="epoch", save_total_limit=1,
        report_to="none", seed=knobs.data_seed, bf16=has_bf16(), use_cpu=not torch.cuda.is_available(),
        disable_tqdm=in_batch())

    class MatrixDecayTrainer(Trainer):
        """Trainer whose weight decay spares the embeddings: it would shrink those of rare tokens, such as a tag's letters."""

        def get_decay_parameter_names(self, model):
            return [name for name in super().get_decay_parameter_names(model) if "embed" not in name]

    trainer = MatrixDecayTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=PAD_TO))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    model.config.use_cache = True
    history = {"epochs": epochs, "tokens": epochs * sum(map(len, rows)), "texts": len(texts),
               "loss": [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row],
               "bits_per_character": {name: bits_per_character(model, tokenizer, some) for name, some in held_out.items()}}
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    write_json(work / "model" / "history.json", history)
    mark_finished(work / "model", recipe)
    replace_folder(work / "model", folder)
    shutil.rmtree(work)
    return history


def in_batch():
    """Return whether progress bars are off (TQDM_DISABLE, which the batch runner sets): then the trainers are silent too."""
    return bool(os.environ.get("TQDM_DISABLE"))


def last_checkpoint(folder):
    """Return the newest whole checkpoint of an unfinished training, or None."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def replace_folder(new, folder):
    """Move the finished folder `new` to `folder`; an earlier result is removed only once the new one is in place."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def bits_per_character(model, tokenizer, texts, batch_size=32):
    """Return the mean negative log2-likelihood per character of the texts: comparable across tokenizers."""
    import torch

    nats, characters = 0.0, 0
    model.eval()
    for start in range(0, len(texts), batch_size):
        chunk = texts[start:start + batch_size]
        batch = tokenizer([text + tokenizer.eos_token for text in chunk], return_tensors="pt", padding=True, truncation=True,
                          max_length=512, padding_side="right", pad_to_multiple_of=PAD_TO).to(model.device)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        nats += float((losses * mask).sum())
        characters += sum(map(len, chunk))
    return nats / characters / 0.6931471805599453
