"""Objectives against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.errors import InputError
from limbeck.finetune.objectives import find_objective

LOGPROBS = torch.tensor([math.log(0.2), math.log(0.1), math.log(0.1)])
LENGTHS = torch.tensor([2, 4, 1])
MASSES = torch.tensor([0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("normalize", "loss_per", "expected"),
    [
        ("vocabulary", "row", -0.5 * math.log(0.2) - 0.5 * math.log(0.1)),
        ("vocabulary", "token", -0.25 * math.log(0.2) - 0.125 * math.log(0.1)),
        ("labels", "row", -0.5 * math.log(0.5) - 0.5 * math.log(0.25)),
    ],
)
def test_objectives_are_their_cross_entropies(normalize: str, loss_per: str, expected: float) -> None:
    loss = find_objective(normalize, loss_per)(LOGPROBS, LENGTHS, MASSES)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_objective_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="normalize='labels', loss_per='token'") as caught:
        find_objective("labels", "token")
    assert "normalize='labels', loss_per='row'" in caught.value.valid
