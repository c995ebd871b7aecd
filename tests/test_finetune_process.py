"""Reward models: which verdicts are asked, what the loss is, what is read of a model, how candidates are ranked."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import dspy
import pytest
import torch
from scripted import scripted

from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.packing import build_tree, group_rows
from limbeck.finetune.process import (
    OutcomeRanker,
    ProcessRanker,
    RewardModel,
    StepEncoder,
    Verdicts,
    outcome_rows,
    predicted,
    process_rows,
    solution_score,
    verdicts,
)
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.step import accumulate_gradients
from limbeck.models import CompactAdapter
from limbeck.programs.best_of_n import BestOfN, Candidate, MajorityVote
from limbeck.programs.solve import StepSolver
from limbeck.records import Provenance
from limbeck.steps import Solution
from limbeck.sums import answer_of, flawed, labelled, make_sums

ORIGIN = Provenance("test")
STEPS = ("2 + 3 = 5", "5 - 1 = 3", "so 3")
ONE = Solution("2 + 3 - 1?", STEPS, (0, -1, 1), ORIGIN, right=False)


def lively(loaded: LoadedModel) -> Any:
    """The model in float64 with LoRA layers that change its output: fresh ones are zero."""
    model = attach_lora(loaded.model, TrainConfig(rank=4, alpha=8)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def plain_verdicts(model: Any, encoder: StepEncoder, problem: str, steps: tuple[str, ...]) -> torch.Tensor:
    """Log-probabilities [steps, 2] of the verdict tokens against each other, by one plain pass a step."""
    ids = list(encoder.prompt(problem))
    found: list[torch.Tensor] = []
    for step in steps:
        ids += encoder.chat.ids(f"{step}\n")
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        found.append(torch.log_softmax(logits[list(encoder.tokens)], dim=0))
    return torch.stack(found)


def test_every_step_up_to_the_first_error_is_asked_behind_its_own_line(tiny_llama: LoadedModel) -> None:
    encoder = StepEncoder(tiny_llama.tokenizer)
    (row,) = process_rows(encoder, [ONE])
    assert encoder.chat.text(row.prompt).count("2 + 3 - 1?") == 1
    read = [(encoder.chat.text(tokens[:n]), encoder.chat.text(tokens[n:]), mass) for (tokens, mass), n in asked(row)]
    first, second = "2 + 3 = 5\n", "2 + 3 = 5\n5 - 1 = 3\n"
    assert read == [(first, "+", 1.0), (first, "-", 0.0), (second, "+", 0.0), (second, "-", 1.0)]


def asked(row: TrainRow) -> list[tuple[Any, int]]:
    return list(zip(row.branches, row.given, strict=True))


def test_neutral_and_soft_labels_are_the_masses(tiny_llama: LoadedModel) -> None:
    encoder = StepEncoder(tiny_llama.tokenizer)

    def masses(one: Solution, **options: Any) -> list[list[float]]:
        return [[mass for _, mass in row.branches] for row in process_rows(encoder, [one], **options)]

    assert masses(ONE, neutral=0.0) == [[0.0, 1.0, 0.0, 1.0]]
    assert masses(ONE, neutral=None) == [[0.0, 1.0]]
    soft = replace(ONE, soft=(0.75, None, 0.5))
    assert masses(soft) == [[0.75, 0.25, 0.0, 1.0]]
    assert masses(soft, soft=False) == masses(ONE)
    assert masses(replace(ONE, ratings=(None, None, None))) == []


def test_an_outcome_is_asked_after_the_last_step_alone(tiny_llama: LoadedModel) -> None:
    encoder = StepEncoder(tiny_llama.tokenizer)
    rows = outcome_rows(encoder, [ONE, replace(ONE, right=True), replace(ONE, right=None)])
    assert [[mass for _, mass in row.branches] for row in rows] == [[0.0, 1.0], [1.0, 0.0]]
    assert all(
        encoder.chat.text(tokens[:n]) == "".join(f"{step}\n" for step in STEPS) for (tokens, _), n in asked(rows[0])
    )


def test_solutions_share_the_prompt_and_verdicts_their_solution(tiny_llama: LoadedModel) -> None:
    encoder = StepEncoder(tiny_llama.tokenizer)
    rows = process_rows(encoder, [replace(ONE, ratings=(1, 1, 1)), replace(ONE, steps=("so 5",), ratings=(-1,))])
    (group,) = group_rows(rows)
    assert group.prefix == len(encoder.prompt(ONE.problem)) - 1
    tree = build_tree(rows[0], group.prefix)
    # One more token of the prompt, then each of the solution's once; no verdict is forwarded.
    assert tree.tokens[1:] == tuple(token for step in STEPS for token in encoder.chat.ids(f"{step}\n"))


def test_the_loss_and_gradients_are_those_of_a_plain_pass_a_step(fresh_tiny: LoadedModel) -> None:
    model, encoder = lively(fresh_tiny), StepEncoder(fresh_tiny.tokenizer)
    solutions = [
        replace(ONE, ratings=(1, 1, -1), soft=(0.9, 0.4, 0.1)),
        replace(ONE, problem="two?", ratings=(1, -1, None)),
    ]
    loss = torch.zeros((), dtype=torch.float64)
    for one in solutions:
        logprobs = plain_verdicts(model, encoder, one.problem, one.steps)
        for place, right in one.targets():
            loss = loss - (right * logprobs[place, 0] + (1 - right) * logprobs[place, 1])
    (loss / 2).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    done = accumulate_gradients(model.get_base_model(), process_rows(encoder, solutions), verdicts)
    assert done.loss == pytest.approx(float(loss.detach()) / 2, abs=1e-6)
    for name, parameter in model.named_parameters():
        if name in wanted:
            assert float((parameter.grad - wanted[name]).abs().max()) < 1e-6, name


def test_what_is_read_is_what_a_plain_pass_says(fresh_tiny: LoadedModel) -> None:
    model, encoder = lively(fresh_tiny), StepEncoder(fresh_tiny.tokenizer)
    reader = RewardModel(replace(fresh_tiny, model=model), encoder)
    given = [("2 + 3 - 1?", STEPS), ("a card?", ("yes",)), ("2 + 3 - 1?", STEPS[:2])]
    with torch.no_grad():
        wanted = [plain_verdicts(model, encoder, *one)[:, 0].exp().tolist() for one in given]
    assert [list(one) for one in reader.steps(given)] == [pytest.approx(one, abs=1e-6) for one in wanted]
    assert reader.outcomes(given) == pytest.approx([one[-1] for one in wanted], abs=1e-6)
    assert reader.steps([]) == []
    assert copy.deepcopy(reader) is reader


def test_a_model_without_an_adapter_is_read_too(tiny_llama: LoadedModel) -> None:
    encoder = StepEncoder(tiny_llama.tokenizer)
    with torch.no_grad():
        wanted = plain_verdicts(tiny_llama.model, encoder, ONE.problem, STEPS)[:, 0].exp().tolist()
    assert list(RewardModel(tiny_llama, encoder).steps([(ONE.problem, STEPS)])[0]) == pytest.approx(wanted, abs=1e-5)


def test_scores_of_a_solution() -> None:
    assert solution_score((0.9, 0.5, 0.8)) == pytest.approx(0.36)
    assert solution_score((0.9, 0.5, 0.8), "min") == 0.5
    assert solution_score(()) == 0.0


def test_a_prediction_becomes_labels() -> None:
    found = predicted(ONE, (0.9, 0.6, 0.3))
    assert (found.ratings, found.soft, found.first_error) == ((1, 1, -1), (0.9, 0.6, 0.3), 2)
    assert predicted(ONE, (0.9, 0.6, 0.3), 0.7).ratings == (1, -1, -1)


def test_candidates_are_ranked_and_what_cannot_be_read_scores_nothing(tiny_llama: LoadedModel) -> None:
    reader = RewardModel(tiny_llama, StepEncoder(tiny_llama.tokenizer))
    endless = ("a card " * 1200,)
    candidates = [Candidate(None, steps, "") for steps in (STEPS, (), endless, STEPS[:1])]
    asked = [("2 + 3 - 1?", STEPS), ("2 + 3 - 1?", STEPS[:1])]
    inputs = {"question": "2 + 3 - 1?"}
    for how in ("product", "min"):
        long, short = (solution_score(one, how) for one in reader.steps(asked))
        assert ProcessRanker(reader, "question", how)(inputs, candidates) == pytest.approx([long, 0, 0, short])
    long, short = reader.outcomes(asked)
    assert OutcomeRanker(reader, "question")(inputs, candidates) == pytest.approx([long, 0, 0, short])
    assert ProcessRanker(reader, "question")(inputs, candidates[1:3]) == [0.0, 0.0]
    with pytest.raises(InputError, match="the model's context holds 1024"):
        reader.steps([("2 + 3 - 1?", endless)])
    with pytest.raises(InputError, match="without steps"):
        reader.steps([("2 + 3 - 1?", ())])


@pytest.mark.parametrize(("positive", "negative"), [("right", "-"), ("+", "+"), ("", "-")])
def test_verdicts_that_are_not_two_tokens_are_refused(tiny_llama: LoadedModel, positive: str, negative: str) -> None:
    with pytest.raises(InputError, match="the verdicts"):
        StepEncoder(tiny_llama.tokenizer, Verdicts(positive, negative))


def test_the_instructions_are_the_callers(tiny_llama: LoadedModel) -> None:
    bare, told = (StepEncoder(tiny_llama.tokenizer, Verdicts(instructions=text)) for text in ("", "Be exact."))
    assert "Be exact." in told.chat.text(told.prompt("2?"))
    assert bare.chat.text(bare.prompt("2?")).startswith("user\n2?")


def test_training_tells_right_steps_from_wrong_ones_and_best_of_n_profits(fresh_tiny: LoadedModel) -> None:
    """Four sums, each solved rightly and with its second step wrong: the model learns which is which by heart."""
    sums = make_sums(4, operations=2, seed=1)
    solutions = [labelled(one, steps) for one in sums for steps in (one.steps, flawed(one, 1))]
    encoder = StepEncoder(fresh_tiny.tokenizer)
    config = TrainConfig(lr=2e-2, max_steps=60, batch_size=8, rank=8, alpha=16)
    done = train(fresh_tiny, process_rows(encoder, solutions), config, objective=verdicts)
    assert done.losses[-1] < 0.25 * done.losses[0]
    reader = RewardModel(done.loaded, encoder)
    found = reader.steps([(one.problem, one.steps) for one in solutions])
    scores = [solution_score(one[:2]) for one in found]
    assert min(scores[::2]) > 0.5 > max(scores[1::2])
    for one, read in zip(solutions, found, strict=True):
        assert predicted(one, read).first_error == one.first_error

    def solve(request: GenerateRequest) -> str:
        """One in four solutions is right: a vote would be wrong."""
        steps = sums[0].steps if request.seed % 4 == 0 else flawed(sums[0], 1)
        return "\n".join(steps) + f"\n\n[[ ## answer ## ]]\n{answer_of(steps)}"

    lm, _ = scripted(solve)
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        made = {
            name: BestOfN(StepSolver(), ranker, n=16)(problem=sums[0].problem).answer
            for name, ranker in {"process": ProcessRanker(reader), "vote": MajorityVote()}.items()
        }
    assert made == {"process": str(sums[0].answer), "vote": str(answer_of(flawed(sums[0], 1)))}


@pytest.mark.slow
def test_the_embedded_model_has_both_verdicts_and_is_read_as_a_plain_pass_reads_it(embedded: LoadedModel) -> None:
    encoder = StepEncoder(embedded.tokenizer)
    one = make_sums(1, operations=3, seed=5)[0]
    given = [(one.problem, one.steps), (one.problem, flawed(one, 0))]
    with torch.no_grad():
        wanted = [plain_verdicts(embedded.model, encoder, *each)[:, 0].exp().tolist() for each in given]
    found = RewardModel(embedded, encoder).steps(given)
    assert [list(each) for each in found] == [pytest.approx(each, abs=1e-4) for each in wanted]
