"""Several labelers, one calibrated label distribution, fitted on tens of gold rows.

A log-linear pool (Genest and Zidek 1986; its one-labeler case is temperature scaling with a class bias,
Guo et al. 2017): log p(y|x) = sum_m w_m log p_m(y|x) + b_y - log Z with w_m >= 0, fitted by maximum
likelihood on out-of-fold gold predictions and shrunk towards weights that follow each labeler's skill. A
labeler that is wrong more often than chance ends at weight 0, it is never turned round: with tens of rows an
inversion is as likely to be luck.

Shapes in names: M labelers, N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from threadpoolctl import threadpool_limits

from limbeck.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A labeler may not veto a class: no probability counts as less than this share of the uniform one.
_FLOOR = 0.01
# Below this many gold rows a class, class biases are noise and only the weights are fitted.
_ROWS_PER_BIAS = 4
# Below this many gold rows the strength is not chosen but fixed.
_ROWS_TO_CHOOSE = 24
# Pseudo-rows behind the prior of a class's reliability.
_PRIOR_ROWS = 4.0


@dataclass(frozen=True)
class Strength:
    """How hard weights are pulled to their prior and class biases to 0 (1/variance of a Gaussian prior)."""

    weight: float = 8.0
    bias: float = 16.0


_STRENGTHS = tuple(Strength(w, b) for w in (32.0, 8.0, 2.0) for b in (64.0, 16.0, 4.0))


@dataclass(frozen=True)
class Quality:
    """How good a labeler or the pool is on gold rows: accuracy and mean negative log likelihood in nats."""

    accuracy: float
    nll: float
    rows: int


@dataclass(frozen=True)
class LabelModel:
    """Pooled labelers: weights and class biases, with what was measured out of fold.

    `reliability` maps a class to the posterior mean of its precision when the pool predicts it; it is empty
    where nothing could be measured (`measured` is False: no folds). `base_rates` are the gold shares.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, float]
    bias: tuple[float, ...]
    measured: bool = False
    reliability: Mapping[str, float] | None = None
    base_rates: tuple[float, ...] = ()
    strength: Strength | None = None
    quality: Mapping[str, Quality] | None = None
    inverted: tuple[str, ...] = ()

    def predict(self, probabilities: Mapping[str, Floats]) -> Floats:
        """Return the pooled distributions P_N_K; a NaN row means that labeler did not see the row.

        A labeler without a weight is refused; one that is absent counts as having seen nothing.

        >>> model = fixed_label_model(["a", "b"], ["teacher"])
        >>> model.predict({"teacher": np.array([[0.9, 0.1]])}).round(1).tolist()
        [[0.9, 0.1]]
        """
        unknown = sorted(set(probabilities) - set(self.weights))
        if unknown or not probabilities:
            raise InputError(f"label model has no labeler {unknown}", valid=", ".join(self.weights))
        names = list(probabilities)
        logp_M_N_K = _log_probabilities(probabilities, names, len(self.labels))
        weights = np.array([self.weights[name] for name in names])
        return _softmax(_pool(weights, logp_M_N_K) + np.asarray(self.bias))

    def report(self) -> dict[str, Any]:
        """Return everything measured as plain JSON values."""
        return {
            "measured": self.measured,
            "weights": dict(self.weights),
            "bias": dict(zip(self.labels, self.bias, strict=True)),
            "reliability": dict(self.reliability or {}),
            "quality": {name: asdict(q) for name, q in (self.quality or {}).items()},
            "strength": asdict(self.strength) if self.strength else None,
            "inverted": list(self.inverted),
        }


def fixed_label_model(
    labels: Sequence[str], names: Sequence[str], weights: Mapping[str, float] | None = None
) -> LabelModel:
    """Return the default for when nothing can be measured: equal weights 1/M, no bias, no reliability."""
    _check_names(names)
    chosen = {name: (weights or {}).get(name, 1.0 / len(names)) for name in names}
    return LabelModel(tuple(labels), chosen, (0.0,) * len(labels))


def fit_label_model(
    probabilities: Mapping[str, Floats],
    gold: Sequence[int],
    labels: Sequence[str],
    *,
    folds: Sequence[int] | None = None,
) -> LabelModel:
    """Fit the pool on out-of-fold probabilities P_N_K of each labeler and the gold class indices y_N.

    `folds` names the fold of each row; with fewer than two folds there are no out-of-fold predictions to
    trust, and `fixed_label_model` is returned. Quality and reliability come from a nested cross-validation:
    no row is judged by weights, strength or biases that saw it.
    """
    names = list(probabilities)
    _check_names(names)
    y_N, k = np.asarray(gold, dtype=np.int64), len(labels)
    fold_N = np.asarray(folds if folds is not None else [0] * len(y_N), dtype=np.int64)
    logp_M_N_K = _log_probabilities(probabilities, names, k)
    if logp_M_N_K.shape[1] != len(y_N) or len(fold_N) != len(y_N):
        raise InputError(f"{logp_M_N_K.shape[1]} rows of probabilities, {len(y_N)} of gold, {len(fold_N)} folds")
    if len(np.unique(fold_N)) < 2:
        return fixed_label_model(labels, names)
    data = _Data(logp_M_N_K, y_N, fold_N, _seen(probabilities, names))
    # The problems are tiny: BLAS threads waiting for work would cost ten times the fit.
    with cast(Any, threadpool_limits)(limits=1):
        strength = _choose_strength(data)
        weights, bias = _fit(data, strength)
        pooled_N_K = _nested_predictions(data)
    quality = {name: _quality(data, m) for m, name in enumerate(names)}
    quality["pool"] = _quality_of(pooled_N_K, y_N)
    return LabelModel(
        labels=tuple(labels),
        weights=dict(zip(names, (float(w) for w in weights), strict=True)),
        bias=tuple(float(b) for b in bias),
        measured=True,
        reliability=_reliability(pooled_N_K, y_N, labels),
        base_rates=tuple(float(r) for r in (np.bincount(y_N, minlength=k) + 1.0) / (len(y_N) + k)),
        strength=strength,
        quality=quality,
        inverted=tuple(name for m, name in enumerate(names) if _is_inverted(data, m)),
    )


@dataclass(frozen=True)
class _Data:
    """Log-probabilities, gold and folds of N rows; `seen` is False where a labeler saw nothing."""

    logp_M_N_K: Floats
    y_N: Ints
    fold_N: Ints
    seen_M_N: NDArray[np.bool_]

    def rows(self, mask_N: NDArray[np.bool_]) -> _Data:
        return _Data(self.logp_M_N_K[:, mask_N], self.y_N[mask_N], self.fold_N[mask_N], self.seen_M_N[:, mask_N])

    def parts(self) -> Iterator[tuple[NDArray[np.bool_], _Data]]:
        """Yield each fold's mask with the rows outside that fold."""
        for fold in np.unique(self.fold_N):
            held = self.fold_N == fold
            yield held, self.rows(~held)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise InputError("a label model needs at least one labeler")


def _seen(probabilities: Mapping[str, Floats], names: Sequence[str]) -> NDArray[np.bool_]:
    return np.stack([~np.isnan(np.asarray(probabilities[name])).any(axis=1) for name in names])


def _log_probabilities(probabilities: Mapping[str, Floats], names: Sequence[str], k: int) -> Floats:
    """Return centred log-probabilities, shape [M, N, K]; 0 everywhere in a row that a labeler did not see."""
    for name in names:
        if np.ndim(probabilities[name]) != 2 or np.shape(probabilities[name])[1] != k:
            raise InputError(f"labeler {name} gives shape {np.shape(probabilities[name])}", valid=f"[rows, {k}]")
    seen = _seen(probabilities, names)[:, :, None]
    p = np.stack([np.asarray(probabilities[name], dtype=np.float64) for name in names])
    p = np.where(seen, p, 1.0 / k).clip(0.0, None)
    p = np.maximum(p / np.maximum(p.sum(axis=2, keepdims=True), 1e-300), _FLOOR / k)
    log_p = np.log(p)
    return log_p - log_p.mean(axis=2, keepdims=True)


def _pool(weights_M: Floats, logp_M_N_K: Floats) -> Floats:
    return np.einsum("m,mnk->nk", weights_M, logp_M_N_K)


def _softmax(scores_N_K: Floats) -> Floats:
    z = np.exp(scores_N_K - scores_N_K.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def _skill(data: _Data, m: int) -> float:
    """Return balanced accuracy over chance: 0 for a constant or random labeler, 1 for a perfect one."""
    seen = data.seen_M_N[m]
    y, hit = data.y_N[seen], data.logp_M_N_K[m, seen].argmax(axis=1) == data.y_N[seen]
    if not len(y):
        return 0.0
    chance = 1.0 / data.logp_M_N_K.shape[2]
    recall = float(np.mean([hit[y == label].mean() for label in np.unique(y)]))
    return (recall - chance) / (1.0 - chance)


def _is_inverted(data: _Data, m: int) -> bool:
    """Say whether a labeler is so often wrong that chance would rarely (two standard errors) do it."""
    k, n = data.logp_M_N_K.shape[2], int(data.seen_M_N[m].sum())
    error = np.sqrt(1.0 / (max(n, 1) * max(k - 1, 1)))
    return _skill(data, m) < -2.0 * float(error)


def _prior(data: _Data) -> Floats:
    """Return prior weights that sum to 1 and grow with the square of skill: noise near chance gets little."""
    skill = np.array([max(0.0, _skill(data, m)) ** 2 for m in range(len(data.logp_M_N_K))])
    return skill / skill.sum() if skill.sum() > 0 else np.full(len(skill), 1.0 / len(skill))


def _fit(data: _Data, strength: Strength) -> tuple[Floats, Floats]:
    """Return weights and biases that minimise the penalised negative log likelihood (convex)."""
    m, n, k = (int(size) for size in data.logp_M_N_K.shape)
    with_bias = n >= _ROWS_PER_BIAS * k
    prior, onehot_N_K = _prior(data), np.eye(k)[data.y_N]

    def loss(theta: Floats) -> tuple[float, Floats]:
        w, b = theta[:m], theta[m:] if with_bias else np.zeros(k)
        p_N_K = _softmax(_pool(w, data.logp_M_N_K) + b)
        nll = -np.log(p_N_K[np.arange(n), data.y_N] + 1e-300).sum()
        penalty = strength.weight * ((w - prior) ** 2).sum() + strength.bias * (b**2).sum()
        error_N_K = p_N_K - onehot_N_K
        grad_w = np.einsum("nk,mnk->m", error_N_K, data.logp_M_N_K) + strength.weight * (w - prior)
        grad_b = error_N_K.sum(axis=0) + strength.bias * b if with_bias else np.zeros(0)
        return float(nll + penalty / 2), np.concatenate([grad_w, grad_b])

    start = np.concatenate([prior, np.zeros(k if with_bias else 0)])
    bounds = [(0.0, None)] * m + [(None, None)] * (len(start) - m)
    result = cast(Any, minimize)(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    theta: Floats = np.asarray(result.x, dtype=np.float64)
    return theta[:m], theta[m:] if with_bias else np.zeros(k)


def _predict(data: _Data, mask_N: NDArray[np.bool_], weights: Floats, bias: Floats) -> Floats:
    return _softmax(_pool(weights, data.logp_M_N_K[:, mask_N]) + bias)


def _choose_strength(data: _Data) -> Strength:
    """Return the strength with the lowest cross-validated loss; the first, strongest, wins a tie."""
    if len(data.y_N) < _ROWS_TO_CHOOSE or len(np.unique(data.fold_N)) < 2:
        return Strength()

    def held_out_nll(strength: Strength) -> float:
        total = 0.0
        for held, rest in data.parts():
            p_N_K = _predict(data, held, *_fit(rest, strength))
            total -= float(np.log(p_N_K[np.arange(len(p_N_K)), data.y_N[held]]).sum())
        return total

    return min(_STRENGTHS, key=held_out_nll)


def _nested_predictions(data: _Data) -> Floats:
    """Return the pool's prediction of each row by a pool whose strength and weights never saw its fold."""
    pooled = np.zeros(data.logp_M_N_K.shape[1:])
    for held, rest in data.parts():
        pooled[held] = _predict(data, held, *_fit(rest, _choose_strength(rest)))
    return pooled


def _quality_of(p_N_K: Floats, y_N: Ints) -> Quality:
    if not len(y_N):
        return Quality(0.0, float("inf"), 0)
    nll = -np.log(np.maximum(p_N_K[np.arange(len(y_N)), y_N], 1e-300)).mean()
    return Quality(float((p_N_K.argmax(axis=1) == y_N).mean()), float(nll), len(y_N))


def _quality(data: _Data, m: int) -> Quality:
    seen = data.seen_M_N[m]
    return _quality_of(_softmax(data.logp_M_N_K[m, seen]), data.y_N[seen])


def _reliability(pooled_N_K: Floats, y_N: Ints, labels: Sequence[str]) -> dict[str, float]:
    """Return P(right | class predicted), a Beta posterior mean with the prior at the overall accuracy."""
    said_N = pooled_N_K.argmax(axis=1)
    overall = (float((said_N == y_N).sum()) + 1.0) / (len(y_N) + 2.0)
    reliability: dict[str, float] = {}
    for index, label in enumerate(labels):
        right = float(((said_N == index) & (y_N == index)).sum())
        reliability[label] = (right + _PRIOR_ROWS * overall) / (float((said_N == index).sum()) + _PRIOR_ROWS)
    return reliability
