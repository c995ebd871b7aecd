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
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig
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


@dataclass(frozen=True)
class Drawn:
    """What the solver wrote: labelled solutions of some sums, and candidates for each of the tested ones."""

    solutions: list[Solution]
    tested: list[Sum]
    candidates: list[list[Candidate]]

    def asked(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return every candidate that has steps as (problem, steps), what a reward model reads."""
        pairs = zip(self.tested, self.candidates, strict=True)
        return [(one.problem, c.steps) for one, drawn in pairs for c in drawn if c.steps]

    def bounds(self) -> tuple[Arm, Arm]:
        """Return how often the first candidate is right, and how often one of them is: what choosing lies between."""
        pairs = list(zip(self.tested, self.candidates, strict=True))
        first = tuple(float(is_right(one, drawn[0].steps)) for one, drawn in pairs)
        best = tuple(float(any(is_right(one, c.steps) for c in drawn)) for one, drawn in pairs)
        return Arm("one solution", first), Arm("a right one is among them", best)


def draw(setting: Setting, sizes: Sizes) -> Drawn:
    """Train the solver and let it write several solutions of further sums."""
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
    return Drawn(solutions, tested, [[_candidate(steps) for steps in drawn] for drawn in written[len(graded) :]])


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Train solver and reward models, let them choose among N solutions, and compare."""
    sizes = sizes or setting.pick(Sizes(120, 40, 60), Sizes(200, 150, 200))
    drawn = draw(setting, sizes)
    solutions = drawn.solutions
    arms = (*_chosen(setting, drawn), *drawn.bounds())
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


def _chosen(setting: Setting, drawn: Drawn) -> tuple[Arm, ...]:
    """Return how often each ranker's choice is right."""
    asked = drawn.asked()
    process = train_reward(setting, PROCESS, process_rows, drawn.solutions)
    steps = process.steps(asked)
    detach_lora(process.loaded.model)
    outcome = train_reward(setting, OUTCOME, outcome_rows, drawn.solutions)
    ends = outcome.outcomes(asked)
    detach_lora(outcome.loaded.model)

    product = known(asked, [solution_score(one) for one in steps])
    rankers: dict[str, Ranker] = {
        VOTE: MajorityVote(),
        PROCESS: product,
        "process model, least step": known(asked, [solution_score(one, "min") for one in steps]),
        "vote weighted by the process model": WeightedVote(product),
        OUTCOME: known(asked, ends),
    }
    return tuple(Arm(name, ranked(ranker, drawn)) for name, ranker in rankers.items())


def known(asked: Sequence[tuple[str, tuple[str, ...]]], scores: Sequence[float]) -> Ranker:
    """Return the ranker of solutions that have been scored, all in one reading; one without steps scores 0."""
    found = dict(zip(asked, scores, strict=True))
    return lambda inputs, candidates: [found.get((inputs["problem"], one.steps), 0.0) for one in candidates]


def train_reward(
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


def ranked(ranker: Ranker, drawn: Drawn) -> tuple[float, ...]:
    """Return for every tested sum whether the candidate that a ranker puts first is right, 1 or 0."""
    scores: list[float] = []
    for one, candidates in zip(drawn.tested, drawn.candidates, strict=True):
        ranks = ranker({"problem": one.problem}, candidates)
        best = max(range(len(candidates)), key=lambda place: ranks[place])
        scores.append(float(is_right(one, candidates[best].steps)))
    return tuple(scores)
