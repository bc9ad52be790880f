"""Near-duplicates by ROUGE-L, the F-measure of the longest common subsequence of words (Lin 2004)."""

import re
from collections import defaultdict

from rapidfuzz.distance import Indel
from tqdm.auto import tqdm

WORD = re.compile(r"\w+")


def words_of(text):
    """Return the lower-case words of a text (rouge_score's own tokenizer drops Arabic letters, so it is not used)."""
    return WORD.findall(text.lower())


def rouge_l(first, second):
    """Return ROUGE-L F1 of two word lists, 0 to 1: 2 LCS / (m + n), which is rapidfuzz's normalised Indel similarity."""
    return Indel.normalized_similarity(first, second) if first and second else 0.0


def rouge_l_filter(texts, threshold=0.7):
    """Return the indices of the texts kept, in order: a text goes when an earlier kept one has ROUGE-L >= threshold.

    Exactly what the plain greedy loop keeps, faster: texts at ROUGE-L >= t share at least ceil(t/(2-t) * m) of the m
    words (counted with repetition) of either, so by the prefix-filter argument (Chaudhuri et al. 2006) they share a word
    among the rarest few of each, and only such pairs are scored. Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold = {threshold} must be above 0 and at most 1")
    lists = [words_of(text) for text in texts]
    frequency = defaultdict(int)
    for words in lists:
        for word in set(words):
            frequency[word] += 1
    ids = {word: i for i, word in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))}
    index, kept = defaultdict(list), []
    for position, words in enumerate(tqdm(lists, desc="ROUGE-L filter", unit="text", leave=False, mininterval=1)):
        numbers = [ids[word] for word in words]
        size = len(numbers)
        prefix = _rarest(numbers, threshold)
        candidates = {other for token in prefix for other in index[token]}
        repeated = any(_close(numbers, lists[other], size, threshold) for other in candidates)
        lists[position] = numbers
        if not repeated:
            kept.append(position)
            for token in prefix:
                index[token].append(position)
    return kept


def _rarest(numbers, threshold):
    """Return the rarest tokens, each made distinct by its repetition, of which any close text must share one."""
    seen, tokens = defaultdict(int), []
    for number in numbers:
        seen[number] += 1
        tokens.append((number, seen[number]))
    least_shared = max(1, _ceil(threshold / (2 - threshold) * len(numbers)))
    return sorted(tokens)[:len(numbers) - least_shared + 1]


def _ceil(value):
    return int(-(-(value - 1e-9) // 1))


def _close(first, second, size, threshold):
    other = len(second)
    if 2 * min(size, other) < threshold * (size + other) - 1e-9:
        return False
    return Indel.normalized_similarity(first, second, score_cutoff=max(0.0, threshold - 1e-6)) >= threshold - 1e-12
