"""How much like the real inputs a set of texts is, and how varied: measured before and after curation.

Representativeness: the energy distance of the embeddings with a permutation p value (Szekely and Rizzo 2013), the
Wasserstein distance of the lengths likewise, and the classifier two-sample test (Lopez-Paz and Oquab 2017,
arXiv:1610.06545): the cross-validated AUC of telling the two apart, 0.5 where nothing tells them. Diversity:
distinct-n (Li et al. 2016, arXiv:1510.03055), self-BLEU (Zhu et al. 2018, arXiv:1802.01886), the mean cosine
distance of two texts, and the Vendi score (Friedman and Dieng 2023, arXiv:2210.02410). All of these depend on the
number of texts, so both sets are measured on equally many, drawn by seed.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.dedup import normalize
from limbeck.errors import InputError
from limbeck.stats import Estimate

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Encoder = Callable[[Sequence[str]], "Vectors | None"]

# Texts of either set that are looked at: distances and eigenvalues grow with the square and the cube.
_MOST = 500
_LEAST = 10
_PERMUTATIONS = 999
_FOLDS = 5
_BLEU_ORDER = 4
# What no match at all counts as: smoothing 1 of Chen and Cherry 2014 (and of Texygen's self-BLEU).
_EPSILON = 0.1
_TAIL, _NORMAL = 0.025, 1.959964
_FEATURES = 1024


@dataclass(frozen=True)
class Distance:
    """A distance between two samples (0: none) and the p value of the hypothesis that both are drawn alike."""

    value: float
    p: float


@dataclass(frozen=True)
class Diversity:
    """How varied a set of texts is.

    `distinct` are the shares of different 1-, 2- and 3-grams of words; `self_bleu` is the mean BLEU-4 of a text
    against all others, in [0, 1], high where texts repeat each other; `spread` is the mean cosine distance of two
    texts; `vendi` is the effective number of different texts, 1 to their number.
    """

    distinct: tuple[float, float, float]
    self_bleu: float
    spread: float
    vendi: float


@dataclass(frozen=True)
class Distribution:
    """A set of texts beside the real inputs; `sampled` of each were looked at.

    `energy` compares embeddings and `length` the numbers of words (in words); `auc` is the two-sample
    classifier's, with its 95% interval. `diversity` is the texts', `real_diversity` that of as many real inputs.
    `embedding` says what the vectors are: "MiniLM", "given" for the caller's own, or "tf-idf" of characters where
    no encoder is installed, which tells wordings apart and not meanings.
    """

    texts: int
    real: int
    sampled: int
    embedding: str
    energy: Distance
    length: Distance
    auc: Estimate
    diversity: Diversity
    real_diversity: Diversity

    def report(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        low, high = self.auc.low, self.auc.high
        return {**asdict(self), "auc": {"value": self.auc.mean, "ci95": [low, high]}}


def describe(
    texts: Sequence[str], real: Sequence[str], *, encode: Encoder | None = None, seed: int = 0
) -> Distribution:
    """Return how far texts are from the real inputs, and how varied both are.

    Call it with the candidates and with the kept rows to see what curation did. Takes seconds where the encoder
    is installed (at most 1,000 texts are encoded). Raises InputError below ten texts in either set.
    """
    size = min(len(texts), len(real), _MOST)
    if size < _LEAST:
        raise InputError(f"{len(texts)} texts and {len(real)} real inputs cannot be compared", valid="ten or more each")
    name = "MiniLM" if encode is None else "given"
    if encode is None:
        from limbeck.engine.embedding import encode
    rng = np.random.default_rng(seed)
    ours, theirs = _drawn(texts, size, rng), _drawn(real, size, rng)
    found = encode([*ours, *theirs])
    vectors = _tf_idf([*ours, *theirs]) if found is None else found.astype(np.float64)
    return Distribution(
        texts=len(texts),
        real=len(real),
        sampled=size,
        embedding="tf-idf" if found is None else name,
        energy=energy_distance(vectors[:size], vectors[size:], rng),
        length=length_distance(ours, theirs, rng),
        auc=two_sample_auc(vectors[:size], vectors[size:], rng),
        diversity=_diversity(ours, vectors[:size]),
        real_diversity=_diversity(theirs, vectors[size:]),
    )


def energy_distance(a_N_D: Floats, b_M_D: Floats, rng: np.random.Generator) -> Distance:
    """Return the energy distance 2 E|a-b| - E|a-a'| - E|b-b'| (0 or more) with its permutation p value."""
    both = np.concatenate([a_N_D, b_M_D])
    squared = np.sum(both**2, axis=1)
    gaps = np.sqrt(np.maximum(squared[:, None] + squared - 2 * both @ both.T, 0.0))
    n, m = len(a_N_D), len(b_M_D)
    first = np.zeros(n + m, dtype=bool)
    first[:n] = True
    draws = np.stack([first, *(rng.permutation(first) for _ in range(_PERMUTATIONS))]).astype(np.float64)
    within = draws @ gaps
    a_a = np.sum(within * draws, axis=1)
    a_b = np.sum(within, axis=1) - a_a
    b_b = gaps.sum() - a_a - 2 * a_b
    return _permuted(2 * a_b / (n * m) - a_a / n**2 - b_b / m**2)


def length_distance(a: Sequence[str], b: Sequence[str], rng: np.random.Generator) -> Distance:
    """Return the Wasserstein-1 distance of the texts' lengths, in words, with its permutation p value.

    >>> length_distance(["one two"] * 9, ["one two three"] * 9, np.random.default_rng(0))
    Distance(value=1.0, p=0.001)
    """
    words = np.array([len(text.split()) for text in (*a, *b)])
    counts = np.bincount(words)
    first = np.bincount(words[: len(a)], minlength=len(counts))
    draws = rng.multivariate_hypergeometric(counts, len(a), size=_PERMUTATIONS)
    ours = np.concatenate([first[None], draws])
    below_a = np.cumsum(ours, axis=1) / len(a)
    below_b = np.cumsum(counts - ours, axis=1) / len(b)
    return _permuted(np.abs(below_a - below_b).sum(axis=1))


def _permuted(values: Floats) -> Distance:
    """Return the first value with the share of all, itself among them, that are as large."""
    return Distance(float(values[0]), float(np.mean(values >= values[0] - 1e-12)))


def two_sample_auc(a_N_D: Floats, b_M_D: Floats, rng: np.random.Generator) -> Estimate:
    """Return the cross-validated AUC of a linear classifier that tells `a` from `b`, with its 95% interval.

    The mean over five folds, so that no two folds' scores are compared, with the variance of its influence
    function (LeDell et al. 2015).
    """
    from limbeck.engine.linear import fit_linear

    features = np.concatenate([a_N_D, b_M_D])
    ours = np.arange(len(features)) < len(a_N_D)
    dealt = (rng.permutation(len(a_N_D)), rng.permutation(len(b_M_D)))
    fold_N = np.concatenate([order % _FOLDS for order in dealt])
    over_a, over_b = np.zeros(len(a_N_D)), np.zeros(len(b_M_D))
    for fold in range(_FOLDS):
        held = fold_N == fold
        model = fit_linear(features[~held], ours[~held].astype(int).tolist(), 2, strength=1.0)
        scores = model.predict(features[held])[:, 1]
        a, b = scores[ours[held]], scores[~ours[held]]
        beats = (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)
        over_a[held[: len(a_N_D)]], over_b[held[len(a_N_D) :]] = beats.mean(axis=1), beats.mean(axis=0)
    mean = float(over_a.mean())
    if mean in (0.0, 1.0):  # no spread to take an interval from: the exact binomial bound of the smaller sample
        bound: float = _TAIL ** (1 / min(len(a_N_D), len(b_M_D)))
        return Estimate(1.0, bound, 1.0) if mean else Estimate(0.0, 0.0, 1 - bound)
    error = math.sqrt(float(over_a.var(ddof=1)) / len(over_a) + float(over_b.var(ddof=1)) / len(over_b))
    return Estimate(mean, max(0.0, mean - _NORMAL * error), min(1.0, mean + _NORMAL * error))


def distinct(texts: Sequence[str], order: int) -> float:
    """Return the share of the texts' n-grams of words that are different, 0 where there is none.

    >>> distinct(["the cat sat", "the cat ran"], 2)
    0.75
    """
    grams = [gram for text in texts for gram in _grams(normalize(text).split(), order)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others.

    Uniform weights over the orders that a text is long enough for, brevity penalty by the closest length, 0.1
    for an order without a match.

    >>> round(self_bleu(["play some jazz music now", "play some jazz music now", "where is my red card"]), 3)
    0.677
    """
    if len(texts) < 2:
        return 0.0
    words = [normalize(text).split() for text in texts]
    # BLEU clips an n-gram by the most often any reference has it: the two largest counts tell it without oneself.
    top: dict[tuple[str, ...], tuple[int, int, int]] = {}
    own = [Counter(g for order in range(1, _BLEU_ORDER + 1) for g in _grams(text, order)) for text in words]
    for i, counts in enumerate(own):
        for gram, count in counts.items():
            owner, most, second = top.get(gram, (-1, 0, 0))
            top[gram] = (i, count, most) if count > most else (owner, most, max(second, count))
    lengths = np.array([len(text) for text in words])
    return float(np.mean([_bleu(i, words[i], own[i], top, lengths) for i in range(len(texts))]))


def _bleu(
    row: int,
    words: Sequence[str],
    own: Counter[tuple[str, ...]],
    top: dict[tuple[str, ...], tuple[int, int, int]],
    lengths: NDArray[np.int64],
) -> float:
    matched, total = [0.0] * _BLEU_ORDER, [0] * _BLEU_ORDER
    for gram, count in own.items():
        owner, most, second = top[gram]
        matched[len(gram) - 1] += min(count, second if owner == row else most)
        total[len(gram) - 1] += count
    if not words:
        return 0.0
    logs = [math.log((hit or _EPSILON) / all_) for hit, all_ in zip(matched, total, strict=True) if all_]
    others = np.delete(lengths, row)
    nearest = int(others[np.lexsort((others, np.abs(others - len(words))))[0]])
    penalty = min(0.0, 1 - nearest / len(words))
    return math.exp(sum(logs) / len(logs) + penalty)


def vendi_score(vectors_N_D: Floats) -> float:
    """Return the exponential of the entropy of the similarity matrix's eigenvalues, between 1 and N.

    >>> round(vendi_score(np.eye(4)), 6), round(vendi_score(np.ones((4, 1))), 6)
    (4.0, 1.0)
    """
    units = _units(vectors_N_D)
    # The covariance of fewer features than texts has the same eigenvalues but for zeros.
    kernel = units @ units.T if len(units) <= units.shape[1] else units.T @ units
    values = np.linalg.eigvalsh(kernel / len(units))
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


def _diversity(texts: Sequence[str], vectors: Floats) -> Diversity:
    units, n = _units(vectors), len(vectors)
    total = float(np.sum(units.sum(axis=0) ** 2))
    spread = 1 - (total - float(np.sum(units**2))) / (n * (n - 1))
    one, two, three = (distinct(texts, order) for order in (1, 2, 3))
    return Diversity((one, two, three), self_bleu(texts), spread, vendi_score(vectors))


def _units(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def _grams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def _drawn(texts: Sequence[str], size: int, rng: np.random.Generator) -> list[str]:
    return [texts[int(i)] for i in sorted(rng.choice(len(texts), size, replace=False))]


def _tf_idf(texts: Sequence[str]) -> Floats:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Characters within words: there is a feature in any text that has a letter.
    vectorizer = TfidfVectorizer(max_features=_FEATURES, analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    try:
        return cast(Any, vectorizer.fit_transform(texts)).toarray()
    except ValueError:  # scikit-learn's answer to texts of blanks alone
        return np.zeros((len(texts), 1))
