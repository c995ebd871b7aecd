"""Rows of an encoder-decoder: the prompt to the encoder once, every branch to the decoder."""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from limbeck.engine.seq2seq import decode, read_sources
from limbeck.finetune.objectives import Branches
from limbeck.finetune.rows import TrainRow


def row_passes(rows: Sequence[TrainRow], tokens: int, positions: int) -> Iterator[list[TrainRow]]:
    """Yield the rows in order, cut so that a pass reads at most `tokens` and scores at most `positions`, or one row.

    Both are counted with their padding; a row's branches stay together.
    """
    part: list[TrainRow] = []
    for row in rows:
        if part and not _fits([*part, row], tokens, positions):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _fits(rows: Sequence[TrainRow], tokens: int, positions: int) -> bool:
    branches = [len(answer) for row in rows for answer, _ in row.branches]
    scored = max(branches) * len(branches)
    return scored <= positions and max(len(row.prompt) for row in rows) * len(rows) + scored <= tokens


def read_branches(model: Any, rows: Sequence[TrainRow]) -> list[Branches]:
    """Return each row as the model sees it; all rows are one padded pass."""
    sources = read_sources(model, [row.prompt for row in rows])
    owners = [i for i, row in enumerate(rows) for _ in row.branches]
    answers = [tokens for row in rows for tokens, _ in row.branches]
    logits = decode(model, sources, owners, answers)
    flat, longest, first = logits.flatten(0, 1), logits.shape[1], 0
    found: list[Branches] = []
    for row in rows:
        found.append(_branches(row, flat, [(first + i) * longest for i in range(len(row.branches))]))
        first += len(row.branches)
    return found


def _branches(row: TrainRow, logits: torch.Tensor, starts: Sequence[int]) -> Branches:
    """Return one row from the logits [p, V] of a pass in which its branches begin at `starts`."""
    device = logits.device
    given = row.given or (0,) * len(row.branches)
    sums, parents = list[torch.Tensor](), list[torch.Tensor]()
    for start, read, (tokens, _) in zip(starts, given, row.branches, strict=True):
        at = torch.arange(start + read, start + len(tokens), device=device)
        scored = logits[at].to(torch.promote_types(logits.dtype, torch.float32))
        chosen = torch.tensor(tokens[read:], device=device).unsqueeze(1)
        sums.append(torch.log_softmax(scored, dim=-1).gather(1, chosen).sum())
        parents.append(at)
    logprobs = torch.stack(sums)
    return Branches(
        logprobs=logprobs,
        lengths=torch.tensor([len(at) for at in parents], device=device),
        masses=torch.tensor([mass for _, mass in row.branches], device=device),
        reference=torch.tensor(row.reference or [torch.nan] * len(row.branches), device=device),
        logits=logits,
        parents=torch.cat(parents),
        teacher=row.teacher,
    )
