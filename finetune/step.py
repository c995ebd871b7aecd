"""Loss and gradients of one optimizer step, the shared prefix forwarded once.

A step that fits in `pack_tokens` is one forward pass: prefix, then rows. A larger one forwards the prefix
first, lets every chunk of rows accumulate gradients at copies of its keys and values, and carries these
through the prefix once at the end. Loss and gradients equal those of the plain loop. An encoder-decoder shares no
prefix: its rows are padded passes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from limbeck.engine.seq2seq import is_seq2seq
from limbeck.finetune.attention import Layout, shared_prefix_enabled
from limbeck.finetune.fused_lora import fused_lora
from limbeck.finetune.graphs import StepGraphs
from limbeck.finetune.objectives import Branches, Objective
from limbeck.finetune.packing import Group, Pack, Tree, build_tree, chunk_trees, group_rows, pack_trees
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.seq2seq import read_branches, row_passes

T = TypeVar("T")

# Logits of one pass stay below this many fp32 values: 256 MB, three times that with their gradient. On a GPU eight
# times as many where that is a small part of its memory.
_MAX_LOGITS, _MAX_LOGITS_GPU, _BYTES_A_LOGIT = 64_000_000, 512_000_000, 12
_SMALL_PART = 8


@dataclass(frozen=True)
class StepLoss:
    """Mean loss of a step's rows in nats, weighted; tokens forwarded."""

    loss: float
    tokens: int


def _forward(model: Any, layout: Layout, prefix: Sequence[int], start: int) -> torch.Tensor:
    """Return the logits [p, V] that the layout's pack needs; its rows start at position `start`."""
    device = next(model.parameters()).device
    shared = torch.tensor(prefix, dtype=torch.long, device=device)
    positions = torch.arange(len(prefix), device=device)
    keep = positions[:1]
    if layout.pack is not None:
        shared = torch.cat([shared, layout.pack.tokens])
        positions = torch.cat([positions, layout.pack.depths + start])
        keep = layout.pack.logit_index + len(prefix)
    output = model(
        input_ids=shared[None],
        position_ids=positions[None],
        logits_to_keep=keep,
        use_cache=False,
        layout=layout,
    )
    return output.logits[0]


def branch_logprobs(logits: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Return every branch's summed log-probability [branches] from the logits [p, V] of its parents."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits[pack.edges[:, 0], pack.edges[:, 1]]
    edges = chosen - torch.logsumexp(logits, dim=-1)[pack.edges[:, 0]]
    total = logits.new_zeros(len(pack.lengths))
    return total.index_add(0, pack.path_branch, edges[pack.path_edges])


def split_rows(logits: torch.Tensor, pack: Pack) -> list[Branches]:
    """Return each of the pack's rows as the model sees it, from the logits [p, V] of the scored tokens' parents."""
    sizes = [len(tree.paths) for tree in pack.trees]
    tokens = [sum(len(path) for path in tree.paths) for tree in pack.trees]
    columns = (branch_logprobs(logits, pack), pack.lengths, pack.masses, pack.reference)
    rows = zip(*(column.split(sizes) for column in columns), strict=True)
    parents = pack.edges[pack.path_edges, 0].split(tokens)
    return [
        Branches(*row, logits=logits, parents=at, teacher=tree.row.teacher)
        for row, at, tree in zip(rows, parents, pack.trees, strict=True)
    ]


def _loss(logits: torch.Tensor, pack: Pack, objective: Objective) -> torch.Tensor:
    """Return the weighted sum of the pack's row losses."""
    return _weighted([tree.row for tree in pack.trees], split_rows(logits, pack), objective)


def _weighted(rows: Sequence[TrainRow], seen: Sequence[Branches], objective: Objective) -> torch.Tensor:
    return torch.stack([row.weight * objective(view) for row, view in zip(rows, seen, strict=True)]).sum()


def _one_pass(model: Any, group: Group, trees: Sequence[Tree], objective: Objective, scale: float) -> float:
    device = next(model.parameters()).device
    pack = pack_trees(trees, device)
    layout = Layout(group.prefix, pack)
    loss = _loss(_forward(model, layout, group.rows[0].prompt[: group.prefix], group.prefix), pack, objective)
    (loss * scale).backward()
    return float(loss.detach())


def _several_passes(
    model: Any, group: Group, chunks: Sequence[Sequence[Tree]], objective: Objective, scale: float
) -> float:
    device = next(model.parameters()).device
    shared = Layout(group.prefix, None, keep=True)
    _forward(model, shared, group.rows[0].prompt[: group.prefix], 0)
    copies = {
        layer: (key.detach().requires_grad_(), value.detach().requires_grad_())
        for layer, (key, value) in shared.kept.items()
    }
    total = 0.0
    for chunk in chunks:
        pack = pack_trees(chunk, device)
        loss = _loss(_forward(model, Layout(0, pack, given=copies), (), group.prefix), pack, objective)
        (loss * scale).backward()
        total += float(loss.detach())
    heads = [x for layer in copies for x in shared.kept[layer] if x.requires_grad]
    grads = [
        copy.grad
        for layer, pair in copies.items()
        for copy, x in zip(pair, shared.kept[layer], strict=True)
        if x.requires_grad
    ]
    torch.autograd.backward(heads, grads)
    return total


def accumulate_gradients(
    model: Any,
    rows: Sequence[TrainRow],
    objective: Objective,
    *,
    pack_tokens: int = 2048,
    share_prefix: bool = True,
    graphs: StepGraphs | None = None,
) -> StepLoss:
    """Add the gradients of the rows' weighted mean loss to the model's trainable parameters.

    `model` is a language model of transformers (LoRA layers inside), with or without an encoder; the loss is
    sum(weight * row loss) / sum(weight). Peak memory is bounded by `pack_tokens` tokens plus the prefix. `graphs` take
    the groups of one pass that they can.
    """
    scale = 1.0 / sum(row.weight for row in rows)
    total, tokens = 0.0, 0
    if is_seq2seq(model):
        with fused_lora(model):
            for part in row_passes(rows, pack_tokens, _positions(model)):
                loss = _weighted(part, read_branches(model, part), objective)
                (loss * scale).backward()
                total += float(loss.detach())
        return StepLoss(total * scale, sum(len(r.prompt) + sum(len(t) for t, _ in r.branches) for r in rows))
    left: list[tuple[Group, list[list[Tree]]]] = []
    for group, chunks in _planned(model, rows, pack_tokens, share_prefix):
        tokens += group.prefix + sum(len(tree.tokens) for chunk in chunks for tree in chunk)
        done = graphs.accumulate(group, chunks[0], scale) if graphs and len(chunks) == 1 else None
        if done is None:
            left.append((group, chunks))
        else:
            total += done / scale
    if left:
        with shared_prefix_enabled(model), fused_lora(model):
            for group, chunks in left:
                if len(chunks) == 1 or not group.prefix:
                    total += sum(_one_pass(model, group, chunk, objective, scale) for chunk in chunks)
                else:
                    total += _several_passes(model, group, chunks, objective, scale)
    return StepLoss(total * scale, tokens)


def _positions(model: Any) -> int:
    """Return how many positions of one pass may have logits."""
    device, most = next(model.parameters()).device, _MAX_LOGITS
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        most = max(_MAX_LOGITS, min(_MAX_LOGITS_GPU, whole // (_SMALL_PART * _BYTES_A_LOGIT)))
    return max(1, most // model.config.get_text_config().vocab_size)


def _planned(
    model: Any, rows: Sequence[TrainRow], pack_tokens: int, share_prefix: bool
) -> Iterator[tuple[Group, list[list[Tree]]]]:
    """Yield the rows' groups, each with its trees in chunks of one pass."""
    positions = _positions(model)
    for group in group_rows(rows) if share_prefix else [Group(tuple(rows), 0)]:
        trees = [build_tree(row, group.prefix) for row in group.rows]
        yield group, chunk_trees(trees, pack_tokens, positions)


@torch.no_grad()
def read_rows(
    model: Any, rows: Sequence[TrainRow], read: Callable[[Branches], T], *, pack_tokens: int = 2048
) -> list[T]:
    """Return what `read` makes of every row, in order, without gradients; the shared prefix is forwarded once.

    What is read should hold its own memory: a view keeps the logits of a whole pass.
    """
    if is_seq2seq(model):
        return [
            read(view)
            for part in row_passes(rows, pack_tokens, _positions(model))
            for view in read_branches(model, part)
        ]
    found: dict[int, T] = {}
    device = next(model.parameters()).device
    with shared_prefix_enabled(model), fused_lora(model):
        for group, chunks in _planned(model, rows, pack_tokens, True):
            shared = Layout(group.prefix, None, keep=True)
            if group.prefix:
                _forward(model, shared, group.rows[0].prompt[: group.prefix], 0)
            for chunk in chunks:
                pack = pack_trees(chunk, device)
                given = Layout(0, pack, given=shared.kept if group.prefix else None)
                views = split_rows(_forward(model, given, (), group.prefix), pack)
                found.update((id(tree.row), read(view)) for tree, view in zip(chunk, views, strict=True))
    return [found[id(row)] for row in rows]


def summed_logprobs(row: Branches) -> tuple[float, ...]:
    """Return a row's log-probabilities a branch, for `read_rows`."""
    return tuple(row.logprobs.tolist())
