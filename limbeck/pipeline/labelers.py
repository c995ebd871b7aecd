"""Labelers besides the teacher: linear classifiers on frozen embeddings and the gold-only student.

Each is fitted once a fold on the gold rows outside it, so that its out-of-fold predictions say what it is worth;
new rows are labelled by every fold's model. Where there are no folds (one row a class) there is one model on
all gold rows and nothing can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.compile.dedup import record_text
from limbeck.engine.embedding import embed, unit_vectors
from limbeck.engine.linear import LinearClassifier, Matrix, fit_linear, word_features
from limbeck.engine.loading import encoder_path, load_encoder, load_model

Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Folds:
    """Gold rows' classes and folds; `n` is 0 where there are none."""

    y_N: tuple[int, ...]
    fold_N: tuple[int, ...]
    n: int
    labels: tuple[str, ...]

    def outside(self, fold: int) -> list[int]:
        """Return the numbers of the gold rows outside a fold (-1: all rows)."""
        return [i for i, f in enumerate(self.fold_N) if f != fold]

    def names(self) -> range | tuple[int, ...]:
        """Return the folds to fit a model for: -1, all rows, where there are none."""
        return range(self.n) if self.n else (-1,)

    def out_of_fold(self, by_fold: Sequence[Matrix]) -> Matrix:
        """Return each gold row's prediction by the model of its own fold, shape [N, K]; NaN without folds."""
        out = np.full((len(self.y_N), len(self.labels)), np.nan)
        if self.n:
            for row, fold in enumerate(self.fold_N):
                out[row] = by_fold[fold][row]
        return out


@dataclass(frozen=True)
class LinearLabeler:
    """Linear classifiers over one kind of features, one a fold and one on all gold rows."""

    name: str
    features: Callable[[Sequence[str]], Features]
    by_fold: tuple[LinearClassifier, ...]
    whole: LinearClassifier
    gold_by_fold: tuple[Matrix, ...]

    def predict_folds(self, texts: Sequence[str]) -> list[Matrix]:
        """Return every fold's predictions of new rows, each of shape [rows, K]."""
        features = self.features(texts)
        return [model.predict(features) for model in self.by_fold]

    def predict(self, texts: Sequence[str]) -> Matrix:
        """Return the predictions of the classifier on all gold rows, shape [rows, K]."""
        return self.whole.predict(self.features(texts))


def _fit_folds(
    name: str,
    features: Callable[[Sequence[str]], Features],
    gold_N_D: Features,
    folds: Folds,
    *,
    anchors_K_D: Features | None = None,
    standardize: bool = False,
) -> LinearLabeler:
    """Fit one classifier a fold; `anchors` are embeddings of the labels' own names, one pseudo-row a class."""
    y = np.asarray(folds.y_N)

    def one(rows: Sequence[int]) -> LinearClassifier:
        x, target = gold_N_D[list(rows)], y[list(rows)]
        if anchors_K_D is not None:
            x, target = np.vstack([x, anchors_K_D]), np.concatenate([target, np.arange(len(folds.labels))])
        return fit_linear(x, target.tolist(), len(folds.labels), standardize=standardize)

    by_fold = tuple(one(folds.outside(fold)) for fold in folds.names())
    whole = one(range(len(y))) if folds.n else by_fold[0]
    return LinearLabeler(name, features, by_fold, whole, tuple(m.predict(gold_N_D) for m in by_fold))


def _nll(labeler: LinearLabeler, folds: Folds) -> float:
    p = folds.out_of_fold(labeler.gold_by_fold)
    return float(-np.log(p[np.arange(len(p)), list(folds.y_N)] + 1e-9).mean())


def probe_labeler(base: str, gold: Sequence[Mapping[str, Any]], folds: Folds) -> LinearLabeler:
    """Return the linear probe on the untouched student's frozen embeddings."""
    loaded = load_model(base)

    def features(texts: Sequence[str]) -> Features:
        return embed(loaded, list(texts))

    gold_N_D = features([record_text(row) for row in gold])
    return _fit_folds("probe", features, gold_N_D, folds, standardize=True)


def words_labeler(gold: Sequence[Mapping[str, Any]], folds: Folds, others: Sequence[str]) -> LinearLabeler:
    """Return logistic regression on tf-idf words; which words there are, the `others` without labels say as well."""
    texts = [record_text(row) for row in gold]
    features = word_features([*texts, *others])
    return _fit_folds("words", features, features(texts), folds)


def encoder_labeler(
    gold: Sequence[Mapping[str, Any]], folds: Folds, meanings: Sequence[str], name: str = "encoder"
) -> LinearLabeler | None:
    """Return a classifier on a small sentence encoder's embeddings, or None where the encoder is not installed.

    `meanings` says each label in words (its name or description); their embeddings count as one more row a
    class where that lowers the out-of-fold loss, and always where there are no folds: with one row a class the
    label's own words are half of what is known.
    """
    if name == "encoder" and encoder_path() is None:
        return None
    loaded = load_encoder(name)

    def features(texts: Sequence[str]) -> Features:
        return unit_vectors(loaded, list(texts))

    gold_N_D, anchors = features([record_text(row) for row in gold]), features(meanings)
    anchored = _fit_folds("encoder", features, gold_N_D, folds, anchors_K_D=anchors)
    if not folds.n:
        return anchored
    plain = _fit_folds("encoder", features, gold_N_D, folds)
    return min((plain, anchored), key=lambda labeler: _nll(labeler, folds))
