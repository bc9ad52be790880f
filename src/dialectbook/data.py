"""The dataset: reading the pool, curating it, splitting it by scenario, and making prompts from pairs.

A *scenario* is one question asked and answered in MSA, Hijazi and Najdi. A *pair* is one dialect version of it:
instruction, response, dialect. Chapter 01 shows each step.
"""

import random
import re
import unicodedata
from collections import Counter, defaultdict

from .dedup import rouge_l_filter
from .files import UserError, read_jsonl
from .paths import DATA

DIALECTS = ("HIJAZI", "NAJDI")
OTHER_DIALECT = {"HIJAZI": "NAJDI", "NAJDI": "HIJAZI"}
IN_WORDS = {"HIJAZI": "باللهجة الحجازية", "NAJDI": "باللهجة النجدية"}  # the words that the paper's own instructions use (figure 3)
REGIONS = ("GLF", "MSA", "LEV", "EGY", "MAGH")
LENGTHS = ("short", "medium", "long")
TASKS = ("question", "advice", "explanation", "story", "message", "dialogue", "list", "rewrite", "opinion", "translation")
DIACRITICS = re.compile("[\u064b-\u0652]")
VERSIONS = ("msa", "hijazi", "najdi")
SPLITS = ("train", "dev", "test")

TAG = re.compile(r"<\s*(?:DIALECT\s*=\s*)?(?:HIJAZI|NAJDI)\s*>", re.IGNORECASE)
INVISIBLE = re.compile("[\u0640\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\u061c\ufeff]")  # tatweel, zero-width, direction marks


# ---- reading -------------------------------------------------------------------------------------------------------

def load_pool(folder=DATA / "pool"):
    """Return the scenarios of all `*.jsonl` files in `folder`, in file order.

    Raises UserError for a malformed line (file and line), an unknown length or task, or an id used twice.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"{folder} holds no .jsonl file; the pool of scenarios belongs there.")
    rows, seen = [], {}
    for file in files:
        for row in read_jsonl(file, required=("id", "topic", "task", "length", *VERSIONS)):
            if row["id"] in seen:
                raise UserError(f"{file}: the id {row['id']!r} is used twice (first in {seen[row['id']]}); ids must be unique.")
            for key, allowed in (("length", LENGTHS), ("task", TASKS)):
                if row[key] not in allowed:
                    raise UserError(f"{file}: {key} = {row[key]!r} of {row['id']} is not one of {', '.join(allowed)}.")
            for version in (*VERSIONS, *(["english"] if "english" in row else [])):
                if not isinstance(row[version], dict) or not all(
                        isinstance(row[version].get(part), str) for part in ("instruction", "response")):
                    raise UserError(f"{file}: {version} of {row['id']} must be an object with the texts instruction and response.")
            seen[row["id"]] = file.name
            rows.append(row)
    return rows


def load_regions(keep_diacritics=True, folder=DATA / "regions"):
    """Return the sentences of other regions, cleaned: rows with id, text, region (one of REGIONS)."""
    rows, seen = [], set()
    for file in sorted(folder.glob("*.jsonl")):
        for row in read_jsonl(file, required=("id", "text", "region")):
            if row["region"] not in REGIONS:
                raise UserError(f"{file}: region = {row['region']!r} of {row['id']} is not one of {', '.join(REGIONS)}.")
            if row["id"] in seen:
                raise UserError(f"{file}: the id {row['id']!r} is used twice; ids must be unique.")
            seen.add(row["id"])
            rows.append({**row, "text": clean_text(row["text"], keep_diacritics)})
    return rows


def load_split(run, name):
    """Return the pairs of one split (train, dev or test) of a run; says which chapter makes it when it is missing."""
    path = run.split(name)
    if not path.is_file():
        raise UserError(f"{path} is missing. Chapter 01_dataset_curation makes it: run that one first.")
    pairs = read_jsonl(path, required=("instruction", "response", "dialect", "scenario_id", "topic", "length"))
    for number, pair in enumerate(pairs, 1):
        pair["dialect"] = canonical_dialect(pair["dialect"], f"{path}, row {number}")
        for part in ("instruction", "response"):
            if not pair[part].strip():
                raise UserError(f"{path}, row {number}: the {part} is empty; remove the row or fill it in.")
    found = {pair["dialect"] for pair in pairs}
    if len(found) < 2:
        raise UserError(f"{path}: found only {', '.join(found) or 'no rows'}; both {' and '.join(DIALECTS)} are needed.")
    return pairs


# ---- curating ------------------------------------------------------------------------------------------------------

def clean_text(text, keep_diacritics=True):
    """Return the text as NFC, without tags, tatweel, zero-width and direction marks, with single spaces."""
    text = INVISIBLE.sub("", TAG.sub(" ", unicodedata.normalize("NFC", text)))
    if not keep_diacritics:
        text = DIACRITICS.sub("", text)
    return " ".join(text.split())


def canonical_dialect(label, where="a row"):
    """Return HIJAZI or NAJDI for any usual spelling of the label; raises UserError that names `where` otherwise."""
    name = str(label).strip().strip("<>").upper().removeprefix("DIALECT=")
    aliases = {"HIJAZI": "HIJAZI", "HEJAZI": "HIJAZI", "حجازي": "HIJAZI", "NAJDI": "NAJDI", "NEJDI": "NAJDI", "نجدي": "NAJDI"}
    if name not in aliases:
        raise UserError(f"{where}: the dialect {label!r} is not one of {', '.join(DIALECTS)}.")
    return aliases[name]


def clean_scenario(scenario, keep_diacritics=True):
    """Return a copy of the scenario with every text cleaned (`clean_text`)."""
    versions = {key: {part: clean_text(text, keep_diacritics) for part, text in scenario[key].items()}
                for key in (*VERSIONS, "english") if key in scenario}
    return {**scenario, **versions}


def is_empty(scenario):
    """Return whether any of the three versions lacks an instruction or a response."""
    return any(not scenario[version][part].strip() for version in VERSIONS for part in ("instruction", "response"))


def is_over_long(scenario, max_words):
    """Return whether any text of the three versions has more than `max_words` words."""
    return any(len(scenario[version][part].split()) > max_words for version in VERSIONS for part in ("instruction", "response"))


def near_duplicates(scenarios, threshold):
    """Return the ids of scenarios whose Hijazi or Najdi instruction repeats an earlier one (ROUGE-L at the threshold)."""
    repeated = set()
    for version in ("hijazi", "najdi"):
        kept = set(rouge_l_filter([s[version]["instruction"] for s in scenarios], threshold))
        repeated |= {s["id"] for i, s in enumerate(scenarios) if i not in kept}
    return repeated


def curate(pool, knobs):
    """Return (scenarios, removed): what remains of the pool, and one {"id", "step", "why"} per scenario removed."""
    removed = []

    def drop(rows, step, reason_of):
        kept = []
        for row in rows:
            why = reason_of(row)
            removed.append({"id": row["id"], "step": step, "why": why}) if why else kept.append(row)
        return kept

    rows = [clean_scenario(row, knobs.keep_diacritics) for row in pool]
    rows = drop(rows, "empty", lambda row: is_empty(row) and "an instruction or response is empty after cleaning")
    rows = drop(rows, "banned topic", lambda row: row["topic"] in knobs.banned_topics and f"topic {row['topic']}")
    rows = drop(rows, "over-long", lambda row: is_over_long(row, knobs.max_words) and f"more than {knobs.max_words} words")
    repeated = near_duplicates(rows, knobs.rouge_l_threshold)
    rows = drop(rows, "near-duplicate", lambda row: row["id"] in repeated
                and f"instruction at ROUGE-L >= {knobs.rouge_l_threshold} to an earlier one")
    if knobs.scenarios:
        quotas = topic_quotas(rows, knobs.scenarios, knobs.topic_pairs)
        rng, chosen = random.Random(knobs.data_seed), set()
        for topic, quota in quotas.items():
            chosen |= {row["id"] for row in rng.sample([row for row in rows if row["topic"] == topic], quota)}
        rows = drop(rows, "balance", lambda row: row["id"] not in chosen and f"topic {row['topic']}: {quotas[row['topic']]} are kept")
    return rows, removed


def topic_quotas(rows, size, topic_pairs):
    """Return topic -> how many of `size` scenarios it gets: the paper's proportions, `other` shared equally by the rest.

    Raises UserError when a topic holds fewer scenarios than its quota.
    """
    counts = Counter(row["topic"] for row in rows)
    unnamed = [topic for topic in counts if topic not in topic_pairs]
    weights = {topic: topic_pairs.get(topic, topic_pairs["other"] / max(1, len(unnamed))) for topic in sorted(counts)}
    quotas = dict(zip(weights, largest_remainder(size, [weight / sum(weights.values()) for weight in weights.values()])))
    for topic, quota in quotas.items():
        if counts[topic] < quota:
            raise UserError(f"topic {topic}: {counts[topic]} scenarios are left after the curation, and its share of scenarios = "
                            f"{size} is {quota}; write more of them, or lower the knob scenarios (0 keeps all).")
    return quotas


def spare_scenarios(knobs):
    """Return the scenarios that the curation removed for balance alone: whole and new, and no model of a run reads them."""
    pool = load_pool()
    spare = {row["id"] for row in curate(pool, knobs)[1] if row["step"] == "balance"}
    return [clean_scenario(row, knobs.keep_diacritics) for row in pool if row["id"] in spare]


def to_pairs(scenarios):
    """Return two pairs per scenario, HIJAZI and NAJDI, in the paper's schema plus the neutral (MSA) instruction."""
    return [{"instruction": s[dialect.lower()]["instruction"], "response": s[dialect.lower()]["response"], "dialect": dialect,
             "scenario_id": s["id"], "topic": s["topic"], "task": s["task"], "length": s["length"],
             "names_dialect": s.get("names_dialect", False),
             "instruction_msa": s["msa"]["instruction"], "response_msa": s["msa"]["response"]}
            for s in scenarios for dialect in DIALECTS]


def split_scenarios(scenarios, shares, seed):
    """Return {"train", "dev", "test"} -> scenarios, stratified by topic and length, with exactly the shares asked for.

    Both versions of a scenario stay together since scenarios are split, not pairs. Sizes are the largest-remainder
    (Hamilton) apportionment of the total. Scenarios are shuffled within their stratum and dealt stratum after stratum to
    the split that is furthest behind its share, so that every stratum is shared out within one scenario or so.
    """
    strata = defaultdict(list)
    for scenario in scenarios:
        strata[scenario["topic"], scenario["length"]].append(scenario)
    rng = random.Random(seed)
    order = [scenario for key in sorted(strata) for scenario in rng.sample(strata[key], len(strata[key]))]
    sizes = dict(zip(SPLITS, largest_remainder(len(order), shares)))
    if min(sizes.values()) == 0:
        raise UserError(f"{len(order)} scenarios are too few to split {shares}: a split would be empty; add scenarios.")
    splits = {name: [] for name in SPLITS}
    for dealt, scenario in enumerate(order, 1):
        behind = {name: dealt * size / len(order) - len(splits[name]) for name, size in sizes.items() if len(splits[name]) < size}
        splits[max(behind, key=behind.get)].append(scenario)
    return splits


def largest_remainder(total, shares):
    """Return integers that sum to `total` and follow `shares` (Hamilton's method); [8, 1, 1] for 10 and 80/10/10."""
    exact = [total * share for share in shares]
    sizes = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: exact[i] - sizes[i], reverse=True)
    for i in by_remainder[:total - sum(sizes)]:
        sizes[i] += 1
    return sizes


# ---- prompts -------------------------------------------------------------------------------------------------------

def format_prompt(instruction, dialect="", tag="none"):
    """Return the prompt as the released code writes it; `tag` says what is glued to the instruction.

    "prefix" is the dialect's tag, "swapped" the other dialect's, "words" a request in words, "none" nothing.

    >>> format_prompt("كيف الحال؟", "HIJAZI", "prefix")
    '### Instruction:\\n<DIALECT=HIJAZI>كيف الحال؟\\n\\n### Response:\\n'
    """
    mark = {"none": "", "prefix": f"<DIALECT={dialect}>", "swapped": f"<DIALECT={OTHER_DIALECT.get(dialect)}>",
            "words": f"{IN_WORDS.get(dialect)}: "}[tag]
    return f"### Instruction:\n{mark}{instruction}\n\n### Response:\n"


def ask(pairs, kind, tag, seed=0, both=False):
    """Return the pairs with a `prompt` and its `instruction_kind` ("dialect" or "neutral").

    kind "mixed" asks a random half of the scenarios in MSA (both dialects of a scenario alike), or with `both` asks
    every pair both ways, which the test split does.
    """
    scenarios = sorted({pair["scenario_id"] for pair in pairs})
    neutral = set(random.Random(seed).sample(scenarios, len(scenarios) // 2)) if kind == "mixed" else set()
    rows = []
    for pair in pairs:
        if kind == "mixed" and both:
            kinds = ("dialect", "neutral")
        elif kind == "mixed":
            kinds = ("neutral",) if pair["scenario_id"] in neutral else ("dialect",)
        else:
            kinds = (kind,)
        for one in kinds:
            instruction = pair["instruction_msa"] if one == "neutral" else pair["instruction"]
            rows.append({**pair, "instruction_kind": one, "prompt": format_prompt(instruction, pair["dialect"], tag)})
    return rows


def prompts_of_test(knobs, run):
    """Return the prompts of the test split (`ask`): all of it, or `test_scenarios` scenarios drawn at random."""
    pairs = load_split(run, "test")
    scenarios = sorted({pair["scenario_id"] for pair in pairs})
    if 0 < knobs.test_scenarios < len(scenarios):
        scenarios = set(random.Random(knobs.data_seed).sample(scenarios, knobs.test_scenarios))
    return ask([pair for pair in pairs if pair["scenario_id"] in scenarios], knobs.instruction_kind_test, knobs.tag_test, both=True)


def split_regions(rows, seed, share=0.2):
    """Return (train, held_out) sentences of other regions; `share` of each region is held out for testing the judge."""
    rng, train, held_out = random.Random(seed), [], []
    for region in REGIONS:
        own = [row for row in rows if row["region"] == region]
        rng.shuffle(own)
        cut = round(share * len(own))
        held_out += own[:cut]
        train += own[cut:]
    return train, held_out
