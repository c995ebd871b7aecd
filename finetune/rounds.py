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
from limbeck.errors import InputError
from limbeck.finetune.loop import TrainConfig, detach_lora, train
from limbeck.finetune.round_report import Round, RoundReport, RoundStop
from limbeck.finetune.rows import TrainRow
from limbeck.stats import mean_ci, mean_gap

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

    A student that has LoRA layers already goes on with them. `progress` gets every measured round. An exception, Ctrl-C
    included, leaves the student as it was given. Raises InputError for fewer than two held-out rows.
    """
    run = _Run(loaded, practice, training, config or RoundsConfig(), progress)
    try:
        stop, reason = run.all()
    except BaseException:
        run.put(run.given, loaded.fingerprint)
        raise
    run.put(run.best, run.best_fingerprint)
    return RoundsResult(run.student, RoundReport(tuple(run.rounds), run.best_round, stop, reason))


Weights = dict[str, Any]


def adapter_weights(model: Any) -> Weights | None:
    """Return a copy of the LoRA layers' weights, None for a model without any."""
    import peft

    if not isinstance(model, peft.PeftModel):
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
        self.rounds: list[Round] = []

    def all(self) -> tuple[RoundStop, str]:
        """Run the rounds; return why they ended, in a word and in a sentence."""
        self.scores = self.practice.measure(self.student)
        if len(self.scores) < 2:
            raise InputError(f"{len(self.scores)} held-out rows", valid="2 or more, to tell a gain from chance")
        self._add(Round(0, mean_ci(self.scores)))
        first, without = 0.0, 0
        for number in range(1, self.config.most + 1):
            gathered = self.practice.gather(number, self.student)
            first = first if number > 1 else gathered.diversity
            if gathered.diversity < self.config.diversity_share * first:
                share = f"{self.config.diversity_share:g} of the first round's {first:.3f}"
                return "collapse of diversity", f"round {number}: {gathered.diversity:.3f} is below {share}"
            if not gathered.rows:
                return "nothing to learn", f"round {number} gathered no row"
            done = self._round(number, gathered)
            if done.gain < -done.error:
                return "collapse of score", f"round {number}: {done.gain:+.3f}, standard error {done.error:.3f}"
            without = 0 if self.best_round == number else without + 1
            if without == self.config.patience:
                return "no gain", f"round {number}: {done.gain:+.3f}, standard error {done.error:.3f}"
        return "all rounds", f"{self.config.most} rounds"

    def put(self, weights: Weights | None, fingerprint: str) -> None:
        """Give the student these LoRA weights; None takes the layers out."""
        if weights is None:
            detach_lora(self.student.model)
            self.student = self.loaded
        else:
            on_compute_thread(_load_weights, self.student.model, weights)
            self.student = replace(self.student, fingerprint=fingerprint)

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
        return self._add(
            Round(number, mean_ci(scores), gain, error, gathered.diversity, len(gathered.rows), gathered.counts)
        )

    def _add(self, done: Round) -> Round:
        self.rounds.append(done)
        if self.progress is not None:
            self.progress(done)
        return done
