"""Near-duplicates by ROUGE-L, the F-measure of the longest common subsequence of words (Lin 2004)."""

import re
from collections import Counter, defaultdict

from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq
from tqdm.auto import tqdm

WORD = re.compile(r"\w+")
MOST_WORDS = 0x10FFFF - 0x800 - 1  # different words that a pool can tell apart: one Unicode character stands for each


def words_of(text):
    """Return the lower-case words of a text (rouge_score's own tokenizer drops Arabic letters, so it is not used)."""
    return WORD.findall(text.lower())


def rouge_l(first, second):
    """Return ROUGE-L F1 of two word lists, 0 to 1: 2 LCS / (m + n), which is rapidfuzz's normalised Indel similarity."""
    return Indel.normalized_similarity(first, second) if first and second else 0.0


def highest_rouge_l(lists, others):
    """Return per word list its highest ROUGE-L F1 with any of the other lists, 0 to 1, as an array."""
    return process.cdist(lists, others, scorer=Indel.normalized_similarity, dtype=float).max(axis=1)


def rouge_l_filter(texts, threshold=0.7):
    """Return the indices of the texts kept, in order: a text goes when an earlier kept one has ROUGE-L >= threshold.

    Exactly what the plain greedy loop keeps, by a `GreedyPool` that knows all words beforehand. Raises ValueError for a
    threshold outside (0, 1].
    """
    lists = [words_of(text) for text in texts]
    counts = Counter(word for words in lists for word in words)
    pool = GreedyPool(threshold, sorted(counts, key=lambda word: (-counts[word], word)))
    bar = tqdm(lists, desc="ROUGE-L filter", unit="text", leave=False, mininterval=1)
    return [position for position, words in enumerate(bar) if pool.add(words) is None]


class GreedyPool:
    """A growing pool of texts of which no two have ROUGE-L >= threshold: `add` takes a text in, or names the one it repeats.

    Exact and incremental. Texts of m and n words are close when their LCS is at least a = ceil(threshold (m + n) / 2), so
    they share a words. With the words of every text in one fixed order, rare ones first, the first shared word then stands
    among the first m - a + 1 of the one and the first n - a + 1 of the other (prefix filter, Chaudhuri et al. 2006; with
    positions, Xiao et al. 2008). Only texts found that way are scored, all of a bucket in one call of rapidfuzz.

    Any fixed order is right; a good one has rare words first. `words` gives what is known of it, frequent words first; a word
    that was never seen before counts as rarer than all others, which it usually is.
    """

    def __init__(self, threshold=0.7, words=()):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold = {threshold} must be above 0 and at most 1")
        self.threshold = threshold
        self.rank = {word: rank for rank, word in enumerate(words)}
        self.buckets = defaultdict(list)  # (word, length, position of the word) -> texts, one character per word
        self.size, self.longest, self.members = 0, 0, {}  # members: text -> its number in the order of adding

    def find(self, words):
        """Return the number of a member that the text (a list of words) repeats, or None."""
        near = self._find(*self._encode(words))
        return None if near is None else self.members[near]

    def add(self, words):
        """Return None when the text (a list of words) joins the pool, else the number of a member that it repeats.

        A text without words repeats nothing and joins as an empty one.
        """
        text, ordered = self._encode(words)
        near = self._find(text, ordered)
        if near is not None:
            return self.members[near]
        self.members[text] = self.size
        self.size += 1
        length = len(text)
        self.longest = max(self.longest, length)
        for position, token in enumerate(ordered[:length - self._least_shared(length, self._shortest(length)) + 1]):
            self.buckets[token, length, position].append(text)
        return None

    def _find(self, text, ordered):
        """Return a member at the threshold or above, or None."""
        size, buckets = len(text), self.buckets
        for other in range(self._shortest(size), min(self._tallest(size), self.longest) + 1):
            shared = self._least_shared(size, other)
            for token in ordered[:size - shared + 1]:
                for position in range(other - shared + 1):
                    bucket = buckets.get((token, other, position))
                    if bucket:
                        found = process.extractOne(text, bucket, scorer=LCSseq.similarity, score_cutoff=shared)
                        if found:
                            return found[0]
        return None

    def _encode(self, words):
        """Return the text as one character per word, and its tokens (word, repetition) with the rarest first."""
        numbers = []
        for word in words:
            rank = self.rank.setdefault(word, len(self.rank))
            numbers.append(rank if rank < 0xD800 else rank + 0x800)  # surrogates are no characters
        if len(self.rank) > MOST_WORDS:
            raise ValueError(f"a pool holds at most {MOST_WORDS:,} different words; split the texts into shards")
        seen, ordered = Counter(), []
        for number in numbers:
            seen[number] += 1
            ordered.append((-number, seen[number]))
        return "".join(map(chr, numbers)), sorted(ordered)

    def _least_shared(self, first, second):
        return _ceil(self.threshold * (first + second) / 2)

    def _shortest(self, size):
        return _ceil(self.threshold * size / (2 - self.threshold))

    def _tallest(self, size):
        return int(size * (2 - self.threshold) / self.threshold + 1e-9)


def _ceil(value):
    return int(-(-(value - 1e-9) // 1))
