"""Rows whose label is likely wrong, by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

A class's threshold is the mean probability of that class over the rows given it, so that a class about which the
classifier is always cautious is not taken for noise. A row counts for the class that passes its own threshold
with the highest probability; where that is the classifier's first choice and not the given one, the label is a
likely error. Probabilities must be out of sample: a classifier that saw the label repeats it.

Shapes in names: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.origins import has_intended_label
from limbeck.errors import InputError
from limbeck.records import Record

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Ranking = Literal["self_confidence", "normalized_margin"]

# No probability passes it: the threshold of a class of fewer than two rows. A single one is out of sample where
# its class was never seen, so that its probability, and with it the threshold, is next to nothing.
_NEVER = 2.0


@dataclass(frozen=True)
class ConfidentJoint:
    """How given and true labels go together.

    `thresholds_K` are the classes' mean self-confidences, `counts_K_K` the rows [given, true] that pass a
    threshold, `joint_K_K` the estimated distribution of given and true labels, scaled to the given labels' counts.
    `guess_N` is the class each row counts for, -1 for none.
    """

    thresholds_K: Floats
    counts_K_K: Ints
    joint_K_K: Floats
    guess_N: Ints

    @property
    def noise(self) -> float:
        """The estimated share of wrong labels."""
        return float(1.0 - np.trace(self.joint_K_K)) if self.joint_K_K.any() else 0.0


@dataclass(frozen=True)
class LabelError:
    """A row whose label is likely wrong: its index, both labels, and its score (the lower the more likely wrong)."""

    row: int
    given: str
    suggested: str
    score: float


@dataclass(frozen=True)
class LabelErrors:
    """The likely errors, worst first, of how many judged rows, with the estimated share of wrong labels."""

    errors: tuple[LabelError, ...]
    rows: int
    noise: float
    ranking: str
    ids: Mapping[int, str] = field(default_factory=dict[int, str])

    def report(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "rows": self.rows,
            "noise": self.noise,
            "ranking": self.ranking,
            "errors": [
                {
                    "id": self.ids.get(error.row, str(error.row)),
                    "given": error.given,
                    "suggested": error.suggested,
                    "score": error.score,
                }
                for error in self.errors
            ],
        }


def confident_joint(given_N: Sequence[int], probabilities_N_K: Floats) -> ConfidentJoint:
    """Return the confident joint of given labels and out-of-sample probabilities.

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8]])
    >>> confident_joint([0, 0, 0, 1, 1], p).counts_K_K.tolist()
    [[2, 1], [0, 1]]
    """
    given, p_N_K = _checked(given_N, probabilities_N_K)
    rows, classes = p_N_K.shape
    own_N = p_N_K[np.arange(rows), given]
    sizes = np.bincount(given, minlength=classes)
    sums = np.bincount(given, weights=own_N, minlength=classes)
    thresholds = np.where(sizes > 1, sums / np.maximum(sizes, 1), _NEVER)
    # The mean of equal numbers may come out above each of them by a rounding error.
    passing = np.where(p_N_K >= thresholds - 1e-9, p_N_K, -1.0)
    guess = np.where(passing.max(axis=1, initial=-1.0) >= 0, passing.argmax(axis=1), -1) if rows else given
    counts = np.zeros((classes, classes), dtype=np.int64)
    sure = guess >= 0
    np.add.at(counts, (given[sure], guess[sure]), 1)
    return ConfidentJoint(thresholds, counts, _calibrated(counts, sizes), guess.astype(np.int64))


def find_label_errors(
    given: Sequence[str],
    probabilities_N_K: Floats,
    labels: Sequence[str],
    *,
    ranking: Ranking = "normalized_margin",
    ids: Sequence[str] = (),
) -> LabelErrors:
    """Return the rows whose label is likely wrong, worst first.

    `ranking` "self_confidence" scores a row by the probability of its given label, "normalized_margin" by
    (that minus the highest other + 1) / 2: both in [0, 1]. Rows without probabilities (NaN) or with a label
    that is not among `labels` are not judged. Raises InputError where rows and probabilities do not match.

    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8]])
    >>> [(e.row, e.suggested) for e in find_label_errors(["no", "no", "no", "yes", "yes"], p, ["no", "yes"]).errors]
    [(2, 'yes')]
    """
    if len(given) != len(probabilities_N_K):
        raise InputError(
            f"{len(given)} labels for {len(probabilities_N_K)} rows of probabilities", valid="one label a row"
        )
    index = {label: k for k, label in enumerate(labels)}
    judged = [i for i, label in enumerate(given) if label in index and bool(np.isfinite(probabilities_N_K[i]).all())]
    if not judged:
        return LabelErrors((), 0, 0.0, ranking)
    known = [index[given[i]] for i in judged]
    p_N_K = np.asarray(probabilities_N_K, dtype=np.float64)[judged]
    found = confident_joint(known, p_N_K)
    scores = _scores(np.asarray(known), p_N_K, ranking)
    first = p_N_K.argmax(axis=1)
    wrong = [
        LabelError(row, given[row], labels[int(found.guess_N[n])], float(scores[n]))
        for n, row in enumerate(judged)
        if found.guess_N[n] == first[n] != known[n]
    ]
    named = {error.row: ids[error.row] for error in wrong} if ids else {}
    return LabelErrors(tuple(sorted(wrong, key=lambda e: (e.score, e.row))), len(judged), found.noise, ranking, named)


def record_label_errors(
    records: Sequence[Record], probabilities_N_K: Floats, labels: Sequence[str], output: str
) -> LabelErrors:
    """Return the likely label errors of rows by their `output` field, named by their ids.

    For the user's own rows this is a report to look at: nothing is dropped or changed.
    """
    given = [str(record.outputs.get(output, "")) for record in records]
    return find_label_errors(given, probabilities_N_K, labels, ids=[record.id for record in records])


def suspect_rows(
    records: Sequence[Record], probabilities_N_K: Floats, labels: Sequence[str], output: str
) -> frozenset[int]:
    """Return the rows whose text was written for a label that is likely wrong.

    Rows of another origin have their label from the same labelers as the probabilities: they tell nothing.
    """
    written = [has_intended_label(r) and not r.reason for r in records]
    given = [str(r.outputs.get(output)) if w else "" for r, w in zip(records, written, strict=True)]
    found = find_label_errors(given, probabilities_N_K, labels)
    return frozenset(error.row for error in found.errors if written[error.row])


def out_of_fold(
    features_N_D: NDArray[np.floating[Any]], given_N: Sequence[int], n_classes: int, *, folds: int = 5, seed: int = 0
) -> Floats:
    """Return class probabilities [N, n_classes] of a linear classifier that did not see the row.

    Folds are stratified by label; `features_N_D` are embeddings of the texts. Raises InputError below two rows.
    """
    from limbeck.engine.linear import fit_linear

    given = np.asarray(given_N, dtype=np.int64)
    if len(given) < 2:
        raise InputError(f"{len(given)} rows have no fold to be judged from", valid="two labelled rows or more")
    order = np.random.default_rng(seed).permutation(len(given))
    fold_N = np.empty(len(given), dtype=np.int64)
    # Dealt out label by label: no fold gets more than its share of a class.
    fold_N[order[np.argsort(given[order], kind="stable")]] = np.arange(len(given)) % min(folds, len(given))
    out = np.zeros((len(given), n_classes))
    for fold in np.unique(fold_N):
        held = fold_N == fold
        model = fit_linear(features_N_D[~held], given[~held].tolist(), n_classes)
        out[held] = model.predict(features_N_D[held])
    return out


def _checked(given_N: Sequence[int], probabilities_N_K: Floats) -> tuple[Ints, Floats]:
    given, p_N_K = np.asarray(given_N, dtype=np.int64), np.asarray(probabilities_N_K, dtype=np.float64)
    if p_N_K.ndim != 2 or len(given) != len(p_N_K):
        raise InputError(f"{len(given)} labels for probabilities of shape {p_N_K.shape}", valid="[rows, classes]")
    if len(given) and not (given.min() >= 0 and given.max() < p_N_K.shape[1]):
        raise InputError(f"label {int(given.max())} has no column", valid=f"0 to {p_N_K.shape[1] - 1}")
    return given, p_N_K


def _calibrated(counts_K_K: Ints, sizes_K: Ints) -> Floats:
    """Return the counts as a distribution whose rows have the given labels' shares (the paper's equation 3)."""
    totals = counts_K_K.sum(axis=1)
    # A class none of whose rows passes a threshold tells nothing: its labels are taken as right.
    known = np.where((totals == 0)[:, None], np.eye(len(sizes_K)), counts_K_K)
    joint = known / np.maximum(known.sum(axis=1, keepdims=True), 1) * sizes_K[:, None]
    return joint / max(float(joint.sum()), 1e-12)


def _scores(given_N: Ints, p_N_K: Floats, ranking: Ranking) -> Floats:
    own_N = p_N_K[np.arange(len(given_N)), given_N]
    if ranking == "self_confidence":
        return own_N
    others = p_N_K.copy()
    others[np.arange(len(given_N)), given_N] = -np.inf
    best = others.max(axis=1) if p_N_K.shape[1] > 1 else np.zeros(len(given_N))
    return (own_N - best + 1) / 2
