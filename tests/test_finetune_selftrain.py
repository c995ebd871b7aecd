"""Self-training: which answers are kept and why not, their records, and that a student gets better by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from limbeck.compile.distribution import distinct
from limbeck.engine.chat import Chat
from limbeck.engine.loading import LoadedModel
from limbeck.engine.requests import Generation
from limbeck.errors import InputError
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.rounds import RoundsConfig, run_rounds
from limbeck.finetune.rows import TrainRow
from limbeck.finetune.selftrain import Problem, SelfTraining, check_by
from limbeck.records import SELF_RATED
from limbeck.verifiers import NonEmpty, Verdict


def problem(number: int) -> Problem:
    return Problem({"n": number}, (("user", f"say {number}"),))


def short(inputs: Mapping[str, Any], answer: str) -> float:
    """Right is an answer of at most four characters."""
    return float(len(answer) <= 4)


def make(check: Any = short, **options: Any) -> SelfTraining:
    held_out = [problem(n) for n in range(100, 112)]
    settings: dict[str, Any] = {"diversity": partial(distinct, order=2), "max_tokens": 6, **options}
    return SelfTraining([problem(n) for n in range(12)], held_out, check, **settings)


def said(text: str, finish: str = "stop") -> Generation:
    return Generation(text, 5, 2, finish)  # pyright: ignore[reportArgumentType]


def test_answers_are_sorted_by_what_is_wrong_with_them(fresh_tiny: LoadedModel) -> None:
    practice = make(most=2)
    drawn = [said("ok"), said("far too long"), said("cut", "length"), said(" ok "), said("no"), said("yes")]
    records = practice._sort(problem(3), drawn, 2, fresh_tiny)
    assert [r.reason for r in records] == ["", "not verified", "unfinished", "duplicate", "", "enough"]
    assert [r.outputs["answer"] for r in records] == [one.text for one in drawn]
    assert {r.provenance.level for r in records} == {SELF_RATED}
    assert {r.provenance.teacher for r in records} == {"tiny-llama"}
    assert len({r.id for r in records}) == 6
    assert records[1].scores == {"verified": 0.0}


@pytest.mark.parametrize(("score", "kept"), [(0.4, False), (0.5, True), (float("nan"), False)])
def test_a_metric_is_held_against_the_threshold(fresh_tiny: LoadedModel, score: float, kept: bool) -> None:
    practice = make(lambda inputs, answer: score, threshold=0.5)
    (record,) = practice._sort(problem(0), [said("ok")], 1, fresh_tiny)
    assert record.kept is kept


def test_rows_are_the_kept_answers_behind_their_problems(fresh_tiny: LoadedModel) -> None:
    practice = make(lambda inputs, answer: 1.0, samples=6, most=3, max_tokens=40)
    gathered = practice.gather(1, fresh_tiny)
    kept = [r for r in practice.records if r.kept]
    assert len(practice.records) == gathered.counts["answers"] == 72
    assert 0 < len(gathered.rows) == len(kept) < 72
    assert max(Counter(r.inputs["n"] for r in kept).values()) <= 3
    chat = Chat(fresh_tiny.tokenizer)
    for row, record in zip(gathered.rows, kept, strict=True):
        assert row.prompt == chat.prompt(problem(record.inputs["n"]).messages).ids
        assert row.branches == (((*chat.ids(record.outputs["answer"]), chat.end_of_turn), 1.0),)
    reasons = Counter(r.reason for r in practice.records if not r.kept)
    assert {name: n for name, n in gathered.counts.items() if name != "answers"} == dict(reasons)
    assert gathered.diversity == distinct([r.outputs["answer"] for r in practice.records], 2)


def test_draws_are_seeded_by_round_problem_and_sample(fresh_tiny: LoadedModel) -> None:
    def texts(number: int, seed: int = 0) -> list[str]:
        practice = make(samples=2, seed=seed)
        practice.gather(number, fresh_tiny)
        return [r.outputs["answer"] for r in practice.records]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert texts(1) != texts(1, seed=1)


def test_verifiers_make_a_check_and_one_that_raises_votes_against() -> None:
    class Broken:
        name = "broken"

        def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
            raise ZeroDivisionError

    assert check_by([NonEmpty("answer")])({}, " 4 ") == 1.0
    assert check_by([NonEmpty("answer")])({}, "  ") == 0.0
    assert check_by([NonEmpty("answer"), Broken()])({}, "4") == 0.0
    assert check_by([NonEmpty("move")], "move")({}, "e4") == 1.0


def test_problems_on_both_sides_and_impossible_numbers_are_refused() -> None:
    same = [problem(1)]
    with pytest.raises(InputError, match="1 held-out problems are trained on, such as 'say 1'"):
        SelfTraining(same, same, short, diversity=lambda texts: 1.0)
    with pytest.raises(InputError, match="temperature=0"):
        make(temperature=0.0)


@pytest.mark.slow
def test_a_student_that_wavers_learns_from_its_right_answers(fresh_tiny: LoadedModel) -> None:
    """It was taught "yes" and, a little more, "maybe spam"; only the first is right."""
    chat = Chat(fresh_tiny.tokenizer)
    branches = tuple(((*chat.ids(text), chat.end_of_turn), mass) for text, mass in (("yes", 0.4), ("maybe spam", 0.6)))
    taught = [TrainRow(chat.prompt(problem(n).messages).ids, branches) for n in range(200, 240)]
    config = TrainConfig(lr=1e-2, max_steps=25, batch_size=8, rank=8, alpha=16)
    wavering = train(fresh_tiny, taught, config).loaded
    practice = make(lambda inputs, answer: float(answer == "yes"), samples=6, most=2)
    rounds = RoundsConfig(most=2, restart=True, diversity_share=0.0)
    done = run_rounds(wavering, practice, replace(config, max_steps=10), rounds)
    first, best = done.report.rounds[0], done.report.rounds[done.report.best]
    assert first.score.mean < 0.2
    assert best.score.mean > 0.8
    assert sum(practice.measure(done.loaded)) / 12 == best.score.mean
