"""Training steps as CUDA graphs: thousands of small kernels that are started at once.

On a GPU a step of some thousand tokens takes as long as its kernels take to start, one after the other. A graph of them
is started as a whole, and has fixed shapes: rows are padded to a common length, and steps of the same shape share one.
Loss and gradients equal those of the packed pass (finetune/step.py).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from limbeck.engine.cascade import attention
from limbeck.engine.graphs import captured, padded
from limbeck.engine.norms import fused_norms
from limbeck.finetune.attention import attend_prefix, fused_attend
from limbeck.finetune.fused_lora import fused_lora
from limbeck.finetune.objectives import Objective, branch_weights
from limbeck.finetune.packing import Group, Tree, ancestor_bias

_NAME = "limbeck_padded_rows"
# Lengths and counts are rounded up to multiples of these, so that steps find the graph of an earlier one.
_LENGTHS, _COUNTS = 32, 64
# Passes of up to so many tokens, or of so little padding, are worth a graph: larger ones keep the GPU busy anyway.
_SMALL_TOKENS, _MOST_PADDING = 4096, 1.25
# Shapes that have a graph at once, each with static inputs; what comes beyond them is computed as before.
_MOST_GRAPHS = 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What a graph is fixed to: prefix tokens, rows, tokens a row, logits, scored tokens; `chains`: no row branches."""

    prefix: int
    rows: int
    length: int
    positions: int
    edges: int
    chains: bool

    @property
    def tokens(self) -> int:
        """Tokens of the pass, padding included."""
        return self.prefix + self.rows * self.length


def shape_of(prefix: int, trees: Sequence[Tree]) -> Shape:
    """Return the smallest shape that holds the trees behind their prefix."""
    return Shape(
        prefix=prefix,
        rows=len(trees),
        length=padded(max(len(tree.tokens) for tree in trees), _LENGTHS),
        positions=padded(sum(tree.positions for tree in trees), _COUNTS),
        edges=padded(sum(len(tree.edges) for tree in trees), _COUNTS),
        chains=all(len(tree.paths) == 1 for tree in trees),
    )


@dataclass(frozen=True)
class Inputs:
    """What changes from step to step: the tensors that a graph reads.

    `ids` and `positions` are [tokens], `keep` [positions] the tokens whose logits are needed; `parents` [edges] index
    `keep`, `targets` [edges] the flattened logits, `weights` [edges] is what the scored tokens' losses are multiplied
    by. `bias` [rows, 1, 1, length, length] is `ancestor_bias`, None for chains.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    keep: torch.Tensor
    parents: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor | None

    def take(self, other: Inputs) -> None:
        """Overwrite the tensors by another step's of the same shape."""
        for name in ("ids", "positions", "keep", "parents", "targets", "weights", "bias"):
            mine, given = getattr(self, name), getattr(other, name)
            if mine is not None:
                mine.copy_(given)


def inputs_of(
    shape: Shape, group: Group, trees: Sequence[Tree], weights: Sequence[Sequence[float]], model: Any
) -> Inputs:
    """Return the trees padded to the shape; `weights` has one number a branch."""
    vocabulary, device = model.config.get_text_config().vocab_size, next(model.parameters()).device
    ids, positions = np.zeros(shape.tokens, np.int64), np.zeros(shape.tokens, np.int64)
    ids[: shape.prefix] = group.rows[0].prompt[: shape.prefix]
    positions[: shape.prefix] = np.arange(shape.prefix)
    keep = np.full(shape.positions, shape.prefix, np.int64)
    parents, targets = np.zeros(shape.edges, np.int64), np.zeros(shape.edges, np.int64)
    factors = np.zeros(shape.edges, np.float64)
    kept, edges = 0, 0
    for row, (tree, of_branch) in enumerate(zip(trees, weights, strict=True)):
        start, n = shape.prefix + row * shape.length, len(tree.tokens)
        ids[start : start + n] = tree.tokens
        positions[start : start + n] = shape.prefix + np.asarray(tree.depths)
        places: dict[int, int] = {}
        for parent, token in tree.edges:
            place = places.setdefault(parent, kept + len(places))
            keep[place] = start + parent
            parents[edges], targets[edges] = place, place * vocabulary + token
            edges += 1
        first = edges - len(tree.edges)
        for path, weight in zip(tree.paths, of_branch, strict=True):
            factors[[first + edge for edge in path]] += weight
        kept += len(places)
    bias = None if shape.chains else ancestor_bias(trees, shape.length).to(device, model.dtype)
    exact = torch.promote_types(model.dtype, torch.float32)

    def tensor(values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return Inputs(
        ids=tensor(ids),
        positions=tensor(positions),
        keep=tensor(keep),
        parents=tensor(parents),
        targets=tensor(targets),
        weights=torch.from_numpy(factors).to(device, exact),
        bias=bias,
    )


def padded_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    shape: Shape | None = None,
    bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output [1, n, H, D] of a prefix and padded rows; transformers' attention interface."""
    if shape is None:
        raise RuntimeError("attention of padded rows needs their shape")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    prefix, outputs = shape.prefix, list[torch.Tensor]()
    shared = (key[:, :, :prefix], value[:, :, :prefix])
    if prefix:
        outputs.append(attend_prefix(query[:, :, :prefix], shared, scale).transpose(1, 2))
    asked, *own = (
        x[0, :, prefix:].unflatten(1, (shape.rows, shape.length)).transpose(0, 1) for x in (query, key, value)
    )
    if bias is None:
        keys, values = (
            torch.cat([x.expand(shape.rows, -1, -1, -1), y], dim=2) for x, y in zip(shared, own, strict=True)
        )
        causal: Any = causal_lower_right(shape.length, prefix + shape.length)
        rows = scaled_dot_product_attention(asked, keys, values, attn_mask=causal, scale=scale, enable_gqa=True)
    else:
        rows = fused_attend(asked, shared, (own[0], own[1]), bias, scale)
    outputs.append(rows.transpose(1, 2).flatten(0, 1)[None])
    return torch.cat(outputs, dim=1), None


class StepGraphs:
    """The graphs of one training run; `capture` False computes the same padded passes without graphs.

    `objective` has to be a sum over branches (`branch_weights`). Graphs add to gradients in fixed places, which become
    those of the parameters.
    """

    def __init__(self, model: Any, objective: Objective, *, capture: bool = True) -> None:
        self._model, self._objective, self._capture = model, objective, capture
        self._graphs: dict[Shape, tuple[Inputs, Callable[[], torch.Tensor]]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if capture else None
        self._failed = False
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # One piece of memory, so that all are zeroed at once; trainable weights are of one type.
        sizes, first = [p.numel() for p in self._parameters], self._parameters[0]
        self._flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self._gradients = [g.view_as(p) for g, p in zip(self._flat.split(sizes), self._parameters, strict=True)]

    @property
    def captured(self) -> int:
        """How many shapes have a graph."""
        return len(self._graphs)

    def accumulate(self, group: Group, trees: Sequence[Tree], scale: float) -> float | None:
        """Add the gradients of `scale` times the rows' weighted losses; return these, None where no graph pays."""
        shape = shape_of(group.prefix, trees)
        real = group.prefix + sum(len(tree.tokens) for tree in trees)
        known = shape in self._graphs
        if self._failed or not (known or (len(self._graphs) < _MOST_GRAPHS and _pays(shape, real))):
            return None
        weights = [[w * tree.row.weight * scale for w in branch_weights(self._objective, tree.row)] for tree in trees]
        given = inputs_of(shape, group, trees, weights, self._model)
        self._place_gradients()
        if known:
            self._graphs[shape][0].take(given)
        elif not self._made(shape, given):
            return None
        return float(self._graphs[shape][1]())

    def _place_gradients(self) -> None:
        """Make the gradients of the parameters lie where the graphs add to them."""
        new = all(parameter.grad is None for parameter in self._parameters)
        if new:
            self._flat.zero_()
        for parameter, place in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is None and not new:
                place.zero_()
            elif parameter.grad is not None and parameter.grad is not place:
                place.copy_(parameter.grad)
            parameter.grad = place

    def _made(self, shape: Shape, given: Inputs) -> bool:
        def run() -> torch.Tensor:
            with attention(self._model, _NAME, padded_attention), fused_lora(self._model), fused_norms(self._model):
                loss = self._loss(shape, given)
                loss.backward()
            return loss.detach()

        try:
            self._graphs[shape] = (given, self._captured(run) if self._capture else run)
        except RuntimeError as error:
            _log.warning("no CUDA graphs for this model: %s", error)
            self._failed = True
        return not self._failed

    def _captured(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Return what replays `run`, whose own gradients are taken back."""
        before = [gradient.clone() for gradient in self._gradients]
        try:
            return captured(run, self._pool)
        finally:
            for gradient, kept in zip(self._gradients, before, strict=True):
                gradient.copy_(kept)

    def _loss(self, shape: Shape, given: Inputs) -> torch.Tensor:
        output = self._model(
            input_ids=given.ids[None],
            position_ids=given.positions[None],
            logits_to_keep=given.keep,
            use_cache=False,
            shape=shape,
            bias=given.bias,
        )
        logits = output.logits[0].to(given.weights.dtype)
        normal = torch.logsumexp(logits, dim=-1).gather(0, given.parents)
        return (given.weights * (normal - logits.flatten().gather(0, given.targets))).sum()


def _pays(shape: Shape, real: int) -> bool:
    return shape.tokens <= max(_SMALL_TOKENS, _MOST_PADDING * real)
