"""Preference alignment, chapter 14: DPO on pairs that the dataset gives for nothing, on top of the adapters of chapter 06."""

import random
import shutil

import numpy as np

from .data import DIALECTS, OTHER_DIALECT, ask, load_split, prompts_of_test
from .english import text_bits
from .files import UserError, fingerprint, is_finished, mark_finished, read_json, read_jsonl, write_json
from .hardware import PAD_TO, has_bf16
from .judge import judged_dialect, load_dialect_judge, load_region_judge
from .metrics import chrf_per_answer
from .model import identity_of, load_base, load_tokenizer, response_logp
from .pretrain import in_batch, last_checkpoint, replace_folder
from .sample import sample_responses

REJECTED = {"msa": "the MSA response", "other": "the other dialect's response"}
EXPERIMENTS = ("no_token", "token")
SETTINGS = ("dpo_learning_rate", "dpo_epochs", "dpo_batch_size", "dpo_gradient_accumulation", "dpo_pairs", "instruction_kind_train", "tag_train",
            "max_length", "dtype", "quantization", "data_seed")


# ---- pairs ---------------------------------------------------------------------------------------------------------

def preference_pairs(knobs, run, split, rejected="msa"):
    """Return rows of prompt, chosen and rejected: the answer in the dialect asked for, and the same answer in other Arabic.

    `rejected` is "msa", or "other" for the other dialect. Scenarios are drawn at random, with both dialects of each: as many
    as make `dpo_pairs` in the training split, half as many in another (0: all). Rows whose two answers are equal are left out.
    """
    if rejected not in REJECTED:
        raise UserError(f"rejected = {rejected!r} is unknown; choose one of {', '.join(REJECTED)}.")
    pairs = load_split(run, split)
    scenarios = sorted({pair["scenario_id"] for pair in pairs})
    wanted = knobs.dpo_pairs // (2 if split == "train" else 4)
    if 0 < wanted < len(scenarios):
        scenarios = set(random.Random(knobs.data_seed).sample(scenarios, wanted))
    said = {(pair["scenario_id"], pair["dialect"]): pair["response"] for pair in pairs}
    rows = [{"prompt": pair["prompt"], "chosen": pair["response"], "scenario_id": pair["scenario_id"], "dialect": pair["dialect"],
             "rejected": pair["response_msa"] if rejected == "msa" else said.get((pair["scenario_id"], OTHER_DIALECT[pair["dialect"]]), pair["response"])}
            for pair in ask(pairs, knobs.instruction_kind_train, knobs.tag_train, seed=knobs.data_seed) if pair["scenario_id"] in scenarios]
    return [row for row in rows if row["chosen"] != row["rejected"]]


# ---- training ------------------------------------------------------------------------------------------------------

def folder_of(run, experiment, rejected, beta, seed):
    """Return the folder of one aligned adapter and its answers."""
    return run.root / "preference" / f"{experiment}-{rejected}-beta-{beta}" / f"seed-{seed}"


def load_adapter(knobs, run, folder, trainable=False):
    """Return the base with the adapter in this folder."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_base(knobs, run), str(folder), is_trainable=trainable)


def align(knobs, run, experiment, rejected, beta, seed):
    """Return the record of one DPO training (TRL's DPOTrainer) of the experiment's adapter: margins, accuracy, dev rewards.

    The reference is the adapter as chapter 06 left it, not the bare base. A finished training with the same recipe is not
    repeated; a killed one resumes from its last epoch. `knobs` are those of the experiment.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import DPOConfig, DPOTrainer

    source = run.experiment(experiment, seed) / "adapter"
    if not (source / "recipe.json").is_file():
        raise UserError(f"{source} holds no finished adapter. Chapter 06_lora_sft makes it: run it with experiment = "
                        f"{experiment!r} and seed = {seed} first.")
    folder = folder_of(run, experiment, rejected, beta, seed) / "adapter"
    settings = {key: getattr(knobs, key) for key in SETTINGS}
    recipe = fingerprint({**settings, "rejected": rejected, "beta": beta, "seed": seed, "bf16": has_bf16(),
                          "adapter": identity_of(knobs, run, experiment, seed)}, [run.split("train"), run.split("dev"), __file__])
    if is_finished(folder, recipe):
        return read_json(folder / "training.json")

    work = folder.with_name(f"adapter.unfinished-{recipe}")
    set_seed(seed)
    gpu = torch.cuda.is_available()
    model, tokenizer = load_adapter(knobs, run, source, trainable=True), load_tokenizer(knobs, run)
    model.config.use_cache = False
    rows = preference_pairs(knobs, run, "train", rejected)
    arguments = DPOConfig(
        output_dir=str(work), beta=beta, seed=seed, num_train_epochs=knobs.dpo_epochs, learning_rate=knobs.dpo_learning_rate,
        lr_scheduler_type="cosine", warmup_steps=0.1, per_device_train_batch_size=knobs.dpo_batch_size,
        gradient_accumulation_steps=knobs.dpo_gradient_accumulation, max_length=2 * knobs.max_length,
        pad_to_multiple_of=PAD_TO, gradient_checkpointing=knobs.gradient_checkpointing, logging_steps=2, logging_first_step=True,
        save_strategy="epoch", save_total_limit=1, report_to="none", disable_tqdm=in_batch(), use_cpu=not gpu,
        bf16=has_bf16() and knobs.dtype != "float16", fp16=gpu and knobs.dtype == "float16")
    trainer = DPOTrainer(model=model, args=arguments, processing_class=tokenizer,
                         train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    log = [row for row in trainer.state.log_history if "rewards/margins" in row]
    dev = preference_pairs(knobs, run, "dev", rejected)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    record = {"experiment": experiment, "rejected": rejected, "beta": beta, "seed": seed, "pairs": len(rows), "steps": trainer.state.global_step,
              "train": [{"step": row["step"], "margin": row["rewards/margins"], "accuracy": row["rewards/accuracies"]} for row in log],
              "dev": dev_rewards(model, tokenizer, dev, beta)}
    finished = work / "finished"
    model.save_pretrained(str(finished), selected_adapters=["default"])
    write_json(finished / "training.json", record)
    mark_finished(finished, recipe)
    replace_folder(finished, folder)
    shutil.rmtree(work)
    return record


def dev_rewards(model, tokenizer, rows, beta):
    """Return per dev pair: scenario, reward margin (beta times the gain in log-odds of chosen over rejected), lengths in words.

    The model carries two adapters, "default" as trained and "ref" as it was.
    """
    scores = {}
    for adapter in ("default", "ref"):
        model.set_adapter(adapter)
        for answer in ("chosen", "rejected"):
            scores[adapter, answer] = response_logp(model, tokenizer, [row["prompt"] for row in rows], [row[answer] for row in rows])
    model.set_adapter("default")
    margins = beta * ((scores["default", "chosen"] - scores["ref", "chosen"]) - (scores["default", "rejected"] - scores["ref", "rejected"]))
    return [{"scenario_id": row["scenario_id"], "margin": float(margin), "chosen_words": len(row["chosen"].split()),
             "rejected_words": len(row["rejected"].split())} for row, margin in zip(rows, margins)]


# ---- answers before and after --------------------------------------------------------------------------------------

def test_rows(knobs, run):
    """Return the test prompts of `dpo_test_scenarios` scenarios, drawn from those that chapter 07 answers."""
    rows = prompts_of_test(knobs, run)
    scenarios = sorted({row["scenario_id"] for row in rows})
    chosen = set(random.Random(knobs.data_seed).sample(scenarios, min(knobs.dpo_test_scenarios or len(scenarios), len(scenarios))))
    return [row for row in rows if row["scenario_id"] in chosen]


def answers_before(knobs, run, experiment, seed):
    """Return chapter 07's answers to the same prompts, in the same order."""
    path = run.experiment(experiment, seed) / "predictions.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing. Chapter 07_sampling makes it: run it with experiment = {experiment!r} and seed = {seed} first.")
    given = {(row["scenario_id"], row["dialect"], row["prompt"]): row for row in read_jsonl(path)}
    return [given[row["scenario_id"], row["dialect"], row["prompt"]] for row in test_rows(knobs, run)]


def answers_after(knobs, run, experiment, rejected, beta, seed, english):
    """Return (answers, bits of each English text) of the aligned adapter; sampled answers are kept and not made again."""
    folder = folder_of(run, experiment, rejected, beta, seed)
    model, tokenizer = load_adapter(knobs, run, folder / "adapter").eval(), load_tokenizer(knobs, run)
    made_from = (folder / "adapter" / "recipe.json").read_text(encoding="utf-8")
    return sample_responses(model, tokenizer, test_rows(knobs, run), knobs, folder, seed, made_from), text_bits(model, tokenizer, english)


def outcomes(knobs, run, answers):
    """Return the measures of each answer as arrays: MSA share, dialect share and requested-dialect accuracy (0 or 1), chrF++, words."""
    texts = [row["prediction"] for row in answers]
    produced = judged_dialect(texts, load_region_judge(knobs, run).probabilities(texts), load_dialect_judge(run).probabilities(texts))
    return {"MSA share": (produced == "MSA").astype(float), "dialect share": np.isin(produced, DIALECTS).astype(float),
            "requested-dialect accuracy": (produced == np.array([row["dialect"] for row in answers])).astype(float),
            "chrF++": chrf_per_answer(texts, [row["reference"] for row in answers]),
            "words": np.array([float(len(text.split())) for text in texts]), "texts": texts,
            "scenario": [row["scenario_id"] for row in answers]}


def plan(knobs):
    """Return the alignments to make: (experiment, rejected, beta, seeds).

    The first beta with MSA rejected gets all seeds. The other betas (on Token only) and the other dialect get the first
    `dpo_sweep_seeds`.
    """
    few = knobs.seeds[:knobs.dpo_sweep_seeds]
    return [(experiment, rejected, beta, knobs.seeds if (rejected, number) == ("msa", 0) else few) for experiment in EXPERIMENTS
            for rejected, betas in (("msa", knobs.dpo_betas), ("other", knobs.dpo_betas[:1])) for number, beta in enumerate(betas)
            if number == 0 or experiment == "token"]


def run_all(knobs_of, run, english):
    """Return (records, results) of the whole `plan`: key (experiment, rejected, beta), lists over seeds.

    A result has the `outcomes` of the answers and the bits of each English text; (experiment, "", None) is before.
    `knobs_of` has the knobs of each experiment.
    """
    records, results = {}, {}
    for experiment, knobs in knobs_of.items():
        results[experiment, "", None] = [
            {"seed": seed, **outcomes(knobs, run, answers_before(knobs, run, experiment, seed)),
             "english": text_bits(load_adapter(knobs, run, run.experiment(experiment, seed) / "adapter").eval(), load_tokenizer(knobs, run), english)}
            for seed in knobs.seeds]
        for _, rejected, beta, seeds in (row for row in plan(knobs) if row[0] == experiment):
            key = (experiment, rejected, beta)
            records[key] = [align(knobs, run, *key, seed) for seed in seeds]
            after = [answers_after(knobs, run, *key, seed, english) for seed in seeds]
            results[key] = [{"seed": seed, **outcomes(knobs, run, answers), "english": bits} for seed, (answers, bits) in zip(seeds, after)]
    return records, results
