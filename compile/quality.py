"""A small classifier of quality: a teacher grades a sample, the classifier learns its grades and judges the rest.

As phi-1 and Phi-3 filter their corpora (Gunasekar et al. 2023, arXiv:2306.11644; Abdin et al. 2024,
arXiv:2404.14219). They train a random forest on 100,000 grades; tens of grades do not feed one, so it is logistic
regression here, on MiniLM's vectors or, where no encoder is installed, on TF-IDF. The threshold is chosen by
cross-validation on one part of the graded texts and its precision measured on the other, that had no part in it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from limbeck.engine.linear import LinearClassifier, fit_linear
from limbeck.errors import StageEmpty
from limbeck.stats import Estimate, mean_ci

Grade = Callable[[Sequence[str]], "Sequence[int | None]"]
Encoder = Callable[[Sequence[str]], "NDArray[np.float32] | None"]
Floats = NDArray[np.float64]

ENCODER, TFIDF = "sentence encoder", "TF-IDF"
_FOLDS = 5
_TFIDF_WORDS = 2048
# Texts turned into dense features at once: 16 MB of TF-IDF.
_CHUNK = 1024
# Below so many texts over it, a threshold's precision is luck.
_LEAST_SELECTED = 5


@dataclass(frozen=True)
class QualityConfig:
    """How the filter is made.

    `graded` texts are graded, a share `held` of them is kept aside; a grade of `good` or more is good. The threshold
    is the lowest whose cross-validated precision reaches `precision`, or else the most precise one.
    """

    graded: int = 90
    held: float = 1 / 3
    good: int = 4
    precision: float = 0.8
    seed: int = 0


@dataclass(frozen=True)
class QualityReport:
    """What the grades were, and how the classifier does on the graded texts that were kept aside.

    `base` is the share of good texts among them, `precision` that among those over `threshold`, `recall` the share
    of good ones that are over it; each with its 95% interval, None where there is nothing to count.
    """

    grades: Mapping[int, int]
    ungraded: int
    features: str
    trained: int
    held: int
    selected: int
    threshold: float
    base: Estimate | None
    precision: Estimate | None
    recall: Estimate | None

    def as_log(self) -> dict[str, Any]:
        """Return plain JSON values, shares to three places."""
        shares = {"base": self.base, "precision": self.precision, "recall": self.recall}
        return {
            "grades": {str(grade): count for grade, count in sorted(self.grades.items())},
            "ungraded": self.ungraded,
            "features": self.features,
            "trained": self.trained,
            "held": self.held,
            "selected": self.selected,
            "threshold": round(self.threshold, 3),
            **{name: share and [round(value, 3) for value in share] for name, share in shares.items()},
        }


class QualityFilter:
    """Says which texts are good: by the teacher's grade where it gave one, else by the classifier."""

    def __init__(
        self,
        grades: Mapping[str, int],
        good: int,
        features: Callable[[Sequence[str]], Floats],
        classifier: LinearClassifier,
        report: QualityReport,
    ) -> None:
        self.report = report
        self._grades, self._good = dict(grades), good
        self._features, self._classifier = features, classifier

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """Return the classifier's probability that each text is good."""
        return self._classifier.predict(self._features(texts))[:, 1]

    def keeps(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text is good."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._grades]
        over = self.probabilities(unknown) >= self.report.threshold if unknown else []
        told = {text: grade >= self._good for text, grade in self._grades.items()}
        told |= {text: bool(is_over) for text, is_over in zip(unknown, over, strict=True)}
        return [told[text] for text in texts]


def quality_filter(
    texts: Sequence[str], grade: Grade, *, config: QualityConfig | None = None, encode: Encoder | None = None
) -> QualityFilter:
    """Return the filter that a teacher's grades of a sample of the texts teach; the same for the same seed.

    `grade` gives each text an integer, None where it could not be read. `encode` makes vectors of texts, or None for
    TF-IDF; MiniLM by default. Raises StageEmpty where no grade could be read.

    >>> texts = [f"{word} {i}" for i in range(30) for word in ("clear lesson", "buy now")]
    >>> found = quality_filter(texts, lambda some: [5 if "lesson" in t else 1 for t in some], encode=lambda t: None)
    >>> found.keeps(["a clear lesson", "buy it now"]), found.report.precision.mean
    ([True, False], 1.0)
    """
    config = config or QualityConfig()
    rng = random.Random(config.seed)
    distinct = list(dict.fromkeys(texts))
    sample = rng.sample(distinct, min(config.graded, len(distinct)))
    said = list(grade(sample))
    grades = {text: value for text, value in zip(sample, said, strict=True) if value is not None}
    if not grades:
        raise StageEmpty(f"none of {len(sample)} grades could be read", hint="a larger --teacher")
    train, held = _parted(grades, config, rng)
    features, name = _features_for(train, held, encode)
    y_train = np.array([grades[text] >= config.good for text in train], dtype=np.int64)
    x_train = features(train)
    threshold = _threshold(x_train, y_train, config)
    classifier = fit_linear(x_train, y_train.tolist(), 2)
    y_held = np.array([grades[text] >= config.good for text in held], dtype=bool)
    over = classifier.predict(features(held))[:, 1] >= threshold
    report = QualityReport(
        grades=Counter(grades.values()),
        ungraded=len(sample) - len(grades),
        features=name,
        trained=len(train),
        held=len(held),
        selected=int(over.sum()),
        threshold=threshold,
        base=_share(y_held),
        precision=_share(y_held[over]),
        recall=_share(over[y_held]),
    )
    return QualityFilter(grades, config.good, features, classifier, report)


def _parted(grades: Mapping[str, int], config: QualityConfig, rng: random.Random) -> tuple[list[str], list[str]]:
    """Return the graded texts to learn from and those kept aside, good ones in both alike."""
    train: list[str] = []
    held: list[str] = []
    for good in (True, False):
        kind = [text for text, value in grades.items() if (value >= config.good) is good]
        rng.shuffle(kind)
        aside = int(len(kind) * config.held)
        held += kind[:aside]
        train += kind[aside:]
    return train, held


def _features_for(
    train: Sequence[str], held: Sequence[str], encode: Encoder | None
) -> tuple[Callable[[Sequence[str]], Floats], str]:
    """Return what makes features of texts, and its name."""
    if encode is None:
        from limbeck.engine.embedding import encode
    chosen, graded = encode, [*train, *held]
    vectors = chosen(graded)
    if vectors is not None:
        # Remembered, because the encoder is loaded anew by every call.
        known = dict(zip(graded, vectors, strict=True))

        def encoded(texts: Sequence[str]) -> Floats:
            unknown = [text for text in dict.fromkeys(texts) if text not in known]
            found = chosen(unknown) if unknown else None
            known.update(zip(unknown, [] if found is None else found, strict=True))
            dense = np.array([known[text] for text in texts], dtype=np.float64)
            return dense.reshape(len(texts), vectors.shape[1])

        return encoded, ENCODER
    from sklearn.feature_extraction.text import TfidfVectorizer

    # The token pattern keeps words of one letter, so that no text is without any.
    words: Any = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=_TFIDF_WORDS, token_pattern=r"(?u)\w+|[^\w\s]+"
    )
    words.fit(train)

    def features(texts: Sequence[str]) -> Floats:
        parts = [texts[i : i + _CHUNK] for i in range(0, len(texts), _CHUNK)]
        dense = [np.asarray(words.transform(part).toarray(), dtype=np.float64) for part in parts]
        return np.concatenate(dense) if dense else np.zeros((0, len(words.vocabulary_)))

    return features, TFIDF


def _threshold(x: Floats, y: NDArray[np.int64], config: QualityConfig) -> float:
    """Return the probability from which cross-validated texts are good as often as wanted."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(np.bincount(y, minlength=2).min()))
    if folds < 2:
        return 0.5
    split = StratifiedKFold(folds, shuffle=True, random_state=config.seed)
    p = np.zeros(len(y))
    for train, rest in cast(Any, split).split(x, y):
        p[rest] = fit_linear(x[train], y[train].tolist(), 2).predict(x[rest])[:, 1]
    least = min(_LEAST_SELECTED, int(y.sum()))
    options = [float(t) for t in np.unique(p) if (p >= t).sum() >= least]
    precision = {t: float(y[p >= t].mean()) for t in options}
    enough = [t for t in options if precision[t] >= config.precision]
    return min(enough) if enough else max(options, key=lambda t: (precision[t], -t))


def _share(hits: NDArray[np.bool_]) -> Estimate | None:
    return mean_ci(hits.astype(float).tolist()) if len(hits) else None
