"""What a row's loss is, given the log-probabilities of its completions.

Both objectives are cross-entropies against the row's target masses. `vocabulary` normalises over the whole
vocabulary at every token, as language modelling does; `labels` over the row's own candidate completions, as
a classification head does, and needs every candidate as a branch, those of mass 0 included.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import torch

from limbeck.errors import InputError


class Objective(Protocol):
    """One row's loss from its branches' log-probabilities, lengths in tokens and target masses, all [n]."""

    def __call__(self, logprobs: torch.Tensor, lengths: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
        """Return the row's loss, a scalar in nats."""
        ...


def vocabulary(logprobs: torch.Tensor, lengths: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of whole completions: right for distributions over labels.

    >>> vocabulary(torch.tensor([-1.0, -3.0]), torch.tensor([2, 3]), torch.tensor([0.5, 0.5]))
    tensor(2.)
    """
    return -(masses * logprobs).sum()


def vocabulary_token_mean(logprobs: torch.Tensor, lengths: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy a token: long outputs then weigh no more than short ones.

    >>> vocabulary_token_mean(torch.tensor([-1.0, -3.0]), torch.tensor([2, 3]), torch.tensor([0.5, 0.5]))
    tensor(0.7500)
    """
    return -(masses * logprobs / lengths).sum()


def labels(logprobs: torch.Tensor, lengths: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the masses against the softmax over the row's candidates.

    >>> labels(torch.tensor([-5.0, -5.0]), torch.tensor([2, 3]), torch.tensor([1.0, 0.0]))
    tensor(0.6931)
    """
    return -(masses * torch.log_softmax(logprobs, dim=0)).sum()


OBJECTIVES: Mapping[tuple[str, str], Objective] = MappingProxyType(
    {
        ("vocabulary", "row"): vocabulary,
        ("vocabulary", "token"): vocabulary_token_mean,
        ("labels", "row"): labels,
    }
)


def find_objective(normalize: str, loss_per: str) -> Objective:
    """Return the objective of that name; raise `InputError` with the valid pairs for any other."""
    try:
        return OBJECTIVES[normalize, loss_per]
    except KeyError:
        valid = "; ".join(f"normalize={n!r}, loss_per={p!r}" for n, p in OBJECTIVES)
        raise InputError(f"no objective normalize={normalize!r}, loss_per={loss_per!r}", valid=valid) from None
