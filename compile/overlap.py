"""Verbatim overlap of generated texts with given documents: copied text is neither new nor the user's to train on.

Every run of `ngram` words of the documents is hashed (polynomial, modulo 2**64, as in Karp and Rabin 1987) and
sorted once, so that a text costs one binary search a word; the longest common run is then found by comparing the
words themselves, so that a collision of hashes cannot count as a copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.dedup import normalize
from limbeck.errors import InputError
from limbeck.records import Record
from limbeck.verifiers import grounded_keys, leaves

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]

# Scripts without blanks between words: each of their characters counts as a word.
_CHARACTER = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+")
_BASE = 0x9E3779B97F4A7C15  # odd, so that every power of it keeps all 64 bits
_MIX = 0xBF58476D1CE4E5B9
_NO_WORD, _UNKNOWN = -1, -2
# A field in which this share of gold values is copied from the documents is meant to hold copies.
_TASK_SHARE = 0.1


@dataclass(frozen=True)
class OverlapConfig:
    """From when on a text counts as copied.

    `max_words` is the longest common run allowed, in words: 20 is a long sentence, which nobody writes twice by
    chance. `max_share` is the part of a text's words that may lie in common runs of `ngram` words or more, which
    finds copies shorter than that and those put together from pieces. Runs of 13 words are what GPT-3's authors
    took for overlap (Brown et al. 2020, arXiv:2005.14165); questions about a document share shorter ones with it.
    """

    max_words: int = 20
    max_share: float = 0.5
    ngram: int = 13

    def __post_init__(self) -> None:
        if not 1 <= self.ngram <= self.max_words:
            raise InputError(f"ngram {self.ngram} with max_words {self.max_words}", valid="1 <= ngram <= max_words")


@dataclass(frozen=True)
class Overlap:
    """What a text has in common with the documents: the longest run in words, where it stands, and the share."""

    words: int = 0
    share: float = 0.0
    document: str = ""
    run: str = ""


class Documents:
    """Documents by name, indexed for the longest run of words that a text has in common with one of them.

    Runs that also occur in `common` texts are the task's own wording and start no overlap.

    >>> index = Documents({"hamlet": "To be, or not to be, that is the question."}, ngram=4)
    >>> found = index.overlap("He asked: to be or not to be?")
    >>> found.words, found.document, found.run
    (6, 'hamlet', 'to be or not to be')
    """

    def __init__(self, documents: Mapping[str, str], *, common: Iterable[str] = (), ngram: int = 13) -> None:
        self._size, self._ids = ngram, dict[str, int]()
        self._names: list[str] = []
        self._starts: list[int] = []
        parts: list[Ids] = []
        start = 0
        for name, text in documents.items():
            ids = [self._ids.setdefault(word, len(self._ids)) for word in _words(text)]
            parts.append(np.array([*ids, _NO_WORD], dtype=np.int64))
            self._names.append(name)
            self._starts.append(start)
            start += len(ids) + 1
        self._words = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        hashes, places = _hashes(self._words, ngram)
        usual = [_hashes(self._known(_words(text)), ngram)[0] for text in common]
        if usual and len(hashes):
            new = ~np.isin(hashes, np.concatenate(usual))
            hashes, places = hashes[new], places[new]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]

    def overlap(self, text: str) -> Overlap:
        """Return what the text has in common with the documents; the earliest of several longest runs."""
        words = _words(text)
        ids = self._known(words)
        hashes, at = _hashes(ids, self._size)
        low = np.searchsorted(self._hashes, hashes, side="left")
        high = np.searchsorted(self._hashes, hashes, side="right")
        found = high > low
        if not found.any():
            return Overlap()
        covered = np.zeros(len(words), dtype=bool)
        for start in at[found]:
            covered[start : start + self._size] = True
        best, best_start, best_place = 0, 0, 0
        for start, first, last in zip(at[found], low[found], high[found], strict=True):
            # A run from here is no longer than the covered words that follow.
            if start + best >= len(words) or not covered[start : start + best + 1].all():
                continue
            length, place = self._longest(ids[start:], self._places[first:last])
            if length > best:
                best, best_start, best_place = length, int(start), place
        document = self._names[int(np.searchsorted(self._starts, best_place, side="right")) - 1] if best else ""
        return Overlap(best, float(covered.mean()), document, " ".join(words[best_start : best_start + best]))

    def _known(self, words: Sequence[str]) -> Ids:
        return np.array([self._ids.get(word, _UNKNOWN) for word in words], dtype=np.int64)

    def _longest(self, ids: Ids, places: Ids) -> tuple[int, int]:
        """Return the length of the longest run that begins at one of the places, and that place."""
        length = 0
        while length < len(ids):
            inside = places[places + length < len(self._words)]
            still = inside[self._words[inside + length] == ids[length]]
            if not len(still):
                break
            places, length = still, length + 1
        return length, int(places[0])


class Verbatim:
    """Which records copy the documents, in a field where the gold rows do not.

    A field whose gold values are themselves passages of the documents (the context of a question), or always
    stand in their own inputs (an extracted answer), is the task's own and is not looked at: `task_fields`.
    """

    def __init__(
        self, documents: Mapping[str, str], gold: Sequence[Record] = (), config: OverlapConfig | None = None
    ) -> None:
        self.config = config or OverlapConfig()
        plain = Documents(documents, ngram=self.config.ngram)
        values = [(name, text) for row in gold for name, text in _fields(row)]
        copied = [name for name, text in values if self._over(plain.overlap(text))]
        names = [name for name, _ in values]
        passages = {n for n in copied if copied.count(n) >= _TASK_SHARE * names.count(n)}
        outputs = dict.fromkeys(name for row in gold for name in row.outputs)
        quoted = {n for n in outputs if grounded_keys((row.inputs, row.outputs.get(n)) for row in gold)}
        self.task_fields = frozenset(passages | quoted)
        own = [text for name, text in values if name not in self.task_fields]
        self._index = Documents(documents, common=own, ngram=self.config.ngram) if own else plain

    def find(self, record: Record) -> Overlap | None:
        """Return the first copied field's overlap, or None."""
        for name, text in _fields(record):
            if name not in self.task_fields:
                found = self._index.overlap(text)
                if self._over(found):
                    return found
        return None

    def _over(self, found: Overlap) -> bool:
        return found.words > self.config.max_words or (
            found.words >= self.config.ngram and found.share > self.config.max_share
        )


def _fields(record: Record) -> list[tuple[str, str]]:
    """Return every text of inputs and outputs with the name of its field."""
    both = {**record.inputs, **record.outputs}
    return [(name, text) for name, value in both.items() for _, text in leaves(value)]


def _words(text: str) -> list[str]:
    return _WORD.findall(normalize(text))


def _hashes(ids: Ids, size: int) -> tuple[Hashes, Ids]:
    """Return the hash of every run of `size` known words, and where each begins."""
    count = len(ids) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_MIX)
    mixed ^= mixed >> np.uint64(31)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        total = total * np.uint64(_BASE) + mixed[offset : offset + count]
    unknown = np.concatenate([[0], np.cumsum(ids < 0)])
    whole = np.flatnonzero(unknown[size:] == unknown[:count])
    return total[whole], whole
