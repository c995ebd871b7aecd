"""Verbatim overlap against brute force, and which fields are the task's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.curate import curate
from limbeck.compile.dedup import normalize
from limbeck.compile.overlap import Documents, OverlapConfig, Verbatim
from limbeck.compile.thresholds import CurateConfig
from limbeck.errors import InputError
from limbeck.records import Provenance, Record

WORDS = [f"w{i}" for i in range(400)]
RNG = random.Random(0)
PASSAGE = " ".join(RNG.choice(WORDS) for _ in range(120))
OTHER = " ".join(RNG.choice(WORDS) for _ in range(120))


def longest_run(text: str, documents: list[str], least: int) -> int:
    words = normalize(text).split()
    best = 0
    for document in documents:
        plain = f" {normalize(document)} "
        for i in range(len(words)):
            for j in range(i + max(best + 1, least), len(words) + 1):
                if f" {' '.join(words[i:j])} " not in plain:
                    break
                best = j - i
    return best


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=25).map(" ".join), min_size=1, max_size=4),
    st.lists(st.sampled_from("abcd"), max_size=25).map(" ".join),
    st.integers(1, 5),
)
def test_the_longest_run_is_what_brute_force_finds(documents: list[str], text: str, ngram: int) -> None:
    index = Documents({str(i): d for i, d in enumerate(documents)}, ngram=ngram)
    found = index.overlap(text)
    assert found.words == longest_run(text, documents, ngram)
    assert (found.share > 0) == (found.words > 0)
    if found.words:
        assert f" {found.run} " in f" {normalize(documents[int(found.document)])} "
        assert len(found.run.split()) == found.words


def test_share_counts_pieces_of_several_documents() -> None:
    a, b = PASSAGE.split(), OTHER.split()
    found = Documents({"a": PASSAGE, "b": OTHER}).overlap(" ".join([*a[10:25], "x", "y", *b[40:56], "z", "x", "y"]))
    assert (found.words, found.document) == (16, "b")
    assert found.share == pytest.approx(31 / 36)


def test_case_and_punctuation_hide_no_copy_and_common_wording_starts_none() -> None:
    words = PASSAGE.split()
    shouted = ", ".join(words[5:30]).upper() + "!"
    assert Documents({"a": PASSAGE}).overlap(shouted).words == 25
    assert Documents({"a": PASSAGE}, common=[" ".join(words[:60])]).overlap(shouted).words == 0


def test_scripts_without_blanks_count_characters() -> None:
    document = "昔々ある山の村に年を取った大工が住んでいて毎朝川まで木を拾いに行っていました"
    found = Documents({"tale": document}).overlap("彼は言った。" + document[6:34] + "と。")
    assert found.words >= 28


def test_nothing_to_compare_is_no_overlap() -> None:
    assert Documents({}).overlap("some text").words == 0
    assert Documents({"a": ""}).overlap("").words == 0
    assert Documents({"a": "too short"}).overlap("too short").words == 0


def test_a_repeated_boilerplate_costs_no_precision() -> None:
    index = Documents({str(i): f"{PASSAGE} n{i} ends here" for i in range(200)})
    found = index.overlap(f"{PASSAGE} n77 ends here")
    assert (found.words, found.document) == (123, "77")


def row(text: str, answer: str = "yes", method: str = "self_instruct", **inputs: str) -> Record:
    return Record({"text": text, **inputs}, {"answer": answer}, Provenance(method))


def test_fields_that_gold_rows_copy_are_the_tasks_own() -> None:
    passage, long = PASSAGE.split(), " ".join(PASSAGE.split()[:40])
    gold = [
        row(f"question {i}?", " ".join(passage[i : i + 3]), "gold", context=" ".join(passage[i : i + 50]))
        for i in range(8)
    ]
    rule = Verbatim({"a": PASSAGE}, gold)
    # The context is a passage, the answer is quoted from it; the question is written.
    assert rule.task_fields == {"context", "answer"}
    assert rule.find(row("what is it about?", long, context=long)) is None
    assert rule.find(row(long, context=long)) is not None
    assert Verbatim({"a": PASSAGE}).find(row("what?", context=long)) is not None


def test_one_copying_gold_row_in_many_opens_no_field() -> None:
    gold = [row(f"question number {i}", method="gold") for i in range(30)]
    gold.append(row(" ".join(PASSAGE.split()[:30]), method="gold"))
    assert Verbatim({"a": PASSAGE}, gold).task_fields == frozenset()


def test_curation_rejects_copies_that_a_model_wrote_and_says_so() -> None:
    words = PASSAGE.split()
    rows = [
        row(" ".join(words[:30])),
        row(" ".join(words[40:70]), method="pool"),
        row("what is " + " ".join(words[80:88]) + " said to be in the long story of the w9 family"),
    ]
    gold = [row("a question of some forty words at the most " * 4, method="gold")]
    done = curate(rows, gold=gold, protected=(), documents={"a": PASSAGE}, config=CurateConfig(length_factor=9))
    assert done.counts == {"verbatim": 1}
    assert [r.provenance.method for r in done.kept] == ["pool", "self_instruct"]
    assert curate(rows, gold=gold, protected=(), config=CurateConfig(length_factor=9)).counts == {}


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="ngram 30"):
        OverlapConfig(ngram=30)
