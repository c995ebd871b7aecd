"""Rationales as a second task beside the answers (Distilling step-by-step, Hsieh et al. 2023, arXiv:2305.02301).

The student learns input -> answer and, under a prompt of its own, input -> rationale; only the first is decoded when it
answers. The paper's loss is the sum of both, the second times lambda, each a mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from limbeck.errors import InputError
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.rows import TrainRow


def second_task(rows: Sequence[TrainRow], share: float, config: TrainConfig) -> list[TrainRow]:
    """Return rationale rows whose loss is `share` times the cross-entropy a token, in nats.

    The share stands in their masses and not in their weights, by whose sum a step's loss is divided: a step of
    rationales alone counts no more than one of answers. Raises `InputError` for a share of 0 or less and for
    ("labels", "row"), under which a row of one completion has no loss.

    >>> (row,) = second_task([TrainRow((1,), (((2, 3, 4, 5), 1.0),))], 0.5, TrainConfig())
    >>> row.branches, row.weight
    ((((2, 3, 4, 5), 0.125),), 1.0)
    """
    if not share > 0:
        raise InputError(f"a rationale counts {share:g} times an answer", valid="a number above 0, such as 1")
    if config.normalize == "labels":
        raise InputError("normalize='labels' compares labels, and a rationale is none", valid="normalize='vocabulary'")
    return [
        replace(row, branches=tuple((tokens, mass * share / _per(tokens, config)) for tokens, mass in row.branches))
        for row in rows
    ]


def _per(tokens: Sequence[int], config: TrainConfig) -> int:
    """Return what a completion's summed loss is still to be divided by: its tokens, unless the objective does so."""
    return 1 if config.loss_per == "token" else len(tokens)
