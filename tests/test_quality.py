"""The quality filter on texts of known quality: precision kept aside, thresholds, and grades that teach nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from limbeck.compile.quality import ENCODER, TFIDF, QualityConfig, QualityFilter, quality_filter
from limbeck.errors import StageEmpty

GOOD = ("the angle", "a triangle", "this proof", "the number", "one equation", "the sum", "its square", "the area")
BAD = ("buy now", "click here", "our newsletter", "free shipping", "log in", "cookie banner", "follow us", "sale")
VERBS = ("is", "shows", "gives", "needs", "takes", "makes")
THINGS = ("what", "more", "less", "nothing", "all", "some", "this", "that", "one", "two")


def texts(count: int, seed: int = 0, mixed: float = 0.0) -> dict[str, bool]:
    """Texts with whether they are good; a share `mixed` of them has words of the other kind."""
    rng = random.Random(seed)
    found: dict[str, bool] = {}
    while len(found) < count:
        good = bool(rng.getrandbits(1))
        words = GOOD if good is not (rng.random() < mixed) else BAD
        parts = [f"{rng.choice(words)} {rng.choice(VERBS)} {rng.choice(THINGS)}" for _ in range(3)]
        found[". ".join(parts)] = good
    return found


def made(truth: dict[str, bool], **config: Any) -> QualityFilter:
    def grade(some: Sequence[str]) -> list[int | None]:
        return [5 if truth[text] else 2 for text in some]

    return quality_filter(list(truth), grade, config=QualityConfig(**config), encode=lambda some: None)


def test_what_the_grades_teach_holds_for_texts_nobody_graded() -> None:
    truth = texts(300)
    found = made(truth, graded=90)
    kept = found.keeps(list(truth))
    assert np.mean([keep is good for keep, good in zip(kept, truth.values(), strict=True)]) > 0.97
    report = found.report
    assert (report.trained, report.held, report.features, report.ungraded) == (61, 29, TFIDF, 0)
    assert sum(report.grades.values()) == 90
    assert report.precision is not None
    assert report.precision.low < report.precision.mean == 1.0
    assert report.base is not None
    assert 0.3 < report.base.mean < 0.7


def test_precision_is_that_of_texts_that_had_no_part_in_the_choice() -> None:
    """With a quarter of the words misleading, what is reported is near what holds for 2,000 other texts."""
    reported: list[float] = []
    true: list[float] = []
    for seed in range(8):
        truth = texts(700, seed, mixed=0.25)
        found = made(truth, graded=300, seed=seed, precision=0.7)
        graded = set(found._grades)
        rest = [text for text in truth if text not in graded]
        kept = [truth[text] for text, keep in zip(rest, found.keeps(rest), strict=True) if keep]
        assert found.report.precision is not None
        reported.append(found.report.precision.mean)
        true.append(float(np.mean(kept)))
    assert abs(np.mean(reported) - np.mean(true)) < 0.05
    assert 0.65 < np.mean(true) < 0.85


def test_a_higher_precision_asks_for_a_higher_threshold() -> None:
    truth = texts(400, mixed=0.25)
    low, high = (made(truth, graded=300, precision=wanted).report for wanted in (0.3, 0.99))
    assert low.threshold < high.threshold
    assert low.selected > high.selected
    assert low.recall is not None
    assert low.recall.mean > 0.9


def test_a_graded_text_keeps_its_grade_whatever_the_classifier_says() -> None:
    truth = texts(60)
    odd = next(text for text, good in truth.items() if not good)
    found = quality_filter(
        list(truth), lambda some: [5 if truth[t] or t == odd else 1 for t in some], encode=lambda t: None
    )
    assert found.keeps([odd]) == [True]


def test_grades_of_one_kind_keep_all_or_nothing() -> None:
    truth = dict.fromkeys(texts(40), True)
    found = made(truth, graded=20)
    assert all(found.keeps(list(truth)))
    assert found.report.precision is not None
    assert found.report.recall is not None
    found = made(dict.fromkeys(truth, False), graded=20)
    assert not any(found.keeps(list(truth)))
    assert (found.report.precision, found.report.recall, found.report.selected) == (None, None, 0)


def test_few_texts_are_graded_one_by_one() -> None:
    truth = {"a proof": True, "an angle": True, "buy now": False, "log in": False}
    assert made(truth).keeps(list(truth)) == list(truth.values())
    assert made(truth).report.precision is None


def test_unreadable_grades_are_counted_and_none_at_all_ends_the_stage() -> None:
    truth = texts(60)

    def some_unread(some: Sequence[str]) -> list[int | None]:
        return [None if i % 3 == 0 else 5 if truth[text] else 1 for i, text in enumerate(some)]

    found = quality_filter(list(truth), some_unread, config=QualityConfig(graded=30), encode=lambda t: None)
    assert (found.report.ungraded, found.report.trained + found.report.held) == (10, 20)
    with pytest.raises(StageEmpty, match="none of 30 grades"):
        quality_filter(list(truth), lambda t: [None] * len(t), config=QualityConfig(graded=30), encode=lambda t: None)


def test_the_same_seed_makes_the_same_filter_and_repeats_count_once() -> None:
    truth = texts(80, mixed=0.2)
    rows = [*truth, *truth]

    def run(seed: int) -> list[float]:
        found = quality_filter(
            rows,
            lambda some: [4 if truth[text] else 3 for text in some],
            config=QualityConfig(graded=40, seed=seed),
            encode=lambda some: None,
        )
        assert sum(found.report.grades.values()) == 40
        return [found.report.threshold, *found.probabilities(list(truth))]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_the_report_is_plain_json() -> None:
    log = made(texts(60)).report.as_log()
    assert json.loads(json.dumps(log)) == log
    assert list(log["grades"]) == ["2", "5"]
    assert len(log["precision"]) == 3


def test_the_sentence_encoder_is_asked_once_for_every_text() -> None:
    asked: list[str] = []

    def encode(some: Sequence[str]) -> np.ndarray:
        asked.extend(some)
        return np.array([[1.0, 0.0] if "newsletter" in t else [0.0, 1.0] for t in some], dtype=np.float32)

    rows = [f"{word} {i}" for i in range(20) for word in ("newsletter", "lesson")]
    found = quality_filter(
        rows, lambda some: [1 if "news" in t else 5 for t in some], config=QualityConfig(graded=20), encode=encode
    )
    assert found.report.features == ENCODER
    assert found.keeps(rows) == ["lesson" in row for row in rows]
    assert sorted(asked) == sorted(rows)
