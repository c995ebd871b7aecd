"""Step labels without people: from every beginning of a solution, how often do completions reach the right answer?

Math-Shepherd (Wang et al. 2023, arXiv:2312.08935): a step's soft label is the share of completions that get there, its
hard label whether any does. Such labels are noisy: wrong steps are recovered from, right ones are not always used. Kept
are therefore, if asked for, only solutions whose first error a judge finds at the same step (consensus filtering, Zhang
et al. 2025, arXiv:2501.07301).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.compile.concurrent import concurrently
from limbeck.compile.judges import Judge
from limbeck.errors import BudgetExceeded, CallFailed, InputError, ModelError, PromptTooLong, StageEmpty
from limbeck.programs.solve import Completer
from limbeck.records import CHECKED, Provenance
from limbeck.steps import RIGHT, WRONG, Solution, numbered_steps
from limbeck.verifiers import Verifier, votes

METHOD = "math-shepherd"
Progress = Callable[[int, int], None]
_SHOWN = 160


@dataclass(frozen=True)
class MonteCarloConfig:
    """How labels are made: `samples` completions from every beginning of a solution (the paper: 8).

    With `stop` nothing is asked after the first step from which no completion is right: nobody learns from what comes
    later. StageEmpty when the first `patience` completions cannot be read.
    """

    samples: int = 8
    stop: bool = True
    threads: int = 16
    patience: int = 24


@dataclass(frozen=True)
class MonteCarlo:
    """The solutions with their labels; completions asked for, those that could not be read, those that never came."""

    solutions: tuple[Solution, ...]
    calls: int
    unreadable: int
    lost: int


def monte_carlo(
    solutions: Sequence[Solution],
    completer: Completer,
    verifiers: Sequence[Verifier],
    *,
    config: MonteCarloConfig | None = None,
    progress: Progress | None = None,
) -> MonteCarlo:
    """Return the solutions with hard labels (ratings) and soft labels, in order.

    `verifiers` get {"problem", "target"} and a completion's outputs; where all pass, it is right. The last step's label
    is that of the solution's own answer, for no call, where it has one. A completion that cannot be read is wrong, one
    that never came says nothing; a step without any has no label. `progress` gets (solutions done, solutions).
    BudgetExceeded and a lost server's ModelError pass through.
    """
    config = config or MonteCarloConfig()
    if not verifiers or config.samples < 1:
        raise InputError(
            f"{len(verifiers)} verifiers, {config.samples} samples", valid="a verifier that knows answers, 1 sample"
        )
    run = _Run(completer, verifiers, config, [_Track(one, _is_right(one, verifiers)) for one in solutions])
    for place in range(max((len(one.steps) for one in solutions), default=0)):
        run.wave(place)
        if progress is not None:
            progress(sum(track.done(place + 1, config.stop) for track in run.tracks), len(run.tracks))
    found = tuple(_labelled(track, completer.teacher) for track in run.tracks)
    return MonteCarlo(found, run.counts.total(), run.counts["unreadable"], run.counts["lost"])


def _known(solution: Solution) -> dict[str, Any]:
    return {"problem": solution.problem, "target": solution.target}


def _passes(verifiers: Sequence[Verifier], solution: Solution, outputs: Mapping[str, Any]) -> bool:
    return all(verdict.ok for verdict in votes(verifiers, _known(solution), outputs).values())


def _is_right(solution: Solution, verifiers: Sequence[Verifier]) -> bool | None:
    if solution.right is not None or not solution.answer:
        return solution.right
    return _passes(verifiers, solution, {"answer": solution.answer})


@dataclass
class _Track:
    """One solution: whether its answer is right, and the share of right completions after each step so far."""

    solution: Solution
    right: bool | None
    shares: list[float | None] = field(default_factory=list[float | None])

    def done(self, place: int, stop: bool) -> bool:
        """Return whether nothing is asked after the step before `place`."""
        return place >= len(self.solution.steps) or (stop and 0.0 in self.shares)


@dataclass
class _Run:
    """The state of one labelling."""

    completer: Completer
    verifiers: Sequence[Verifier]
    config: MonteCarloConfig
    tracks: list[_Track]
    counts: Counter[str] = field(default_factory=Counter[str])

    def wave(self, place: int) -> None:
        """Label the step at `place` of every solution that goes on."""
        left = [track for track in self.tracks if not track.done(place, self.config.stop)]
        asked = [track for track in left if track.right is None or place + 1 < len(track.solution.steps)]
        jobs = [(track.solution, place + 1, sample) for track in asked for sample in range(self.config.samples)]
        answers = iter(concurrently(self._complete, jobs, threads=self.config.threads, done=self._count))
        heard = {id(track): [next(answers) for _ in range(self.config.samples)] for track in asked}
        for track in left:
            track.shares.append(_share(heard[id(track)]) if id(track) in heard else float(bool(track.right)))

    def _complete(self, job: tuple[Solution, int, int]) -> bool | str:
        """Return whether one completion is right, or why there is none."""
        solution, steps, sample = job
        try:
            outputs = self.completer(solution.problem, solution.steps[:steps], sample)
        except (CallFailed, PromptTooLong) as error:
            return f"lost: {error}"[:_SHOWN]
        except (BudgetExceeded, ModelError):
            raise
        except Exception as error:  # one unparsable answer never ends a stage
            return f"unreadable: {type(error).__name__}: {error}"[:_SHOWN]
        return _passes(self.verifiers, solution, outputs)

    def _count(self, made: bool | str) -> None:
        self.counts[made.partition(":")[0] if isinstance(made, str) else "read"] += 1
        if isinstance(made, str) and not self.counts["read"] and self.counts.total() == self.config.patience:
            raise StageEmpty(f"none of the first {self.config.patience} completions could be read: {made}")


def _share(answers: Sequence[bool | str]) -> float | None:
    """Return the share of right completions among those that came, None where none did."""
    came = [answer for answer in answers if not (isinstance(answer, str) and answer.startswith("lost"))]
    return sum(answer is True for answer in came) / len(came) if came else None


def _labelled(track: _Track, teacher: str) -> Solution:
    one = track.solution
    soft = (*track.shares, *[None] * (len(one.steps) - len(track.shares)))
    ratings = tuple(None if share is None else RIGHT if share > 0 else WRONG for share in soft)
    origin = Provenance(METHOD, parents=(one.id,), teacher=teacher, level=CHECKED)
    return replace(one, ratings=ratings, soft=soft, right=track.right, provenance=origin)


# How many steps are right before the first wrong one (all of them where none is wrong), None for cannot say.
Locator = Callable[[Solution], int | None]


@dataclass(frozen=True)
class StepJudge:
    """Locates the first wrong step by a judge of single steps, such as a `ProgramJudge` over an `Approver`.

    The judge gets {"problem", "steps"}, the steps before as numbered lines, and {"step"}; its score is the probability
    that the step is right. What it cannot read ends the search without an answer.
    """

    judge: Judge
    threshold: float = 0.5

    def __call__(self, solution: Solution) -> int | None:
        """Return how many steps the judge accepts before it rejects one."""
        for place, step in enumerate(solution.steps):
            before = {"problem": solution.problem, "steps": numbered_steps(solution.steps[:place])}
            score = self.judge(before, {"step": step})
            if score is None:
                return None
            if score < self.threshold:
                return place
        return len(solution.steps)


@dataclass(frozen=True)
class Consensus:
    """What is left of solutions: those whose first error a judge sees at the same step, and counts of the others.

    `disagree`: it is seen elsewhere; `unsure`: the judge could not say; `unlabelled`: a step before it has no label.
    """

    kept: tuple[Solution, ...]
    disagree: int
    unsure: int
    unlabelled: int


def consensus_filter(solutions: Sequence[Solution], locate: Locator, *, threads: int = 16) -> Consensus:
    """Return the solutions whose first error `locate` finds at the same step, or that both hold faultless, in order.

    One at which `locate` raises is unsure, unless it raises at every one; BudgetExceeded and ModelError pass.

    >>> one = Solution("?", ("a", "b"), (1, -1), Provenance("math-shepherd"))
    >>> consensus_filter([one], lambda solution: 1).kept == (one,), consensus_filter([one], lambda solution: 2).disagree
    (True, 1)
    """
    labelled = [one for one in solutions if None not in one.ratings[: _right_steps(one)]]
    errors: list[Exception] = []

    def located(solution: Solution) -> int | None:
        try:
            return locate(solution)
        except (BudgetExceeded, ModelError):
            raise
        except Exception as error:  # a stumble over one solution
            errors.append(error)
            return None

    places = concurrently(located, labelled, threads=threads)
    if errors and len(errors) == len(labelled):
        raise errors[0]
    pairs = list(zip(labelled, places, strict=True))
    kept = tuple(one for one, place in pairs if place == _right_steps(one))
    unsure = places.count(None)
    return Consensus(kept, len(labelled) - len(kept) - unsure, unsure, len(solutions) - len(labelled))


def _right_steps(solution: Solution) -> int:
    return len(solution.steps) if solution.first_error is None else solution.first_error
