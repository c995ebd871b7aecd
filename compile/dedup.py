"""Exact duplicates, near duplicates and contamination, in time that grows with the number of texts alone.

Near duplicates: MinHash signatures of character shingles in bands (Broder 1997; Leskovec et al., Mining of
Massive Datasets, chapter 3), each candidate then verified by its exact Jaccard similarity, so that hashing
costs recall only (0.99 at the default threshold) and never precision.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Two texts of similarity 0.7 share one of 25 bands of 5 rows with probability 0.99, at 0.3 with 0.06.
_BANDS, _ROWS = 25, 5
# Candidates verified for one text, most shared bands first: bounds the work on texts made from one template.
_MAX_CANDIDATES = 50


def normalize(text: str) -> str:
    """Return the text in lower case with words apart by one blank; punctuation stays where nothing else is.

    >>> normalize("  Hello,   WORLD! ")
    'hello world'
    >>> normalize("?!")
    '?!'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(re.findall(r"\w+", folded))
    return words or folded.strip()


def record_text(inputs: Mapping[str, Any]) -> str:
    """Return all input values of a row as one text, in the order of their names, for comparing rows.

    >>> record_text({"b": "two", "a": 1})
    '1\\ntwo'
    """
    return "\n".join(str(inputs[name]) for name in sorted(inputs))


def shingles(text: str, size: int = 4) -> frozenset[int]:
    """Return the hashes of the normalised text's character n-grams; a shorter text is one shingle.

    >>> len(shingles("abcdef"))
    3
    """
    padded = normalize(text)
    grams = {padded[i : i + size] for i in range(max(1, len(padded) - size + 1))}
    return frozenset(zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in grams)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Return the share of shingles two texts have in common, in [0, 1].

    >>> jaccard(frozenset({1, 2}), frozenset({2, 3}))
    0.3333333333333333
    """
    union = len(a | b)
    return len(a & b) / union if union else 1.0


@dataclass(frozen=True)
class Match:
    """The indexed text a new text is too close to: its key, and how (similarity 1.0 for exact and n-gram)."""

    key: str
    kind: Literal["exact", "near", "ngram"]
    similarity: float = 1.0


class NearDuplicates:
    """An index of texts that finds an exact or near duplicate of a new text.

    `threshold` is the Jaccard similarity of 4-character shingles from which two texts count as one: 0.7 is
    one word changed in a sentence of about ten.

    >>> index = NearDuplicates()
    >>> index.add("1", "please play some jazz in the kitchen tonight")
    >>> index.find("Please play some jazz in the kitchen tonite!").key
    '1'
    >>> index.find("what is my bank balance") is None
    True
    """

    def __init__(self, *, threshold: float = 0.7, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        size = _BANDS * _ROWS
        self.threshold = threshold
        self._odd: NDArray[np.uint64] = rng.integers(1, 2**63, size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._shift: NDArray[np.uint64] = rng.integers(0, 2**63, size, dtype=np.uint64)
        self._exact: dict[str, str] = {}
        self._keys: list[str] = []
        self._shingles: list[frozenset[int]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, text: str) -> None:
        """Remember the text under its key; an exact duplicate keeps the first key."""
        plain = normalize(text)
        if plain in self._exact:
            return
        self._exact[plain] = key
        grams = shingles(text)
        for band in self._signature(grams):
            self._bands.setdefault(band, []).append(len(self._keys))
        self._keys.append(key)
        self._shingles.append(grams)

    def find(self, text: str) -> Match | None:
        """Return the closest indexed text that is a duplicate, or None."""
        plain = normalize(text)
        if plain in self._exact:
            return Match(self._exact[plain], "exact")
        grams = shingles(text)
        shared = Counter(i for band in self._signature(grams) for i in self._bands.get(band, ()))
        best, best_similarity = -1, 0.0
        for index, _ in shared.most_common(_MAX_CANDIDATES):
            similarity = jaccard(grams, self._shingles[index])
            if similarity > best_similarity:
                best, best_similarity = index, similarity
        return Match(self._keys[best], "near", best_similarity) if best_similarity >= self.threshold else None

    def _signature(self, grams: frozenset[int]) -> list[tuple[int, bytes]]:
        # Multiply-shift hashing (Dietzfelbinger et al. 1997): the product is meant to wrap around at 2**64.
        hashes = np.fromiter(grams, dtype=np.uint64, count=len(grams))
        values = (hashes[:, None] * self._odd + self._shift) >> np.uint64(32)
        lowest = values.min(axis=0).astype(np.uint32).reshape(_BANDS, _ROWS)
        return [(band, lowest[band].tobytes()) for band in range(_BANDS)]


class Contamination:
    """Protected texts (dev and test rows) that nothing trained on may repeat.

    A text is contaminated when it equals a protected one, is a near duplicate of one, or shares a run of
    `ngram` words with one. Runs that also occur in `common` texts (gold training rows) are the task's own
    wording and count for nothing.

    >>> guard = Contamination({"t1": "is there a direct flight from oslo to rome on the second of may"})
    >>> guard.find("tell me: is there a direct flight from oslo to rome on the 9th or so").kind
    'ngram'
    """

    def __init__(
        self,
        protected: Mapping[str, str],
        *,
        common: Iterable[str] = (),
        threshold: float = 0.7,
        ngram: int = 8,
    ) -> None:
        self._near, self._size = NearDuplicates(threshold=threshold), ngram
        self._runs: dict[tuple[str, ...], str] = {}
        usual = {run for text in common for run in _runs(text, ngram)}
        for key, text in protected.items():
            self._near.add(key, text)
            for run in _runs(text, ngram):
                if run not in usual:
                    self._runs.setdefault(run, key)

    def find(self, text: str) -> Match | None:
        """Return the protected text that this one repeats and how, or None."""
        match = self._near.find(text)
        if match is not None:
            return match
        for run in _runs(text, self._size):
            if run in self._runs:
                return Match(self._runs[run], "ngram")
        return None


def _runs(text: str, size: int) -> list[tuple[str, ...]]:
    words = normalize(text).split()
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
