"""DSPy's prompt optimizers behind one interface: what each needs, and how it is run with a seed.

They see `split.train` and, where they choose, `split.dev`. DSPy draws demonstrations with a fixed seed of
its own, so the training rows arrive in an order that the job's seed decides, classes interleaved.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol, cast

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.demos import draw_demos, row_length, with_demos
from limbeck.compile.feedback import explains, with_feedback
from limbeck.compile.nearest import NearestDemos
from limbeck.compile.split import Split
from limbeck.errors import BudgetExceeded
from limbeck.metrics import score_of
from limbeck.models import LM
from limbeck.models.kinds import is_local
from limbeck.task import Task

THREADS = 16
# One answer that cannot be read never ends a search; DSPy's own limit is ten.
MAX_ERRORS = 1_000_000
_CHARACTERS_PER_TOKEN = 4.0
_FRAME_TOKENS = 12  # a demonstration's turns cost about this much beside its text


@dataclass(frozen=True)
class Job:
    """What an optimizer works on; `reflection_lm` writes instructions, else `lm` does."""

    task: Task
    split: Split
    lm: dspy.LM
    reflection_lm: dspy.LM | None = None
    seed: int = 0
    threads: int = THREADS

    @property
    def train(self) -> list[dspy.Example]:
        """The training rows in the seed's order, classes interleaved."""
        return self.demos(len(self.split.train))

    def demos(self, k: int) -> list[dspy.Example]:
        """Return `k` balanced demonstrations out of the training rows."""
        task = self.task
        return draw_demos(self.split.train, k, self.seed, labels=task.labels, output=task.label_field)

    def metric(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """Return the task's metric as a number; DSPy's optimizers also add and compare it."""
        return score_of(self.task.metric(example, prediction, trace))

    @property
    def threshold(self) -> float:
        """The score from which an answer is a demonstration: right, or half right where there is a half."""
        return 1.0 if self.task.kind in ("classification", "number") else 0.5

    @property
    def prompt_lm(self) -> dspy.LM:
        """The model that writes instructions."""
        return self.reflection_lm or self.lm


class Optimizer(Protocol):
    """One way to compile a program's prompt."""

    @property
    def name(self) -> str:
        """The name a user chooses it by."""
        ...

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Return why it cannot run on this task, "" where it can."""
        ...

    def run(self, job: Job) -> dspy.Module:
        """Return a compiled copy of the task's program."""
        ...


def reasons(task: Task) -> bool:
    """Return whether the program writes something on the way to its outputs: a rationale, another predictor.

    Its demonstrations are then worth bootstrapping: labelled rows say nothing about what comes in between.
    """
    written = [name for p in cast(list[Any], task.program.predictors()) for name in p.signature.output_fields]
    return any(name not in task.output_fields for name in written)


@dataclass(frozen=True)
class LabeledFewShot:
    """Labelled rows as demonstrations, balanced over the classes, as many as fit `tokens` prompt tokens."""

    name: str = "labeled"
    tokens: int = 1200

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs a training row."""
        return _too_few(split, train=1)

    def run(self, job: Job) -> dspy.Module:
        """Show the rows; a class without a row in the prompt is one a small model never answers."""
        lengths = sorted(row_length(row) for row in job.split.train)
        cost = lengths[len(lengths) // 2] / _CHARACTERS_PER_TOKEN + _FRAME_TOKENS
        k = max(4, len(job.task.labels), int(self.tokens / cost))
        demos = job.demos(k)
        compiled = dspy.LabeledFewShot(k=len(demos)).compile(
            job.task.program, trainset=demos, sample=False
        )  # taken in order: balanced
        return with_demos(compiled, demos)


@dataclass(frozen=True)
class BootstrapFewShot:
    """Demonstrations with what the program wrote on the way to a right answer (rejection sampling)."""

    name: str = "bootstrap"
    bootstrapped: int = 4
    labeled: int = 4
    rounds: int = 1

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs two training rows: a demonstration and a row to ask."""
        return _too_few(split, train=2)

    def run(self, job: Job) -> dspy.Module:
        """Ask row after row until enough answers are right."""
        labeled = _labeled(job.task, self.labeled)
        if not labeled:
            _ask_ahead(job, self.bootstrapped)
        optimizer = dspy.BootstrapFewShot(
            metric=job.metric,
            metric_threshold=job.threshold,
            max_bootstrapped_demos=self.bootstrapped,
            max_labeled_demos=labeled,
            max_rounds=self.rounds,
            max_errors=MAX_ERRORS,
        )
        return optimizer.compile(job.task.program, trainset=job.train)


@dataclass(frozen=True)
class RandomSearch:
    """Several draws of bootstrapped demonstrations, the best on dev taken."""

    name: str = "random-search"
    candidates: int = 6
    bootstrapped: int = 4
    labeled: int = 8

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs rows to draw from and rows to choose on."""
        return _too_few(split, train=4, dev=4)

    def run(self, job: Job) -> dspy.Module:
        """Compile and score every draw."""
        optimizer = dspy.BootstrapFewShotWithRandomSearch(
            metric=job.metric,
            metric_threshold=job.threshold,
            max_bootstrapped_demos=self.bootstrapped,
            max_labeled_demos=_labeled(job.task, self.labeled),
            num_candidate_programs=self.candidates,
            num_threads=job.threads,
            max_errors=MAX_ERRORS,
        )
        return optimizer.compile(job.task.program, trainset=job.train, valset=list(job.split.dev))


@dataclass(frozen=True)
class MIPROv2:
    """Instructions and demonstrations searched together by Bayesian optimization (arXiv:2406.11695).

    `trials` above 0 takes the place of `auto`, with `candidates` instructions and demonstration sets.
    """

    name: str = "mipro"
    auto: Literal["light", "medium", "heavy"] = "light"
    trials: int = 0
    candidates: int = 3
    bootstrapped: int = 4
    labeled: int = 4

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs optuna, and rows enough for its surrogate to see more than noise."""
        if find_spec("optuna") is None:
            return "optuna is not installed: pip install optuna"
        return _too_few(split, train=8, dev=8)

    def run(self, job: Job) -> dspy.Module:
        """Propose with the reflection model, score on dev."""
        by_hand = self.trials > 0
        optimizer = dspy.MIPROv2(
            metric=job.metric,
            metric_threshold=job.threshold,
            prompt_model=job.prompt_lm,
            task_model=job.lm,
            auto=None if by_hand else self.auto,
            num_candidates=self.candidates if by_hand else None,
            max_bootstrapped_demos=self.bootstrapped,
            max_labeled_demos=_labeled(job.task, self.labeled),
            num_threads=job.threads,
            max_errors=MAX_ERRORS,
            seed=job.seed + 1,  # DSPy takes a seed of 0 for none
        )
        extra: dict[str, Any] = {"num_trials": self.trials, "minibatch": False} if by_hand else {}
        valset = list(job.split.dev)
        return optimizer.compile(job.task.program.deepcopy(), trainset=job.train, valset=valset, **extra)


@dataclass(frozen=True)
class GEPA:
    """Instructions rewritten by a model that reads what went wrong (arXiv:2507.19457).

    `calls` above 0, a number of metric calls, takes the place of `auto`.
    """

    name: str = "gepa"
    auto: Literal["light", "medium", "heavy"] = "light"
    calls: int = 0

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs a reflection model, a metric that says what went wrong, and rows."""
        if reflection_lm is None:
            return "it needs a reflection model, stronger than the one that answers"
        if not explains(task.metric):
            return (
                "it needs a metric with feedback: metric(gold, pred, trace, pred_name, pred_trace) "
                "that returns dspy.Prediction(score=..., feedback=...)"
            )
        return _too_few(split, train=6, dev=6)

    def run(self, job: Job) -> dspy.Module:
        """Evolve the instructions within the budget of metric calls."""
        budget: dict[str, Any] = {"max_metric_calls": self.calls} if self.calls else {"auto": self.auto}
        optimizer = dspy.GEPA(
            metric=with_feedback(job.task),
            reflection_lm=cast(Any, job.reflection_lm),
            num_threads=job.threads,
            seed=job.seed,
            **budget,
        )
        return optimizer.compile(job.task.program, trainset=job.train, valset=list(job.split.dev))


@dataclass(frozen=True)
class SIMBA:
    """Rules and demonstrations from the rows whose answers vary most between samples."""

    name: str = "simba"
    steps: int = 4
    candidates: int = 4
    batch: int = 32
    demos: int = 4

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs a batch of training rows."""
        return _too_few(split, train=8)

    def run(self, job: Job) -> dspy.Module:
        """Sample, contrast and keep what scores best on the training rows."""
        optimizer = dspy.SIMBA(
            metric=job.metric,
            bsize=min(self.batch, len(job.split.train)),
            num_candidates=self.candidates,
            max_steps=self.steps,
            max_demos=self.demos,
            prompt_model=job.prompt_lm,
            num_threads=job.threads,
        )
        return optimizer.compile(job.task.program, trainset=job.train, seed=job.seed)


@dataclass(frozen=True)
class COPRO:
    """Instructions proposed and refined by coordinate ascent on the training rows."""

    name: str = "copro"
    breadth: int = 4
    depth: int = 2

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs training rows to score instructions on."""
        return _too_few(split, train=8)

    def run(self, job: Job) -> dspy.Module:
        """Score `breadth` instructions, `depth` times."""
        optimizer = dspy.COPRO(metric=job.metric, breadth=self.breadth, depth=self.depth, prompt_model=job.prompt_lm)
        scoring = {"num_threads": job.threads, "display_progress": False}
        return optimizer.compile(job.task.program, trainset=job.train, eval_kwargs=scoring)


@dataclass(frozen=True)
class KNNFewShot:
    """For every input, the labelled rows most like it as demonstrations."""

    name: str = "knn"
    k: int = 6

    def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
        """Needs more training rows than it shows."""
        return _too_few(split, train=self.k + 1)

    def run(self, job: Job) -> dspy.Module:
        """Index the training rows."""
        return NearestDemos(job.task.program, job.train, k=self.k)


# Those that write instructions; of the others, demonstrations are the whole product.
INSTRUCTING = frozenset({"mipro", "gepa", "simba", "copro"})


def built_in() -> dict[str, Optimizer]:
    """Return every optimizer by the name a user chooses it by, in its default setting."""
    every: tuple[Optimizer, ...] = (
        LabeledFewShot(),
        BootstrapFewShot(),
        RandomSearch(),
        MIPROv2(),
        GEPA(),
        SIMBA(),
        COPRO(),
        KNNFewShot(),
    )
    return {one.name: one for one in every}


def for_effort(effort: Literal["quick", "standard", "thorough"], task: Task) -> tuple[Optimizer, ...]:
    """Return what an effort level tries; the first one is the default where nothing can be compared.

    quick: few calls (two amounts of labelled rows, or bootstrapped rationales); standard: random search and
    MIPROv2's light search as well; thorough: wider searches and GEPA.
    """
    few: tuple[Optimizer, ...] = (
        (BootstrapFewShot(),) if reasons(task) else (LabeledFewShot(), LabeledFewShot("labeled-short", tokens=400))
    )
    if effort == "quick":
        return few
    if effort == "standard":
        return (*few, RandomSearch(), MIPROv2())
    return (*few, RandomSearch(candidates=12), MIPROv2(auto="medium"), GEPA())


def _ask_ahead(job: Job, wanted: int) -> None:
    """Let local weights answer training rows in batches until `wanted` are right: the ledger then answers DSPy's calls,
    which come one by one. A server is left to DSPy: it might be asked, and paid, for more than DSPy asks.
    """
    if not isinstance(job.lm, LM) or job.lm.ledger is None or not is_local(job.lm.model):
        return
    program = job.task.program.deepcopy()

    def right(example: dspy.Example) -> bool:
        try:
            return job.metric(example, program(**example.inputs())) >= job.threshold
        except BudgetExceeded:
            raise
        except Exception:  # DSPy meets the same answer and counts it
            return False

    rows, found = job.train, 0
    wave = 2 * wanted
    for start in range(0, len(rows), wave):
        asked = [(copy_context(), row) for row in rows[start : start + wave]]
        found += sum(concurrently(lambda one: one[0].run(right, one[1]), asked, threads=job.threads))
        if found >= wanted:
            break


def _labeled(task: Task, wanted: int) -> int:
    # A labelled row without a rationale teaches a small model to leave it out.
    return 0 if reasons(task) else wanted


def _too_few(split: Split, *, train: int = 0, dev: int = 0) -> str:
    if len(split.train) < train:
        return f"it needs {train} training rows and there are {len(split.train)}"
    if len(split.dev) < dev:
        return f"it needs {dev} dev rows and there are {len(split.dev)}"
    return ""
