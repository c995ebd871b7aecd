"""Monte Carlo labels of steps and consensus filtering: shares, traps, calls, what is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from scripted import scripted

from limbeck.checks import SameAnswer
from limbeck.compile.montecarlo import MonteCarlo, MonteCarloConfig, StepJudge, consensus_filter, monte_carlo
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, CallFailed, InputError, ModelError, StageEmpty
from limbeck.models import CompactAdapter
from limbeck.programs.judge import Approver, ProgramJudge
from limbeck.programs.solve import PrefixCompleter, ProgramCompleter, StepSolver
from limbeck.records import Provenance
from limbeck.steps import Solution
from limbeck.sums import Sum, calculate, first_wrong_step, flawed, labelled, make_sums

VERIFIERS = (SameAnswer("answer", "target"),)
ORIGIN = Provenance("test")


def unlabelled(*steps: str, **values: Any) -> Solution:
    known: dict[str, Any] = {"target": "7", **values}
    return Solution("?", steps, (None,) * len(steps), ORIGIN, **known)


@dataclass
class Answers:
    """Completes by a function of how many steps there are and of the sample; keeps what it was asked."""

    answer: Callable[[int, int], str]
    teacher: str = "answers"
    asked: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list[Any])

    def __call__(self, problem: str, steps: Sequence[str], sample: int) -> Mapping[str, Any]:
        self.asked.append((problem, tuple(steps), sample))
        return {"answer": self.answer(len(steps), sample)}


def run(answer: Callable[[int, int], str], *solutions: Solution, **config: Any) -> tuple[MonteCarlo, Answers]:
    completer = Answers(answer)
    config = {"samples": 4, **config}
    return monte_carlo(solutions, completer, VERIFIERS, config=MonteCarloConfig(**config)), completer


def shares(*rights: int) -> Callable[[int, int], str]:
    """Of the samples after step k, the first rights[k - 1] are right."""
    return lambda steps, sample: "7" if sample < rights[steps - 1] else "8"


def test_soft_labels_are_shares_and_hard_ones_whether_any_is_right() -> None:
    done, completer = run(shares(4, 3, 1), unlabelled("a", "b", "c"))
    (one,) = done.solutions
    assert (one.soft, one.ratings) == ((1.0, 0.75, 0.25), (1, 1, 1))
    assert one.targets() == ((0, 1.0), (1, 0.75), (2, 0.25))
    assert one.provenance == Provenance("math-shepherd", parents=(one.id,), teacher="answers", level=4)
    # Every completion is asked on its own, and of no sample twice.
    assert done.calls == len(completer.asked) == len(set(completer.asked)) == 12


def test_nothing_is_asked_behind_the_first_step_that_no_completion_survives() -> None:
    done, completer = run(shares(2, 0, 4), unlabelled("a", "b", "c"))
    assert (done.solutions[0].soft, done.solutions[0].ratings) == ((0.5, 0.0, None), (1, -1, None))
    assert {len(steps) for _, steps, _ in completer.asked} == {1, 2}
    whole, _ = run(shares(2, 0, 4), unlabelled("a", "b", "c"), stop=False)
    assert whole.solutions[0].ratings == (1, -1, 1)
    assert whole.solutions[0].targets() == done.solutions[0].targets()


@pytest.mark.parametrize("place", range(4))
def test_an_empty_completion_takes_no_success_away(place: int) -> None:
    done, _ = run(lambda _, sample: "7" if sample == place else "", unlabelled("a"))
    assert (done.solutions[0].soft, done.solutions[0].ratings) == ((0.25,), (1,))


def test_answers_are_compared_by_the_verifier() -> None:
    written = ["7.0", "14/2", "So it is 7.", "seven"]
    done, _ = run(lambda _, sample: written[sample], unlabelled("a"))
    assert done.solutions[0].soft == (0.75,)


def test_the_last_step_has_the_label_of_the_answer_for_no_call() -> None:
    told = [
        unlabelled("a", "b", right=True),
        unlabelled("a", "b", "c", right=False),
        unlabelled("a", "b", answer="7.0"),
    ]
    done, completer = run(lambda *_: "7", *told)
    assert [one.ratings for one in done.solutions] == [(1, 1), (1, 1, -1), (1, 1)]
    assert [one.right for one in done.solutions] == [True, False, True]
    assert len(completer.asked) == 4 * (1 + 2 + 1)


def test_what_cannot_be_read_is_wrong_and_what_never_came_says_nothing() -> None:
    def answer(steps: int, sample: int) -> str:
        if sample == 0:
            raise ValueError("no answer in it")
        if sample == 1 or steps == 2:
            raise CallFailed("gone")
        return "7"

    done, _ = run(answer, unlabelled("a", "b", "c"))
    (one,) = done.solutions
    assert one.soft == (2 / 3, 0.0, None)  # of the second step one came, and could not be read
    assert (done.calls, done.unreadable, done.lost) == (8, 2, 4)
    assert one.ratings == (1, -1, None)


def test_a_step_of_which_nothing_came_has_no_label() -> None:
    def answer(steps: int, sample: int) -> str:
        if steps == 2:
            raise CallFailed("gone")
        return "7"

    done, _ = run(answer, unlabelled("a", "b", "c"))
    assert (done.solutions[0].soft, done.solutions[0].ratings) == ((1.0, None, 1.0), (1, None, 1))


@pytest.mark.parametrize("error", [BudgetExceeded("spent"), ModelError("no such model")])
def test_a_spent_budget_or_a_lost_model_ends_it(error: Exception) -> None:
    def answer(steps: int, sample: int) -> str:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run(answer, unlabelled("a"))


def test_where_nothing_can_be_read_it_stops_early() -> None:
    def answer(steps: int, sample: int) -> str:
        raise ValueError("nonsense")

    with pytest.raises(StageEmpty, match="none of the first 6 completions could be read: unreadable: ValueError"):
        run(answer, *[unlabelled(str(i)) for i in range(20)], patience=6, threads=1)


def test_progress_counts_solutions() -> None:
    seen: list[tuple[int, int]] = []
    solutions = [unlabelled("a"), unlabelled("a", "b"), unlabelled("x", "y", "z")]
    monte_carlo(solutions, Answers(lambda *_: "8"), VERIFIERS, progress=lambda *now: seen.append(now))
    assert seen[-1] == (3, 3)
    assert monte_carlo([], Answers(lambda *_: "8"), VERIFIERS).solutions == ()


def test_labels_need_a_verifier() -> None:
    with pytest.raises(InputError, match="0 verifiers"):
        monte_carlo([unlabelled("a")], Answers(lambda *_: "7"), ())


def continued(one: Sum, request: GenerateRequest) -> str:
    """A solver that goes on rightly from whatever value the steps have come to."""
    begun = request.assistant_prefix.splitlines()
    value, lines = (int(begun[-1].split("= ")[1]) if begun else one.start), list[str]()
    for sign, number in one.operations[len(begun) :]:
        lines.append(f"{value} {sign} {number} = {calculate(value, sign, number)}")
        value = calculate(value, sign, number)
    return "\n".join([*lines, f"The answer is {value}."])


def test_a_solver_without_faults_gives_the_exact_labels() -> None:
    """With completions that never err, a hard label is the step checker's: both through the model's own door."""
    for at, one in enumerate(make_sums(6, operations=4, seed=2)):
        gold = labelled(one, flawed(one, at) if at < 5 else one.steps)
        lm, backend = scripted(lambda request, one=one: continued(one, request))
        completer = PrefixCompleter(lm, lambda problem: (("user", problem),))
        blank = replace(gold, ratings=(None,) * len(gold.steps), right=None)
        found = monte_carlo([blank], completer, VERIFIERS, config=MonteCarloConfig(samples=3)).solutions[0]
        assert found.ratings == gold.ratings
        assert found.first_error == first_wrong_step(one, gold.steps)
        assert found.right == gold.right
        assert len({(r.assistant_prefix, r.seed) for r in backend.requests}) == len(backend.requests)


def test_a_program_completes_as_well() -> None:
    lm, backend = scripted(lambda request: f"on and on\n\n[[ ## answer ## ]]\n{7 if request.seed % 2 else 8}")
    completer = ProgramCompleter(StepSolver(), lm, CompactAdapter())
    done = monte_carlo([unlabelled("a")], completer, VERIFIERS)
    assert len(backend.requests) == 8
    assert done.solutions[0].soft == (sum(r.seed % 2 for r in backend.requests) / 8,)


# -- consensus ---------------------------------------------------------------------------------------------------


def rated(*ratings: int | None) -> Solution:
    return Solution("?", tuple("abcd"[: len(ratings)]), ratings, ORIGIN)


def test_only_solutions_on_which_both_agree_are_kept_and_the_others_counted() -> None:
    solutions = [
        (rated(1, -1, None), 1),
        (rated(1, 1), 2),
        (rated(1, -1), 0),
        (rated(1, 1), 1),
        (rated(-1, None), 2),
        (rated(1, 1, 1), None),
        (rated(None, -1), 1),
        (rated(1, None), 2),
    ]
    places = {id(one): place for one, place in solutions}
    found = consensus_filter([one for one, _ in solutions], lambda one: places[id(one)])
    assert found.kept == (rated(1, -1, None), rated(1, 1))
    assert (found.disagree, found.unsure, found.unlabelled) == (3, 1, 2)


def test_one_stumble_of_a_judge_is_unsure_and_nothing_but_stumbles_is_an_error() -> None:
    def stumbles(solution: Solution) -> int:
        if solution.steps == ("a", "b"):
            raise ValueError("stumbled")
        return 1

    one, other = rated(1, -1), rated(1, -1, None)
    found = consensus_filter([one, other], stumbles)
    assert (found.kept, found.unsure) == ((other,), 1)
    with pytest.raises(ValueError, match="stumbled"):
        consensus_filter([one], stumbles)


def test_a_judge_of_steps_locates_the_first_that_it_rejects() -> None:
    def says(request: GenerateRequest) -> str:
        return "no" if "answer: c" in request.messages[-1][1] else "yes"

    lm, backend = scripted(says)
    judge = StepJudge(ProgramJudge(Approver(), lm, ("step",), CompactAdapter()))
    assert judge(unlabelled("a", "b", "c", "d")) == 2
    assert [("1. a" in r.messages[-1][1], "2. b" in r.messages[-1][1]) for r in backend.requests] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert judge(unlabelled("a", "b")) == 2
    assert consensus_filter([rated(1, 1, -1, None), rated(1, -1)], judge).kept == (rated(1, 1, -1, None),)


def test_a_judge_that_cannot_be_read_is_unsure() -> None:
    lm, _ = scripted(lambda request: "maybe, who knows")
    judge = StepJudge(ProgramJudge(Approver(), lm, ("step",), CompactAdapter()))
    assert judge(unlabelled("a", "b")) is None
    assert consensus_filter([rated(1, 1)], judge).unsure == 1
