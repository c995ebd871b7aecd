"""Rounds: what stops them, which one is kept, and that the student carries the best one's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from limbeck.engine.chat import Chat
from limbeck.engine.loading import LoadedModel
from limbeck.errors import BudgetExceeded, InputError
from limbeck.finetune.adapters import attach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.round_report import Round
from limbeck.finetune.rounds import Gathered, RoundsConfig, adapter_weights, run_rounds
from limbeck.finetune.rows import TrainRow

TRAINING = TrainConfig(lr=1e-2, max_steps=2, batch_size=2, rank=4, alpha=8)


def make_rows(loaded: LoadedModel, answer: str) -> list[TrainRow]:
    chat = Chat(loaded.tokenizer)
    branch = ((*chat.ids(answer), chat.end_of_turn), 1.0)
    return [TrainRow(chat.prompt((("user", word),)).ids, (branch,)) for word in ("one", "two")]


@dataclass
class Script:
    """A practice with given scores a round, 0 first, and given diversities; it notes the weights it sees."""

    scores: Sequence[Sequence[float]]
    diversity: Sequence[float] = (1.0,) * 9
    empty: int = 0
    seen: list[Any] = field(default_factory=list[Any])
    fingerprints: list[str] = field(default_factory=list[str])

    def gather(self, number: int, student: LoadedModel) -> Gathered:
        rows = [] if number == self.empty else make_rows(student, ("yes", "no", "maybe", "spam")[number % 4])
        return Gathered(rows, self.diversity[number - 1], {"asked": float(number)})

    def measure(self, student: LoadedModel) -> Sequence[float]:
        self.seen.append(adapter_weights(student.model))
        self.fingerprints.append(student.fingerprint)
        return self.scores[len(self.seen) - 1]


def same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


BAD, FAIR, GOOD, BEST = [0.0] * 4, [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("restart", [False, True])
def test_rounds_go_on_while_they_gain_and_the_last_best_is_kept(fresh_tiny: LoadedModel, restart: bool) -> None:
    script = Script([BAD, GOOD, BEST, [1.0, 1.0, 0.0, 1.0]])
    seen: list[Round] = []
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(restart=restart), progress=seen.append)
    report = done.report
    assert (report.stop, report.best, len(report.rounds)) == ("no gain", 2, 4)
    assert [one.score.mean for one in seen] == [0.0, 0.5, 1.0, 0.75]
    assert [one.gain for one in report.rounds] == [0.0, 0.5, 0.5, -0.25]
    assert [one.rows for one in report.rounds] == [0, 2, 2, 2]
    assert report.rounds[3].counts == {"asked": 3.0}
    assert same(adapter_weights(done.loaded.model), script.seen[2])
    assert not same(script.seen[2], script.seen[3])
    assert done.loaded.fingerprint == script.fingerprints[2] != script.fingerprints[3]


def test_restarted_rounds_begin_at_the_given_student_and_others_at_the_round_before(fresh_tiny: LoadedModel) -> None:
    script = Script([BAD, GOOD, BEST])
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(most=2, restart=True))
    model: Any = done.loaded.model
    model.unload()
    alone = train(fresh_tiny, make_rows(fresh_tiny, "maybe"), TRAINING)
    assert same(adapter_weights(alone.loaded.model), script.seen[2])
    alone.unload()
    onward = Script([BAD, GOOD, BEST])
    run_rounds(fresh_tiny, onward, TRAINING, RoundsConfig(most=2))
    assert same(onward.seen[1], script.seen[1])
    assert not same(onward.seen[2], script.seen[2])


def test_a_score_that_falls_by_more_than_its_error_is_a_collapse(fresh_tiny: LoadedModel) -> None:
    script = Script([GOOD, BEST, BAD])
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(patience=3))
    assert (done.report.stop, done.report.best) == ("collapse of score", 1)
    assert "round 2: -1.000" in done.report.reason
    assert same(adapter_weights(done.loaded.model), script.seen[1])


def test_answers_that_grow_alike_are_a_collapse_and_are_not_trained_on(fresh_tiny: LoadedModel) -> None:
    script = Script([BAD, FAIR, GOOD, BEST], diversity=(0.8, 0.5, 0.39))
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(patience=3))
    assert (done.report.stop, done.report.best) == ("collapse of diversity", done.report.rounds[-1].number)
    assert len(done.report.rounds) == 3
    assert "0.390 is below 0.5 of the first round's 0.800" in done.report.reason
    assert same(adapter_weights(done.loaded.model), script.seen[2])


def test_the_alarm_of_diversity_can_be_off(fresh_tiny: LoadedModel) -> None:
    script = Script([BAD, FAIR, GOOD], diversity=(0.8, 0.0))
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(most=2, diversity_share=0.0, patience=2))
    assert done.report.stop == "all rounds"


def test_without_a_gain_the_student_is_as_it_was_given(fresh_tiny: LoadedModel) -> None:
    before = {name: p.detach().clone() for name, p in fresh_tiny.model.named_parameters()}
    done = run_rounds(fresh_tiny, Script([GOOD, GOOD]), TRAINING)
    assert (done.report.stop, done.report.best) == ("no gain", 0)
    assert done.loaded is fresh_tiny
    after = dict(fresh_tiny.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_patience_allows_rounds_without_gain(fresh_tiny: LoadedModel) -> None:
    script = Script([FAIR, FAIR, GOOD, GOOD, [0.0, 1.0, 1.0, 0.0]])
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(patience=2))
    # A gain of one row in four is not more than its error: nothing is better than the beginning by then.
    assert [round(one.gain, 2) for one in done.report.rounds] == [0.0, 0.0, 0.25]
    assert (done.report.stop, done.report.best) == ("no gain", 0)


def test_nothing_gathered_ends_the_rounds(fresh_tiny: LoadedModel) -> None:
    done = run_rounds(fresh_tiny, Script([BAD, GOOD, BEST], empty=2), TRAINING)
    assert (done.report.stop, done.report.best, len(done.report.rounds)) == ("nothing to learn", 1, 2)


def test_a_student_with_an_adapter_goes_on_with_it_and_gets_it_back(fresh_tiny: LoadedModel) -> None:
    given = train(fresh_tiny, make_rows(fresh_tiny, "spam"), TRAINING).loaded
    weights = adapter_weights(given.model)
    script = Script([GOOD, BAD])
    done = run_rounds(given, script, TRAINING, RoundsConfig(restart=True))
    assert same(script.seen[0], weights)
    assert done.report.stop == "collapse of score"
    assert same(adapter_weights(done.loaded.model), weights)
    assert done.loaded.fingerprint == given.fingerprint


@dataclass
class Broken(Script):
    """Its third measurement raises: that of the second round, after its training."""

    error: BaseException = field(default_factory=KeyboardInterrupt)
    student: Any = None

    def measure(self, student: LoadedModel) -> Sequence[float]:
        if len(self.seen) == 2:
            self.student = student.model
            raise self.error
        return super().measure(student)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BudgetExceeded("spent")])
def test_an_interruption_is_raised_and_leaves_the_best_weights(fresh_tiny: LoadedModel, error: BaseException) -> None:
    script = Broken([BAD, GOOD], error=error)
    with pytest.raises(type(error)):
        run_rounds(fresh_tiny, script, TRAINING)
    assert same(adapter_weights(script.student), script.seen[1])


@pytest.mark.parametrize("restart", [False, True])
def test_an_exception_in_a_round_ends_the_rounds_with_the_best_weights(fresh_tiny: LoadedModel, restart: bool) -> None:
    script = Broken([BAD, GOOD], error=ZeroDivisionError("no\nrows"))
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(restart=restart))
    assert (done.report.stop, done.report.best, len(done.report.rounds)) == ("failed", 1, 2)
    assert done.report.reason == "round 2: ZeroDivisionError: no rows"
    assert same(adapter_weights(done.loaded.model), script.seen[1])


def test_a_training_that_fails_from_the_start_leaves_the_best_weights(fresh_tiny: LoadedModel) -> None:
    class Long(Script):
        def gather(self, number: int, student: LoadedModel) -> Gathered:
            rows = [TrainRow((5,) * 2000, (((6,), 1.0),))] if number == 2 else make_rows(student, "yes")
            return Gathered(rows, 1.0)

    script = Long([BAD, GOOD])
    done = run_rounds(fresh_tiny, script, TRAINING, RoundsConfig(restart=True))
    assert (done.report.stop, done.report.best) == ("failed", 1)
    assert same(adapter_weights(done.loaded.model), script.seen[1])


def test_returns_beyond_one_have_their_own_scale(fresh_tiny: LoadedModel) -> None:
    done = run_rounds(fresh_tiny, Script([[-1.0, 1.0, -1.0, 1.0], [1.0] * 4]), TRAINING, RoundsConfig(most=1))
    assert done.report.rounds[1].score.low < 0 < done.report.rounds[1].score.high == 1


def test_weights_are_copies(fresh_tiny: LoadedModel) -> None:
    assert adapter_weights(fresh_tiny.model) is None
    model: Any = attach_lora(fresh_tiny.model, TRAINING)
    before = adapter_weights(model)
    assert before
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1.0)
    assert all(float(value.abs().max()) == 0.0 for name, value in before.items() if "lora_B" in name)


def test_impossible_settings_and_too_few_held_out_rows_are_refused(fresh_tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="most=0"):
        RoundsConfig(most=0)
    with pytest.raises(InputError, match="diversity_share=2"):
        RoundsConfig(diversity_share=2.0)
    with pytest.raises(InputError, match="1 held-out rows"):
        run_rounds(fresh_tiny, Script([[1.0]]), TRAINING)
