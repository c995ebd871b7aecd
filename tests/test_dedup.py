"""Duplicates and contamination against brute force and by example."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.compile import dedup
from limbeck.compile.dedup import Contamination, NearDuplicates, jaccard, normalize, record_text, shingles

WORDS = [
    "please",
    "book",
    "cancel",
    "move",
    "change",
    "a",
    "table",
    "flight",
    "room",
    "for",
    "four",
    "people",
]


def sentence(rng: random.Random, n: int = 14) -> str:
    return " ".join(rng.choice(WORDS) + rng.choice(["", "", "s", "ed"]) for _ in range(n))


@given(st.text())
@example("İstanbul ß ﬁ")
def test_normalize_is_idempotent_and_finds_itself(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)
    index = NearDuplicates()
    index.add("k", text)
    match = index.find(text)
    assert match is not None
    assert (match.key, match.kind) == ("k", "exact")


@pytest.mark.parametrize("variant", ["BOOK a table,  now!", "book a table now", "“Book” a table… now"])
def test_case_blanks_and_punctuation_make_no_difference(variant: str) -> None:
    index = NearDuplicates()
    index.add("first", "Book a table now")
    index.add("second", variant)
    assert len(index) == 1
    match = index.find(variant)
    assert match is not None
    assert match.key == "first"


def test_texts_of_punctuation_alone_stay_apart() -> None:
    index = NearDuplicates()
    index.add("a", "?!")
    assert index.find("...") is None
    assert index.find("") is None


def test_banding_finds_what_brute_force_finds() -> None:
    rng = random.Random(0)
    base = [sentence(rng) for _ in range(150)]
    index = NearDuplicates()
    for i, text in enumerate(base):
        index.add(str(i), text)
    found = missed = 0
    for text in base:
        words = text.split()
        words[rng.randrange(len(words))] = rng.choice(["zebra", "xylophone", "quiz"])
        changed = " ".join(words)
        best = max(jaccard(shingles(changed), shingles(other)) for other in base)
        match = index.find(changed)
        if best >= 0.7:
            found += match is not None
            missed += match is None
        else:
            assert match is None
    assert found > 50
    assert missed <= 0.03 * (found + missed)


def test_work_is_bounded_on_texts_made_from_one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(a: frozenset[int], b: frozenset[int]) -> float:
        calls.append(1)
        return jaccard(a, b)

    monkeypatch.setattr(dedup, "jaccard", counted)
    index = NearDuplicates(threshold=0.99)
    for i in range(200):
        index.add(str(i), f"the parcel with the number {i} has not arrived at my new address yet")
    assert index.find("the parcel with the number x has not arrived at my new address yet") is None
    assert 0 < len(calls) <= 50


def test_different_texts_of_one_topic_are_no_duplicates() -> None:
    index = NearDuplicates()
    index.add("1", "What is the capital of France?")
    assert index.find("Which river flows through Paris?") is None


TEST_ROW = "could you please tell me whether my order of two lamps has left the warehouse"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TEST_ROW.upper() + "?", "exact"),
        (TEST_ROW.replace("lamps", "lamp"), "near"),
        (
            "hello there, " + " ".join(TEST_ROW.split()[4:13]) + " since I am waiting for it with my mother",
            "ngram",
        ),
    ],
)
def test_contamination_is_found_and_named(text: str, kind: str) -> None:
    match = Contamination({"t": TEST_ROW}).find(text)
    assert match is not None
    assert (match.key, match.kind) == ("t", kind)


def test_wording_that_gold_rows_share_is_no_contamination() -> None:
    opening = "I would like to know as soon as possible whether"
    test_row, gold_row = f"{opening} the red train is late", f"{opening} my uncle paid"
    new = f"{opening} giraffes sleep at noon in the northern zoo of the city"
    assert Contamination({"t": test_row}).find(new) is not None
    assert Contamination({"t": test_row}, common=[gold_row]).find(new) is None


def test_short_unrelated_text_is_clean() -> None:
    assert Contamination({"t": TEST_ROW}).find("where are my lamps") is None


def test_record_text_does_not_depend_on_key_order() -> None:
    assert record_text({"a": "x", "b": 2}) == record_text({"b": 2, "a": "x"}) == "x\n2"
