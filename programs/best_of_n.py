"""Best of N: a program draws several candidates, a ranker says which is returned.

Rankers that need no model are here: majority vote (self-consistency, Wang et al. 2022, arXiv:2203.11171) and the vote
weighted by another ranker's scores (Li et al. 2022, arXiv:2206.02336). Those of reward models are in
`limbeck.finetune.process`.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import dspy

from limbeck.answers import same_answer
from limbeck.errors import BudgetExceeded, InputError
from limbeck.records import stable_hash

_MOST_THREADS = 16


@dataclass(frozen=True)
class Candidate:
    """One answer of a program: its prediction, the steps that led to it and what it comes to."""

    prediction: Any
    steps: tuple[str, ...]
    answer: str
    trace: tuple[Any, ...] = field(default=(), compare=False, repr=False)


class Ranker(Protocol):
    """Scores candidates for the same inputs: higher is better."""

    def __call__(self, inputs: Mapping[str, Any], candidates: Sequence[Candidate]) -> Sequence[float]:
        """Return one score a candidate, in order."""
        ...


Same = Callable[[str, str], bool]


def answer_groups(candidates: Sequence[Candidate], same: Same = same_answer) -> list[list[int]]:
    """Return the places of candidates with the same answer, in the order in which the answers first come.

    Each is compared with the first of its group; candidates without an answer are in none.

    >>> answer_groups([Candidate(None, (), text) for text in ("1/2", "3", "", "0.5")])
    [[0, 3], [1]]
    """
    groups: list[list[int]] = []
    for place, one in enumerate(candidates):
        if one.answer.strip():
            known = next((group for group in groups if same(candidates[group[0]].answer, one.answer)), None)
            groups.append([place]) if known is None else known.append(place)
    return groups


@dataclass(frozen=True)
class MajorityVote:
    """Ranks candidates by how many give the same answer; one without an answer scores 0."""

    same: Same = same_answer

    def __call__(self, inputs: Mapping[str, Any], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score a candidate: the votes for its answer."""
        return _by_group(answer_groups(candidates, self.same), [1.0] * len(candidates))


@dataclass(frozen=True)
class WeightedVote:
    """Ranks candidates by the sum of another ranker's scores over those that give the same answer."""

    ranker: Ranker
    same: Same = same_answer

    def __call__(self, inputs: Mapping[str, Any], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score a candidate: the weight of its answer."""
        return _by_group(answer_groups(candidates, self.same), self.ranker(inputs, candidates))


def _by_group(groups: Sequence[Sequence[int]], weights: Sequence[float]) -> list[float]:
    scores = [0.0] * len(weights)
    for group in groups:
        total = math.fsum(weights[place] for place in group)
        for place in group:
            scores[place] = total
    return scores


def read_candidate(prediction: Any) -> tuple[tuple[str, ...], str]:
    """Return (steps, answer) of a prediction: `steps` or the lines of `reasoning`, and `answer`.

    >>> read_candidate(dspy.Prediction(reasoning="2 + 2 = 4\\n\\n4 * 2 = 8", answer=8))
    (('2 + 2 = 4', '4 * 2 = 8'), '8')
    """
    found = prediction.get("steps") or prediction.get("reasoning") or ""
    lines = found.splitlines() if isinstance(found, str) else [str(step) for step in found]
    answer = prediction.get("answer")
    return tuple(line.strip() for line in lines if line.strip()), "" if answer is None else str(answer)


class BestOfN(dspy.Module):
    """Draws `n` candidates of a program at once and returns the prediction of the best, the first of equals.

    Every candidate is a call with a `rollout_id` of its own, made of `seed` and that of the model in use, so that the
    same call gives the same candidates. `read` gives a prediction's steps and answer. The returned prediction also has
    `candidates` (all that were read) and `scores` (theirs), `failed` counts what could not be read; only where all
    failed the first error is raised. BudgetExceeded passes through. Raises InputError for scores that are not one
    number a candidate.
    """

    def __init__(
        self,
        program: dspy.Module,
        ranker: Ranker,
        *,
        n: int = 8,
        temperature: float = 0.7,
        seed: int = 0,
        read: Callable[[Any], tuple[tuple[str, ...], str]] = read_candidate,
    ) -> None:
        super().__init__()
        if n < 1 or temperature <= 0:
            raise InputError(f"n={n}, temperature={temperature:g}", valid="1 candidate or more, a temperature above 0")
        self.program = program
        self.ranker, self.n, self.temperature, self.seed, self.read = ranker, n, temperature, seed, read

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the best candidate's prediction."""
        with ThreadPoolExecutor(min(self.n, _MOST_THREADS)) as pool:
            context = contextvars.copy_context
            jobs = [pool.submit(context().run, self._draw, inputs, sample) for sample in range(self.n)]
            drawn = [job.result() for job in jobs]
        candidates = [one for one in drawn if isinstance(one, Candidate)]
        if not candidates:
            raise cast("list[Exception]", drawn)[0]
        scores = _checked(self.ranker(inputs, candidates), len(candidates))
        best = candidates[max(range(len(scores)), key=lambda place: scores[place])]
        if dspy.settings.trace is not None:
            dspy.settings.trace.extend(best.trace)
        told = {"candidates": candidates, "scores": scores, "failed": self.n - len(candidates)}
        return dspy.Prediction(**{**dict(best.prediction.items()), **told})

    def _draw(self, inputs: Mapping[str, Any], sample: int) -> Candidate | Exception:
        program = self.program.deepcopy()
        own = {id(copy): one for copy, one in zip(program.predictors(), self.program.predictors(), strict=True)}
        for copy in cast("list[Any]", program.predictors()):
            copy.lm = self._sampler(copy.lm or dspy.settings.lm, sample)
        try:
            with dspy.context(trace=[]):
                made = program(**inputs)
                # The trace names the program's own predictors: optimizers look for those.
                trace = tuple((own.get(id(one), one), *rest) for one, *rest in dspy.settings.trace)
            return Candidate(made, *self.read(made), trace)
        except BudgetExceeded:
            raise
        except Exception as error:  # one unparsable answer never ends the others
            return error

    def _sampler(self, lm: Any, sample: int) -> Any:
        drawn = stable_hash([lm.kwargs.get("rollout_id"), self.seed, sample])
        return lm.copy(rollout_id=int(drawn[:7], 16), temperature=self.temperature)


def _checked(scores: Sequence[float], n: int) -> list[float]:
    found = [float(score) for score in scores]
    if len(found) != n or any(math.isnan(score) for score in found):
        raise InputError(f"the ranker gave {found} for {n} candidates", valid="one number a candidate")
    return found
