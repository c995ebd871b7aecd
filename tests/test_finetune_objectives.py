"""Objectives against their definitions, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.finetune.objectives import Branches, Divergence, Preference, find_objective

LOGPROBS = torch.tensor([math.log(0.2), math.log(0.1), math.log(0.1)])
LENGTHS = torch.tensor([2, 4, 1])
MASSES = torch.tensor([0.5, 0.5, 0.0])
NOTHING = torch.zeros(0)


def branches(logprobs: torch.Tensor, lengths: torch.Tensor, masses: torch.Tensor, **more: Any) -> Branches:
    given = {"reference": torch.zeros_like(logprobs), "logits": NOTHING, "parents": NOTHING, **more}
    return Branches(logprobs, lengths, masses, **given)


@pytest.mark.parametrize(
    ("normalize", "loss_per", "expected"),
    [
        ("vocabulary", "row", -0.5 * math.log(0.2) - 0.5 * math.log(0.1)),
        ("vocabulary", "token", -0.25 * math.log(0.2) - 0.125 * math.log(0.1)),
        ("labels", "row", -0.5 * math.log(0.5) - 0.5 * math.log(0.25)),
    ],
)
def test_objectives_are_their_cross_entropies(normalize: str, loss_per: str, expected: float) -> None:
    loss = find_objective(normalize, loss_per)(branches(LOGPROBS, LENGTHS, MASSES))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_objective_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="normalize='labels', loss_per='token'") as caught:
        find_objective("labels", "token")
    assert "normalize='labels', loss_per='row'" in caught.value.valid


numbers = st.floats(-60, 0)


@given(numbers, numbers, numbers, numbers, st.floats(0.01, 2), st.floats(0, 0.4), st.floats(0.5, 1), st.booleans())
def test_preferences_are_dpo_as_its_papers_write_it(
    chosen: float,
    rejected: float,
    chosen_before: float,
    rejected_before: float,
    beta: float,
    wrong: float,
    p: float,
    per_token: bool,
) -> None:
    lengths = (3, 7)
    row = branches(
        torch.tensor([chosen, rejected], dtype=torch.float64),
        torch.tensor(lengths),
        torch.tensor([p, 1 - p], dtype=torch.float64),
        reference=torch.tensor([chosen_before, rejected_before], dtype=torch.float64),
    )
    one, two = chosen - chosen_before, rejected - rejected_before
    if per_token:
        one, two = one / lengths[0], two / lengths[1]
    h = beta * (one - two)

    def loss(margin: float) -> float:
        plain = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))
        return ((1 - wrong) * plain[0] - wrong * plain[1]) / (1 - 2 * wrong)

    expected = p * loss(h) + (1 - p) * loss(-h)
    found = Preference(beta, per_token=per_token, robust=wrong)(row)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("beta", "robust"), [(0.0, 0.0), (0.1, 0.5), (0.1, -0.1)])
def test_impossible_preference_settings_say_what_is_valid(beta: float, robust: float) -> None:
    with pytest.raises(InputError) as caught:
        Preference(beta, robust=robust)
    assert caught.value.valid


def spread(values: list[float]) -> list[float]:
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=6, max_size=6), min_size=1, max_size=3), st.floats(0, 1))
def test_divergences_are_their_sums(logits: list[list[float]], beta: float) -> None:
    student = [spread(row[:3]) for row in logits]
    teacher = [spread(row[3:]) for row in logits]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    def one(p: list[float], q: list[float]) -> float:
        if beta == 0:
            return kl(p, q)
        if beta == 1:
            return kl(q, p)
        m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    n = len(logits)
    expected = sum(one(p, q) for p, q in zip(teacher, student, strict=True)) / n
    row = branches(
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([n]),
        torch.ones(1, dtype=torch.float64),
        logits=torch.tensor([row[:3] for row in logits], dtype=torch.float64),
        parents=torch.arange(n),
        teacher=torch.tensor(teacher, dtype=torch.float64).log(),
    )
    assert float(Divergence(beta)(row)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_divergence_needs_a_teacher_and_a_mixture_between_both() -> None:
    with pytest.raises(InputError, match="teacher"):
        Divergence()(branches(LOGPROBS, LENGTHS, MASSES))
    with pytest.raises(InputError, match="beta=2"):
        Divergence(2.0)
