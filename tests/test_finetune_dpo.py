"""DPO after a supervised fit: which pairs become rows, whose log-probabilities are the reference, what a step does."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.dpo import prefer, preference_rows, with_reference
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.objectives import Preference
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients

SMALL = TrainConfig(lr=1e-2, max_steps=12, batch_size=4, rank=4, alpha=8)


@dataclass(frozen=True)
class Pair:
    """One rendered pair."""

    chosen: str
    rejected: str
    p: float = 1.0
    question: str = "who came?"
    weight: float = 1.0

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        return (("user", self.question),)

    @property
    def completions(self) -> tuple[tuple[str, float], ...]:
        return ((self.chosen, self.p), (self.rejected, 1 - self.p))


WORDS = ("fox", "dog", "card", "prize")


def pairs() -> list[Pair]:
    return [Pair("the transfer is pending", "win a free prize now", 0.9, f"who lost the {word}?") for word in WORDS]


def logprob(model: Any, row: TrainRow, branch: int) -> torch.Tensor:
    """The plain forward pass over one branch, nothing shared."""
    tokens = row.branches[branch][0]
    logits = model(input_ids=torch.tensor([row.prompt + tokens]), use_cache=False).logits[0]
    scored = torch.log_softmax(logits[len(row.prompt) - 1 : -1], dim=-1)
    return scored[torch.arange(len(tokens)), torch.tensor(tokens)].sum()


def margins(student: LoadedModel, rows: list[TrainRow]) -> list[float]:
    with torch.no_grad():
        return [float(logprob(student.model, row, 0) - logprob(student.model, row, 1)) for row in rows]


def test_pairs_that_teach_nothing_are_left_out_and_counted(fresh_tiny: LoadedModel) -> None:
    given = [*pairs(), Pair("yes", "yes"), Pair("yes", "no", 0.5), Pair("yes", "no maybe " * 600)]
    made = preference_rows(fresh_tiny, given)
    assert dict(made.left_out) == {"identical": 1, "tie": 1, "too_long": 1}
    assert [[mass for _, mass in row.branches] for row in made.rows] == [pytest.approx([0.9, 0.1])] * 4
    tokenizer: Any = fresh_tiny.tokenizer
    decoded = [tokenizer.decode(tokens) for tokens, _ in made.rows[0].branches]
    assert decoded[0].startswith("the transfer is pending")
    assert decoded[1].startswith("win a free prize now")


def test_no_pair_gives_no_row(fresh_tiny: LoadedModel) -> None:
    assert preference_rows(fresh_tiny, [Pair("a", "a")]).rows == ()


def test_one_answer_is_no_pair(fresh_tiny: LoadedModel) -> None:
    @dataclass(frozen=True)
    class Single(Pair):
        @property
        def completions(self) -> tuple[tuple[str, float], ...]:
            return ((self.chosen, 1.0),)

    with pytest.raises(InputError, match="preference 0 has 1 answers"):
        preference_rows(fresh_tiny, [Single("a", "b")])


def supervised(fresh_tiny: LoadedModel, rows: list[TrainRow]) -> LoadedModel:
    """A student that has learned the rejected answers."""
    wrong = [replace(row, branches=((row.branches[1][0], 1.0),)) for row in rows]
    return train(fresh_tiny, wrong, SMALL).loaded


def test_the_reference_is_the_student_as_it_stands_and_not_its_base(fresh_tiny: LoadedModel) -> None:
    rows = list(preference_rows(fresh_tiny, pairs()).rows)
    base = with_reference(fresh_tiny, rows)
    student = supervised(fresh_tiny, rows)
    known = with_reference(student, rows)
    with torch.no_grad():
        for row in known:
            wanted = [float(logprob(student.model, row, branch)) for branch in (0, 1)]
            assert row.reference == pytest.approx(wanted, abs=1e-3)
    assert all(one.reference[1] > other.reference[1] + 1 for one, other in zip(known, base, strict=True))


def test_a_step_has_the_loss_and_gradients_of_the_paper(fresh_tiny: LoadedModel) -> None:
    """-p log s(h) - (1 - p) log s(-h), written out in float64 for a student that has left its reference."""
    rows = with_reference(fresh_tiny, list(preference_rows(fresh_tiny, pairs()).rows))
    model: Any = attach_lora(fresh_tiny.model, SMALL).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    beta, loss = 0.3, torch.zeros((), dtype=torch.float64)
    for row in rows:
        gain = [logprob(model, row, branch) - row.reference[branch] for branch in (0, 1)]
        h = beta * (gain[0] - gain[1])
        loss = loss - (0.9 * torch.log(torch.sigmoid(h)) + 0.1 * torch.log(torch.sigmoid(-h))) / len(rows)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    done = accumulate_gradients(model.get_base_model(), rows, Preference(beta))
    assert abs(float(loss.detach()) - math.log(2)) > 1e-3
    assert done.loss == pytest.approx(float(loss.detach()), abs=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_a_student_of_the_rejected_answers_comes_to_prefer_the_chosen(fresh_tiny: LoadedModel) -> None:
    rows = list(preference_rows(fresh_tiny, pairs()).rows)
    student = supervised(fresh_tiny, rows)
    before, adapter = margins(student, rows), student.fingerprint
    done = prefer(student, rows, SMALL, Preference(0.1))
    assert done.losses[0] == pytest.approx(math.log(2), abs=1e-3), "no student has left its reference at the first step"
    assert done.losses[-1] < done.losses[0]
    after = margins(done.loaded, rows)
    assert all(b > a + 1 for a, b in zip(before, after, strict=True))
    assert done.loaded.fingerprint != adapter
    assert done.loaded.model is student.model, "the adapter goes on, no second one is laid over it"


def test_no_rows_are_refused(fresh_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="no training rows"):
        prefer(fresh_tiny, [], SMALL, Preference())
