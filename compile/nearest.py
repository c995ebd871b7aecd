"""Demonstrations retrieved per input: a program that can be saved, unlike DSPy's own KNNFewShot.

DSPy's KNNFewShot bootstraps anew for every call and lives in a patched method that no file can hold. This
keeps its retriever and shows the labelled rows as they are.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import dspy
import numpy as np
from dspy.predict.knn import KNN
from numpy.typing import NDArray

from limbeck.compile.demos import with_demos

_HASHED = 4096

Vectors = NDArray[np.float32]
Encoder = Callable[[Sequence[str]], Vectors]


def text_encoder() -> Encoder:
    """Return a function from texts to unit vectors, float32 [texts, dim].

    MiniLM where it is installed, loaded here and once; else hashed character n-grams.
    """
    from limbeck.engine.loading import encoder_path

    return _hashed if encoder_path() is None else _sentence_encoder()


def _hashed(texts: Sequence[str]) -> Vectors:
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=_HASHED, analyzer="char_wb", ngram_range=(2, 4), norm="l2")
    return cast(Any, hashing.transform(list(texts))).toarray().astype(np.float32)


def _sentence_encoder() -> Encoder:
    from limbeck.engine.embedding import unit_vectors
    from limbeck.engine.loading import load_encoder

    loaded = load_encoder("encoder")
    return lambda texts: unit_vectors(loaded, list(texts))


class NearestDemos(dspy.Module):
    """A program that answers every input with the `k` labelled rows most like it, the nearest one last.

    Its saved state is that of the plain program with all rows as demonstrations, which plain DSPy loads.
    """

    def __init__(self, program: dspy.Module, rows: Sequence[dspy.Example], *, k: int) -> None:
        super().__init__()
        self.program = with_demos(program, rows)
        self.rows, self.k = list(rows), k
        self._nearest = KNN(k, self.rows, cast(Any, text_encoder()))

    @classmethod
    def restored(cls, plain: dspy.Module, *, k: int) -> NearestDemos:
        """Return the program of a saved state that `plain` has loaded: its demonstrations are the rows."""
        predictor = cast(Any, plain.predictors()[0])
        names = list(predictor.signature.input_fields)
        rows = [cast(Any, dspy.Example(**dict(demo))).with_inputs(*names) for demo in predictor.demos]
        return cls(plain, rows, k=k)

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
