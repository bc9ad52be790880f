"""Supervised fine-tuning with LoRA, chapter 06: TRL's SFTTrainer with the paper's settings, resumable."""

import shutil

from .data import ask, load_split
from .files import fingerprint, is_finished, mark_finished, read_json, write_json
from .hardware import PAD_TO, has_bf16
from .model import identity_of, load_base, load_tokenizer, lora_config, response_logp
from .pretrain import in_batch, last_checkpoint, replace_folder

SETTINGS = ("base_model", "base_revision", "quantization", "dtype", "instruction_kind_train", "tag_train", "lora_r", "lora_alpha",
            "lora_dropout", "lora_targets", "num_epochs", "learning_rate", "lr_scheduler", "warmup_ratio", "batch_size",
            "gradient_accumulation", "max_length", "packing", "loss_on", "keep_best", "data_seed")


def train_adapter(knobs, run, experiment, seed):
    """Return the record of one training: losses per step and epoch, counts, dev loss on the response only.

    Leaves the adapter in the experiment's folder. A finished adapter with the same recipe (knobs, seed, data, base,
    arithmetic, this file) is not trained again; a killed training resumes from its last checkpoint and ends with the same weights.
    Source: paper, section IV-D; training/ in the released code (audit items 15 to 19).
    """
    import torch
    from transformers import set_seed

    folder = run.experiment(experiment, seed) / "adapter"
    load_split(run, "train"), load_split(run, "dev")  # missing inputs speak before anything heavy
    settings = {key: getattr(knobs, key) for key in SETTINGS} | {"seed": seed, "bf16": has_bf16(), "base": identity_of(knobs, run)}
    recipe = fingerprint(settings, [run.split("train"), run.split("dev"), __file__])
    if is_finished(folder, recipe):
        return read_json(folder / "training.json")
    if folder.exists():
        print(f"{folder.parent.name} of {experiment}: its knobs, data or base changed; the adapter is trained again.")

    work = folder.with_name(f"adapter.unfinished-{recipe}")
    set_seed(seed)
    tokenizer = load_tokenizer(knobs, run)
    model = load_base(knobs, run)
    trainer = make_trainer(model, tokenizer, rows_of(knobs, run, "train"), rows_of(knobs, run, "dev"), knobs, seed, work, lora_config(knobs))
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    log = trainer.state.log_history
    record = {
        "experiment": experiment, "seed": seed, "steps": trainer.state.global_step,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "best_checkpoint": trainer.state.best_model_checkpoint and trainer.state.best_model_checkpoint.rsplit("/", 1)[-1],
        "train": [{"step": row["step"], "epoch": row["epoch"], "loss": row["loss"]} for row in log if "loss" in row],
        "dev": [{"step": row["step"], "epoch": row["epoch"], "loss": row["eval_loss"]} for row in log if "eval_loss" in row],
        "dev_response_loss": response_loss(trainer.model, tokenizer, rows_of(knobs, run, "dev")),
        "peak_gpu_memory": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }
    finished = work / "finished"
    trainer.model.save_pretrained(str(finished))
    write_json(finished / "training.json", record)
    mark_finished(finished, recipe)
    replace_folder(finished, folder)
    shutil.rmtree(work)
    return record


def rows_of(knobs, run, split):
    """Return the prompt and completion of each pair of a split, asked the way the model is trained."""
    pairs = ask(load_split(run, split), knobs.instruction_kind_train, knobs.tag_train, seed=knobs.data_seed)
    return [{"prompt": pair["prompt"], "completion": pair["response"]} for pair in pairs]


def make_trainer(model, tokenizer, train_rows, dev_rows, knobs, seed, work, peft_config=None, optimizer=None):
    """Return the SFTTrainer of one training; `work` is the folder of its checkpoints.

    A row is a prompt and its completion, or a text. Without `dev_rows` nothing is measured, logged or saved on the way; without
    `peft_config` the model is trained as it comes, with an adapter if it has one; `optimizer` replaces AdamW on all weights.
    """
    import torch
    from datasets import Dataset
    from peft import prepare_model_for_kbit_training
    from transformers import PrinterCallback, Trainer
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    if knobs.quantization != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=knobs.gradient_checkpointing)

    class PlainLossTrainer(SFTTrainer):
        """SFTTrainer with Trainer's own loss: on a CPU the entropy and accuracy that TRL logs cost a fifth of the time."""

        def compute_loss(self, *arguments, **options):
            return Trainer.compute_loss(self, *arguments, **options)

    arguments = SFTConfig(
        output_dir=str(work), seed=seed, num_train_epochs=knobs.num_epochs, learning_rate=knobs.learning_rate,
        lr_scheduler_type=knobs.lr_scheduler, warmup_steps=knobs.warmup_ratio, per_device_train_batch_size=knobs.batch_size,
        per_device_eval_batch_size=knobs.batch_size, gradient_accumulation_steps=knobs.gradient_accumulation,
        gradient_checkpointing=knobs.gradient_checkpointing, max_length=knobs.max_length, packing=knobs.packing,
        packing_strategy="wrapped", pad_to_multiple_of=PAD_TO, completion_only_loss=knobs.loss_on == "response",
        train_sampling_strategy="random" if knobs.packing else "group_by_length",
        eval_strategy="epoch" if dev_rows else "no", save_strategy="epoch" if dev_rows else "no", save_total_limit=3 if knobs.keep_best else 1,
        load_best_model_at_end=knobs.keep_best and bool(dev_rows), metric_for_best_model="eval_loss", logging_strategy="steps" if dev_rows else "no", logging_steps=10, logging_first_step=bool(dev_rows),
        bf16=has_bf16() and knobs.dtype != "float16", fp16=gpu and knobs.dtype == "float16", tf32=True if gpu else None,
        use_cpu=not gpu, report_to="none", disable_tqdm=in_batch() or not dev_rows)
    trainer = (SFTTrainer if gpu else PlainLossTrainer)(
        model=model, args=arguments, processing_class=tokenizer, peft_config=peft_config, optimizers=(optimizer, None),
        train_dataset=Dataset.from_list(train_rows), eval_dataset=Dataset.from_list(dev_rows) if dev_rows else None)
    trainer.remove_callback(PrinterCallback)
    return trainer


def response_loss(model, tokenizer, rows):
    """Return the mean negative log-likelihood (nats) per response token: comparable with and without a tag (item 16)."""
    responses = [row["completion"] for row in rows]
    nats = -response_logp(model.eval(), tokenizer, [row["prompt"] for row in rows], responses).sum()
    return float(nats / sum(len(ids) + 1 for ids in tokenizer(responses, add_special_tokens=False)["input_ids"]))
