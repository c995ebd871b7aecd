"""Rounds of self-improvement: gather what the student learns from, train, measure, and know when to stop.

One machine for both levels: the student's own verified answers (`selftrain`) and play in an environment (`practice`)
differ in what a round gathers and how it is measured. Whatever ends the rounds, the best one's weights are kept.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.engine.compute import on_compute_thread
from limbeck.errors import BudgetExceeded, InputError
from limbeck.finetune.adapters import attach_lora, detach_lora, has_adapter
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.round_report import Round, RoundReport, RoundStop
from limbeck.finetune.rows import TrainRow
from limbeck.stats import Estimate, mean_ci, mean_gap

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel


@dataclass(frozen=True)
class Gathered:
    """What a round trains on; `diversity` is that of all the student said, kept or not, high where it varies.

    `counts` are further numbers for the report.
    """

    rows: Sequence[TrainRow]
    diversity: float
    counts: Mapping[str, float] = field(default_factory=dict[str, float])


class Practice(Protocol):
    """Where rows come from and how a student is measured."""

    def gather(self, number: int, student: LoadedModel) -> Gathered:
        """Return what the student makes for round `number`, 1 the first."""
        ...

    def measure(self, student: LoadedModel) -> Sequence[float]:
        """Return the student's scores on held-out rows, the same rows in the same order every time."""
        ...


@dataclass(frozen=True)
class RoundsConfig:
    """How many rounds at most, and what ends them.

    A round has gained where it is better than the best before by more than the standard error of the paired difference;
    `patience` rounds in a row without gain end it. It has collapsed where it is worse by more than that error, or where
    the diversity of what the student says falls below `diversity_share` of the first round's (0: never). `restart`
    trains each round from the student as it was given, as ReST-EM does (Singh et al. 2023, arXiv:2312.06585), else from
    the round before.
    """

    most: int = 4
    patience: int = 1
    diversity_share: float = 0.5
    restart: bool = False

    def __post_init__(self) -> None:
        if self.most < 1 or self.patience < 1 or not 0 <= self.diversity_share <= 1:
            raise InputError(
                f"most={self.most}, patience={self.patience}, diversity_share={self.diversity_share:g}",
                valid="most and patience 1 or more, diversity_share 0 to 1",
            )


@dataclass(frozen=True)
class RoundsResult:
    """The best round's student, the given one where none gained, and the report."""

    loaded: LoadedModel
    report: RoundReport


def run_rounds(
    loaded: LoadedModel,
    practice: Practice,
    training: TrainConfig,
    config: RoundsConfig | None = None,
    *,
    progress: Callable[[Round], None] | None = None,
) -> RoundsResult:
    """Improve a student in rounds; `loaded.model` carries the best round's LoRA layers afterwards.

    A student that has LoRA layers already goes on with them. `progress` gets every measured round. An exception in a
    round ends the rounds and is the report's reason; Ctrl-C and BudgetExceeded are raised, and `loaded.model` carries
    the best weights then too. Raises InputError for fewer than two held-out rows and for a base that carries another
    training's layers.
    """
    run = _Run(loaded, practice, training, config or RoundsConfig(), progress)
    try:
        stop, reason = run.all()
    finally:
        run.put(run.best, run.best_fingerprint)
    return RoundsResult(run.student, RoundReport(tuple(run.rounds), run.best_round, stop, reason))


Weights = dict[str, Any]


def adapter_weights(model: Any) -> Weights | None:
    """Return a copy of the LoRA layers' weights, None for a model without any."""
    import peft

    if not has_adapter(model):
        return None
    found = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().clone() for name, weight in found.items()}


def _load_weights(model: Any, weights: Weights) -> None:
    import peft

    peft.set_peft_model_state_dict(model, weights)


class _Run:
    """The state of the rounds: the student now, the best one's weights, what was measured."""

    def __init__(
        self,
        loaded: LoadedModel,
        practice: Practice,
        training: TrainConfig,
        config: RoundsConfig,
        progress: Callable[[Round], None] | None,
    ) -> None:
        self.loaded, self.practice, self.training, self.config = loaded, practice, training, config
        self.progress = progress
        self.student = loaded
        self.given: Weights | None = on_compute_thread(adapter_weights, loaded.model)
        self.best, self.best_fingerprint, self.best_round = self.given, loaded.fingerprint, 0
        self.scores: Sequence[float] = ()
        self.low, self.high = 0.0, 1.0
        self.first, self.without = 0.0, 0
        self.rounds: list[Round] = []

    def all(self) -> tuple[RoundStop, str]:
        """Run the rounds; return why they ended, in a word and in a sentence."""
        self.scores = self.practice.measure(self.student)
        if len(self.scores) < 2:
            raise InputError(f"{len(self.scores)} held-out rows", valid="2 or more, to tell a gain from chance")
        self._add(Round(0, self._interval(self.scores)))
        for number in range(1, self.config.most + 1):
            try:
                ended = self._next(number)
            except BudgetExceeded:
                raise
            except Exception as error:
                # Hours of rounds are not lost with the one that failed.
                return "failed", f"round {number}: {type(error).__name__}: {' '.join(str(error).split())}"
            if ended is not None:
                return ended
        return "all rounds", f"{self.config.most} rounds"

    def put(self, weights: Weights | None, fingerprint: str) -> None:
        """Give the student these LoRA weights; None takes the layers out."""
        if weights is None:
            detach_lora(self.student.model)
            self.student = self.loaded
            return
        # A training that began anew and failed has left no layers.
        model: Any = on_compute_thread(attach_lora, self.student.model, self.training)
        on_compute_thread(_load_weights, model, weights)
        model.eval().requires_grad_(False)
        self.student = replace(self.student, model=model, fingerprint=fingerprint)

    def _next(self, number: int) -> tuple[RoundStop, str] | None:
        """Take one round; return why it is the last one, None where it is not."""
        gathered = self.practice.gather(number, self.student)
        self.first = self.first if number > 1 else gathered.diversity
        if gathered.diversity < self.config.diversity_share * self.first:
            share = f"{self.config.diversity_share:g} of the first round's {self.first:.3f}"
            return "collapse of diversity", f"round {number}: {gathered.diversity:.3f} is below {share}"
        if not gathered.rows:
            return "nothing to learn", f"round {number} gathered no row"
        done = self._round(number, gathered)
        if done.gain < -done.error:
            return "collapse of score", f"round {number}: {done.gain:+.3f}, standard error {done.error:.3f}"
        self.without = 0 if self.best_round == number else self.without + 1
        if self.without == self.config.patience:
            return "no gain", f"round {number}: {done.gain:+.3f}, standard error {done.error:.3f}"
        return None

    def _round(self, number: int, gathered: Gathered) -> Round:
        """Train and measure one round; the best so far is kept aside."""
        if self.config.restart:
            self.put(self.given, self.loaded.fingerprint)
        self.student = train(self.student, gathered.rows, self.training).loaded
        scores = self.practice.measure(self.student)
        gain, error = mean_gap(scores, self.scores)
        if gain > error:
            self.best, self.best_fingerprint = (
                on_compute_thread(adapter_weights, self.student.model),
                self.student.fingerprint,
            )
            self.best_round, self.scores = number, scores
        score = self._interval(scores)
        return self._add(Round(number, score, gain, error, gathered.diversity, len(gathered.rows), gathered.counts))

    def _interval(self, scores: Sequence[float]) -> Estimate:
        """Return the mean with its 95% interval, on the scale of all scores seen where they lie beyond [0, 1].

        Equal scores of 0 or 1 have an interval of their own only at an end of the scale: returns from -1 to 1 that are
        all 0 are not at one.
        """
        self.low, self.high = min(self.low, *scores), max(self.high, *scores)
        span = self.high - self.low
        found = mean_ci([(score - self.low) / span for score in scores])
        return Estimate(*(self.low + span * value for value in found))

    def _add(self, done: Round) -> Round:
        self.rounds.append(done)
        if self.progress is not None:
            self.progress(done)
        return done
