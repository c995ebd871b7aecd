"""Shared prefixes and branch trees: which tokens of a step are forwarded, and who attends to whom.

The rows of an optimizer step start with the same compiled prompt. Its tokens are forwarded once; what each
row adds (the rest of its prompt and the trie of its completions) is laid out one row after the other. The
last token of a completion is only predicted, never forwarded. A prefix leaves every prompt at least its last
token, so that all predictions are made by a row's own tokens.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from limbeck.engine.chat import common_length
from limbeck.finetune.rows import TrainRow

# A further prefix pass costs about as much as this many tokens in a pass that runs anyway.
_PASS_OVERHEAD = 32
# The product over the vocabulary in the backward pass loses two digits in fp32 on CPUs with fewer rows.
_LEAST_POSITIONS = 4


@dataclass(frozen=True)
class Group:
    """Rows whose prompts share their first `prefix` tokens and have at least one more."""

    rows: tuple[TrainRow, ...]
    prefix: int


def group_rows(rows: Sequence[TrainRow]) -> list[Group]:
    """Return the rows in groups of one shared prefix each, split where that forwards fewer tokens.

    Sorted prompts are cut at the weakest boundary as long as the two halves share enough on their own to pay
    for a second prefix pass.
    """
    ordered = sorted(rows, key=lambda row: row.prompt)
    shared = [common_length(a.prompt, b.prompt) for a, b in pairwise(ordered)]

    def prefix(start: int, stop: int) -> int:
        shortest = min(len(row.prompt) for row in ordered[start:stop])
        return min([shortest - 1, *shared[start : stop - 1]])

    def split(start: int, stop: int) -> list[Group]:
        length = prefix(start, stop)
        if stop - start > 1:
            cut = start + 1 + int(np.argmin(shared[start : stop - 1]))
            halves = ((start, cut), (cut, stop))
            saved = sum((b - a - 1) * (prefix(a, b) - length) for a, b in halves) - length
            if saved > _PASS_OVERHEAD:
                return [group for a, b in halves for group in split(a, b)]
        return [Group(tuple(ordered[start:stop]), length)]

    return split(0, len(ordered))


@dataclass(frozen=True)
class Tree:
    """What one row adds to its group's prefix, as a tree of input tokens.

    `parents[i]` is the index of the token before token i in this row (-1: the prefix), `depths` the tokens'
    distances from the prefix's end. `edges` are the predictions to score: (parent, next token);
    `paths[b]` are branch b's edges in order.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    paths: tuple[tuple[int, ...], ...]
    row: TrainRow

    @property
    def positions(self) -> int:
        """How many tokens' logits the row's edges need."""
        return len({parent for parent, _ in self.edges})

    def ancestors(self) -> npt.NDArray[np.bool_]:
        """Return a boolean [tokens, tokens] array: may token i attend to token j?"""
        n = len(self.tokens)
        seen = np.zeros((n, n), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] = seen[parent]
            seen[i, i] = True
        return seen


def build_tree(row: TrainRow, prefix: int) -> Tree:
    """Return the row's tree beyond its first `prefix` prompt tokens; equal beginnings of branches are one.

    >>> tree = build_tree(TrainRow((5, 6), (((7, 8, 2), 0.5), ((7, 9, 2), 0.5))), prefix=1)
    >>> tree.tokens, tree.parents
    ((6, 7, 8, 9), (-1, 0, 1, 1))
    >>> tree.edges
    ((0, 7), (1, 8), (2, 2), (1, 9), (3, 2))
    """
    tail = row.prompt[prefix:]
    tokens, parents = list(tail), [i - 1 for i in range(len(tail))]
    depths = list(range(len(tail)))
    node_of: dict[tuple[int, int], int] = {}
    edge_of: dict[tuple[int, int], int] = {}
    paths: list[tuple[int, ...]] = []
    for branch, (completion, _) in enumerate(row.branches):
        at, path = len(tail) - 1, list[int]()
        given = row.given[branch] if row.given else 0
        for depth, token in enumerate(completion):
            if depth >= given:
                path.append(edge_of.setdefault((at, token), len(edge_of)))
            if depth + 1 == len(completion):
                break
            if (at, token) not in node_of:
                node_of[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
                depths.append(len(tail) + depth)
            at = node_of[at, token]
        paths.append(tuple(path))
    return Tree(tuple(tokens), tuple(parents), tuple(depths), tuple(edge_of), tuple(paths), row)


def chunk_trees(trees: Sequence[Tree], max_tokens: int, max_positions: int) -> list[list[Tree]]:
    """Return the trees in chunks of at most `max_tokens` tokens and `max_positions` logits, at least one tree each."""
    chunks: list[list[Tree]] = []
    tokens = positions = 0
    for tree in sorted(trees, key=lambda tree: len(tree.tokens)):
        tokens, positions = tokens + len(tree.tokens), positions + tree.positions
        if not chunks or tokens > max_tokens or positions > max_positions:
            chunks.append([])
            tokens, positions = len(tree.tokens), tree.positions
        chunks[-1].append(tree)
    return chunks


@dataclass(frozen=True)
class Block:
    """Rows of similar length, padded to T tokens for attention only: `gather_BT` indexes the packed tokens.

    `bias_B11TT` is 0 where a query sees a key of its row, else -inf; the prefix is seen by all.
    """

    gather_BT: torch.Tensor
    bias_B11TT: torch.Tensor


@dataclass(frozen=True)
class Pack:
    """The rows of one forward pass, packed one after the other.

    `tokens` and `depths` are [n]; `blocks` regroup the packed tokens by row for attention, `scatter` [n]
    brings their concatenated outputs back into packed order. `logit_index` [p] are the packed tokens whose
    logits are needed, `edges` [e, 2] pairs of (index into `logit_index`, token). `path_edges` [k] and
    `path_branch` [k] list every branch's edges; `lengths`, `masses` and `reference` are [branches], all rows' in
    order.
    """

    trees: tuple[Tree, ...]
    tokens: torch.Tensor
    depths: torch.Tensor
    blocks: tuple[Block, ...]
    scatter: torch.Tensor
    logit_index: torch.Tensor
    edges: torch.Tensor
    path_edges: torch.Tensor
    path_branch: torch.Tensor
    lengths: torch.Tensor
    masses: torch.Tensor
    reference: torch.Tensor


def ancestor_bias(trees: Sequence[Tree], length: int) -> torch.Tensor:
    """Return [rows, 1, 1, length, length]: 0 where a token of a row sees another one of it, else -inf."""
    bias = np.full((len(trees), 1, 1, length, length), -np.inf, dtype=np.float32)
    bias[..., np.arange(length), np.arange(length)] = 0.0  # padding sees itself: no empty softmax
    for i, tree in enumerate(trees):
        n = len(tree.tokens)
        bias[i, 0, 0, :n, :n][tree.ancestors()] = 0.0
    return torch.from_numpy(bias)


def _block(trees: Sequence[Tree], starts: Sequence[int], device: torch.device) -> Block:
    longest = max(len(tree.tokens) for tree in trees)
    gather = np.zeros((len(trees), longest), dtype=np.int64)
    for i, (tree, start) in enumerate(zip(trees, starts, strict=True)):
        gather[i, : len(tree.tokens)] = start + np.arange(len(tree.tokens))
    return Block(torch.from_numpy(gather).to(device), ancestor_bias(trees, longest).to(device))


def _attention_blocks(trees: Sequence[Tree], device: torch.device) -> tuple[tuple[Block, ...], torch.Tensor]:
    """Return blocks of rows whose lengths differ by less than a factor two, and `Pack.scatter`."""
    by_size: dict[int, list[int]] = {}
    for i, tree in enumerate(trees):
        by_size.setdefault(max(4, (len(tree.tokens) - 1).bit_length()), []).append(i)
    starts = np.cumsum([0, *(len(tree.tokens) for tree in trees)])
    scatter = np.zeros(int(starts[-1]), dtype=np.int64)
    blocks: list[Block] = []
    offset = 0
    for members in by_size.values():
        block = _block([trees[i] for i in members], [int(starts[i]) for i in members], device)
        for row, i in enumerate(members):
            n = len(trees[i].tokens)
            scatter[starts[i] : starts[i] + n] = offset + row * block.gather_BT.shape[1] + np.arange(n)
        offset += block.gather_BT.numel()
        blocks.append(block)
    return tuple(blocks), torch.from_numpy(scatter).to(device)


def _reference(row: TrainRow) -> Sequence[float]:
    return row.reference or [np.nan] * len(row.branches)


def pack_trees(trees: Sequence[Tree], device: torch.device) -> Pack:
    """Return the trees packed for one forward pass."""

    def tensor(values: Sequence[int] | Sequence[tuple[int, int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    at: dict[int, int] = {}
    edges: list[tuple[int, int]] = []
    path_edges, path_branch, lengths = list[int](), list[int](), list[int]()
    start = 0
    for tree in trees:
        for path in tree.paths:
            path_edges += [len(edges) + edge for edge in path]
            path_branch += [len(lengths)] * len(path)
            lengths.append(len(path))
        edges += [(at.setdefault(start + parent, len(at)), token) for parent, token in tree.edges]
        start += len(tree.tokens)
    index = list(at)
    index += index[:1] * (_LEAST_POSITIONS - len(index))
    blocks, scatter = _attention_blocks(trees, device)
    return Pack(
        trees=tuple(trees),
        tokens=tensor([token for tree in trees for token in tree.tokens]),
        depths=tensor([depth for tree in trees for depth in tree.depths]),
        blocks=blocks,
        scatter=scatter,
        logit_index=tensor(index),
        edges=tensor(edges),
        path_edges=tensor(path_edges),
        path_branch=tensor(path_branch),
        lengths=tensor(lengths),
        masses=torch.tensor([mass for tree in trees for _, mass in tree.row.branches], device=device),
        reference=torch.tensor([x for tree in trees for x in _reference(tree.row)], device=device),
    )
