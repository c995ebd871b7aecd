"""Confident learning by hand, against known noise, and on records."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.curate import Judgement, curate
from limbeck.compile.labelerrors import (
    confident_joint,
    find_label_errors,
    out_of_fold,
    record_label_errors,
    suspect_rows,
)
from limbeck.compile.labelmodel import fixed_label_model
from limbeck.compile.thresholds import CurateConfig
from limbeck.errors import InputError
from limbeck.records import Provenance, Record

LABELS = ("a", "b", "c")


def test_the_joint_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
    found = confident_joint([0, 0, 0, 1, 1, 1], p)
    np.testing.assert_allclose(found.thresholds_K, [0.6, 2 / 3])
    # Row 3 passes the threshold of class 0 only, with exactly 0.6.
    assert found.counts_K_K.tolist() == [[2, 1], [1, 2]]
    assert found.guess_N.tolist() == [0, 0, 1, 0, 1, 1]
    np.testing.assert_allclose(found.joint_K_K, np.array([[2, 1], [1, 2]]) / 6)
    assert found.noise == pytest.approx(1 / 3)


def test_a_class_that_is_always_unsure_is_not_taken_for_noise() -> None:
    # Rows of class 1 get 0.45 for it: below one half, and yet as sure as the class ever is.
    p = np.array([[0.9, 0.1]] * 6 + [[0.55, 0.45]] * 6)
    given_N = [0] * 6 + [1] * 6
    assert find_label_errors([LABELS[k] for k in given_N], p, LABELS[:2]).errors == ()
    assert (p.argmax(axis=1) != given_N).sum() == 6


def noisy(rows: int, noise: float, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, rows)
    wrong = rng.random(rows) < noise
    given_N = np.where(wrong, (true + rng.integers(1, 3, rows)) % 3, true)
    p = np.stack([rng.dirichlet(np.where(np.arange(3) == k, 5.0, 0.8)) for k in true])
    return [LABELS[k] for k in given_N], p, wrong


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_known_noise_is_found_and_its_share_estimated(noise: float) -> None:
    given_N, p, wrong = noisy(600, noise, 1)
    found = find_label_errors(given_N, p, LABELS)
    rows = [e.row for e in found.errors]
    assert wrong[rows].mean() > 0.8
    # A wrong row must be as sure of its true class as that class's rows are on average: about half are, at least.
    assert wrong[rows].sum() > 0.5 * wrong.sum()
    assert found.noise == pytest.approx(wrong.mean(), abs=0.05)
    # The worst come first: the first half is purer than the whole.
    assert wrong[rows[: len(rows) // 2]].mean() >= wrong[rows].mean()


@pytest.mark.parametrize("ranking", ["self_confidence", "normalized_margin"])
def test_rankings_order_by_their_own_score(ranking: str) -> None:
    given_N, p, _ = noisy(200, 0.2, 2)
    found = find_label_errors(given_N, p, LABELS, ranking=ranking)  # pyright: ignore[reportArgumentType]
    scores = [e.score for e in found.errors]
    assert scores == sorted(scores)
    assert all(0 <= s <= 1 for s in scores)
    for error in found.errors:
        own = p[error.row][LABELS.index(error.given)]
        best = max(x for k, x in enumerate(p[error.row]) if LABELS[k] != error.given)
        assert error.score == pytest.approx(own if ranking == "self_confidence" else (own - best + 1) / 2)
        assert own < best


def test_rows_that_cannot_be_judged_are_left_out() -> None:
    p = np.array([[np.nan, np.nan], [0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7]])
    found = find_label_errors(["a", "a", "a", "unknown", "b", "b"], p, ("a", "b"))
    assert found.rows == 4
    assert [e.row for e in found.errors] == [1]
    assert find_label_errors([], np.zeros((0, 2)), ("a", "b")).errors == ()
    assert find_label_errors(["a"], np.array([[1.0]]), ("a",)).errors == ()


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match="2 labels for 1"):
        find_label_errors(["a", "b"], np.array([[0.5, 0.5]]), ("a", "b"))
    with pytest.raises(InputError, match="label 2"):
        confident_joint([2], np.array([[0.5, 0.5]]))
    with pytest.raises(InputError, match="1 rows"):
        out_of_fold(np.zeros((1, 2)), [0], 2)


def test_a_class_of_one_row_draws_no_others() -> None:
    # Out of sample nothing is known of class c: a threshold near nothing would let every row pass it.
    p = np.array([[0.6, 0.39, 0.01]] * 4 + [[0.3, 0.69, 0.01]] * 4 + [[0.5, 0.499, 0.001]])
    found = confident_joint([0, 0, 0, 1, 1, 1, 1, 0, 2], p)
    assert found.thresholds_K[2] > 1
    assert found.counts_K_K[:, 2].tolist() == [0, 0, 0]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
def test_the_joint_is_a_distribution_with_the_given_shares(rows: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given_N = rng.integers(0, classes, rows)
    p = rng.dirichlet(np.ones(classes), size=rows)
    found = confident_joint(given_N.tolist(), p)
    assert found.joint_K_K.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found.joint_K_K.sum(axis=1), np.bincount(given_N, minlength=classes) / rows)
    assert found.counts_K_K.sum() <= rows
    assert -1e-9 <= found.noise <= 1


def test_out_of_fold_probabilities_do_not_see_their_own_label() -> None:
    rng = np.random.default_rng(3)
    y = [0, 1] * 30
    x = np.array([[1.0, 0.0] if k == 0 else [0.0, 1.0] for k in y]) + rng.normal(0, 0.1, (60, 2))
    flipped = y.copy()
    flipped[4] = 1
    p = out_of_fold(x, flipped, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert p[4, 0] > 0.8
    assert np.argmin(p[np.arange(60), flipped]) == 4
    # A class of one row is unseen in its own fold, which gives it the floor.
    assert out_of_fold(x, [2, *flipped[1:]], 3)[0, 2] < 0.01


def rows_and_p() -> tuple[list[Record], np.ndarray]:
    truth = ["a", "b"] * 10
    records = [
        Record({"text": f"{t} text number {i} of its own kind, {i * 7919}"}, {"label": t},
               Provenance("label_conditioned", seed=i))
        for i, t in enumerate(truth)
    ]  # fmt: skip
    p = np.array([[0.8, 0.2] if t == "a" else [0.2, 0.8] for t in truth])
    p[3] = [0.62, 0.38]  # written for b
    return records, p


def test_gold_rows_are_reported_by_id_and_stay() -> None:
    records, p = rows_and_p()
    p[3] = [0.9, 0.1]
    found = record_label_errors(records, p, ("a", "b"), "label")
    report = json.loads(json.dumps(found.report()))
    assert [e["id"] for e in report["errors"]] == [records[3].id]
    assert (report["errors"][0]["given"], report["errors"][0]["suggested"], report["rows"]) == ("b", "a", 20)
    assert all(r.kept for r in records)


def test_generated_rows_are_rejected_where_the_rule_is_on() -> None:
    records, p = rows_and_p()
    p[3] = [0.81, 0.19]
    gold = [Record({"text": "a text of about as many words as these"}, {"label": "a"}, Provenance("gold"))]
    judgement = Judgement("label", fixed_label_model(("a", "b"), ["t"]), p)

    def counts(**settings: bool) -> dict[str, int]:
        config = CurateConfig(min_intended=0.1, near_duplicate=1.0, **settings)  # pyright: ignore[reportArgumentType]
        return dict(curate(records, gold=gold, protected=(), judgement=judgement, config=config).counts)

    assert counts(label_errors=True) == {"label_error": 1}
    assert counts() == {}


def test_only_rows_written_for_a_label_are_suspected() -> None:
    records, p = rows_and_p()
    p[3] = [0.9, 0.1]
    assert suspect_rows(records, p, ("a", "b"), "label") == {3}
    pool = [Record(r.inputs, r.outputs, Provenance("pool", seed=i)) for i, r in enumerate(records)]
    assert suspect_rows(pool, p, ("a", "b"), "label") == frozenset()
    failed = [r.reject("failed") if i == 3 else r for i, r in enumerate(records)]
    assert suspect_rows(failed, p, ("a", "b"), "label") == frozenset()
