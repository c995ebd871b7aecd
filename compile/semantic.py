"""Semantic duplicates: rows that say the same in other words, by the cosine of sentence embeddings.

As SemDeDup does within clusters (Abbas et al. 2023, arXiv:2303.09540), but against everything kept so far: one
product of matrices a block of rows, which costs seconds at tens of thousands of rows and misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Encoder = Callable[[Sequence[str]], "Vectors | None"]

# Rows whose similarities to all rows kept so far are computed at once: 20 MB at 20,000 kept rows.
_BLOCK = 256
# The encoder reads 512 tokens, about four characters each.
_CHARACTERS = 1500


class SemanticDuplicates:
    """An index of rows, all known beforehand, that finds the added one that says the same as another.

    Two rows are as close as their least similar field: two questions about one passage are not duplicates.
    `threshold` is the cosine of MiniLM's vectors from which two texts count as one. Paraphrases lie at 0.75 to
    1.0, but texts that differ in the one word that matters ("turn on", "turn off": 0.90; "the chair", "the
    vice-chair": 0.95) lie there too: 0.95 finds rewordings only and spares nearly all of those. Where no encoder
    is installed `available` is False, nothing is a duplicate, and `notes` say so.

    >>> def encode(texts):
    ...     return np.array([[1.0, 0.0] if "lost" in t or "gone" in t else [0.0, 1.0] for t in texts], dtype=np.float32)
    >>> rows = [{"text": "my card is lost"}, {"text": "hello"}, {"text": "my card is gone"}]
    >>> index = SemanticDuplicates(rows, encode=encode)
    >>> index.add("1", rows[0])
    >>> index.find(rows[2]), index.find(rows[1])
    ('1', None)
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], *, threshold: float = 0.95, encode: Encoder | None = None
    ) -> None:
        if encode is None:
            from limbeck.engine.embedding import encode
        self._fields = sorted({name for row in rows for name in row})
        distinct = list(dict.fromkeys(self._texts(row) for row in rows))
        # A passage that many rows ask about is encoded once.
        texts = {text: i for i, text in enumerate(dict.fromkeys(text for row in distinct for text in row))}
        vectors = encode([text[:_CHARACTERS] for text in texts])
        self.available, self.threshold = vectors is not None, threshold
        absent = "semantic duplicates are not looked for: the sentence encoder is not installed (limbeck doctor --fix)"
        self.notes: tuple[str, ...] = () if self.available else (absent,)
        self._vectors: Vectors = vectors if vectors is not None else np.zeros((len(texts), 1), dtype=np.float32)
        ids = [[texts[text] for text in row] for row in distinct]
        self._ids_N_F = np.array(ids, dtype=np.int64).reshape(len(distinct), len(self._fields))
        self._rows = {row: i for i, row in enumerate(distinct)}
        self._added: list[int] = []
        self._keys: list[str] = []
        self._groups: list[str] = []
        self._start, self._block = -1, np.zeros((0, 0), dtype=np.float32)

    def add(self, key: str, row: Mapping[str, Any], group: str = "") -> None:
        """Remember one of the rows under its key; rows of another `group` (their label) are no duplicates of it."""
        self._added.append(self._rows[self._texts(row)])
        self._keys.append(key)
        self._groups.append(group)

    def find(self, row: Mapping[str, Any], group: str = "") -> str | None:
        """Return the key of the closest row added to the group that says the same, or None."""
        if not self.available:
            return None
        similar = self._to_added(self._rows[self._texts(row)])
        near = [i for i in np.flatnonzero(similar >= self.threshold) if self._groups[i] == group]
        return self._keys[max(near, key=lambda i: float(similar[i]))] if near else None

    def _texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(name, "")) for name in self._fields)

    def _to_added(self, row: int) -> Vectors:
        """Return the similarity of a row to every row added so far, most of them computed with its block's."""
        start = row // _BLOCK * _BLOCK
        if start != self._start:
            block = np.arange(start, min(start + _BLOCK, len(self._ids_N_F)))
            self._start, self._block = start, self._similar(block, np.array(self._added, dtype=np.int64))
        computed = self._block[row - start]
        since = np.array(self._added[len(computed) :], dtype=np.int64)
        return np.concatenate([computed, self._similar(np.array([row]), since)[0]])

    def _similar(self, rows_A: NDArray[np.int64], rows_B: NDArray[np.int64]) -> Vectors:
        """Return similarities [A, B]: the lowest cosine of two rows' fields, 1 where the texts are equal."""
        lowest = np.ones((len(rows_A), len(rows_B)), dtype=np.float32)
        for a, b in zip(self._ids_N_F[rows_A].T, self._ids_N_F[rows_B].T, strict=True):
            cosines = np.where(a[:, None] == b, np.float32(1), self._vectors[a] @ self._vectors[b].T)
            lowest = np.minimum(lowest, cosines)
        return lowest
