"""Tokenizer expansion, chapter 03: Arabic tokens for an English tokenizer, how well they cut, how their embeddings start.

Works for byte-level BPE (the twin, Llama-3) and for SentencePiece-style BPE with byte fall-back (Llama-2), as the
`tokenizers` library keeps both.
"""

import copy
import html
import json
import re
import time
from bisect import bisect_left
from collections import Counter

from .files import UserError

# a run of Arabic letters and marks with the space before it; punctuation and digits stand alone
ARABIC_RUN = re.compile("[ ]?[\u0620-\u065f\u066e-\u06d3\u06d5\u06fa-\u06ff]+|[\u060c\u061b\u061f\u0660-\u066d]")
SHADES = ("#cfe8ff", "#ffe3c2", "#d8f0d0")
BYTE = re.compile("<0x[0-9A-F]{2}>")
STARTS = {"pieces": "mean of the old pieces", "exponential": "pieces, exponential weights", "all": "mean of all embeddings",
          "random": "random, matched norm"}


# ---- the tokenizer -------------------------------------------------------------------------------------------------

def learn_additions(tokenizer, texts, size):
    """Return {"letters", "merges"}: what byte-pair encoding adds to the tokenizer when it goes on, on Arabic texts.

    Training starts from the pieces into which the old tokenizer cuts Arabic words, so each new merge joins pieces that
    exist, and comes after all old merges: the order of application is the order of learning, and the first n merges are
    those of a smaller vocabulary. To let the `tokenizers` library train on pieces instead of letters, each piece is
    written as one private character. `size` counts new tokens, letters included; fewer come back if the texts hold no
    pair of pieces twice.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    runs = Counter(run for text in texts for run in ARABIC_RUN.findall(text))
    letters = _missing_letters(tokenizer, runs)
    pieces = _pieces_of(_with(tokenizer, letters, []), runs)
    names = sorted({piece for word in pieces for piece in word})
    private = {piece: chr(0xF0000 + number) for number, piece in enumerate(names)}
    words = ["".join(private[piece] for piece in word) for word, count in pieces.items() for _ in range(count)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=len(names) + size, min_frequency=2, show_progress=False,
                                                          initial_alphabet=list(private.values())))

    def public(text):
        return "".join(names[ord(letter) - 0xF0000] for letter in text)

    merges = [tuple(map(public, pair)) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return {"letters": letters, "merges": merges}


def expand_tokenizer(tokenizer, additions, size):
    """Return the tokenizer with `size` more tokens (`learn_additions`); every old token keeps its id.

    Raises UserError if the additions hold fewer tokens than `size`.
    """
    known, letters, merges = set(tokenizer.get_vocab()), additions["letters"][:size], []
    wanted = size - len(letters)
    for left, right in additions["merges"]:
        if not wanted:
            break
        wanted -= left + right not in known
        known.add(left + right)
        merges.append((left, right))
    if wanted:
        raise UserError(f"the texts yield {size - wanted:,} new tokens, not {size:,}; ask for fewer, or add Arabic text.")
    return _with(tokenizer, letters, merges)


def _with(tokenizer, letters, merges):
    """Return a copy of the tokenizer with these letters and merges behind its own."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE" or not (state["model"].get("byte_fallback") or "ByteLevel" in json.dumps(state["decoder"])):
        raise UserError("only byte-level BPE and BPE with byte fall-back can be expanded without losing text; "
                        f"this tokenizer is a {state['model']['type']}.")
    vocabulary, first = state["model"]["vocab"], len(tokenizer)
    for token in dict.fromkeys([*letters, *(left + right for left, right in merges)]):
        if token not in vocabulary:
            vocabulary[token] = first
            first += 1
    paired = not state["model"]["merges"] or isinstance(state["model"]["merges"][0], list)
    state["model"]["merges"] += [[left, right] if paired else f"{left} {right}" for left, right in merges]
    expanded = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side, clean_up_tokenization_spaces=False, **tokenizer.special_tokens_map)
    expanded.chat_template = copy.copy(tokenizer.chat_template)
    return expanded


def _missing_letters(tokenizer, runs):
    """Return the Arabic characters, most frequent first, that the tokenizer can only write as bytes of the kind <0xD8>."""
    if not json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("byte_fallback"):
        return []  # byte-level BPE merges bytes into letters by itself
    counts = Counter()
    for run, count in runs.items():
        for letter in run.strip():
            counts[letter] += count
    vocabulary = tokenizer.get_vocab()
    return [letter for letter, _ in counts.most_common() if letter not in vocabulary]


def _pieces_of(tokenizer, runs):
    """Return a Counter of pieces (a tuple of tokens) for a Counter of runs, cut where the pre-tokenizer cuts as well."""
    found = Counter()
    order = list(runs)
    # behind a point, so that a run with and one without a space are both met as in the middle of a text
    for run, encoding in zip(order, tokenizer.backend_tokenizer.encode_batch(["." + run for run in order], add_special_tokens=False)):
        parts = {}
        for token, (_, end), word in zip(encoding.tokens, encoding.offsets, encoding.word_ids):
            if end > 1:
                parts.setdefault(word, []).append(token)
        for part in parts.values():
            found[tuple(part)] += runs[run]
    return found


# ---- measuring it --------------------------------------------------------------------------------------------------

def measure(tokenizer, texts):
    """Return counts and rates of how a tokenizer cuts the texts, in context: words, tokens, fertility and the like.

    Keys: words, tokens, characters, fertility (tokens per word), whole (share of words that are one token), bytes (share
    of tokens that are a single byte of a longer character), characters_per_token, per_text (tokens and words of each text).
    """
    bytes_ = byte_tokens(tokenizer)
    whole = fallbacks = 0
    per_text = []
    for text, encoding in zip(texts, tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        counts = Counter(bisect_left(ends, end) for _, end in encoding.offsets)  # a lone space belongs to the word behind it
        whole += sum(counts[word] == 1 for word in range(len(ends)))
        fallbacks += sum(i in bytes_ for i in encoding.ids)
        per_text.append((len(encoding.ids), len(ends)))
    tokens, words = (sum(column) for column in zip(*per_text))
    characters = sum(map(len, texts))
    return {"words": words, "tokens": tokens, "characters": characters, "fertility": tokens / words, "whole": whole / words,
            "bytes": fallbacks / tokens, "characters_per_token": characters / tokens, "per_text": per_text}


def byte_tokens(tokenizer):
    """Return the ids of tokens that are one byte and no whole character."""
    return {i for token, i in tokenizer.get_vocab().items()
            if BYTE.fullmatch(token) or len(token) == 1 and "\ufffd" in tokenizer.backend_tokenizer.decoder.decode([token])}


def knee(sizes, values):
    """Return the size at the knee of a falling curve: the point furthest below the line from its first to its last point.

    Both axes are scaled to 0..1 first (Satopää and others, 2011: Kneedle).
    """
    import numpy as np

    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    return sizes[int(np.argmax(1 - x - y))]


def cut(tokenizer, text):
    """Return the text cut where tokens begin; the bytes of one character stay together: [(piece, number of tokens)]."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    starts = Counter(start for start, end in encoding.offsets if end > start)
    bounds = sorted({0, *starts, len(text)})
    return [(text[a:b], max(1, starts[a])) for a, b in zip(bounds, bounds[1:])]


def pieces(tokenizer, text):
    """Return the text as HTML in which neighbouring tokens have different backgrounds; a letter of several tokens is underlined."""
    from IPython.display import HTML

    from .show import ARABIC, FONT

    parts = [list(part) for part in cut(tokenizer, text)]
    for before, after in zip(parts, parts[1:]):
        if before[0].endswith("ل") and after[0].startswith(tuple("اأإآ")):  # lam-alef is one glyph, and a cut through it is not drawn
            before[0], after[0] = before[0] + "\u200d", "\u200d" + after[0]
    spans = "".join(f'<span title="{count} tokens" style="background:{SHADES[i % 3]};color:#111'
                    f'{";border-bottom:2px solid #D55E00" if count > 1 else ""}">{html.escape(piece)}</span>'
                    for i, (piece, count) in enumerate(parts))
    direction = 'lang="ar" dir="rtl"' if ARABIC.search(text) else 'dir="ltr"'
    return HTML(f'<bdi {direction} style="font-family:{FONT};font-size:1.1em;line-height:1.9">{spans}</bdi>')


def step_seconds(model, rows=4, row_tokens=128, repeats=7):
    """Return (median, lower quartile, upper quartile) seconds of one forward and backward pass over rows of random tokens."""
    import numpy as np
    import torch

    from .hardware import has_bf16

    batch = torch.randint(0, model.config.vocab_size, (rows, row_tokens), device=model.device)
    seconds = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=has_bf16()):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    model.zero_grad()
    return tuple(float(value) for value in np.quantile(seconds[2:], [0.5, 0.25, 0.75]))  # the first two warm up


# ---- embeddings of the new tokens ----------------------------------------------------------------------------------

def old_pieces(old, new):
    """Return new id -> the ids of the old tokens that spell it, for every token that `new` has and `old` has not."""
    known = old.get_vocab()
    return {i: [piece.id for piece in old.backend_tokenizer.model.tokenize(token)]
            for token, i in sorted(new.get_vocab().items(), key=lambda pair: pair[1]) if token not in known}


def expand_model(model, old, new, start="pieces", seed=0):
    """Return the model, resized in place for the tokenizer `new`; rows of old tokens are untouched.

    `start` says where the rows of new tokens begin, in the input matrix and, unless tied to it, the output matrix:
    "pieces"       the mean of the old tokens that spell it (ALLaM's choice, as the reviews of the paper say)
    "exponential"  the same with weights exp(2i) for the i-th piece, exp(-2i) for the output; half of each where tied
                   (Nakash and others, AdaptiVocab, arXiv 2503.19693)
    "all"          the mean of all old embeddings
    "random"       a random direction, as long as the old embeddings are on average
    """
    import torch

    if start not in STARTS:
        raise UserError(f"start = {start!r} is unknown; choose one of {', '.join(STARTS)}.")
    pieces = old_pieces(old, new)
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(max(len(new), before), mean_resizing=False)
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = first.data_ptr() == last.data_ptr()
    generator = torch.Generator().manual_seed(seed)
    for matrix, sign in ((first, 1), *(() if tied else ((last, -1),))):
        with torch.no_grad():
            rows = matrix[:len(old)].float().cpu()
            fresh = torch.stack([_start_row(rows, spelled, start, 0 if tied else sign) for spelled in pieces.values()])
            if start == "random":
                fresh = torch.nn.functional.normalize(torch.randn(fresh.shape, generator=generator), dim=-1) * rows.norm(dim=-1).mean()
            matrix[list(pieces)] = fresh.to(matrix)
    return model


def _start_row(rows, spelled, start, sign):
    """Return the row at which a new token begins; sign +1 is an input row, -1 an output row, 0 one that serves as both."""
    import torch

    if start in ("all", "random"):
        return rows.mean(0)
    if start == "pieces":
        return rows[spelled].mean(0)
    order = 2.0 * torch.arange(len(spelled))
    weights = (torch.softmax(order, 0) + torch.softmax(-order, 0)) / 2 if sign == 0 else torch.softmax(sign * order, 0)
    return weights @ rows[spelled]


def freeze_but_new(model, first_new):
    """Return the handles of hooks that let only the embedding rows from `first_new` on learn; remove() each to undo it.

    All other weights stop asking for gradients; the old rows get a gradient of zero (AdamW must run without decay then).
    """
    matrices = {id(weight): weight for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in matrices)

    def only_new(gradient):
        gradient = gradient.clone()
        gradient[:first_new] = 0
        return gradient

    return [weight.register_hook(only_new) for weight in matrices.values()]
