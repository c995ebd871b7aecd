"""Retrieval: each retriever on passages whose answers are plain, the fusion's arithmetic, and a program on top."""

from __future__ import annotations

from pathlib import Path

import dspy
import numpy as np
import pytest
from scripted import scripted

from limbeck.compile.retrieve import BM25, Fused, Nearest, documents_of, grounding, retriever_of
from limbeck.compile.source import Source
from limbeck.documents import Passage
from limbeck.errors import InputError
from limbeck.models import CompactAdapter
from limbeck.programs.retrieve import WithPassages
from limbeck.records import Provenance, Record

TEXTS = (
    "Tea: boil the water and let the leaves stand for three minutes.",
    "Cats sleep for most of the day and hunt at night.",
    "A lost parcel is searched for; after two weeks we refund the money.",
    "The library opens at nine and closes at six.",
)
PASSAGES = tuple(Passage(text, f"{i}.txt", 0) for i, text in enumerate(TEXTS))


@pytest.mark.parametrize(
    ("query", "best"),
    [("How long does TEA stand?", 0), ("when does the library open, opens?", 3), ("parcel refund", 2)],
)
def test_bm25_finds_shared_words_whatever_their_case(query: str, best: int) -> None:
    assert BM25(PASSAGES)(query, 1) == [PASSAGES[best]]


def test_bm25_returns_nothing_that_shares_no_word() -> None:
    find = BM25((*PASSAGES, Passage("...", "signs.txt", 0)))
    assert find("xylophone", 3) == []
    assert find("?!", 3) == []
    assert find("", 3) == []
    assert len(find("parcel", 3)) == 1


def test_rare_words_count_more_than_common_ones() -> None:
    pages = [Passage(text, "x.txt", i) for i, text in enumerate(["cats sleep", "cats hunt", "cats climb", "a parcel"])]
    assert BM25(pages)("cats cats parcel", 4)[0] == pages[3]
    assert BM25(pages)("a", 4) == []


def test_the_nearest_vector_comes_first() -> None:
    axes = np.eye(4, dtype=np.float32)
    find = Nearest(PASSAGES, lambda texts: axes[: len(texts)], lambda texts: np.array([[0.1, 0.9, 0.4, 0.0]]))
    assert [p.document for p in find("any", 3)] == ["1.txt", "2.txt", "0.txt"]


def test_fusion_prefers_what_both_lists_have_to_the_first_of_one() -> None:
    one = [PASSAGES[0], PASSAGES[1], PASSAGES[2]]
    two = [PASSAGES[3], PASSAGES[2]]
    asked: list[int] = []

    def first(query: str, k: int) -> list[Passage]:
        asked.append(k)
        return one

    assert Fused([first, lambda query, k: two])("any", 3) == [PASSAGES[2], PASSAGES[0], PASSAGES[3]]
    assert asked == [30]


def test_the_retriever_at_hand_finds_meaning_where_words_differ() -> None:
    find = retriever_of(PASSAGES)
    assert find("my package never came, do I get my cash back?", 1) == [PASSAGES[2]]
    assert find("brewing a hot drink", 1) == [PASSAGES[0]]
    assert len(find("water", 4)) == 4


def test_without_an_encoder_words_alone_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.engine.embedding.encoder_path", lambda: None)
    assert isinstance(retriever_of(PASSAGES), BM25)


def test_grounding_numbers_the_passages() -> None:
    find = grounding(BM25(PASSAGES), k=2)
    assert find("leaves or water or cats") == f"[1] {TEXTS[0]}\n\n[2] {TEXTS[1]}"
    assert find("xylophone") == ""


def test_a_program_answers_with_passages_in_view_and_is_saved_without_them(tmp_path: Path) -> None:
    lm, backend = scripted(lambda request: "three minutes")
    program = WithPassages("question, tone -> answer", grounding(BM25(PASSAGES), k=1))
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        made = program(question="How long does tea stand?", tone="short")
    assert (made.answer, made.passages) == ("three minutes", f"[1] {TEXTS[0]}")
    asked = backend.requests[0].messages[-1][1]
    assert asked.index(TEXTS[0]) < asked.index("How long does tea stand?") < asked.index("short")
    program.save(tmp_path / "program.json")
    again = WithPassages("question, tone -> answer", lambda query: "other")
    again.load(tmp_path / "program.json")
    assert TEXTS[0] not in (tmp_path / "program.json").read_text()
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        assert again.deepcopy()(question="And now?", tone="short").passages == "other"


def test_a_field_of_the_same_name_is_refused() -> None:
    with pytest.raises(InputError, match="'passages' of its own"):
        WithPassages("passages, question -> answer", lambda query: "")


def test_documents_come_from_the_option_in_the_language_of_gold(tmp_path: Path) -> None:
    text = "Please tell me where my parcel is, I have been waiting for two weeks now."
    source = Source({"text": str}, "Answer.", (Record({"text": text}, {"reply": "We look."}, Provenance("gold")),))
    with pytest.raises(InputError, match="no documents"):
        documents_of(source, {"documents": ""})
    (tmp_path / "en.txt").write_text("A lost parcel is searched for, and after two weeks we refund the money.")
    (tmp_path / "de.txt").write_text("Ein verlorenes Paket wird gesucht, und nach zwei Wochen erstatten wir das Geld.")
    found = documents_of(source, {"documents": str(tmp_path)})
    assert [p.document for p in found.passages] == ["en.txt"]
    assert found.warnings[0].startswith("language-documents: left out 1 of 2")
