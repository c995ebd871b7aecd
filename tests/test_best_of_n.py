"""Best of N: candidates differ, fail alone, are ranked with ties in order, and leave one trace."""

from __future__ import annotations

import re
from typing import Any

import dspy
import pytest
from scripted import scripted

from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError
from limbeck.ledger import Ledger
from limbeck.models import LM, Budget, CompactAdapter
from limbeck.programs.best_of_n import BestOfN, Candidate, MajorityVote, WeightedVote, answer_groups, read_candidate
from limbeck.programs.solve import StepSolver

ANSWERS = ("4", "5", "5", "4.0", "seven")


def solving(request: GenerateRequest) -> str:
    """An answer that depends on the seed alone."""
    answer = ANSWERS[request.seed % len(ANSWERS)]
    return f"1. 2 + 2 = {answer}\n2. So it is {answer}.\n\n[[ ## answer ## ]]\n{answer}"


def candidate(answer: str, steps: tuple[str, ...] = ("a",)) -> Candidate:
    return Candidate(dspy.Prediction(answer=answer), steps, answer)


class Longest:
    """Scores a candidate by the digits of its answer, or whatever it is made of."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def __call__(self, inputs: Any, candidates: Any) -> list[float]:
        return self.scores[: len(candidates)] if self.scores else [float(len(one.answer)) for one in candidates]


def run(ranker: Any, answer: Any = solving, adapter: Any = None, **options: Any) -> tuple[Any, Any]:
    lm, backend = scripted(answer)
    with dspy.context(lm=lm, adapter=adapter or CompactAdapter()):
        return BestOfN(StepSolver(), ranker, **options)(problem="2 + 2?"), backend


def test_every_candidate_is_a_call_of_its_own_and_the_best_is_returned() -> None:
    made, backend = run(Longest(), n=12)
    assert len(backend.requests) == 12
    assert len({request.seed for request in backend.requests}) == 12
    assert all(request.temperature == 0.7 for request in backend.requests)
    assert made.answer == "seven"
    assert made.steps == ("2 + 2 = seven", "So it is seven.")
    assert [float(len(one.answer)) for one in made.candidates] == made.scores
    assert made.failed == 0


def test_the_same_seed_draws_the_same_candidates_and_another_one_others() -> None:
    first, again, other = (run(Longest(), n=6, seed=seed)[1] for seed in (0, 0, 1))
    seeds = [{request.seed for request in backend.requests} for backend in (first, again, other)]
    assert seeds[0] == seeds[1]
    assert not seeds[0] & seeds[2]


def test_a_rollout_of_the_caller_gives_other_candidates() -> None:
    lm, backend = scripted(solving)
    for one in (lm, lm.copy(rollout_id=7)):
        with dspy.context(lm=one, adapter=CompactAdapter()):
            BestOfN(StepSolver(), Longest(), n=3)(problem="2 + 2?")
    assert len({request.seed for request in backend.requests}) == 6


def test_ties_go_to_the_first() -> None:
    made, _ = run(Longest(*[1.0] * 8))
    assert made.answer == made.candidates[0].answer
    made, _ = run(Longest(0, 2, 1, 2, 0, 0, 0, 0))
    assert made.answer == made.candidates[1].answer


def test_a_failed_candidate_never_ends_it() -> None:
    def often(request: GenerateRequest) -> str:
        if request.seed % 3 == 0:
            raise RuntimeError("out of tune")
        return "no fields at all" if request.seed % 3 == 1 else f"[[ ## next_steps ## ]]\n{solving(request)}"

    made, backend = run(MajorityVote(), often, dspy.ChatAdapter(use_json_adapter_fallback=False), n=16)
    fine = sum(request.seed % 3 == 2 for request in backend.requests)
    assert 0 < fine < 16
    assert (len(made.candidates), made.failed) == (fine, 16 - fine)


def test_where_all_fail_the_reason_is_told() -> None:
    def never(request: GenerateRequest) -> str:
        raise RuntimeError("out of tune")

    with pytest.raises(RuntimeError, match="out of tune"):
        run(Longest(), never, n=3)


def test_a_spent_budget_is_no_failed_candidate(tmp_path: Any) -> None:
    _, backend = scripted(solving)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        lm = LM("scripted", backend, ledger=ledger, budget=Budget(max_tokens=1))
        with dspy.context(lm=lm, adapter=CompactAdapter()), pytest.raises(BudgetExceeded):
            BestOfN(StepSolver(), Longest(), n=3)(problem="2 + 2?")


def test_the_trace_is_the_best_candidates_under_the_programs_own_predictor() -> None:
    lm, _ = scripted(solving)
    module = BestOfN(StepSolver(), Longest(), n=12)
    with dspy.context(lm=lm, adapter=CompactAdapter(), trace=[]):
        module(problem="2 + 2?")
        trace: Any = list(dspy.settings.trace)
    ((predictor, inputs, said),) = trace
    assert predictor is module.predictors()[0]
    assert predictor.lm is None
    assert (inputs["problem"], said["answer"]) == ("2 + 2?", "seven")


def test_a_predictor_keeps_its_own_model() -> None:
    (lm, backend), (other, unused) = scripted(solving), scripted(solving)
    program = StepSolver()
    program.set_lm(lm)
    with dspy.context(lm=other, adapter=CompactAdapter()):
        BestOfN(program, Longest(), n=4)(problem="2 + 2?")
    assert (len(backend.requests), len(unused.requests)) == (4, 0)


def test_the_majority_is_of_values_and_not_of_texts() -> None:
    candidates = [candidate(text) for text in ("5", "1/2", "0.5", " ", "50%", "5 ")]
    assert answer_groups(candidates) == [[0, 5], [1, 2, 4]]
    assert MajorityVote()({}, candidates) == [2, 3, 3, 0, 3, 2]
    exactly = MajorityVote(lambda a, b: a == b)
    assert exactly({}, candidates) == [1, 1, 1, 0, 1, 1]


def test_the_weighted_vote_adds_up_scores() -> None:
    candidates = [candidate(text) for text in ("5", "4", "5.0", "4", "")]
    vote = WeightedVote(Longest(0.9, 0.4, 0.1, 0.7, 0.99))
    assert vote({}, candidates) == pytest.approx([1.0, 1.1, 1.0, 1.1, 0.0])
    made, _ = run(WeightedVote(Longest()), n=12)
    weights = {one.answer: score for one, score in zip(made.candidates, made.scores, strict=True)}
    assert made.answer == max(weights, key=lambda answer: weights[answer])


@pytest.mark.parametrize("scores", [[1.0], [float("nan")] * 4])
def test_a_ranker_that_does_not_score_is_refused(scores: list[float]) -> None:
    with pytest.raises(InputError, match="for 4 candidates"):
        run(Longest(*scores), n=4)


@pytest.mark.parametrize("options", [{"n": 0}, {"temperature": 0.0}])
def test_options_that_give_no_candidates_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BestOfN(StepSolver(), Longest(), **options)


def test_candidates_are_read_of_steps_or_reasoning() -> None:
    assert read_candidate(dspy.Prediction(steps=["a", " b "], answer=0)) == (("a", "b"), "0")
    assert read_candidate(dspy.Prediction(reasoning="a\n\nb", answer=None)) == (("a", "b"), "")
    assert read_candidate(dspy.Prediction(label="x")) == ((), "")


def test_any_program_can_be_drawn_from() -> None:
    lm, backend = scripted(lambda request: f"Well.\n\n[[ ## answer ## ]]\n{request.seed % 2}")
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        made = BestOfN(dspy.ChainOfThought("question -> answer"), MajorityVote(), n=5)(question="?")
    drawn = [str(request.seed % 2) for request in backend.requests]
    assert made.answer == max("01", key=drawn.count)
    assert re.fullmatch("[01]", made.answer)
