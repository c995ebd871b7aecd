"""The label model on simulated labelers whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limbeck.compile.labelmodel import fit_label_model, fixed_label_model
from limbeck.errors import InputError

Floats = NDArray[np.float64]


def labels_of(k: int) -> list[str]:
    return [f"c{i}" for i in range(k)]


def labeler(rng: np.random.Generator, y: NDArray[np.int64], k: int, *, accuracy: float, sharp: float) -> Floats:
    """Probabilities of a labeler right with `accuracy`, its mass on the answer given by `sharp`."""
    wrong = (y + rng.integers(1, k, size=len(y))) % k
    said = np.where(rng.random(len(y)) < accuracy, y, wrong)
    scores = rng.normal(size=(len(y), k)) * 0.3
    scores[np.arange(len(y)), said] += sharp
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)


def gold(rng: np.random.Generator, n: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    y = rng.permutation(np.arange(n) % k)
    return y, rng.permutation(np.arange(n) % 3)


@settings(max_examples=15)
@given(
    n=st.integers(6, 40),
    k=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    missing=st.floats(0, 0.5),
    extreme=st.booleans(),
)
def test_pooled_rows_are_distributions(n: int, k: int, seed: int, missing: float, extreme: bool) -> None:
    rng = np.random.default_rng(seed)
    y, folds = gold(rng, n, k)
    p = {name: labeler(rng, y, k, accuracy=0.7, sharp=2.0) for name in ("a", "b")}
    if extreme:
        p["a"] = np.eye(k)[p["a"].argmax(axis=1)]
    p["b"][rng.random(n) < missing] = np.nan
    model = fit_label_model(p, y.tolist(), labels_of(k), folds=folds.tolist())
    pooled = model.predict(p)
    assert np.allclose(pooled.sum(axis=1), 1.0)
    assert (pooled > 0).all()
    assert all(w >= 0 for w in model.weights.values())
    assert model.reliability is not None
    assert all(0 < r < 1 for r in model.reliability.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 6])
def test_random_and_inverted_labelers_get_next_to_nothing(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    y, folds = gold(rng, 48, k)
    p = {
        "good": labeler(rng, y, k, accuracy=0.85, sharp=2.5),
        "random": labeler(rng, y, k, accuracy=1 / k, sharp=2.5),
        "inverted": labeler(rng, y, k, accuracy=0.05, sharp=4.0),
    }
    model = fit_label_model(p, y.tolist(), labels_of(k), folds=folds.tolist())
    assert model.weights["good"] > 0.3
    assert model.weights["random"] < 0.3 * model.weights["good"]
    assert model.weights["inverted"] < 0.05
    assert "good" not in model.inverted
    if k == 2:
        assert "inverted" in model.inverted


def test_only_an_inverted_labeler_gives_no_confident_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    y, folds = gold(rng, 40, 2)
    p = {"inverted": labeler(rng, y, 2, accuracy=0.1, sharp=5.0)}
    model = fit_label_model(p, y.tolist(), labels_of(2), folds=folds.tolist())
    assert model.weights["inverted"] < 0.05
    assert model.predict(p).max() < 0.6
    assert model.quality is not None
    assert model.quality["pool"].nll < model.quality["inverted"].nll


@pytest.mark.parametrize(("n", "k"), [(12, 3), (48, 6), (48, 2)])
def test_nested_pool_is_no_worse_than_the_best_labeler_on_average(n: int, k: int) -> None:
    gains: list[float] = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        y, folds = gold(rng, n, k)
        p = {
            "teacher": labeler(rng, y, k, accuracy=0.7, sharp=5.0),
            "probe": labeler(rng, y, k, accuracy=0.75, sharp=1.5),
            "student": labeler(rng, y, k, accuracy=0.6, sharp=3.0),
        }
        model = fit_label_model(p, y.tolist(), labels_of(k), folds=folds.tolist())
        assert model.quality is not None
        pool = model.quality["pool"].nll
        gains.append(min(q.nll for name, q in model.quality.items() if name != "pool") - pool)
    assert np.mean(gains) > 0


def test_held_out_rows_gain_from_the_pool_as_the_nested_score_says() -> None:
    rng = np.random.default_rng(3)
    y, folds = gold(rng, 48, 6)
    big_y, _ = gold(rng, 2000, 6)

    def three(y: NDArray[np.int64]) -> dict[str, Floats]:
        kinds = {"a": (0.7, 5.0), "b": (0.8, 1.5), "c": (0.2, 3.0)}
        return {name: labeler(rng, y, 6, accuracy=acc, sharp=sharp) for name, (acc, sharp) in kinds.items()}

    model = fit_label_model(three(y), y.tolist(), labels_of(6), folds=folds.tolist())
    pooled = model.predict(three(big_y))
    nll = float(-np.log(pooled[np.arange(2000), big_y]).mean())
    assert model.quality is not None
    assert abs(nll - model.quality["pool"].nll) < 0.3
    assert float((pooled.argmax(axis=1) == big_y).mean()) > 0.76


def test_a_constant_bias_of_a_labeler_is_corrected() -> None:
    rng = np.random.default_rng(1)
    y, folds = gold(rng, 60, 3)
    p = labeler(rng, y, 3, accuracy=0.9, sharp=2.0) * np.array([0.05, 1.0, 1.0])
    p /= p.sum(axis=1, keepdims=True)
    raw = float((p.argmax(axis=1) == y).mean())
    model = fit_label_model({"t": p}, y.tolist(), labels_of(3), folds=folds.tolist())
    assert model.bias[0] > max(model.bias[1:])
    assert model.quality is not None
    assert model.quality["pool"].accuracy > raw


def test_many_classes_with_few_rows_fit_weights_only() -> None:
    rng = np.random.default_rng(2)
    y, folds = gold(rng, 154, 77)
    p = {
        "good": labeler(rng, y, 77, accuracy=0.6, sharp=4.0),
        "poor": labeler(rng, y, 77, accuracy=1 / 77, sharp=4.0),
    }
    model = fit_label_model(p, y.tolist(), labels_of(77), folds=folds.tolist())
    assert model.bias == (0.0,) * 77
    assert model.weights["good"] > 3 * model.weights["poor"]


def test_reliability_is_low_for_the_class_the_pool_gets_wrong() -> None:
    rng = np.random.default_rng(4)
    y, folds = gold(rng, 60, 3)
    said = np.where((y == 2) & (rng.random(60) < 0.8), 1, y)
    p = np.full((60, 3), 0.05)
    p[np.arange(60), said] = 0.9
    model = fit_label_model({"t": p}, y.tolist(), labels_of(3), folds=folds.tolist())
    assert model.reliability is not None
    assert model.reliability["c1"] < 0.75 < model.reliability["c0"]


def test_without_folds_the_default_is_fixed_and_says_so() -> None:
    p = {"a": np.array([[0.8, 0.2]]), "b": np.array([[0.4, 0.6]])}
    model = fit_label_model(p, [0], ["x", "y"], folds=[0])
    assert not model.measured
    assert dict(model.weights) == {"a": 0.5, "b": 0.5}
    assert model.report()["reliability"] == {}
    assert model.predict(p)[0, 0] == pytest.approx(1 / (1 + (0.2 * 0.6 / (0.8 * 0.4)) ** 0.5))


def test_a_missing_labeler_leaves_the_others_answer() -> None:
    model = fixed_label_model(["x", "y"], ["a", "b"], {"a": 1.0, "b": 1.0})
    a, nothing = np.array([[0.7, 0.3]]), np.full((1, 2), np.nan)
    assert model.predict({"a": a, "b": nothing}) == pytest.approx(a)
    assert model.predict({"a": a}) == pytest.approx(a)
    assert model.predict({"b": nothing}) == pytest.approx(np.array([[0.5, 0.5]]))


def test_a_zero_probability_is_no_veto_and_the_report_is_json() -> None:
    rng = np.random.default_rng(5)
    y, folds = gold(rng, 30, 3)
    p = {"hard": np.eye(3)[np.where(rng.random(30) < 0.9, y, (y + 1) % 3)]}
    model = fit_label_model(p, y.tolist(), labels_of(3), folds=folds.tolist())
    assert model.predict(p).min() > 1e-4
    assert json.loads(json.dumps(model.report()))["quality"]["pool"]["rows"] == 30


@pytest.mark.parametrize(
    ("p", "gold_rows", "folds"),
    [
        ({}, [0], [0]),
        ({"a": np.ones((2, 3))}, [0, 1], [0, 1]),
        ({"a": np.ones((2, 2))}, [0], [0]),
        ({"a": np.ones((2, 2))}, [0, 1], [0]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(p: dict[str, Floats], gold_rows: list[int], folds: list[int]) -> None:
    with pytest.raises(InputError):
        fit_label_model(p, gold_rows, ["x", "y"], folds=folds)


def test_an_unknown_labeler_is_refused_at_prediction() -> None:
    with pytest.raises(InputError, match="nobody"):
        fixed_label_model(["x", "y"], ["a"]).predict({"nobody": np.ones((1, 2))})
