"""Sampling, chapter 07: batches padded on the left, the prompt cut off by token position, written row by row."""

import json

from tqdm.auto import tqdm

from .files import fingerprint, is_finished, mark_finished, read_jsonl, write_jsonl

SETTINGS = ("base_model", "base_revision", "quantization", "dtype", "temperature", "top_p", "top_k", "max_new_tokens",
            "sample_batch_size", "sampling_round")
KEPT = ("scenario_id", "dialect", "instruction_kind", "topic", "task", "length", "names_dialect", "prompt")


def sample_responses(model, tokenizer, rows, knobs, folder, seed, made_from=""):
    """Return the predictions for `rows` (of `data.ask`), in their order: the keys KEPT, reference, prediction and whether it was
    cut at max_new_tokens.

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
            own_seed = seed * 100_003 + number + knobs.sampling_round * 10_000_019
            answers = generate_to_end(model, tokenizer, [rows[i]["prompt"] for i in batch], knobs, own_seed)
            for i, (text, cut) in zip(batch, answers):
                done[i] = {"row": i, **{key: rows[i][key] for key in KEPT}, "reference": rows[i]["response"], "prediction": text, "cut": cut}
                file.write(json.dumps(done[i], ensure_ascii=False) + "\n")
            file.flush()
    predictions = [{key: value for key, value in done[i].items() if key != "row"} for i in range(len(rows))]
    write_jsonl(final, predictions)
    mark_finished(mark, recipe)
    partial.unlink()
    return predictions


def generate(model, tokenizer, prompts, knobs, seed):
    """Return one sampled continuation per prompt, without the prompt and special tokens."""
    return [text for text, _ in generate_to_end(model, tokenizer, prompts, knobs, seed)]


def generate_to_end(model, tokenizer, prompts, knobs, seed):
    """Return (continuation, cut) per prompt; cut says that it ran into max_new_tokens without an end of its own."""
    import torch

    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True,
                                temperature=knobs.temperature, top_p=knobs.top_p, top_k=knobs.top_k,
                                max_new_tokens=knobs.max_new_tokens, use_cache=True, pad_token_id=tokenizer.pad_token_id)
    new = output[:, batch["input_ids"].shape[1]:]  # by position: a search for "### Response:" would miss or cut (audit item 9)
    ends = torch.atleast_1d(torch.as_tensor(model.generation_config.eos_token_id, device=new.device))  # some models have several
    cut = ~torch.isin(new, ends).any(dim=1)
    return [(text.strip(), bool(one)) for text, one in zip(tokenizer.batch_decode(new, skip_special_tokens=True), cut)]


def _whole_rows(partial):
    """Return row number -> row of the rows that an earlier, killed run wrote whole."""
    done = {}
    if partial.is_file():
        # not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are; the last piece is no whole row
        for line in partial.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            row = json.loads(line)
            done[row["row"]] = row
    return done
