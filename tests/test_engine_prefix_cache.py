# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.engine import LoadedModel
from limbeck.engine.prefix_cache import Context, PrefixCache, causal
from limbeck.engine.tree import TokenForest, log_probabilities

PROMPT = tuple(range(10, 50))


def plain_logits(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """What the model itself says after `ids`: no cache, no mask, no batch."""
    model: Any = loaded.model
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]


def cache_of(loaded: LoadedModel, capacity: int = 1000) -> PrefixCache:
    return PrefixCache(loaded.model, loaded.device, capacity)


def after(loaded: LoadedModel, cache: PrefixCache, prompt: tuple[int, ...], tail: Sequence[int]) -> Tensor:
    prefix, _ = cache.get(prompt)
    forest = TokenForest(loaded.model, prefix, loaded.device, room=len(tail))
    return forest.forward([forest.append(tail)])[0]


def test_a_tail_behind_the_cache_equals_the_whole_prompt(tiny_llama: LoadedModel):
    logits = after(tiny_llama, cache_of(tiny_llama), PROMPT, [5, 6, 7])
    torch.testing.assert_close(logits, plain_logits(tiny_llama, [*PROMPT, 5, 6, 7]), atol=1e-4, rtol=1e-4)


def test_a_known_prompt_is_not_computed_again(tiny_llama: LoadedModel):
    cache = cache_of(tiny_llama)
    assert cache.get(PROMPT)[1] == 0
    assert cache.get(PROMPT)[1] == len(PROMPT)


def test_a_prompt_that_begins_alike_is_computed_from_where_they_part(tiny_llama: LoadedModel):
    cache = cache_of(tiny_llama)
    cache.get(PROMPT)
    other = (*PROMPT[:30], 99, 98, 97)
    prefix, reused = cache.get(other)
    assert (prefix.length, reused) == (33, 30)
    logits = after(tiny_llama, cache, other, [5])
    torch.testing.assert_close(logits, plain_logits(tiny_llama, [*other, 5]), atol=1e-4, rtol=1e-4)


def test_a_prompt_that_is_the_beginning_of_a_kept_one(tiny_llama: LoadedModel):
    cache = cache_of(tiny_llama)
    cache.get(PROMPT)
    logits = after(tiny_llama, cache, PROMPT[:25], [5])
    torch.testing.assert_close(logits, plain_logits(tiny_llama, [*PROMPT[:25], 5]), atol=1e-4, rtol=1e-4)


def test_the_prompt_used_longest_ago_leaves_first(tiny_llama: LoadedModel):
    cache = cache_of(tiny_llama, capacity=90)
    first, second, third = PROMPT, tuple(reversed(PROMPT)), PROMPT[20:] + PROMPT[:20]
    cache.get(first)
    cache.get(second)
    cache.get(first)
    cache.get(third)
    assert cache.tokens == 80
    assert cache.get(first)[1] == len(first)
    assert cache.get(second)[1] == 0


def test_clear_forgets(tiny_llama: LoadedModel):
    cache = cache_of(tiny_llama)
    cache.get(PROMPT)
    cache.clear()
    assert (cache.tokens, cache.get(PROMPT)[1]) == (0, 0)


def test_rows_of_a_forest_do_not_see_each_other(tiny_qwen2: LoadedModel):
    prefix, _ = cache_of(tiny_qwen2).get(PROMPT)
    tails = [[5], [6, 7, 8, 9], [4, 4]]
    forest = TokenForest(tiny_qwen2.model, prefix, tiny_qwen2.device, room=2)
    logits = forest.forward([forest.append(tail) for tail in tails])
    for row, tail in zip(logits, tails, strict=True):
        torch.testing.assert_close(row, plain_logits(tiny_qwen2, [*PROMPT, *tail]), atol=1e-4, rtol=1e-4)


def test_branches_see_their_trunk_across_passes(tiny_llama: LoadedModel):
    prefix, _ = cache_of(tiny_llama).get(PROMPT)
    forest = TokenForest(tiny_llama.model, prefix, tiny_llama.device, room=0)
    trunk = forest.append([5, 6])
    forest.forward([trunk])
    left, right = forest.append([7, 8], trunk), forest.append([9], trunk)
    logits = forest.forward([right, left])
    for row, branch in zip(logits, ([9], [7, 8]), strict=True):
        torch.testing.assert_close(row, plain_logits(tiny_llama, [*PROMPT, 5, 6, *branch]), atol=1e-4, rtol=1e-4)


def test_gathered_rows_are_left_padded_and_exact(tiny_llama: LoadedModel):
    prefix, _ = cache_of(tiny_llama).get(PROMPT)
    forest = TokenForest(tiny_llama.model, prefix, tiny_llama.device, room=8)
    tails = [[5], [6, 7, 8, 9]]
    ends = [forest.append(tail) for tail in tails]
    forest.forward(ends)
    columns = torch.arange(prefix.length)
    context = Context.of_rows(tiny_llama.model, [((prefix, columns), forest.path(end)) for end in ends], room=1)
    lengths = torch.tensor([41, 44])
    visible = torch.cat([torch.arange(44)[None] >= 44 - lengths[:, None], torch.ones(2, 1).bool()], dim=1)
    context.keep(0, torch.tensor([1, 0]))
    order = [1, 0]
    logits = context.forward(torch.tensor([[3], [3]]), lengths[order][:, None], visible[order][:, None], 1)
    for row, i in zip(logits[:, -1], order, strict=True):
        expected = plain_logits(tiny_llama, [*PROMPT, *tails[i], 3])
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_the_plain_attention_gets_a_mask_it_understands(fresh_tiny: LoadedModel):
    expected = plain_logits(fresh_tiny, [*PROMPT, 5, 6, 7])
    fresh_tiny.model.set_attn_implementation("eager")
    logits = after(fresh_tiny, cache_of(fresh_tiny), PROMPT, [5, 6, 7])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 4), (3, 5)])
def test_causal_lets_each_token_see_itself_and_all_before(start: int, stop: int):
    mask = causal(start, stop, torch.device("cpu"))
    assert mask.shape == (1, stop - start, stop)
    assert mask.sum(2).tolist() == [list(range(start + 1, stop + 1))]


def test_log_probabilities_of_ragged_picks():
    logits = torch.randn(70, 9, generator=torch.Generator().manual_seed(0))
    picks = [list(range(i % 4 + 1)) for i in range(70)]
    expected = logits.log_softmax(1)
    for i, row in enumerate(log_probabilities(logits, picks)):
        assert row == pytest.approx(expected[i, : len(row)].tolist(), abs=1e-6)
