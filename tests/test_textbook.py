"""The textbook method: passages by label and topic, the filter on value, rows from what stays; prompts and stops."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
from scripted import scripted

from limbeck.compile.quality import QualityConfig
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized
from limbeck.compile.textbook import AUDIENCES, FORMS, Textbook, TextbookConfig
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.models import CompactAdapter
from limbeck.programs.textbook import ExerciseWriter, Lesson, PassageWriter, ValueGrader
from limbeck.records import Provenance, Record

ROWS = [
    ("Who wrote Hamlet ?", "HUM"),
    ("Who was the first man on the moon ?", "HUM"),
    ("Who invented the telephone ?", "HUM"),
    ("Where is the Louvre ?", "LOC"),
    ("What river flows through Cairo ?", "LOC"),
    ("What is the capital of Peru ?", "LOC"),
]
GOLD = tuple(Record({"text": t}, {"label": y}, Provenance("gold", seed=i)) for i, (t, y) in enumerate(ROWS))
MEANINGS = {"HUM": "asks for a person", "LOC": "asks for a place"}
FOLDS = (0, 1, 2, 0, 1, 2)
DOCUMENTS = (
    "The Amazon crosses a continent from the Andes to the sea and carries more water than any other river.",
    "Marie Curie found two elements and was the first to be given the Nobel prize a second time.",
    "Click here to get our newsletter, and never miss a sale again in any of our many online shops.",
    "A lighthouse keeper climbed four hundred steps each evening until lamps were lit by electric clocks.",
)


@pytest.fixture(autouse=True)
def words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF-IDF in place of the sentence encoder, which takes seconds to load."""
    monkeypatch.setattr("limbeck.engine.embedding.encoder_path", lambda: None)


def closed(**more: Any) -> Source:
    given: dict[str, Any] = {"folds": FOLDS, "meanings": MEANINGS, **more}
    return Source({"text": str}, "Choose the type.", GOLD, label_field="label", labels=("HUM", "LOC"), **given)


def opened() -> Source:
    gold = tuple(Record(r.inputs, {"answer": "somebody or somewhere"}, r.provenance) for r in GOLD)
    return Source({"text": str}, "Answer the question.", gold)


def kind(request: GenerateRequest) -> str:
    """What a call asks for, by the beginning of its instructions."""
    first = request.messages[0][1]
    names = {"List topics": "topics", "You write a textbook": "passage", "Grade": "grade", "Write": "rows"}
    return next(name for start, name in names.items() if first.startswith(start))


def value(request: GenerateRequest, field: str) -> str:
    text = request.messages[-1][1].partition(f"{field}: ")[2]
    return text.partition("\n")[0]


def writer(request: GenerateRequest) -> str:
    """Topics, distinct passages of which every third is worth nothing, grades that say so, and new rows."""
    seed, wanted = request.seed or 0, kind(request)
    words = " ".join(f"w{seed % m}m{m}" for m in (97, 101, 103, 107, 109, 113))
    if wanted == "topics":
        return "1. old books\n2. far rivers\n3. great towns"
    if wanted == "passage":
        kind_of = "sale sale sale" if seed % 3 == 0 else "lesson lesson lesson"
        return f"{kind_of} all about {value(request, 'topic')}: {words}"
    if wanted == "grade":
        worthless = "sale" in request.messages[-1][1]
        return f"Because of what it says.\nScore: {2 if worthless else 4}"
    return f"1. What is {words} ?\n2. Who is {words} ?"


def run(
    answer: Any = writer,
    src: Source | None = None,
    wanted: int = 12,
    documents: str = "",
    per_passage: int = 2,
    **config: Any,
) -> tuple[Synthesized, list[GenerateRequest]]:
    lm, backend = scripted(answer)
    materials = Materials(
        src or closed(), lm, CompactAdapter(), cast(Any, None), threads=4, seed=5, options={"documents": documents}
    )
    method = Textbook(TextbookConfig(per_passage=per_passage, **config))
    method.check(materials.source, materials.options)
    return method((), materials, wanted), backend.requests


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for i, text in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.txt").write_text(text)
    return str(tmp_path)


def test_rows_are_written_for_both_labels_from_passages_that_passed() -> None:
    made, requests = run()
    kept = [r for r in made.records if r.kept]
    assert Counter(r.outputs["label"] for r in kept) == {"HUM": 6, "LOC": 6}
    assert all(r.provenance.attributes.startswith("written: about ") for r in kept)
    sources = [r.messages[-1][1] for r in requests if kind(r) == "rows"]
    assert sources
    assert not any("sale" in text for text in sources)
    assert made.log["passages"]["written"] == 10
    assert made.counts["passage_low_value"] == 10 - made.log["passages_kept"]["written"] > 0
    assert made.log["quality"]["grades"] == {
        "2": made.counts["passage_low_value"],
        "4": made.log["passages_kept"]["written"],
    }
    assert json.loads(json.dumps(made.log)) == made.log


def test_topics_audiences_and_forms_are_dealt_in_turn() -> None:
    _, requests = run(wanted=80, spare=1.0)
    for label in ("HUM", "LOC"):
        asked = [r for r in requests if kind(r) == "passage" and value(r, "label") == label]
        assert len(asked) == 20
        topics = Counter(value(r, "topic") for r in asked)
        assert set(topics) == {"old books", "far rivers", "great towns"}
        assert max(topics.values()) - min(topics.values()) <= 1
        assert set(Counter(value(r, "audience") for r in asked)) == set(AUDIENCES)
        assert Counter(value(r, "form") for r in asked) == dict.fromkeys(FORMS, 4)
        assert {value(r, "meaning") for r in asked} == {MEANINGS[label]}
    assert sum(kind(r) == "topics" for r in requests) == 2


def test_prompts_show_examples_of_the_label_and_none_of_the_block() -> None:
    made, requests = run(wanted=24)
    by_id = {row.id: (row, fold) for row, fold in zip(GOLD, FOLDS, strict=True)}
    assert {r.provenance.block for r in made.records} == {0, 1, 2}
    for record in made.records:
        shown = [by_id[parent] for parent in record.provenance.parents]
        assert shown
        assert record.provenance.block not in {fold for _, fold in shown}
        assert {row.outputs["label"] for row, _ in shown} == {record.outputs["label"]}
    for request in requests:
        if kind(request) == "rows":
            assert value(request, "meaning") == MEANINGS[value(request, "label")]
            assert request.stop == ("\n3.",)
        elif kind(request) in ("passage", "grade"):
            assert not any(row.inputs["text"] in request.messages[-1][1] for row in GOLD)


def test_only_a_sample_is_graded_and_the_classifier_judges_the_rest() -> None:
    made, requests = run(wanted=120, quality=QualityConfig(graded=30))
    assert sum(kind(r) == "grade" for r in requests) == 30
    quality = made.log["quality"]
    assert (quality["trained"] + quality["held"], quality["features"]) == (30, "TF-IDF")
    assert quality["precision"][0] == 1.0
    assert made.log["passages"]["written"] == 90
    sources = [r.messages[-1][1] for r in requests if kind(r) == "rows"]
    assert not any("sale" in text for text in sources)


def test_documents_are_filtered_with_what_is_written_and_left_open_in_a_closed_task(folder: str) -> None:
    made, _ = run(documents=folder, wanted=8, spare=3.0)
    kept = [r for r in made.records if r.kept]
    assert Counter(r.outputs.get("label", "") for r in kept) == {"HUM": 2, "LOC": 2, "": 4}
    places = {r.provenance.attributes for r in kept if not r.outputs}
    assert places <= {f"document: {i}.txt#0" for i in (0, 1, 3)}
    assert made.log["passages"] == {"document": 4, "written": 6}


def test_an_open_task_is_written_from_documents_and_passages_alike(folder: str) -> None:
    made, requests = run(src=opened(), documents=folder, wanted=12)
    kept = [r for r in made.records if r.kept]
    assert len(kept) == 12
    assert all(r.outputs == {} for r in kept)
    assert {r.provenance.attributes.partition(":")[0] for r in kept} == {"document", "written"}
    assert made.log["passages"] == {"document": 4, "written": 5}
    assert all("label" not in r.messages[0][1] for r in requests)


def test_a_task_of_several_inputs_gets_one_row_a_call_with_the_passage_in_view() -> None:
    rows = [
        ({"passage": f"It was {i} at noon.", "question": f"is it {i} ?"}, "yes" if i % 2 else "no") for i in range(4)
    ]
    gold = tuple(Record(inputs, {"label": y}, Provenance("gold", seed=i)) for i, (inputs, y) in enumerate(rows))
    src = Source({"passage": str, "question": str}, "Answer.", gold, (), "label", ("yes", "no"))

    def answer(request: GenerateRequest) -> str:
        if kind(request) != "rows":
            return writer(request)
        assert "given_passage: lesson" in request.messages[-1][1]
        assert (
            "passage: It was 1 at noon.\nquestion: is it 1 ?" in request.messages[-1][1]
            or "no" in request.messages[-1][1]
        )
        return f"[[ ## passage ## ]]\nIt is {request.seed}.\n\n[[ ## question ## ]]\nwhat does the passage say ?"

    made, _ = run(answer, src, wanted=4, spare=5.0)
    kept = [r for r in made.records if r.kept]
    assert {tuple(r.inputs) for r in kept} == {("passage", "question")}
    assert Counter(r.outputs["label"] for r in kept) == {"yes": 2, "no": 2}


def test_rows_that_repeat_copy_or_speak_of_the_passage_are_rejected() -> None:
    def answer(request: GenerateRequest) -> str:
        if kind(request) != "rows":
            return writer(request)
        named = f"Who is named in the passage as {request.seed} ?"
        return f"1. Who wrote HAMLET?\n2. {named}\n3. Who is {request.seed} ?\n4. {value(request, 'passage')}"

    made, _ = run(answer, wanted=8, per_passage=4)
    reasons = Counter(r.reason for r in made.records)
    assert reasons["repeated"] == reasons["mentions_text"] == reasons["copies_passage"] == reasons[""] > 0
    assert all("passage" not in r.inputs["text"] for r in made.records if r.kept)


def test_passages_are_used_again_where_rows_are_missing_but_not_for_ever() -> None:
    def answer(request: GenerateRequest) -> str:
        return "1. Who wrote Hamlet ?" if kind(request) == "rows" else writer(request)

    with pytest.raises(StageEmpty, match=r"wrote no row \(.*repeated.*passages by grade: .*'4'"):
        run(answer, wanted=4)
    lm, backend = scripted(answer)
    materials = Materials(closed(), lm, CompactAdapter(), cast(Any, None), seed=5)
    with pytest.raises(StageEmpty):
        Textbook(TextbookConfig(per_passage=2, reuse=2))((), materials, 4)
    passages = Counter(value(r, "passage") for r in backend.requests if kind(r) == "rows")
    assert set(passages.values()) == {2}


def test_a_label_without_a_passage_of_value_is_named() -> None:
    def answer(request: GenerateRequest) -> str:
        if kind(request) == "passage" and value(request, "label") == "LOC":
            return writer(request).replace("lesson", "sale")
        return writer(request)

    made, _ = run(answer)
    assert made.log["labels_without_rows"] == ["LOC"]
    assert {r.outputs["label"] for r in made.records} == {"HUM"}


def test_repeated_empty_and_short_passages_are_counted() -> None:
    def answer(request: GenerateRequest) -> str:
        if kind(request) != "passage":
            return writer(request)
        said = {AUDIENCES[0]: "...", AUDIENCES[1]: "I am sorry, but I cannot do that."}
        same = "lesson: one and the same for everybody, and not too short to be taken for a refusal"
        return said.get(value(request, "audience"), same)

    made, _ = run(answer, wanted=24)
    assert made.log["passages"] == {"written": 1}
    assert made.counts["passage_repeated"] >= 8
    assert made.counts["passage_empty"] + made.counts["passage_short"] + made.counts["passage_repeated"] == 18 - 1
    assert made.counts["passage_empty"] >= 2 <= made.counts["passage_short"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"passage": "..."}, r"wrote no row \(10 passage_empty\)"),
        ({"grade": "Nice."}, "grades could be read"),
        ({"grade": "Score: 1"}, r"wrote no row \(\d+ passage_low_value\); passages by grade: \{'1'"),
        ({"rows": "..."}, "wrote no row"),
    ],
)
def test_nothing_usable_ends_the_stage_with_the_reason(spoil: dict[str, str], message: str) -> None:
    with pytest.raises(StageEmpty, match=message):
        run(lambda request: spoil.get(kind(request)) or writer(request))


def test_calls_that_all_fail_end_the_stage() -> None:
    def broken(request: GenerateRequest) -> str:
        raise ValueError("no such thing")

    with pytest.raises(StageEmpty, match="no such thing"):
        run(broken, patience=3)


@pytest.mark.parametrize("step", ["topics", "passage", "grade", "rows"])
def test_a_spent_budget_passes_through(step: str) -> None:
    def spent(request: GenerateRequest) -> str:
        if kind(request) == step:
            raise BudgetExceeded("spent")
        return writer(request)

    with pytest.raises(BudgetExceeded):
        run(spent)


def test_the_same_seed_gives_the_same_records(folder: str) -> None:
    one, two = (run(documents=folder, wanted=20)[0] for _ in range(2))
    assert one == two
    assert len({r.id for r in one.records}) == len(one.records)


def test_documents_are_checked_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        Textbook().check(closed(), {"documents": str(tmp_path / "missing")})
    Textbook().check(closed(), {"documents": ""})


def test_the_programs_answer_alone() -> None:
    programs = Textbook().programs(closed())
    assert list(programs) == ["passage", "grade", "exercise", "open_exercise"]
    lm, backend = scripted(writer)
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        assert cast(ValueGrader, programs["grade"])("a lesson").score == 4
        exercise = cast(ExerciseWriter, programs["exercise"])
        made = exercise("a lesson", examples=[{"text": "Who ?"}], count=2, label="HUM", meaning="a person")
        programs["passage"](Lesson("HUM", "a person", "books"))
    assert len(made.rows) == 2
    assert "Mara ordered" in backend.requests[-1].messages[2][1]
    assert "late_parcel" not in str(PassageWriter("Answer.", labelled=False, described=False).write.demos)
