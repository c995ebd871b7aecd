"""Direct preference optimization after a supervised fit (Rafailov et al. 2023, arXiv:2305.18290).

A row has two branches, the chosen answer first, whose masses are the probability that it is the better one and its
rest. The reference is the student as it stands before the first step: its log-probabilities are read once.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from limbeck.engine.compute import on_compute_thread
from limbeck.errors import InputError
from limbeck.finetune.adapters import base_in, base_of
from limbeck.finetune.loop import Progress, TrainConfig, TrainResult, context_tokens, train
from limbeck.finetune.objectives import Preference
from limbeck.finetune.rows import RenderedRow, TrainRow, check_lengths, tokenize_rows
from limbeck.finetune.step import read_rows, summed_logprobs

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

IDENTICAL, TIE, TOO_LONG = "identical", "tie", "too_long"


@dataclass(frozen=True)
class PreferenceRows:
    """Rows of two branches, and how many pairs are not among them, by reason: identical, tie, too_long."""

    rows: tuple[TrainRow, ...]
    left_out: Mapping[str, int]


def preference_rows(loaded: LoadedModel, rendered: Iterable[RenderedRow]) -> PreferenceRows:
    """Return the pairs that a student can learn from as rows.

    A rendered row has two completions, the chosen one first. Pairs of the same answer teach nothing, nor do those of
    which neither is the better one, and pairs longer than the model's context cannot be read. Raises `InputError` for a
    row that has not two completions.
    """
    counts: Counter[str] = Counter({IDENTICAL: 0, TIE: 0, TOO_LONG: 0})
    limit, rows = context_tokens(loaded), list[TrainRow]()
    for number, row in enumerate(tokenize_rows(loaded.tokenizer, rendered)):
        if len(row.branches) != 2:
            raise InputError(f"preference {number} has {len(row.branches)} answers", valid="two, the chosen one first")
        (chosen, mass), (rejected, other) = row.branches
        reason = IDENTICAL if chosen == rejected else TIE if mass == other else TOO_LONG if row.length > limit else ""
        counts[reason] += 1
        if not reason:
            rows.append(row)
    del counts[""]
    return PreferenceRows(tuple(rows), dict(counts))


def with_reference(student: LoadedModel, rows: Sequence[TrainRow], *, pack_tokens: int = 2048) -> list[TrainRow]:
    """Return the rows with the student's own log-probabilities of their branches, in nats, as the reference."""
    found = on_compute_thread(read_rows, base_of(student.model), rows, summed_logprobs, pack_tokens=pack_tokens)
    return [replace(row, reference=reference) for row, reference in zip(rows, found, strict=True)]


def prefer(
    student: LoadedModel,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    objective: Preference,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Go on training a student's adapter on preferences; one without an adapter gets a fresh one.

    Raises what `train` does.
    """
    check_lengths(rows, context_tokens(student))
    # The reference is read in the dtype that is trained in: else rounding would be taken for a preference.
    with base_in(student.model, config.dtype):
        known = with_reference(student, rows, pack_tokens=config.pass_tokens(student.device))
        return train(student, known, config, objective=objective, progress=progress)
