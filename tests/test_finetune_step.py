"""Sharing the prefix changes nothing: same loss, same gradients as the plain loop."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError
from limbeck.finetune import attention
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.graphs import StepGraphs, shape_of
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.objectives import Divergence, Preference, find_objective
from limbeck.finetune.packing import Group, build_tree, group_rows
from limbeck.finetune.rows import TrainRow, check_lengths
from limbeck.finetune.step import accumulate_gradients, read_rows, summed_logprobs

SHARED = "Answer with the topic of the message.\nMessage: "
OTHER = "You translate English to French, word by word and without any comment, as a dictionary would. "
SOFT = ((" sports team", 0.6), (" sports car", 0.3), (" weather", 0.1), (" music", 0.0))


def make_rows(tokenizer: Any) -> list[TrainRow]:
    """Two prefixes, tails of none to many tokens, hard and soft targets, shared beginnings, weights."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    soft = tuple(((*ids(text), 2), mass) for text, mass in SOFT)
    prompt = ids(SHARED)
    return [
        TrainRow(prompt, soft),
        TrainRow(prompt, (((*ids(" weather"), 2), 1.0),), weight=2.0),
        TrainRow(prompt + ids("rain, then sun and later some wind from the west"), ((ids(" weather"), 1.0),)),
        TrainRow(prompt + ids("a late goal"), soft, weight=0.5),
        TrainRow(ids(OTHER + "\nwater:"), (((*ids(" eau"), 2), 1.0),), weight=0.5),
        TrainRow(ids(OTHER + "\nbread:"), ((ids(" pain"), 0.8), (ids(" baguette"), 0.2)), weight=0.5),
    ]


def student(loaded: LoadedModel) -> tuple[Any, list[TrainRow]]:
    """The model with LoRA layers that change its output: fresh ones are zero."""
    model = attach_lora(loaded.model, TrainConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.005, generator=generator)
    return model.eval(), make_rows(loaded.tokenizer)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain_logprob(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """The completion's summed log-probability: one sequence, stock attention and LoRA, logits everywhere."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    scored = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return scored[torch.arange(len(completion)), torch.tensor(completion)].sum()


def plain_loop(model: Any, rows: list[TrainRow], normalize: str, loss_per: str) -> float:
    total = 0.0
    weights = sum(row.weight for row in rows)
    for row in rows:
        logprobs = torch.stack([plain_logprob(model, row.prompt, tokens) for tokens, _ in row.branches])
        masses = torch.tensor([mass for _, mass in row.branches])
        if normalize == "labels":
            logprobs = logprobs - torch.logsumexp(logprobs, 0)
        elif loss_per == "token":
            logprobs = logprobs / torch.tensor([float(len(tokens)) for tokens, _ in row.branches])
        loss = -(masses * logprobs).sum() * row.weight / weights
        loss.backward()
        total += float(loss.detach())
    return total


def check_equal(
    model: Any,
    rows: list[TrainRow],
    objective: tuple[str, str],
    *variants: tuple[int, bool],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Compare with the plain loop, which runs in fp64: in fp32 it is itself off by most of 1e-5."""
    expected = plain_loop(model.double(), rows, *objective)
    wanted = gradients(model)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-3
    model.to(dtype)
    for pack_tokens, share in variants:
        got = accumulate_gradients(
            model.get_base_model(),
            rows,
            find_objective(*objective),
            pack_tokens=pack_tokens,
            share_prefix=share,
        )
        assert got.loss == pytest.approx(expected, abs=tolerance)
        found = gradients(model)
        assert found.keys() == wanted.keys()
        for name, grad in found.items():
            assert float((grad.double() - wanted[name]).abs().max()) <= tolerance, name


def test_loss_and_gradients_of_the_whole_model_equal_the_plain_loop(
    embedded: LoadedModel,
) -> None:
    loaded = replace(embedded, model=copy.deepcopy(embedded.model))
    # One pass over everything, several passes behind one prefix pass, no sharing at all.
    variants = ((2048, True), (24, True), (2048, False))
    check_equal(*student(loaded), ("vocabulary", "row"), *variants, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("objective", [("vocabulary", "row"), ("vocabulary", "token"), ("labels", "row")])
@pytest.mark.parametrize("keys", [attention.MATERIALIZED_KEYS, 0])
def test_every_objective_and_attention_equals_the_plain_loop(
    fresh_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, objective: tuple[str, str], keys: int
) -> None:
    monkeypatch.setattr(attention, "MATERIALIZED_KEYS", keys)
    variants = ((2048, True), (24, True), (1, True), (2048, False))
    check_equal(*student(fresh_tiny), objective, *variants, dtype=torch.float64, tolerance=1e-6)


@pytest.mark.parametrize("loss_per", ["row", "token"])
@pytest.mark.parametrize("branches", [1, 9])
def test_padded_passes_of_graphs_equal_the_plain_loop(fresh_tiny: LoadedModel, loss_per: str, branches: int) -> None:
    model, given = student(fresh_tiny)
    rows = [replace(row, branches=row.branches[:branches]) for row in given]
    objective = find_objective("vocabulary", loss_per)
    expected = plain_loop(model.double(), rows, "vocabulary", loss_per)
    wanted = gradients(model)
    base = model.get_base_model()
    graphs = StepGraphs(base, objective, capture=False)
    for _ in range(2):
        # The second time the tensors of the first are overwritten.
        got = accumulate_gradients(base, rows, objective, graphs=graphs)
        assert got.loss == pytest.approx(expected, abs=1e-6)
        found = gradients(model)
        assert found.keys() == wanted.keys()
        for name, grad in found.items():
            assert float((grad - wanted[name]).abs().max()) <= 1e-6, name
    shapes = {shape_of(g.prefix, [build_tree(row, g.prefix) for row in g.rows]) for g in group_rows(rows)}
    assert all(shape.chains == (branches == 1) for shape in shapes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("branches", [1, 9])
def test_graphs_on_a_gpu_equal_the_packed_passes(fresh_tiny: LoadedModel, branches: int) -> None:
    model, given = student(fresh_tiny)
    model.to("cuda")
    base, objective = model.get_base_model(), find_objective("vocabulary", "token")
    graphs = StepGraphs(base, objective)
    rows = [replace(row, branches=row.branches[:branches]) for row in given]
    # The same shape with other tokens, and the first one again: replays of one graph.
    others = [replace(row, prompt=tuple(reversed(row.prompt))) for row in rows]
    for step in (rows, rows[:4], others[:4], rows):
        model.zero_grad(set_to_none=True)
        expected = accumulate_gradients(base, step, objective)
        wanted = gradients(model)
        got = accumulate_gradients(base, step, objective, graphs=graphs)
        assert got.loss == pytest.approx(expected.loss, abs=1e-4)
        for name, parameter in model.named_parameters():
            if name in wanted:
                assert float((parameter.grad - wanted[name]).abs().max()) <= 1e-4, name
    assert graphs.captured >= 1


def test_steps_whose_padding_costs_more_than_it_saves_have_no_graph(fresh_tiny: LoadedModel) -> None:
    model, rows = student(fresh_tiny)
    long = replace(rows[0], prompt=rows[0].prompt * 200)
    graphs = StepGraphs(model.get_base_model(), find_objective("vocabulary", "row"), capture=False)
    few = [build_tree(row, 0) for row in (rows[0], rows[1])]
    assert graphs.accumulate(Group((rows[0], rows[1]), 0), few, 1.0) is not None
    ragged = [rows[0]] * 20 + [long]
    assert graphs.accumulate(Group(tuple(ragged), 0), [build_tree(row, 0) for row in ragged], 1.0) is None


def test_the_shared_prefix_is_forwarded_once_a_step(fresh_tiny: LoadedModel) -> None:
    model, rows = student(fresh_tiny)
    same = [row for row in rows if row.prompt[:5] == rows[0].prompt[:5]]
    shared = len(rows[0].prompt) - 1
    # Every row forwards the rest of its prompt and the inner nodes of its branches' trie.
    own = sum(len(build_tree(row, shared).tokens) for row in same)
    for pack_tokens in (2048, 12):
        done = accumulate_gradients(
            model.get_base_model(), same, find_objective("vocabulary", "row"), pack_tokens=pack_tokens
        )
        assert done.tokens == shared + own
    assert len(same) == 4


def test_attention_without_a_layout_is_refused_and_the_model_is_left_as_it_was(fresh_tiny: LoadedModel) -> None:
    model, rows = student(fresh_tiny)
    before = model.config._attn_implementation
    with attention.shared_prefix_enabled(model.get_base_model()), pytest.raises(RuntimeError, match="layout"):
        model(input_ids=torch.tensor([rows[0].prompt]), use_cache=False)
    assert model.config._attn_implementation == before


def plain_vocabulary(model: Any, row: TrainRow) -> torch.Tensor:
    """The log-probabilities [tokens, V] at the tokens of the row's only completion, in the model's number type."""
    ids = torch.tensor([row.prompt + row.branches[0][0]])
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1], dim=-1)


def plain_preference(model: Any, row: TrainRow) -> torch.Tensor:
    gains = [
        plain_logprob(model, row.prompt, tokens) - reference
        for (tokens, _), reference in zip(row.branches, row.reference, strict=True)
    ]
    h = 0.3 * (gains[0] - gains[1])
    return 0.9 * torch.log1p(torch.exp(-h)) + 0.1 * torch.log1p(torch.exp(h))


def plain_divergence(model: Any, row: TrainRow) -> torch.Tensor:
    student, teacher = plain_vocabulary(model, row).exp(), row.teacher.double().exp()
    mixture = 0.25 * teacher + 0.75 * student
    to_teacher = (teacher * (teacher / mixture).log()).sum(-1)
    to_student = (student * (student / mixture).log()).sum(-1)
    return (0.25 * to_teacher + 0.75 * to_student).mean()


def plain_steps(model: Any, row: TrainRow) -> torch.Tensor:
    """Only the verdict after each step is scored: the last token of every branch, given all before it."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens, mass in row.branches:
        context = row.prompt + tokens[:-1]
        logits = model(input_ids=torch.tensor([context]), use_cache=False).logits[0, -1]
        total = total - mass * torch.log_softmax(logits, dim=-1)[tokens[-1]]
    return total


def preference_rows(rows: list[TrainRow], _: int) -> list[TrainRow]:
    pairs = [(row, [tokens for tokens, _ in row.branches[:2]]) for row in rows if len(row.branches) > 1]
    return [replace(row, branches=((a, 0.9), (b, 0.1)), reference=(-9.0, -8.5)) for row, (a, b) in pairs]


def teacher_rows(rows: list[TrainRow], vocabulary: int) -> list[TrainRow]:
    generator = torch.Generator().manual_seed(3)
    scored: list[TrainRow] = []
    for row in rows:
        tokens = row.branches[0][0]
        noise = torch.randn(len(tokens), vocabulary, generator=generator)
        scored.append(replace(row, branches=((tokens, 1.0),), teacher=torch.log_softmax(noise, dim=-1)))
    return scored


def step_rows(rows: list[TrainRow], _: int) -> list[TrainRow]:
    """Every row's first completion as a solution, with a verdict (token 3 or 4) after its first and its last token."""
    scored: list[TrainRow] = []
    for row in rows:
        solution = row.branches[0][0]
        ends = sorted({1, len(solution)})
        branches = tuple(((*solution[:end], token), mass) for end in ends for token, mass in ((3, 0.8), (4, 0.2)))
        scored.append(replace(row, branches=branches, given=tuple(end for end in ends for _ in range(2))))
    return scored


Made = Callable[[list[TrainRow], int], list[TrainRow]]
METHODS: dict[str, tuple[Any, Made, Callable[[Any, TrainRow], torch.Tensor]]] = {
    "preference": (Preference(0.3), preference_rows, plain_preference),
    "divergence": (Divergence(0.25), teacher_rows, plain_divergence),
    "steps": (find_objective("vocabulary", "row"), step_rows, plain_steps),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("pack_tokens", "share"), [(2048, True), (24, True), (2048, False)])
def test_every_method_has_the_loss_and_gradients_of_the_plain_loop(
    fresh_tiny: LoadedModel, method: str, pack_tokens: int, share: bool
) -> None:
    objective, made, plain = METHODS[method]
    model, given = student(fresh_tiny)
    rows = made(given, model.config.vocab_size)
    weights = sum(row.weight for row in rows)
    losses = [row.weight / weights * plain(model.double(), row) for row in rows]
    total = torch.stack(losses).sum()
    total.backward()
    expected, wanted = float(total.detach()), gradients(model)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-4
    got = accumulate_gradients(model.get_base_model(), rows, objective, pack_tokens=pack_tokens, share_prefix=share)
    assert got.loss == pytest.approx(expected, abs=1e-6)
    for name, grad in gradients(model).items():
        assert float((grad - wanted[name]).abs().max()) <= 1e-6, name


def test_rows_are_read_in_order_whatever_shares_a_pass(fresh_tiny: LoadedModel) -> None:
    model, rows = student(fresh_tiny)
    model.double()
    with torch.no_grad():
        wanted = [[float(plain_logprob(model, row.prompt, tokens)) for tokens, _ in row.branches] for row in rows]
    for pack_tokens in (2048, 12):
        found = read_rows(model.get_base_model(), [*rows, rows[0]], summed_logprobs, pack_tokens=pack_tokens)
        assert [list(one) for one in found] == [pytest.approx(one, abs=1e-6) for one in [*wanted, wanted[0]]]
    assert all(p.grad is None for p in model.parameters())


def test_a_completion_of_which_no_token_is_scored_is_refused() -> None:
    row = TrainRow((1, 2), (((3, 4), 1.0),), given=(2,))
    with pytest.raises(InputError, match="no token is scored"):
        check_lengths([row], 100)
