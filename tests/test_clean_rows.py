"""Cleaning: repairs and rephrasings held to every rule, read back out of fold; calls that fail; what is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, scripted

from limbeck.compile.clean_rows import REPAIR, REPHRASE, CleanConfig, Cleaning
from limbeck.compile.label import Labeler
from limbeck.compile.rewriting import Calls, numbers_in
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized, load_method
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.programs.rewrite import bare, changed_fields
from limbeck.records import CHECKED, CLEANED, Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature, literal

ROWS = [
    ("Who wrot the play Hamlet ?", "HUM"),
    ("Where is the big Louvre musem ?", "LOC"),
    ("Who was the frist man on the moon ?", "HUM"),
    ("What river flows throgh Cairo ?", "LOC"),
]
GOLD = tuple(
    Record({"text": t}, {"label": y}, Provenance("gold", seed=i, level=1, block=i % 2)) for i, (t, y) in enumerate(ROWS)
)
MENDED = {"wrot ": "wrote ", "musem": "museum", "frist": "first", "throgh": "through"}


def mend(text: str) -> str:
    for wrong, right in MENDED.items():
        text = text.replace(wrong, right)
    return text


def asked(request: GenerateRequest) -> str:
    """What the request asks for: "repair", "rephrase" or "label"."""
    system = request.messages[0][1]
    return REPAIR if "spelling" in system else REPHRASE if "in other words" in system else "label"


def text_in(request: GenerateRequest) -> str:
    return re.findall(r"^(?:text|question): (.*)$", request.messages[-1][1], re.M)[-1]


def closed_materials(lm: Any, gold: tuple[Record, ...] = GOLD, **more: Any) -> Materials:
    """A closed task in two folds; each fold's program says which it is."""
    source = Source({"text": str}, "Choose.", gold, (0, 1) * (len(gold) // 2), "label", ("HUM", "LOC"))
    programs = {
        block: dspy.Predict(
            build_signature([FieldSpec("text")], [FieldSpec("label", literal(["HUM", "LOC"]))], f"Program {block}.")
        )
        for block in (0, 1)
    }
    labeler = Labeler(programs, lm, CompactAdapter(), ("label",), label_field="label")
    return Materials(source, lm, CompactAdapter(), labeler, threads=4, **more)


def open_materials(lm: Any, row: Record, kind: Any, *, reasons: bool = False) -> Materials:
    source = Source(dict.fromkeys(row.inputs, str), "Answer.", (row,))
    (name,) = row.outputs
    spec = FieldSpec(name, float if kind == "number" else Any if kind == "extraction" else str)
    signature = build_signature([FieldSpec(n) for n in row.inputs], [spec], "Answer.")
    program = dspy.ChainOfThought(signature) if reasons else dspy.Predict(signature)
    labeler = Labeler({-1: program}, lm, CompactAdapter(), (name,), metric=default_metric({name: kind}))
    return Materials(source, lm, CompactAdapter(), labeler, threads=4)


def label_of(text: str) -> str:
    return "LOC" if text.startswith(("Where", "What")) else "HUM"


def honest(request: GenerateRequest) -> str:
    text = text_in(request)
    if asked(request) == "label":
        return label_of(text)
    return mend(text) if asked(request) == REPAIR else f"{mend(text)} Tell me {request.seed % 7 + 1}".rstrip("1234567 ")


def run(
    answer: Callable[[GenerateRequest], str], wanted: int = 8, gold: tuple[Record, ...] = GOLD, **config: Any
) -> tuple[Synthesized, Scripted]:
    lm, backend = scripted(answer)
    return Cleaning(CleanConfig(**config))(gold, closed_materials(lm, gold), wanted), backend


def test_typos_are_repaired_and_rows_keep_label_parent_and_level() -> None:
    done, backend = run(honest)
    by_id = {row.id: row for row in GOLD}
    repaired = [r for r in done.records if r.provenance.attributes == REPAIR]
    assert {r.inputs["text"] for r in repaired} == {mend(text) for text, _ in ROWS}
    for record in done.records:
        (parent,) = record.provenance.parents
        assert record.kept
        assert record.outputs == by_id[parent].outputs
        assert (record.provenance.level, record.provenance.method) == (CLEANED, "cleaning")
        assert record.provenance.block not in (-1, by_id[parent].provenance.block)
        assert record.scores["round_trip"] == 1.0
    assert done.log["cleaning"]["kept"] == {REPAIR: 4, REPHRASE: 4}
    assert len({r.id for r in done.records}) == 8
    assert all(request.temperature == 0 for request in backend.requests if asked(request) == REPAIR)


def test_rows_are_read_back_by_the_program_that_never_shows_their_parent() -> None:
    _, backend = run(honest, wanted=4)
    fold = {row.inputs["text"]: str(row.provenance.block) for row in GOLD}
    fold |= {mend(text): block for text, block in fold.items()}
    labelled = [r for r in backend.requests if asked(r) == "label"]
    for request in labelled:
        text = text_in(request).removesuffix(" Tell me")
        assert f"Program {fold[text]}." in request.messages[0][1]
    # Two parents and their four rewritings, each once.
    assert len(labelled) == 6


def test_each_row_is_repaired_once_and_then_only_rephrased() -> None:
    done, backend = run(honest, wanted=30, max_calls=30)
    counts = Counter(asked(r) for r in backend.requests)
    assert (counts[REPAIR], counts[REPHRASE]) == (4, 26)
    assert {r.reason for r in done.records if not r.kept} == {"duplicate"}


@pytest.mark.parametrize(
    ("operation", "parent", "new", "reason"),
    [
        (REPAIR, "Who wrot it ?", "Who  wrot it ?", "unchanged"),
        (REPAIR, "Who wrot it ?", "Who wrot it?!", ""),
        (REPHRASE, "Who wrote it ?", "who wrote it!", "unchanged"),
        (REPAIR, "Who wrot Hamlet ?", "Please name all plays by Marlowe", "not_a_repair"),
        (REPAIR, "Who wrot it ?", "Who wrote it ?", ""),
        (REPHRASE, "Who wrote it ?", " ".join(["who wrote it"] * 4), "length"),
        (REPHRASE, "Who wrote the very long play Hamlet ?", "Who?", "length"),
        (REPHRASE, "Who won in 1,999 ?", "Who was the winner of 1998 ?", "numbers_changed"),
        (REPHRASE, "Who won in 1,999 ?", "Who was the winner of 1999 ?", ""),
        (REPHRASE, "Who wrote it ?", "Where is the tower ?", "duplicate"),
        (REPHRASE, "Who wrote it ?", "Where was it written ?", "answer_changed"),
        (REPHRASE, "Who wrote it ?", "Hm, whose work is it ?", "failed"),
    ],
)
def test_every_rule_names_what_it_rejects(operation: str, parent: str, new: str, reason: str) -> None:
    gold = tuple(
        Record({"text": t}, {"label": y}, Provenance("gold", seed=i, level=1, block=i))
        for i, (t, y) in enumerate([(parent, "HUM"), ("Where is the tower ?", "LOC")])
    )

    def answer(request: GenerateRequest) -> str:
        if asked(request) == "label":
            return "neither" if text_in(request).startswith("Hm") else label_of(text_in(request))
        return new if asked(request) == operation else text_in(request)

    def clean() -> Synthesized:
        return Cleaning(CleanConfig(max_calls=2))(gold[:1], closed_materials(scripted(answer)[0], gold), 2)

    if reason:
        with pytest.raises(StageEmpty, match=rf"\b[12] {reason}\b"):
            clean()
    else:
        assert [r.provenance.attributes for r in clean().records if r.kept] == [operation]


@pytest.mark.parametrize(("before", "after", "kept"), [("LOC", "LOC", 1), ("LOC", "HUM", 1), ("HUM", "LOC", 0)])
def test_a_row_that_the_program_gets_wrong_must_stay_as_it_is_or_become_right(
    before: str, after: str, kept: int
) -> None:
    said = {"Who wrot the play Hamlet ?": before, "Who wrote the play Hamlet ?": after}
    lm, _ = scripted(lambda r: said[text_in(r)] if asked(r) == "label" else mend(text_in(r)))
    cleaning = Cleaning(CleanConfig(max_calls=1))
    if not kept:
        with pytest.raises(StageEmpty, match="answer_changed"):
            cleaning(GOLD[:1], closed_materials(lm), 1)
        return
    (record,) = cleaning(GOLD[:1], closed_materials(lm), 1).records
    assert record.kept
    assert record.outputs == {"label": "HUM"}
    assert record.scores["round_trip"] == float(after == "HUM")


def test_what_an_answer_quotes_must_stay_in_the_input() -> None:
    row = Record({"text": "a tabel at 7 pm for Anna"}, {"slots": [{"time": "7 pm"}]}, Provenance("gold", level=1))
    lost = "a table at 7 for Anna, in the evening"
    lm, _ = scripted(lambda r: '[{"time": "7 pm"}]' if asked(r) == "label" else lost)
    with pytest.raises(StageEmpty, match="quote_lost"):
        Cleaning(CleanConfig(max_calls=2))([row], open_materials(lm, row, "extraction"), 2)
    lm, _ = scripted(lambda r: '[{"time": "7 pm"}]' if asked(r) == "label" else "a table at 7 PM for Anna")
    (record, _) = Cleaning(CleanConfig(max_calls=2))([row], open_materials(lm, row, "extraction"), 2).records
    assert record.kept
    assert record.outputs == row.outputs


@pytest.mark.parametrize(("number", "kept"), [("7", True), ("8", False)])
def test_a_program_that_reasons_lends_its_reasons_when_it_is_right(number: str, kept: bool) -> None:
    row = Record({"question": "What is 3 pluss 4 ?"}, {"answer": 7}, Provenance("gold", level=1))

    def answer(request: GenerateRequest) -> str:
        if asked(request) == "label":
            return f"[[ ## reasoning ## ]]\nI add them.\n\n[[ ## answer ## ]]\n{number}"
        return "What is 3 plus 4 ?"

    materials = open_materials(scripted(answer)[0], row, "number", reasons=True)
    cleaning = Cleaning(CleanConfig(max_calls=1))
    if kept:
        (record,) = cleaning([row], materials, 1).records
        assert (record.rationale, record.outputs) == ("I add them.", {"answer": 7})
    else:
        with pytest.raises(StageEmpty, match="answer_changed"):
            cleaning([row], materials, 1)


def test_a_generated_parent_hands_down_its_level_and_block() -> None:
    parent = Record({"text": "Who wrot it ?"}, {"label": "HUM"}, Provenance("self_instruct", level=CHECKED, block=1))
    lm, _ = scripted(lambda r: "HUM" if asked(r) == "label" else mend(text_in(r)))
    (record,) = Cleaning(CleanConfig(max_calls=1))([parent], closed_materials(lm), 1).records
    assert (record.provenance.level, record.provenance.block) == (CHECKED, 1)


def test_a_passage_is_shown_and_stays_as_it_is() -> None:
    row = {"passage": "word " * 200, "text": "Who wrot it ?"}
    gold = tuple(Record(row, {"answer": a}, Provenance("gold", seed=i, level=1)) for i, a in enumerate(["Ann", "Bo"]))
    lm, backend = scripted(lambda r: "Ann" if asked(r) == "label" else mend(text_in(r)))
    (record,) = Cleaning(CleanConfig(max_calls=1))(gold[:1], open_materials(lm, gold[0], "short_answer"), 1).records
    assert record.inputs == {**row, "text": "Who wrote it ?"}
    assert "passage: word word" in backend.requests[0].messages[-1][1]


def test_the_same_seed_gives_the_same_records() -> None:
    assert run(honest)[0] == run(honest)[0]


def test_calls_that_fail_are_counted_and_too_many_in_the_beginning_end_the_stage() -> None:
    def fails(request: GenerateRequest) -> str:
        if asked(request) == REPHRASE:
            raise ValueError("no")
        return honest(request)

    done, _ = run(fails, wanted=8, max_calls=8)
    assert done.counts == {"failed_calls": 4}
    assert len(done.records) == 4

    def broken(request: GenerateRequest) -> str:
        raise ValueError("the model is gone")

    lm, backend = scripted(broken)
    with pytest.raises(StageEmpty, match="the model is gone"):
        Cleaning(CleanConfig(patience=5))(GOLD * 10, closed_materials(lm), 100)
    assert len(backend.requests) < 20


def test_fruitless_rewritings_end_the_stage() -> None:
    with pytest.raises(StageEmpty, match="8 unchanged"):
        run(lambda r: "HUM" if asked(r) == "label" else text_in(r), wanted=8, patience=8)
    with pytest.raises(StageEmpty, match="no row to begin with"):
        run(honest, gold=())


def test_a_spent_budget_passes_through() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        run(spent)


def test_a_task_without_text_is_refused() -> None:
    method = load_method("cleaning")
    method.check(closed_materials(scripted(honest)[0]).source, {})
    tags = Record({"tags": ["a"]}, {"label": "HUM"}, Provenance("gold"))
    with pytest.raises(InputError, match="none of the inputs is one: tags"):
        method.check(Source({"tags": list[str]}, "", (tags,)), {})


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('"Where is it?"', "Where is it?"),
        ("new_text: Where is it?", "Where is it?"),
        ("**New_text:** Where is it?", "Where is it?"),
        ('"Hi" and "bye"', '"Hi" and "bye"'),
        ("“Quoted”", "Quoted"),
        ("texts: a list", "texts: a list"),
    ],
)
def test_names_and_quotation_marks_around_a_text_go(text: str, clean: str) -> None:
    assert bare(text, ["new_text", "text"]) == clean


@given(st.text(max_size=30), st.sampled_from(['"{}"', "'{}'", "“{}”", "new_text: {}"]))
def test_bare_texts_stay_bare(text: str, around: str) -> None:
    once = bare(around.format(text), ["new_text"])
    assert once in around.format(text)
    assert once == once.strip()


@given(st.lists(st.integers(0, 10**9)))
def test_numbers_are_read_with_and_without_separators(numbers: list[int]) -> None:
    assert numbers_in(" and ".join(f"{n:,}" for n in numbers)) == Counter(map(str, numbers))


def test_the_fields_that_change_are_short_texts() -> None:
    fields: Mapping[str, Any] = {"a": str, "b": str, "tags": list[str]}
    assert changed_fields(fields, [{"a": "x " * 90, "b": "x " * 85}]) == ("b",)
    assert changed_fields(fields, [{"a": "x", "b": "y"}]) == ("a", "b")
    assert changed_fields({"tags": list[str]}, []) == ()


def test_calls_give_up_only_when_all_of_the_first_fail() -> None:
    lm, _ = scripted(lambda r: "x")
    calls = Calls(closed_materials(lm), "it", patience=3)

    def call(n: int) -> int:
        if n:
            raise ValueError("no")
        return n

    assert calls.run(call, [0, 1, 1, 1, 1]) == [0, None, None, None, None]
    assert calls.counts == {"failed_calls": 4}
