"""Rows that answer their parent anew are no copies of it; what a model wrote is held to the rules about writing."""

from __future__ import annotations

import pytest

from limbeck.compile.curate import curate
from limbeck.compile.origins import has_intended_label, is_written
from limbeck.compile.synthesizers import BUILT_IN
from limbeck.records import Provenance, Record

GOLD = Record({"text": "Where is the highest mountain of Peru?"}, {"answer": "Huascaran"}, Provenance("gold"))
OTHER = Record({"text": "Who wrote the long novel about whales?"}, {"answer": "Melville"}, Provenance("gold"))


def child(method: str, text: str, *parents: Record) -> Record:
    return Record({"text": text}, GOLD.outputs, Provenance(method, parents=tuple(p.id for p in parents)))


def reason(record: Record) -> str:
    done = curate([record], gold=[GOLD, OTHER], protected=[])
    return done.rejected[0].reason if done.rejected else ""


@pytest.mark.parametrize("method", ["star", "chain_of_abstraction", "reformulation", "constitutional"])
def test_a_row_answered_anew_keeps_its_parents_input(method: str):
    assert reason(child(method, GOLD.inputs["text"], GOLD)) == ""
    assert reason(child(method, GOLD.inputs["text"], OTHER)) == "duplicate"


def test_a_repaired_row_may_be_near_its_parent_and_no_copy_of_it():
    near = "Where is the highest mountain in Peru?"
    assert reason(child("cleaning", near, GOLD)) == ""
    assert reason(child("cleaning", near, OTHER)) == "near_duplicate"
    assert reason(child("cleaning", GOLD.inputs["text"], GOLD)) == "duplicate"


def test_a_shown_row_is_no_parent_that_may_be_repeated():
    assert reason(child("label_conditioned", GOLD.inputs["text"], GOLD)) == "duplicate"
    assert reason(child("evol_instruct", "Where is the highest mountain in Peru?", GOLD)) == "near_duplicate"


def test_a_backtranslated_answer_is_a_document_and_its_input_may_not_be():
    page = "The ferry to the island leaves the old harbour every morning at seven and returns after dark in the evening"
    row = Record(
        {"text": "Describe how people get to the island."},
        {"answer": page},
        Provenance("instruction_backtranslation"),
    )

    def kept(record: Record) -> int:
        return len(curate([record], gold=[GOLD], protected=[], documents={"ferry.md": page}).kept)

    assert kept(row) == 1
    assert kept(Record(row.inputs, row.outputs, Provenance("textbook"))) == 0
    assert kept(Record({"text": page}, {"answer": "By ferry."}, row.provenance)) == 0


def test_every_method_but_the_users_own_rows_is_written_unless_it_keeps_the_input():
    written = {name for name in BUILT_IN if is_written(child(name, "x"))}
    assert set(BUILT_IN) - written == {"star", "chain_of_abstraction", "reformulation", "constitutional"}
    assert is_written(child("a_method_of_another_package", "x"))
    assert not is_written(child("pool", "x"))
    assert not has_intended_label(child("pool", "x"))
    assert has_intended_label(child("label_conditioned", "x"))
