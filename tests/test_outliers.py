"""Languages and lengths that stand apart, and those that only seem to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.curate import curate
from limbeck.compile.outliers import LanguageOutliers, LengthOutliers, guess_language
from limbeck.compile.thresholds import CurateConfig
from limbeck.records import Provenance, Record

ENGLISH = ["Where is the parcel that I ordered from you last week?", "The oven burns my bread on one side only."]
GERMAN = ["Wo ist das Paket, das ich letzte Woche bei euch bestellt habe?", "Der Ofen verbrennt mein Brot nur links."]


@pytest.mark.parametrize("text", ["", "ok", "12345 67890 !!!", "Paris, 24.12.", "🙂" * 40])
def test_too_few_letters_are_no_language(text: str) -> None:
    assert guess_language(text) is None


def test_numbers_do_not_tell_a_language() -> None:
    plain = "where is the second parcel of my order from last week"
    numbered = plain.replace("second", "2nd 4155 / 2671 ###")
    assert guess_language(plain) is not None
    guess = guess_language(numbered)
    assert guess is not None
    assert guess.language == "en"


def test_only_languages_that_no_real_row_is_in_are_odd() -> None:
    one = LanguageOutliers([{"text": t} for t in ENGLISH])
    both = LanguageOutliers([{"text": t} for t in (*ENGLISH, *GERMAN)])
    assert one.odd({"text": GERMAN[0]})
    assert not any(both.odd({"text": t}) for t in (*ENGLISH, *GERMAN))
    assert not one.odd({"text": "Wo ist es?"})
    assert one.odd({"text": "Où est le colis que j'ai commandé la semaine dernière ?"})


def test_fields_have_languages_of_their_own() -> None:
    rows = [{"source": e, "target": g} for e, g in zip(ENGLISH, GERMAN, strict=True)]
    rule = LanguageOutliers(rows)
    assert rule.languages == {"source": ("en",), "target": ("de",)}
    assert not rule.odd(rows[0])
    assert rule.odd({"source": ENGLISH[0], "target": ENGLISH[1]})


def test_short_real_texts_tell_their_language_together_or_not_at_all() -> None:
    together = LanguageOutliers([{"text": t} for t in ("where is it", "my card", "the money", "how long", "not yet")])
    assert together.languages == {"text": ("en",)}
    assert together.odd({"text": GERMAN[0]})
    silent = LanguageOutliers([{"text": "x1"}, {"text": "x2"}, {"n": 4}])
    assert silent.languages == {}
    assert not silent.odd({"text": GERMAN[0]})


def test_languages_taken_for_each_other_count_as_one() -> None:
    rule = LanguageOutliers([{"text": "Pakken min skulle ha kommet på tirsdag, men den er ikke her ennå."}])
    assert not rule.odd({"text": "Min pakke skulle være kommet i tirsdags, men den er her ikke endnu."})


LENGTHS = [{"text": "x" * n} for n in (38, 40, 44, 47, 50, 52, 55, 60, 66, 75)]


def test_a_few_odd_real_rows_do_not_move_the_rule() -> None:
    plain = LengthOutliers(LENGTHS)
    dirty = LengthOutliers([*LENGTHS, {"text": "x" * 5000}, {"text": "x"}])
    for rule in (plain, dirty):
        assert not any(rule.odd(row) for row in LENGTHS)
        assert rule.odd({"text": "x" * 4000})
        assert rule.odd({"text": "xx"})


def test_skewed_lengths_have_a_spread_on_either_side() -> None:
    skewed = [{"text": "x" * n} for n in (*range(36, 60), *range(60, 400, 14))]
    rule = LengthOutliers(skewed)
    assert not rule.odd({"text": "x" * 900})
    assert rule.odd({"text": "x" * 4})
    assert rule.score({"text": "x" * 300}) < rule.score({"text": "x" * 12})


def test_real_rows_of_one_length_leave_some_room() -> None:
    rule = LengthOutliers([{"text": "x" * 40 + str(i)} for i in range(10)])
    assert not rule.odd({"text": "x" * 50})
    assert rule.odd({"text": "x" * 400})


def test_a_repeated_passage_counts_once_and_few_texts_judge_nothing() -> None:
    rows = [{"context": "x" * (40 + i // 50)} for i in range(100)]
    assert not LengthOutliers(rows).odd({"context": "x" * 5000})
    assert not LengthOutliers([]).odd({"text": "anything"})


@given(st.lists(st.integers(1, 400), min_size=8, max_size=40, unique=True), st.integers(0, 2000))
def test_scores_are_distances(lengths: list[int], new: int) -> None:
    rule = LengthOutliers([{"text": "x" * n} for n in lengths])
    middle = sorted(lengths)[len(lengths) // 2]
    assert rule.score({"text": "x" * new}) >= 0
    assert rule.score({"text": "x" * middle}) <= 3.5
    assert rule.score({"text": "x" * (max(lengths) + 1000)}) >= rule.score({"text": "x" * (max(lengths) + 10)})


def test_the_users_own_rows_and_labels_are_not_judged() -> None:
    gold = [Record({"text": t}, {"label": "sehr lange deutsche Bezeichnung einer Klasse"}, Provenance("gold", seed=i))
            for i, t in enumerate(ENGLISH * 5)]  # fmt: skip
    made = Record({"text": GERMAN[0]}, {"label": "x"}, Provenance("self_instruct"))
    pool = Record({"text": GERMAN[1]}, {"label": "x"}, Provenance("pool"))
    done = curate([made, pool], gold=gold, protected=(), config=CurateConfig(language=0.9, length_limit=3.5))
    assert [r.reason for r in (*done.kept, *done.rejected)] == ["", "language"]
