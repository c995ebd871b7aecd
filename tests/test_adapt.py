"""Adaptation: files read and refused, rows chosen by likeness, shares of labels, levels, every rule."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import Scripted, scripted

from limbeck.compile.adapt import Adaptation, AdaptConfig
from limbeck.compile.label import Labeler
from limbeck.compile.related import RELATED, Choice, read_related, usable_rows
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized, load_method
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.records import CHECKED, CLEANED, Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature, literal

ROWS = [
    ("Where is the new card that I ordered?", "CARD"),
    ("My card was lost in the mail, what now?", "CARD"),
    ("What rate do you use to change dollars?", "RATE"),
    ("Is the exchange rate the same at weekends?", "RATE"),
]
GOLD = tuple(
    Record({"text": t}, {"label": y}, Provenance("gold", seed=i, level=1, block=i % 2)) for i, (t, y) in enumerate(ROWS)
)
FOREIGN = [
    "tell me the exchange rate between dollars and euros",
    "my credit card has not come in the mail yet",
    "how do i bake bread without yeast",
    "i lost my card somewhere on the train",
    "which dollar rate applies when i change money",
    "set a timer for ten minutes",
]


def table(folder: Path, rows: Sequence[dict[str, Any]], name: str = "clinc.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def related(tmp_path: Path) -> str:
    return table(tmp_path, [{"id": f"r{i}", "text": text, "intent": "x"} for i, text in enumerate(FOREIGN)])


def source(gold: tuple[Record, ...] = GOLD, folds: tuple[int, ...] = (0, 1, 0, 1)) -> Source:
    return Source({"text": str}, "Choose.", gold, folds, "label", ("CARD", "RATE"))


def materials(lm: Any, path: str, **more: Any) -> Materials:
    signature = build_signature([FieldSpec("text")], [FieldSpec("label", literal(["CARD", "RATE"]))], "Choose.")
    program = dspy.Predict(signature)
    labeler = Labeler({0: program, 1: program}, lm, CompactAdapter(), ("label",), label_field="label")
    return Materials(source(), lm, CompactAdapter(), labeler, threads=4, options={RELATED: path}, **more)


def is_labelling(request: GenerateRequest) -> bool:
    return request.messages[0][1].startswith(("Choose", "Answer"))


def text_in(request: GenerateRequest) -> str:
    return re.findall(r"^text: (.*)$", request.messages[-1][1], re.M)[-1]


def honest(request: GenerateRequest) -> str:
    text = text_in(request)
    if is_labelling(request):
        return "CARD" if "card" in text else "RATE"
    return text.capitalize() + ", please?"


def run(path: str, answer: Callable[[GenerateRequest], str], wanted: int = 4, **config: Any) -> Synthesized:
    lm, _ = scripted(answer)
    return Adaptation(AdaptConfig(**config))([], materials(lm, path), wanted)


def test_related_rows_become_rows_of_the_task_with_the_programs_labels(related: str) -> None:
    done = run(related, honest)
    kept = [record for record in done.records if record.kept]
    assert Counter(record.outputs["label"] for record in kept) == {"CARD": 2, "RATE": 2}
    for record in kept:
        text = record.inputs["text"].removesuffix(", please?").lower()
        assert text in FOREIGN
        assert record.provenance.attributes == f"clinc.jsonl, line {FOREIGN.index(text) + 1}"
        assert (record.provenance.method, record.provenance.level) == ("adaptation", CHECKED)
        assert len(record.provenance.parents) == 1
        assert 0 < record.scores["similarity"] <= 1
    assert not any("bread" in record.inputs["text"] for record in kept)
    log = done.log["adaptation"]
    assert log["shares"] == log["labels"] == {"CARD": 2, "RATE": 2}
    assert (log["related"], log["own_outputs"]) == (6, 0)


def test_prompts_show_gold_rows_of_other_folds_and_a_length_of_theirs(related: str) -> None:
    lm, backend = scripted(honest)
    done = Adaptation()([], materials(lm, related), 4)
    fold = {row.inputs["text"]: row.provenance.block for row in GOLD}
    blocks = {record.inputs["text"]: record.provenance.block for record in done.records}
    writing = [request for request in backend.requests if not is_labelling(request)]
    assert writing
    for request in writing:
        prompt = request.messages[-1][1]
        shown = {block for text, block in fold.items() if text in prompt}
        assert shown == {1 - blocks[text_in(request).capitalize() + ", please?"]}
        words = int(re.findall(r"length: (\d+) words", prompt)[0])
        assert words in {len(text.split()) for text, block in fold.items() if block in shown}


def test_rows_beyond_their_labels_share_are_rejected(related: str) -> None:
    done = run(related, lambda r: "CARD" if is_labelling(r) else honest(r), max_calls=6)
    assert Counter(record.reason for record in done.records) == {"": 2, "over_share": 4}
    assert done.log["adaptation"]["labels"] == {"CARD": 2}


def test_the_share_of_labels_is_the_runs(related: str) -> None:
    lm, _ = scripted(honest)
    given = materials(lm, related, distribution={"CARD": 0.0, "RATE": 1.0})
    done = Adaptation()([], given, 2)
    assert {r.outputs["label"] for r in done.records if r.kept} == {"RATE"}


def test_a_label_of_the_task_in_the_file_is_the_rows_own_if_it_is_read_back(tmp_path: Path) -> None:
    rows = [
        {"text": FOREIGN[0], "label": "RATE"},
        {"text": FOREIGN[1], "label": " CARD "},
        {"text": FOREIGN[3], "label": "RATE"},  # the program will say CARD
        {"text": FOREIGN[4], "label": "something else"},
    ]
    done = run(table(tmp_path, rows), honest, max_calls=4)
    told = {r.provenance.attributes[-1]: r for r in done.records}
    assert {n: (r.reason, r.outputs["label"], r.provenance.level) for n, r in told.items()} == {
        "1": ("", "RATE", CLEANED),
        "2": ("", "CARD", CLEANED),
        "3": ("not_read_back", "RATE", CLEANED),
        "4": ("", "RATE", CHECKED),
    }
    assert done.log["adaptation"]["own_outputs"] == 3


def open_materials(lm: Any, path: str) -> Materials:
    gold = tuple(
        Record(
            {"text": f"Ann has {i} red apples and eats one of them. How many?"}, {"n": i}, Provenance("gold", seed=i)
        )
        for i in range(2, 6)
    )
    signature = build_signature([FieldSpec("text")], [FieldSpec("n", float)], "Answer with the number.")
    metric = default_metric({"n": "number"})
    labeler = Labeler({-1: dspy.Predict(signature)}, lm, CompactAdapter(), ("n",), metric=metric)
    return Materials(Source({"text": str}, "Answer.", gold), lm, CompactAdapter(), labeler, options={RELATED: path})


def test_open_answers_are_left_to_the_run_or_kept_where_the_program_agrees(tmp_path: Path) -> None:
    questions = [f"a farmer has {i} cows and sells a few of them today" for i in (12, 14, 16)]

    def answer(request: GenerateRequest) -> str:
        return "12" if is_labelling(request) else text_in(request) + ", how many?"

    lm, backend = scripted(answer)
    plain = table(tmp_path, [{"text": text} for text in questions])
    done = Adaptation()([], open_materials(lm, plain), 3)
    assert [(r.outputs, r.provenance.level, r.kept) for r in done.records] == [({}, CHECKED, True)] * 3
    assert not any(map(is_labelling, backend.requests))
    answered = table(tmp_path, [{"text": t, "n": n} for t, n in zip(questions, ("12", 14, None), strict=True)])
    done = Adaptation()([], open_materials(lm, answered), 3)
    told = {r.provenance.attributes[-1]: (r.reason, dict(r.outputs), r.provenance.level) for r in done.records}
    assert told == {
        "1": ("", {"n": 12.0}, CLEANED),
        "2": ("not_read_back", {"n": 14}, CLEANED),
        "3": ("", {}, CHECKED),
    }


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("Could you say when my card will come?", ""),
        ("examples: 1. Where is my card?", "leaked"),
        ("new_text: my card is lost [[ ## x", "leaked"),
        ("Where is the new card that I have ordered?", "copies_gold"),
        ("Card where?", "too_short"),
        ("The bread should bake for an hour", "other_meaning"),
        ("card " * 14, "too_long"),
    ],
)
def test_every_rule_names_what_it_rejects(related: str, new: str, reason: str) -> None:
    def answer(request: GenerateRequest) -> str:
        return "CARD" if is_labelling(request) else new

    if reason:
        with pytest.raises(StageEmpty, match=f"1 {reason}"):
            run(related, answer, max_calls=1)
    else:
        assert [r.reason for r in run(related, answer, max_calls=2, meaning=-1.0).records] == ["", "duplicate"]


def test_the_same_seed_gives_the_same_records(related: str) -> None:
    assert run(related, honest) == run(related, honest)


def test_rows_that_can_teach_nothing_are_left_out_and_counted() -> None:
    text = "one two three"
    rows = read_from(
        [{"text": t} for t in (text, text.upper() + "!", ROWS[0][0].upper(), "word " * 500, "another one")]
    )
    usable, counts = usable_rows(rows, source(), max_rows=9, most_words=400, seed=0)
    assert counts == {"related_repeated": 1, "related_is_gold": 1, "related_too_long": 1}
    assert {row.inputs["text"] for row in usable} <= {text, text.upper() + "!", "another one"}
    assert len(usable) == 2
    assert len(usable_rows(rows, source(), max_rows=1, most_words=400, seed=0)[0]) == 1


def read_from(rows: Sequence[dict[str, Any]]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return read_related(table(Path(folder), rows), source())


def test_the_most_similar_rows_of_the_labels_that_miss_most_come_first() -> None:
    rows = read_from([{"text": text} for text in FOREIGN])
    choice = Choice(rows, source(), nearest=1)
    first = choice.take({"CARD": 2, "RATE": 1}, 3)
    assert Counter("card" in row.inputs["text"] for _, row, _ in first) == {True: 2, False: 1}
    assert "card" in first[0][1].inputs["text"]
    assert min(similarity for similarity, _, _ in first) > 0.4
    assert {block for _, _, block in first} <= {0, 1}
    # Where a label has no row left, the others' best come.
    rest = choice.take({"CARD": 9}, 9)
    assert len(rest) == 3
    assert choice.take({"CARD": 1}, 1) == []


def test_columns_are_found_by_name_or_by_their_texts() -> None:
    (named,) = read_from([{"text": "what is it", "note": "a much longer text than the other one is"}])
    assert named.inputs == {"text": "what is it"}
    (guessed,) = read_from([{"id": "a b c d e f g", "query": "what is it", "label": "a very long label", "n": 3}])
    assert guessed.inputs == {"text": "what is it"}
    found = read_from([{"text": "what is it"}, {"text": " "}, {"text": None}])
    assert [row.where for row in found] == ["clinc.jsonl, line 1"]


def test_a_task_of_several_inputs_needs_all_of_them_by_name(tmp_path: Path) -> None:
    row = {"passage": "word " * 200, "text": "Who came there in the end?"}
    gold = tuple(
        Record({**row, "text": f"{row['text']} {i}"}, {"a": "Ann"}, Provenance("gold", seed=i)) for i in (0, 1)
    )
    task = Source({"passage": str, "text": str}, "Answer.", gold)
    with pytest.raises(InputError, match="no column 'passage'"):
        read_related(table(tmp_path, [{"text": "who was it"}]), task)
    path = table(tmp_path, [{"text": "who was it that came", "passage": "A long story."}])
    lm, _ = scripted(lambda request: "Tell me who it was!")
    labeler = Labeler({-1: dspy.Predict("passage, text -> a")}, lm, CompactAdapter(), ("a",))
    given = Materials(task, lm, CompactAdapter(), labeler, options={RELATED: path})
    (record,) = Adaptation()([], given, 1).records
    assert record.inputs == {"passage": "A long story.", "text": "Tell me who it was!"}


def test_what_cannot_be_adapted_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    method = load_method("adaptation")
    with pytest.raises(InputError, match="needs the rows of a nearby data set"):
        method.check(source(), {RELATED: ""})
    with pytest.raises(InputError, match="no file"):
        method.check(source(), {RELATED: str(tmp_path / "none.csv")})
    for rows in ([{"n": 3}], [{"id": "a b c"}], [{"text": " "}], [{"text": "one"}], [{"label": "a b c"}]):
        with pytest.raises(InputError, match="no text to adapt"):
            method.check(source(), {RELATED: table(tmp_path, rows)})
    tags = Record({"tags": ["a"]}, {"label": "x"}, Provenance("gold"))
    with pytest.raises(InputError, match="rewrites texts"):
        method.check(Source({"tags": list[str]}, "", (tags,)), {RELATED: table(tmp_path, [{"tags": ["a"]}])})
    method.check(source(), {RELATED: table(tmp_path, [{"text": "a b c"}])})


def test_fruitless_calls_end_the_stage_and_a_spent_budget_passes_through(related: str) -> None:
    with pytest.raises(StageEmpty, match="2 too_short"):
        run(related, lambda r: "no", patience=2, wave=2)

    def broken(request: GenerateRequest) -> str:
        raise ValueError("the model is gone")

    with pytest.raises(StageEmpty, match="the model is gone"):
        run(related, broken, patience=3)

    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        run(related, spent)


def test_gold_alone_in_the_file_leaves_nothing_to_adapt(tmp_path: Path) -> None:
    backend: Scripted
    lm, backend = scripted(honest)
    path = table(tmp_path, [{"text": text} for text, _ in ROWS])
    with pytest.raises(StageEmpty, match="no row to begin with"):
        Adaptation()([], materials(lm, path), 2)
    assert not backend.requests
