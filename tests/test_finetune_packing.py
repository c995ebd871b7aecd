"""Packing: what is forwarded, in which groups, and who sees whom."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.finetune.packing import (
    build_tree,
    chunk_trees,
    group_rows,
    pack_trees,
)
from limbeck.finetune.rows import TrainRow

CPU = torch.device("cpu")
tokens = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(tuple)
branches = st.lists(st.tuples(tokens, st.floats(0, 1)), min_size=1, max_size=4).map(tuple)
rows = st.builds(TrainRow, prompt=tokens, branches=branches)


@given(st.lists(rows, min_size=1, max_size=8))
def test_groups_hold_every_row_once_behind_a_prefix_they_share(given_rows: list[TrainRow]) -> None:
    groups = group_rows(given_rows)
    assert sorted(map(repr, (row for group in groups for row in group.rows))) == sorted(map(repr, given_rows))
    for group in groups:
        assert all(row.prompt[: group.prefix] == group.rows[0].prompt[: group.prefix] for row in group.rows)
        assert all(len(row.prompt) > group.prefix for row in group.rows)


def test_prompts_of_two_programs_become_two_groups_and_a_short_common_start_does_not() -> None:
    one, two = (1, *range(100, 200)), (1, *range(300, 400))
    answer = (((2,), 1.0),)
    long = [TrainRow((*system, i), answer) for system in (one, two) for i in range(3)]
    assert sorted((len(group.rows), group.prefix) for group in group_rows(long)) == [(3, 101), (3, 101)]
    # Three shared tokens a row do not pay for a pass of their own.
    short = [TrainRow((*system[:4], i), answer) for system in (one, two) for i in range(3)]
    assert [(len(group.rows), group.prefix) for group in group_rows(short)] == [(6, 1)]


@given(rows, st.data())
def test_a_tree_spells_every_branch(row: TrainRow, data: st.DataObject) -> None:
    prefix = data.draw(st.integers(0, len(row.prompt) - 1))
    tree = build_tree(row, prefix)
    for (completion, _), path in zip(row.branches, tree.paths, strict=True):
        assert tuple(tree.edges[edge][1] for edge in path) == completion
        for depth, edge in enumerate(path):
            # What the predicting token sees is the row's prompt and the branch so far.
            seen = tree.ancestors()[tree.edges[edge][0]]
            length = len(row.prompt) - prefix + depth
            assert sorted(tree.depths[i] for i in seen.nonzero()[0]) == list(range(length))
    assert len(set(tree.edges)) == len(tree.edges)


@settings(max_examples=50)
@given(st.lists(rows, min_size=1, max_size=6))
def test_packed_rows_see_their_own_ancestors_and_no_other_row(given_rows: list[TrainRow]) -> None:
    trees = [build_tree(row, 0) for row in given_rows]
    pack = pack_trees(trees, CPU)
    flat = torch.cat([block.gather_BT.reshape(-1) for block in pack.blocks])
    # Regrouped and brought back, every token is itself.
    assert flat[pack.scatter].tolist() == list(range(len(pack.tokens)))
    seen_by: dict[int, set[int]] = {}
    for block in pack.blocks:
        for gather, bias in zip(block.gather_BT, block.bias_B11TT[:, 0, 0], strict=True):
            assert bool((bias == 0).any(dim=1).all())
            for position, own in enumerate(bias):
                keys = set(gather[own == 0].tolist())
                seen_by.setdefault(int(gather[position]), keys)
    start = 0
    for tree in trees:
        for i, ancestors in enumerate(tree.ancestors()):
            assert seen_by[start + i] == {start + int(j) for j in ancestors.nonzero()[0]}
        start += len(tree.tokens)


@given(st.lists(rows, min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 10))
def test_chunks_keep_their_limits_and_every_tree(
    given_rows: list[TrainRow], max_tokens: int, max_positions: int
) -> None:
    trees = [build_tree(row, 0) for row in given_rows]
    chunks = chunk_trees(trees, max_tokens, max_positions)
    assert sorted(map(repr, (tree for chunk in chunks for tree in chunk))) == sorted(map(repr, trees))
    for chunk in chunks:
        small = sum(len(t.tokens) for t in chunk) <= max_tokens
        assert len(chunk) == 1 or (small and sum(t.positions for t in chunk) <= max_positions)
