"""Sampling, chapter 07: batches padded on the left, the prompt cut off by token position, written row by row."""

import json

from tqdm.auto import tqdm

from .files import fingerprint, is_finished, mark_finished, read_jsonl, write_jsonl

SETTINGS = ("base_model", "base_revision", "quantization", "dtype", "temperature", "top_p", "top_k", "max_new_tokens",
            "sample_batch_size")


def sample_responses(model, tokenizer, rows, knobs, folder, seed, made_from=""):
    """Return the predictions for `rows` (with prompt, response, dialect, scenario_id), in their order.

    Writes predictions.jsonl into `folder`. Rows are sampled in batches of similar prompt length, each batch with a seed
    of its own, so that a killed run continues after its last whole batch and ends with the same text as an
    uninterrupted one. Finished predictions with the same recipe (rows, knobs, seed, `made_from`) are read, not made.
    Source: T 0.6, top-p 0.95, top-k 50, at most 256 new tokens (paper, section IV-E; evaluation/allam_eval/generation.py).
    """
    settings = {key: getattr(knobs, key) for key in SETTINGS} | {"seed": seed, "rows": rows, "made_from": made_from}
    recipe = fingerprint(settings, [__file__])
    final, partial = folder / "predictions.jsonl", folder / f"predictions.unfinished-{recipe}.jsonl"
    mark = folder / "sampling"
    if is_finished(mark, recipe) and final.is_file():
        return read_jsonl(final)

    done = _whole_rows(partial)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]["prompt"]), i))
    size = knobs.sample_batch_size
    batches = [order[start:start + size] for start in range(0, len(order), size)]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(partial, done.values())  # a half-written last line, if any, is gone now
    with partial.open("a", encoding="utf-8") as file:
        for number, batch in enumerate(tqdm(batches, desc="sampling", unit="batch")):
            if all(i in done for i in batch):
                continue
            texts = generate(model, tokenizer, [rows[i]["prompt"] for i in batch], knobs, seed * 100_003 + number)
            for i, text in zip(batch, texts):
                row = rows[i]
                done[i] = {"row": i, "scenario_id": row["scenario_id"], "dialect": row["dialect"],
                           "instruction_kind": row["instruction_kind"], "topic": row["topic"], "length": row["length"],
                           "prompt": row["prompt"], "reference": row["response"], "prediction": text}
                file.write(json.dumps(done[i], ensure_ascii=False) + "\n")
            file.flush()
    predictions = [{key: value for key, value in done[i].items() if key != "row"} for i in range(len(rows))]
    write_jsonl(final, predictions)
    mark_finished(mark, recipe)
    partial.unlink()
    return predictions


def generate(model, tokenizer, prompts, knobs, seed):
    """Return one sampled continuation per prompt, without the prompt and special tokens."""
    import torch

    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True,
                                temperature=knobs.temperature, top_p=knobs.top_p, top_k=knobs.top_k,
                                max_new_tokens=knobs.max_new_tokens, use_cache=True, pad_token_id=tokenizer.pad_token_id)
    width = batch["input_ids"].shape[1]  # by position: a search for "### Response:" would miss or cut (audit item 9)
    return [text.strip() for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]


def _whole_rows(partial):
    """Return row number -> row of the rows that an earlier, killed run wrote whole."""
    done = {}
    if partial.is_file():
        # not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are; the last piece is no whole row
        for line in partial.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            row = json.loads(line)
            done[row["row"]] = row
    return done
