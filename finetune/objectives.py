"""What a row's loss is, given what the model makes of its completions.

The cross-entropies are against the row's target masses. `vocabulary` normalises over the whole vocabulary at every
token, as language modelling does; `labels` over the row's own candidate completions, as a classification head does,
and needs every candidate as a branch, those of mass 0 included. `Preference` is DPO (Rafailov et al. 2023),
`Divergence` the token-wise distillation of Agarwal et al. 2023 (GKD).
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import logsigmoid

from limbeck.errors import InputError

if TYPE_CHECKING:
    from limbeck.finetune.rows import TrainRow


@dataclass(frozen=True)
class Branches:
    """One row's n branches, as the model sees them; k is their scored tokens, one branch after the other.

    `logprobs` [n] are summed over a branch's scored tokens, `lengths` [n] count them, `masses` [n] are the row's
    targets and `reference` [n] another model's log-probabilities (NaN where the row has none). `logits` [p, V] are
    those of the whole pass and `parents` [k] the rows of it that predict the scored tokens; `teacher` [k, W] are
    another model's log-probabilities there, over the first W tokens, None where the row has none.
    """

    logprobs: torch.Tensor
    lengths: torch.Tensor
    masses: torch.Tensor
    reference: torch.Tensor
    logits: torch.Tensor
    parents: torch.Tensor
    teacher: torch.Tensor | None = None

    @property
    def vocabulary(self) -> torch.Tensor:
        """The model's log-probabilities [k, V] over the whole vocabulary at every scored token."""
        return self.over(self.logits.shape[-1])

    def over(self, tokens: int) -> torch.Tensor:
        """Return the log-probabilities [k, tokens] over the first tokens of the vocabulary alone.

        Models of one tokenizer may have logits of different width: those beyond it are padding.
        """
        logits = self.logits[self.parents, :tokens]
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


class Objective(Protocol):
    """One row's loss from its branches."""

    def __call__(self, row: Branches) -> torch.Tensor:
        """Return the row's loss, a scalar in nats."""
        ...


def vocabulary(row: Branches) -> torch.Tensor:
    """Return the cross-entropy of whole completions: right for distributions over labels."""
    return -(row.masses * row.logprobs).sum()


def vocabulary_token_mean(row: Branches) -> torch.Tensor:
    """Return the cross-entropy a token: long outputs then weigh no more than short ones."""
    return -(row.masses * row.logprobs / row.lengths).sum()


def labels(row: Branches) -> torch.Tensor:
    """Return the cross-entropy of the masses against the softmax over the row's candidates."""
    return -(row.masses * torch.log_softmax(row.logprobs, dim=0)).sum()


@dataclass(frozen=True)
class Preference:
    """Direct preference optimization over a row's two branches, the chosen one first (Rafailov et al. 2023).

    With h = beta * ((chosen - its reference) - (rejected - its reference)) the loss is -log sigmoid(h), weighted by the
    branches' masses where a preference is only probable: masses (1 - e, e) are the conservative form for labels that
    are wrong with probability e. `robust` e is the unbiased form for such labels (Chowdhury et al. 2024), which divides
    the difference of both cross-entropies by 1 - 2e. `per_token` divides log-probabilities by the branches' lengths, so
    that longer answers are not preferred for their length alone.
    """

    beta: float = 0.1
    per_token: bool = False
    robust: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError(f"beta={self.beta:g}", valid="above 0, such as 0.1")
        if not 0 <= self.robust < 0.5:
            raise InputError(f"robust={self.robust:g}", valid="the share of wrong preferences: 0 to below 0.5")

    def __call__(self, row: Branches) -> torch.Tensor:
        """Return the row's loss in nats."""
        gain = row.logprobs - row.reference.to(row.logprobs.dtype)
        if self.per_token:
            gain = gain / row.lengths
        h = self.beta * (gain[0] - gain[1])
        right, wrong = -logsigmoid(h), -logsigmoid(-h)
        e = self.robust
        chosen, rejected = ((1 - e) * one - e * other for one, other in ((right, wrong), (wrong, right)))
        return (row.masses[0] * chosen + row.masses[1] * rejected) / (1 - 2 * e)


@dataclass(frozen=True)
class Divergence:
    """Mean divergence a token between a teacher's distribution P and the student's Q (Agarwal et al. 2023).

    A token weighs as much as its branch's mass. Q is taken over as many tokens as P is.

    `beta` 0 is the forward KL(P || Q), 1 the reverse KL(Q || P), between them beta KL(P || M) + (1 - beta) KL(Q || M)
    with the mixture M = beta P + (1 - beta) Q.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta={self.beta:g}", valid="0 (forward KL) to 1 (reverse KL)")

    def __call__(self, row: Branches) -> torch.Tensor:
        """Return the row's loss in nats a token; rows need a teacher's distributions."""
        if row.teacher is None:
            raise InputError("a row without a teacher's distributions", valid="rows scored by the teacher first")
        student = row.over(row.teacher.shape[-1])
        weights = row.masses.to(student).repeat_interleave(row.lengths)
        return weights @ self._apart(row.teacher.to(student), student) / weights.sum()

    def _apart(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """Return the divergence [k] at every token."""
        if self.beta == 0:
            return _kl(teacher, student)
        if self.beta == 1:
            return _kl(student, teacher)
        shares = torch.tensor([self.beta, 1 - self.beta], dtype=student.dtype, device=student.device).log()
        mixture = torch.logsumexp(torch.stack([teacher + shares[0], student + shares[1]]), dim=0)
        return self.beta * _kl(teacher, mixture) + (1 - self.beta) * _kl(student, mixture)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(P || Q) [k] of log-probabilities [k, V]."""
    return (p.exp() * (p - q)).sum(-1)


OBJECTIVES: Mapping[tuple[str, str], Objective] = MappingProxyType(
    {
        ("vocabulary", "row"): vocabulary,
        ("vocabulary", "token"): vocabulary_token_mean,
        ("labels", "row"): labels,
    }
)


def is_sum(objective: Objective) -> bool:
    """Whether a row's loss is a weighted sum of its branches' log-probabilities."""
    return objective in (vocabulary, vocabulary_token_mean)


def branch_weights(objective: Objective, row: TrainRow) -> list[float]:
    """Return what each branch's negative log-probability counts in the row's loss; `objective` is such a sum."""
    masses = [mass for _, mass in row.branches]
    if objective is vocabulary:
        return masses
    given = row.given or [0] * len(masses)
    return [mass / (len(tokens) - n) for mass, (tokens, _), n in zip(masses, row.branches, given, strict=True)]


def find_objective(normalize: str, loss_per: str) -> Objective:
    """Return the objective of that name; raise `InputError` with the valid pairs for any other."""
    try:
        return OBJECTIVES[normalize, loss_per]
    except KeyError:
        valid = "; ".join(f"normalize={n!r}, loss_per={p!r}" for n, p in OBJECTIVES)
        raise InputError(f"no objective normalize={normalize!r}, loss_per={loss_per!r}", valid=valid) from None
