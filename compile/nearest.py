"""Demonstrations retrieved per input: a program that can be saved, unlike DSPy's own KNNFewShot.

DSPy's KNNFewShot bootstraps anew for every call and lives in a patched method that no file can hold. This
keeps its retriever and shows the labelled rows as they are.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import dspy
import numpy as np
from dspy.predict.knn import KNN
from numpy.typing import NDArray

from limbeck.compile.demos import with_demos

_HASHED = 4096


def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit vectors, float32 [texts, dim]: MiniLM's where it is installed, else hashed character
    n-grams.""" from limbeck.engine.embedding import encode

    found = encode(list(texts))
    if found is not None:
        return found
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=_HASHED, analyzer="char_wb", ngram_range=(2, 4), norm="l2")
    return cast(Any, hashing.transform(list(texts))).toarray().astype(np.float32)


class NearestDemos(dspy.Module):
    """A program that answers every input with the `k` labelled rows most like it, the nearest one last.

    Its saved state is that of the plain program with all rows as demonstrations, which plain DSPy loads.
    """

    def __init__(self, program: dspy.Module, rows: Sequence[dspy.Example], *, k: int) -> None:
        super().__init__()
        self.program = with_demos(program, rows)
        self.rows, self.k = list(rows), k
        self._nearest = KNN(k, self.rows, cast(Any, vectors))

    def forward(self, **inputs: Any) -> Any:
        """Answer one input."""
        names = list(self.rows[0].inputs().keys())  # the order in which the rows' own vectors were made
        nearest = self._nearest(**{name: inputs[name] for name in names if name in inputs})
        return with_demos(self.program, nearest[::-1])(**inputs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the plain program's state."""
        return self.program.dump_state(json_mode=json_mode)

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        """Load a state that `dump_state` returned."""
        self.program.load_state(state, **options)
