"""What `--objective` takes."""

from __future__ import annotations

import pytest

from limbeck.errors import InputError
from limbeck.pipeline.objectives import Objectives, parse_objectives
from limbeck.pipeline.students import Recipe


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("sft", Objectives()),
        (" sft , dpo ", Objectives(beta=0.1)),
        ("sft,dpo=0.5", Objectives(beta=0.5)),
        ("step-by-step", Objectives(rationales=1.0)),
        ("step-by-step=2,dpo=0.05", Objectives(rationales=2.0, beta=0.05)),
    ],
)
def test_a_list_of_objectives(given: str, wanted: Objectives) -> None:
    assert parse_objectives(given) == wanted


@pytest.mark.parametrize(
    "given",
    ["", "dpo", "dpo,sft", "sft,sft", "sft,step-by-step", "ppo", "sft=1", "sft,dpo=0", "sft,dpo=x", "sft,dpo=inf"],
)
def test_what_is_no_objective_is_refused_with_what_is(given: str) -> None:
    with pytest.raises(InputError, match="--objective") as caught:
        parse_objectives(given)
    assert "sft,dpo" in caught.value.valid


def test_a_recipe_of_earlier_versions_keeps_its_values() -> None:
    plain = Recipe(1e-3, 3.0)
    assert not {"beta", "rationales", "way"} & plain.values().keys()
    both = Recipe(1e-3, 3.0, way="direct", rationales=1.0, beta=0.1)
    assert Recipe(**both.values()) == both
    assert both.summary() == "lr 0.001, 3 epochs, rationales x1, then DPO 0.1"
