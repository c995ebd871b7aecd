"""Linear classifiers on frozen embeddings: the simple baseline a distilled model has to beat, and a labeler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression over `n_classes` classes; a class never seen has probability `floor`."""

    model: Any
    classes: npt.NDArray[np.int64]
    n_classes: int
    mean: Matrix
    scale: Matrix
    floor: float = 1e-4

    def predict(self, features_N_D: npt.NDArray[np.floating[Any]]) -> Matrix:
        """Return class probabilities [N, n_classes]."""
        out = np.full((len(features_N_D), self.n_classes), self.floor)
        if len(features_N_D):
            scaled = (np.asarray(features_N_D, dtype=np.float64) - self.mean) / self.scale
            out[:, self.classes] = np.maximum(self.model.predict_proba(scaled), self.floor)
        return out / out.sum(axis=1, keepdims=True)


def fit_linear(
    features_N_D: npt.NDArray[np.floating[Any]],
    labels_N: Sequence[int],
    n_classes: int,
    *,
    weights_N: Sequence[float] | None = None,
    strength: float = 10.0,
    standardize: bool = False,
) -> LinearClassifier:
    """Fit a logistic regression on frozen features.

    `strength` is scikit-learn's C: 10 suits unit-length sentence embeddings with tens of rows. `standardize`
    centres and scales every feature, which hidden states of a language model need (their scales differ by
    orders of magnitude). With one class only, that class gets all the mass.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    x = np.asarray(features_N_D, dtype=np.float64)
    y = np.asarray(labels_N, dtype=np.int64)
    mean = x.mean(axis=0) if standardize else np.zeros(x.shape[1])
    scale = x.std(axis=0) + 1e-6 if standardize else np.ones(x.shape[1])
    one = len(np.unique(y)) < 2
    model: Any = DummyClassifier(strategy="prior") if one else LogisticRegression(C=strength, max_iter=2000)
    # Fits of tens of rows are far slower on many threads than on one.
    with threadpool_limits(1):
        model.fit((x - mean) / scale, y, sample_weight=None if weights_N is None else np.asarray(weights_N))
    return LinearClassifier(model, np.asarray(model.classes_), n_classes, mean, scale)


def word_features(texts: Sequence[str]) -> Callable[[Sequence[str]], Matrix]:
    """Return what makes tf-idf vectors [rows, words] of texts, over the words that these texts hold."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words: Any = TfidfVectorizer(sublinear_tf=True)
    words.fit(texts)
    return lambda asked: words.transform(asked).toarray()
