"""Process against outcome supervision at equal N (Lightman et al. 2023): which solution of several is the right one?

A solver learns sums from worked ones. Its own solutions of further sums, their steps checked exactly up to the first
error, train a process reward model; the same solutions, known only to end right or wrong, an outcome reward model. Both
choose among N solutions of new sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.engine.loading import load_model
from limbeck.finetune.loop import TrainConfig, detach_lora
from limbeck.finetune.process import RewardModel, StepEncoder, outcome_rows, process_rows, solution_score, verdicts
from limbeck.programs.best_of_n import Candidate, MajorityVote, Ranker, WeightedVote
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import LARGEST, LEARNING, OPERATIONS, fit, is_right, sample, worked
from limbeck.sums import Sum, answer_of, labelled, make_sums

if TYPE_CHECKING:
    from limbeck.finetune.rows import TrainRow
    from limbeck.steps import Solution

PROCESS, OUTCOME, VOTE = "process model", "outcome model", "majority vote"
CLAIMS = (
    Claim(PROCESS, OUTCOME, "at equal N the process model chooses better than the outcome model (78.2, 72.4)", 0.058),
    Claim(OUTCOME, VOTE, "the outcome model chooses better than the majority (72.4, 69.6)", 0.028),
    Claim(PROCESS, VOTE, "the process model chooses better than the majority (78.2, 69.6)", 0.086),
)


@dataclass(frozen=True)
class Sizes:
    """How many sums are learned from, asked and tested, and how they are made."""

    worked: int
    graded: int
    tested: int
    n: int = 8
    operations: int = OPERATIONS
    largest: int = LARGEST


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Train solver and reward models, let them choose among N solutions, and compare."""
    sizes = sizes or setting.pick(Sizes(120, 40, 60), Sizes(200, 150, 200))
    sums = make_sums(
        sizes.worked + sizes.graded + sizes.tested,
        operations=sizes.operations,
        largest=sizes.largest,
        seed=setting.seed,
    )
    shown, rest = sums[: sizes.worked], sums[sizes.worked :]
    graded, tested = rest[: sizes.graded], rest[sizes.graded :]
    solver = load_model(setting.model)
    solver = fit(setting, "solver", solver, worked(solver, shown), LEARNING)
    setting.say(f"the solver writes {sizes.n} solutions of {len(rest)} sums")
    written = sample(solver, rest, sizes.n, seed=setting.seed)
    detach_lora(solver.model)
    solutions = [
        labelled(one, steps)
        for one, drawn in zip(graded, written, strict=False)
        for steps in dict.fromkeys(drawn)
        if steps
    ]
    candidates = [[_candidate(steps) for steps in drawn] for drawn in written[len(graded) :]]
    chosen = _chosen(setting, solutions, tested, candidates)
    first = [float(is_right(one, drawn[0].steps)) for one, drawn in zip(tested, candidates, strict=True)]
    best = [float(any(is_right(one, c.steps) for c in drawn)) for one, drawn in zip(tested, candidates, strict=True)]
    arms = (*chosen, Arm("one solution", tuple(first)), Arm("a right one is among them", tuple(best)))
    wrong = sum(one.right is False for one in solutions)
    return setting.conclude(
        "prm",
        CLAIMS,
        arms,
        unit="share of sums answered rightly",
        settings={
            "N": sizes.n,
            "operations": sizes.operations,
            "worked sums": sizes.worked,
            "graded solutions": len(solutions),
        },
        notes=[f"{wrong} of {len(solutions)} graded solutions end wrong; their steps were checked exactly."],
    )


def _candidate(steps: tuple[str, ...]) -> Candidate:
    said = answer_of(steps)
    return Candidate(None, steps, "" if said is None else str(said))


def _chosen(
    setting: Setting, solutions: list[Solution], tested: list[Sum], written: list[list[Candidate]]
) -> tuple[Arm, ...]:
    """Return how often each ranker's choice is right."""
    asked = [(one.problem, c.steps) for one, drawn in zip(tested, written, strict=True) for c in drawn if c.steps]
    process = _reward(setting, PROCESS, process_rows, solutions)
    steps = process.steps(asked)
    detach_lora(process.loaded.model)
    outcome = _reward(setting, OUTCOME, outcome_rows, solutions)
    ends = outcome.outcomes(asked)
    detach_lora(outcome.loaded.model)

    product = _known(asked, [solution_score(one) for one in steps])
    rankers: dict[str, Ranker] = {
        VOTE: MajorityVote(),
        PROCESS: product,
        "process model, least step": _known(asked, [solution_score(one, "min") for one in steps]),
        "vote weighted by the process model": WeightedVote(product),
        OUTCOME: _known(asked, ends),
    }
    return tuple(_ranked(name, ranker, tested, written) for name, ranker in rankers.items())


def _known(asked: Sequence[tuple[str, tuple[str, ...]]], scores: Sequence[float]) -> Ranker:
    """Return the ranker of solutions that have been scored, all in one reading; one without steps scores 0."""
    found = dict(zip(asked, scores, strict=True))
    return lambda inputs, candidates: [found.get((inputs["problem"], one.steps), 0.0) for one in candidates]


def _reward(
    setting: Setting,
    name: str,
    rows: Callable[[StepEncoder, list[Solution]], list[TrainRow]],
    solutions: list[Solution],
) -> RewardModel:
    """Train a reward model on the solutions."""
    base = load_model(setting.model)
    encoder = StepEncoder(base.tokenizer)
    config = TrainConfig(lr=5e-4, epochs=2, batch_size=32)
    return RewardModel(fit(setting, name, base, rows(encoder, solutions), config, objective=verdicts), encoder)


def _ranked(name: str, ranker: Ranker, tested: list[Sum], candidates: list[list[Candidate]]) -> Arm:
    scores: list[float] = []
    for one, drawn in zip(tested, candidates, strict=True):
        ranks = ranker({"problem": one.problem}, drawn)
        best = max(range(len(drawn)), key=lambda place: ranks[place])
        scores.append(float(is_right(one, drawn[best].steps)))
    return Arm(name, tuple(scores))
