"""Speed as ratios, both sides measured in one run (make bench). Not part of the tests: no test depends on a timing."""

import contextlib
import importlib.util
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
warnings.filterwarnings("ignore")

import numpy as np
import torch
import transformers
from peft import get_peft_model
from test_metrics import literal_faithful

from dialectbook import data, self_instruct
from dialectbook.bertscore import BertScorer
from dialectbook.dedup import rouge_l_filter, words_of
from dialectbook.diversity import good
from dialectbook.english import continue_training
from dialectbook.files import read_jsonl
from dialectbook.hardware import has_bf16
from dialectbook.knobs import load_knobs
from dialectbook.metrics import chrf_with_interval, corrected_metrics, distinct_at_budget, faithful_metrics, near_duplicates_of, self_bleu_sampled
from dialectbook.model import build_twin, lora_config, train_tokenizer
from dialectbook.pool_pipeline import KeyedPool, compare_shards, pool_executor, write_shards
from dialectbook.sample import generate
from dialectbook.sft import make_trainer
from dialectbook.stats import bootstrap_mean
from dialectbook.vocabulary import expand_tokenizer, learn_additions, measure

transformers.utils.logging.set_verbosity_error()
KNOBS, _ = load_knobs("tiny", "token", {"num_epochs": 1})
POOL = data.load_pool()
TOKENIZER = train_tokenizer([s["msa"]["response"] + s["hijazi"]["response"] for s in POOL], KNOBS.vocab_size)
PAIRS = data.ask(data.to_pairs(POOL[:400]), "mixed", "prefix")
ROWS = [{"prompt": p["prompt"], "completion": p["response"]} for p in PAIRS]


class Clock(transformers.TrainerCallback):
    """Seconds from the first step to the end of the epoch, without evaluation and saving; with the same warm-up as the loop."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 5:
            self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.start


def training():
    """Print SFTTrainer with LoRA, tokens per second over a plain PyTorch loop on the same batches."""
    ratios = []
    for repeat in range(3):
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(build_twin(KNOBS, TOKENIZER), TOKENIZER, ROWS, ROWS[:16], KNOBS, repeat, Path(folder), lora_config(KNOBS))
            clock = Clock()
            trainer.add_callback(clock)
            batches = [batch for batch in trainer.get_train_dataloader()]
            trainer.train()
        model = get_peft_model(build_twin(KNOBS, TOKENIZER), lora_config(KNOBS)).train()
        weights = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=KNOBS.learning_rate, weight_decay=0.0, fused=True)
        schedule = transformers.get_cosine_schedule_with_warmup(optimiser, 10, len(batches))
        for step, batch in enumerate(batches):
            if step == 5:
                start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):  # the same arithmetic as the trainer's
                loss = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        seconds = time.perf_counter() - start
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches[5:])
        ratios.append(seconds / clock.seconds)
        print(f"  SFTTrainer {tokens / clock.seconds:,.0f} tokens/s, plain loop {tokens / seconds:,.0f} tokens/s, ratio {ratios[-1]:.2f}")
    print(f"training: SFTTrainer with LoRA over a plain loop: {np.median(ratios):.2f} (at least 0.9 wanted)")


def sampling():
    """Print batched sampling over one-by-one sampling on 200 prompts."""
    model = build_twin(KNOBS, TOKENIZER).eval()
    prompts = sorted((p["prompt"] for p in PAIRS[:200]), key=len)
    seconds = {}
    for size in (KNOBS.sample_batch_size, 1):
        start = time.perf_counter()
        for first in range(0, len(prompts), size):
            generate(model, TOKENIZER, prompts[first:first + size], KNOBS, seed=first)
        seconds[size] = time.perf_counter() - start
    print(f"sampling: batches of {KNOBS.sample_batch_size} over one by one, 200 prompts: {seconds[1] / seconds[KNOBS.sample_batch_size]:.1f} (at least 6 wanted)")


def metrics():
    """Print the faithful metrics on 836 outputs over the released all-pairs formulation, and their largest difference."""
    predictions = [s["najdi"]["response"] for s in POOL][:836]
    references = [s["hijazi"]["response"] for s in POOL][:836]
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.4), len(predictions))
    start = time.perf_counter()
    fast = faithful_metrics(predictions, references, probabilities, data.REGIONS)
    middle = time.perf_counter()
    slow = literal_faithful(predictions, references, probabilities)
    end = time.perf_counter()
    gap = max(abs(fast[name] - slow[name]) for name in slow)
    print(f"metrics: {len(predictions)} outputs, faithful over the released formulation: {(end - middle) / (middle - start):.0f} (at least 20 wanted), largest difference {gap:.1e}")


def uncertainty():
    """Print the time of every corrected metric with 10,000 resamples on 836 outputs, and which part is the slowest."""
    predictions = [s["najdi"]["response"] for s in POOL][:836]
    references = [s["hijazi"]["response"] for s in POOL][:836]
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.4), len(predictions))
    scenarios = np.arange(836) // 2
    with tempfile.TemporaryDirectory() as folder:
        build_twin(KNOBS, TOKENIZER).save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        scorer = BertScorer(folder, KNOBS.bertscore_layer, "twin")
        scorer.set_baseline(references)
        start = time.perf_counter()
        corrected_metrics(predictions, references, probabilities, data.REGIONS, scenarios=scenarios, requested=["NAJDI"] * 836, produced=["NAJDI"] * 836,
                          produced_of_cut=["NAJDI"] * 836, prompts=references, training=[s["msa"]["response"] for s in POOL], bigram_budget=17_000,
                          bertscore=scorer)
        seconds = time.perf_counter() - start
        parts = {"Self-BLEU": lambda: self_bleu_sampled(predictions, 100), "chrF++ with interval": lambda: chrf_with_interval(predictions, references, scenarios, 10_000),
                 "BERTScore": lambda: BertScorer(folder, KNOBS.bertscore_layer)(predictions, references),
                 "distinct-2 at a budget": lambda: distinct_at_budget(predictions, 2, 17_000), "near-duplicates": lambda: near_duplicates_of(predictions, references),
                 "bootstrap of one mean": lambda: bootstrap_mean(np.ones(836), scenarios, 10_000)}
        times = {}
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            times[name] = time.perf_counter() - begun
    slowest = max(times, key=times.get)
    print(f"uncertainty: all corrected metrics of 836 outputs, 10,000 resamples: {seconds:.1f} s (at most 30 wanted); slowest: {slowest}, {times[slowest]:.1f} s; "
          + ", ".join(f"{name} {value:.1f}" for name, value in times.items() if name != slowest))


def random_texts(size, seed=0):
    """Return texts of 5 to 13 words drawn from the words of the dataset's instructions."""
    words = np.array([word for s in POOL for v in data.VERSIONS for word in s[v]["instruction"].split()])
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(5, 14, size))
    drawn = rng.choice(words, ends[-1])
    return [" ".join(drawn[start:end]) for start, end in zip([0, *ends], ends)]


def released_scheme(texts, threshold=0.7, workers=2):
    """Return the indices kept as the released code of Alif does it: for each text a new process pool compares it with every kept one."""
    lists, kept = [words_of(text) for text in texts], []
    for i, words in enumerate(lists):
        with multiprocessing.Pool(workers) as pool:
            scores = pool.map(partial(plain_rouge_l, words), [lists[j] for j in kept])
        if not scores or max(scores) < threshold - 1e-12:
            kept.append(i)
    return kept


def plain_rouge_l(first, second):
    """Return ROUGE-L F1 by the textbook table, in Python, as rouge_score computes it."""
    row = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], before + 1 if one == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(first) + len(second))


def deduplication():
    """Print the exact greedy pool on 5,000 to 200,000 texts (BENCH_POOL: up to that many), with growth exponent and memory, and
    against the released scheme on a size that it can finish."""
    largest, seconds = int(os.environ.get("BENCH_POOL", 200_000)), {}
    for size in sorted({min(5_000, largest // 10), 51_686, 200_000, largest}):
        if size > largest:
            continue
        texts = random_texts(size)
        start, begun = time.perf_counter(), time.process_time()
        kept = rouge_l_filter(texts)
        wall, seconds[size] = time.perf_counter() - start, time.process_time() - begun  # on one core; growth is of what the core did
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"  global pool: {size:,} texts in {wall:.1f} s ({seconds[size]:.1f} s of CPU), {len(kept):,} kept; at most {memory:,.0f} MiB so far", flush=True)
    sizes = sorted(seconds)
    steps = [np.log(seconds[b] / seconds[a]) / np.log(b / a) for a, b in zip(sizes, sizes[1:])]
    print(f"global pool: growth exponent {np.log(seconds[sizes[-1]] / seconds[sizes[0]]) / np.log(sizes[-1] / sizes[0]):.2f} from {sizes[0]:,} to "
          f"{sizes[-1]:,} texts, {steps[-1]:.2f} in the last step")
    if sizes[-1] < 1_000_000:
        guess = seconds[sizes[-1]] * (1_000_000 / sizes[-1]) ** steps[-1]
        print(f"  extrapolated with that last exponent, not measured: 1,000,000 texts in {guess / 60:.0f} minutes (BENCH_POOL=1000000 measures it)")
    texts = random_texts(400)
    texts += [text + " يا خويا" for text in texts[:40]]  # so that there is something to find
    start = time.perf_counter()
    slow = released_scheme(texts)
    middle = time.perf_counter()
    fast = rouge_l_filter(texts)
    end = time.perf_counter()
    print(f"global pool against the released scheme, {len(texts)} texts: {(middle - start) / (end - middle):.0f} times faster, same items kept: {slow == fast} "
          f"({len(fast)}); the released scheme took {(middle - start) / len(texts) * 1e3:.0f} ms a text, most of it starting processes at this size")


def synthetic(size, seed=0):
    """Return items in random order of which every four are one text, each word exchanged one time in ten: repetitions, and chains of them."""
    rng = np.random.default_rng([seed, 1])
    words = np.array([word for s in POOL for v in data.VERSIONS for word in s[v]["instruction"].split()])
    lists = [text.split() for text in random_texts(size // 4, seed)]
    return [{"id": str(i), "instruction": " ".join(rng.choice(words) if rng.random() < 0.1 else word for word in lists[i % len(lists)]), "input": ""}
            for i in rng.permutation(size)]


@contextlib.contextmanager
def quiet():
    """datatrove's log, which its workers write to the error stream themselves, goes nowhere."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def pool_in_shards():
    """Print what pools in shards leave and how two stages differ from the global pool, for 1 to 16 shards, in order and drawn at random;
    then datatrove's executor on this machine, two workers, against one pool."""
    answers = []
    for prompt in ("own", "one"):
        loop = self_instruct.Loop(self_instruct.load_seeds(), lambda texts: (["GLF"] * len(texts), np.ones((len(texts), 2))), KNOBS, prompt)
        self_instruct.collect(loop, *self_instruct.recorded_teacher(prompt))
        answers += good(loop.candidates)
    own = [{"id": str(i), "input": "", **pair} for i, pair in enumerate(data.to_pairs(POOL))]
    for name, items in (("dataset", own), ("recorded answers", answers), ("synthetic", synthetic(10_000))):
        found = compare_shards(items, (1, 2, 4, 8, 16), orders=[("blocks", None), *(("random", seed) for seed in range(5))])
        for order, shards in dict.fromkeys((row["shards are"], row["shards"]) for row in found):
            some = [row for row in found if (row["shards are"], row["shards"]) == (order, shards)]
            counts = {key: [row[key] for row in some] for key in ("repetitions left", "lost", "kept instead")}
            print(f"  {name}, {len(items):,} items of which one pool keeps {some[0]['one pool']:,}, {shards} shards ({order}, draws: {len(some)}): "
                  + ", ".join(f"{key} {np.mean(values):,.1f} ({min(values):,} to {max(values):,})" for key, values in counts.items()))
    if not (importlib.util.find_spec("datatrove") and importlib.util.find_spec("orjson")):
        print("two stages with datatrove: not measured, the extra `scale` is not installed")
        return
    items = synthetic(40_000)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pool = KeyedPool()
        whole = {i for i, item in enumerate(items) if pool.add(i, self_instruct.pool_words(item)) is None}
        seconds = {"one pool": time.perf_counter() - start}
        for exact in (False, True):
            executor, path = pool_executor(write_shards(items, Path(folder) / "shards", 8, seed=0), folder, exact=exact)
            with quiet():
                start = time.perf_counter()
                executor.depends.run()
                middle = time.perf_counter()
                executor.run()
                seconds |= {f"shards, exact={exact}": middle - start, f"then one pool, exact={exact}": time.perf_counter() - middle}
            kept = {row["position"] for row in read_jsonl(path)}
            print(f"  two stages, exact={exact}: {len(kept):,} kept, {len(whole - kept)} lost, {len(kept - whole)} kept instead")
    print(f"two stages with datatrove, {len(items):,} items of which one pool keeps {len(whole):,}, 8 shards, 2 workers: "
          + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def expansion():
    """Print the time to learn 8,000 Arabic tokens from the whole pool and to measure fertility on all of it, for seven sizes."""
    texts = {version: [s[version]["instruction"] + "\n" + s[version]["response"] for s in POOL if version in s] for version in ("english", *data.VERSIONS)}
    old = train_tokenizer(texts["english"], KNOBS.english_vocab_size)
    start = time.perf_counter()
    additions = learn_additions(old, [text for version in data.VERSIONS for text in texts[version]], max(KNOBS.added_sizes))
    middle = time.perf_counter()
    for size in KNOBS.added_sizes:
        tokenizer = expand_tokenizer(old, additions, size)
        for some in texts.values():
            measure(tokenizer, some)
    end = time.perf_counter()
    print(f"expansion: learning {middle - start:.1f} s, measuring {sum(map(len, texts.values())):,} texts with {len(KNOBS.added_sizes)} tokenizers "
          f"{end - middle:.1f} s (at most 30 s in all wanted)")


def continued_pretraining():
    """Print continued pre-training (`english._train`), tokens per second over a plain PyTorch loop on the same rows."""
    stream = [i for s in POOL[:900] for i in TOKENIZER(s["msa"]["response"] + TOKENIZER.eos_token)["input_ids"]]
    size, width = KNOBS.balance_batch_size, KNOBS.balance_row_tokens
    rows = [stream[start:start + width] for start in range(0, len(stream) - width, width)]
    shape, ratios = KNOBS.model_copy(update={"twin_hidden_size": KNOBS.english_sizes[0]}), []
    for repeat in range(3):
        start = time.perf_counter()
        continue_training(build_twin(shape, TOKENIZER), TOKENIZER, rows, len(rows) // size, 0, 0, KNOBS, repeat)
        middle = time.perf_counter()
        model = build_twin(shape, TOKENIZER).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=KNOBS.balance_learning_rate, weight_decay=0.0, fused=True)
        for first in range(0, len(rows) // size * size, size):
            batch = torch.tensor(rows[first:first + size])
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    print(f"continued pre-training: Trainer over a plain loop, {len(rows):,} rows: {np.median(ratios):.2f} (at least 0.8 wanted)")


if __name__ == "__main__":
    print("Two threads; ratios carry over to other machines, seconds do not.")
    for part in (training, sampling, metrics, uncertainty, deduplication, pool_in_shards, expansion, continued_pretraining):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part()
