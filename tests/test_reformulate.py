"""Problems in another form: each form forth and back, gold rows, agreement, shapes of slots, refusals."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import dspy
import pytest
from scripted import Scripted, scripted

from limbeck.compile.label import Labeler
from limbeck.compile.reformulate import METHOD, Reformulated, Reformulation, ReformulationConfig, Shape, reformulate
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, load_method
from limbeck.engine.requests import GenerateRequest, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import Kind, default_metric
from limbeck.models import LM, CompactAdapter
from limbeck.records import CHECKED, Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature, literal

NAMES = ["Ann", "Bo", "Cy", "Di"]
SUMS = tuple(
    Record(
        {"question": f"{name} has {i + 21} figs and eats {i + 3}. How many are left?"},
        {"answer": 18},
        Provenance("gold", seed=i, level=1),
    )
    for i, name in enumerate(NAMES)
)


class Scoring(Scripted):
    """A scripted backend that gives probabilities: the log of what a function says of each candidate."""

    def __init__(self, answer: Any, chances: Any) -> None:
        super().__init__(answer)
        self.supports_score, self.score_source, self.chances = True, "exact", chances
        self.scored: list[ScoreRequest] = []

    def score(self, request: ScoreRequest) -> Scores:
        with self.lock:
            self.scored.append(request)
        found = [self.chances(request, candidate) for candidate in request.candidates]
        return Scores(tuple(math.log(max(p, 1e-9)) for p in found), 1)


def scoring(chances: Any, answer: Any = lambda _: "none") -> tuple[LM, Scoring]:
    backend = Scoring(answer, chances)
    return LM("scoring", backend), backend


def source(gold: tuple[Record, ...], **more: Any) -> Source:
    return Source(dict.fromkeys(gold[0].inputs, str), "Name the topic.", gold, **more)


def run(lm: Any, records: Any, src: Source, kind: Kind, annotation: Any = str, **config: Any) -> Reformulated:
    name = next(iter(src.gold[0].outputs))
    inputs = [FieldSpec(field) for field in src.fields]
    program = dspy.Predict(build_signature(inputs, [FieldSpec(name, annotation)], "Answer directly."))
    closed = name if kind == "classification" else ""
    metric = None if closed else default_metric({name: kind})
    labeler = Labeler({-1: program}, lm, CompactAdapter(), (name,), label_field=closed, metric=metric)
    return reformulate(records, src, labeler, config=ReformulationConfig(**config))


def written(outputs: Any, i: int = 50, question: str = "") -> Record:
    """A row that another method wrote."""
    question = question or f"Flo has {i} figs and eats 2. How many are left?"
    return Record({"question": question}, outputs, Provenance("self_instruct", seed=i, level=CHECKED))


# -- numbers -------------------------------------------------------------------------------------------------


def solve(request: GenerateRequest) -> str:
    """Answers like a model that understands, except that Bo eats twice and Cy is not read."""
    text, system = request.messages[-1][1], request.messages[0][1]
    if "known_answer" in system or "Answer directly" in system:
        return "18" if "Ann" in text else "5"
    if "answer: " in text:
        had, eaten = re.findall(r"has (\w+) figs and eats (\w+)", text)[-1]
        return f"`{had} - {eaten} = {text.split('answer: ')[1]}`"
    had, eaten = re.findall(r"has (\d+) figs and eats (\d+)", text)[-1]
    return {"Bo": f"{had} - {eaten} - {eaten}", "Cy": "some are left"}.get(text.split()[1], f"= {had} - {eaten} = 99")


def test_a_word_problem_becomes_an_expression_and_leads_back() -> None:
    lm, backend = scripted(solve)
    done = run(lm, SUMS, source(SUMS), "number", float)
    assert done.form == "equation"
    assert [r.reason for r in done.records] == ["", "wrong_answer", "unparsable", ""]
    first = done.records[0]
    assert (first.outputs, first.rationale) == ({"answer": 18}, "21 - 3 = 18")
    assert (first.scores["round_trip"], first.provenance.parents) == (1.0, (SUMS[0].id,))
    assert done.log == {
        "gold": 4,
        "right": 2,
        "direct_right": 1,
        "right_and_returned": 2,
        "right_not_returned": 0,
        "wrong_and_returned": 0,
        "wrong_not_returned": 1,
    }
    back = [r.messages[-1][1] for r in backend.requests if "answer: " in r.messages[-1][1]]
    assert len(back) == 3
    assert all(len(re.findall(r"\bx\b", text)) == 1 for text in back)


def test_other_rows_must_lead_back_and_agree_with_the_direct_answer_by_a_score() -> None:
    def answer(request: GenerateRequest) -> str:
        text = request.messages[-1][1]
        return "x - 2 = 7" if "answer: " in text and "has x" not in text else solve(request)

    rows = [written({"answer": 48}), written({"answer": 1}, 60), written({}, 70)]
    lm, _ = scripted(lambda r: "68" if "Answer directly" in r.messages[0][1] else solve(r))
    done = run(lm, rows, source(SUMS), "number", float)
    assert [r.outputs["answer"] for r in done.records] == [48, 58, 68]
    assert [r.scores["agreement"] for r in done.records] == [1.0, 0.0, 1.0]
    assert all(r.kept for r in done.records)
    assert done.log == {}
    lost = [run(scripted(answer)[0], [written({"answer": 48}, i)], source(SUMS), "number", way_back=back)
            for i in range(50, 58) for back in (False,)]  # fmt: skip
    assert {r.records[0].scores["round_trip"] for r in lost} == {0.0, 1.0}
    assert all(r.records[0].kept for r in lost)
    with pytest.raises(StageEmpty, match="1 round_trip"):
        run(scripted(lambda r: "x = 2" if "answer: " in r.messages[-1][1] else solve(r))[0],
            [written({"answer": 48})], source(SUMS), "number")  # fmt: skip


def test_a_number_alone_is_no_reformulation_and_an_outage_is_no_answer() -> None:
    lm, _ = scripted(lambda r: "18" if "Ann" in r.messages[-1][1] else solve(r))
    assert run(lm, SUMS, source(SUMS), "number", float).records[0].reason == "not_reformulated"

    def broken(request: GenerateRequest) -> str:
        if "Ann" in request.messages[-1][1] and "Answer directly" not in request.messages[0][1]:
            raise ValueError("lost")
        return solve(request)

    done = run(scripted(broken)[0], SUMS, source(SUMS), "number", float)
    assert (done.records[0].reason, done.unreadable) == ("failed", 1)


# -- labels --------------------------------------------------------------------------------------------------

TOPICS = ("traffic", "weather", "sports")
TEXTS = ("the bus is late", "rain at noon", "they won the cup")
LABELLED = tuple(
    Record({"text": t}, {"label": y}, Provenance("gold", seed=i))
    for i, (t, y) in enumerate(zip(TEXTS, TOPICS, strict=True))
)
CLOSED = source(LABELLED, label_field="label", labels=TOPICS, meanings={"weather": "about the sky"})
WORDS = {"bus": "traffic", "rain": "weather", "cup": "sports"}


def topic(request: ScoreRequest) -> str:
    text = request.messages[-1][1].split("\n")[0]
    return next((label for word, label in WORDS.items() if word in text), "")


def judged(request: ScoreRequest, candidate: str) -> float:
    text, label = request.messages[-1][1], topic(request)
    if candidate in ("yes", "no"):
        holds = f'is "{label}"' in text
        return {("yes", True): 0.9, ("no", True): 0.1, ("yes", False): 0.2, ("no", False): 0.8}[candidate, holds]
    if candidate in ("A", "B"):  # favours the first place, and knows the answer all the same
        first = label in text.split("option_a")[1].split("option_b")[0]
        return {"A": 0.9 if first else 0.6}.get(candidate, 0.1 if first else 0.4)
    return 0.7 if candidate == label else 0.1


def test_labels_become_statements_and_the_best_two_lead_back_in_both_orders() -> None:
    lm, backend = scoring(judged)
    done = run(lm, LABELLED, CLOSED, "classification", literal(TOPICS))
    assert done.form == "entailment"
    assert [r.outputs for r in done.records] == [{"label": topic} for topic in TOPICS]
    assert all(r.kept and r.rationale == "" and r.scores["round_trip"] == 1.0 for r in done.records)
    assert done.records[0].scores["confidence"] == pytest.approx(0.9)
    assert done.log["direct_right"] == done.log["right"] == 3
    statements = {r.messages[-1][1].split("\n")[1] for r in backend.scored if "yes" in r.candidates}
    assert 'statement: The label is "weather": about the sky' in statements
    choices = [r for r in backend.scored if "A" in r.candidates]
    assert len(choices) == 6


def test_where_no_statement_holds_there_is_no_answer() -> None:
    unsure = {"yes": 0.3, "no": 0.7}
    lm, _ = scoring(lambda r, c: unsure.get(c, 0.5) if "bus" in r.messages[-1][1] else judged(r, c))
    done = run(lm, LABELLED, CLOSED, "classification", literal(TOPICS))
    assert [r.reason for r in done.records] == ["no_statement_holds", "", ""]
    assert done.records[0].outputs == {}


def test_of_many_labels_the_likeliest_are_asked_for() -> None:
    lm, backend = scoring(judged)
    done = run(lm, LABELLED, CLOSED, "classification", literal(TOPICS), candidates=2)
    assert all(r.kept for r in done.records)
    assert sum("yes" in r.candidates for r in backend.scored) == 6
    # Without probabilities: the direct answer, among others drawn by the seed.
    lm, plain = scripted(lambda r: "yes" if "statement" in r.messages[-1][1] else "A")
    made = [written({"label": "sports"}, question="?")]
    rows = [replace(made[0], inputs={"text": "they won the cup"})]
    reformulate(
        rows,
        CLOSED,
        Labeler({-1: dspy.Predict("text -> label")}, lm, CompactAdapter(), ("label",), label_field="label"),
        config=ReformulationConfig(candidates=2, way_back=False),
    )
    asked = [r.messages[-1][1] for r in plain.requests if "statement" in r.messages[-1][1]]
    assert len(asked) == 2
    assert any('"sports"' in text for text in asked)


# -- slots ---------------------------------------------------------------------------------------------------

BOOKING = "A table for ten people at 7 pm, or 8 pm."
PAIRS = [
    {"slot": "people", "value": "ten people"},
    {"slot": "time", "value": "7 pm"},
    {"slot": "time", "value": "8 pm"},
]
SLOTS = (
    Record({"text": BOOKING}, {"slots": PAIRS}, Provenance("gold")),
    Record({"text": "Hello there."}, {"slots": []}, Provenance("gold", seed=1)),
)


def booked(request: GenerateRequest) -> str:
    text = request.messages[-1][1]
    if "Hello" in text or "question" not in text:
        return "none" if "question" in text else ("people" if "ten" in text.split("value:")[1] else "time")
    return "ten people" if "people?" in text else '- "7 pm"\n- 8 pm'


def direct_slots(request: GenerateRequest) -> str:
    return "[]" if "Answer directly" in request.messages[0][1] else booked(request)


def test_slots_become_questions_and_values_lead_back_to_them() -> None:
    done = run(scripted(direct_slots)[0], SLOTS, source(SLOTS), "extraction", list[dict[str, str]])
    assert done.form == "questions"
    assert [r.kept for r in done.records] == [True, True]
    assert done.records[0].scores["round_trip"] == 1.0
    assert "round_trip" not in done.records[1].scores
    other = [replace(written([]), inputs={"text": BOOKING}, outputs={})]
    made = run(scripted(direct_slots)[0], other, source(SLOTS), "extraction", list[dict[str, str]]).records[0]
    assert made.outputs == {"slots": PAIRS}


def test_values_that_are_not_in_the_text_or_come_back_elsewhere_are_refused() -> None:
    def invents(request: GenerateRequest) -> str:
        return (
            "9 pm"
            if "time?" in request.messages[-1][1] and "Hello" in request.messages[-1][1]
            else direct_slots(request)
        )

    done = run(scripted(invents)[0], SLOTS, source(SLOTS), "extraction", list[dict[str, str]])
    assert [r.reason for r in done.records] == ["", "ungrounded"]

    def confuses(request: GenerateRequest) -> str:
        return "people" if "value:" in request.messages[-1][1] else direct_slots(request)

    other = [replace(written([]), inputs={"text": BOOKING}, outputs={})]
    with pytest.raises(StageEmpty, match="1 round_trip"):
        run(scripted(confuses)[0], other, source(SLOTS), "extraction", list[dict[str, str]])


@pytest.mark.parametrize(
    ("values", "shape", "found"),
    [
        ([{"time": "7 pm"}, {"people": "2"}], Shape("object", ("time", "people")), {"time": "7 pm"}),
        ([{"time": ["7 pm", "8"]}, {}], Shape("object", ("time",), lists=True), {"time": ["7 pm"]}),
        ([["7 pm"], []], Shape("list", ("slots",)), ["7 pm"]),
        (
            [[{"text": "7", "type": "time"}, {"text": "8", "type": "time"}], []],
            Shape("pairs", ("time",), "type", "text"),
            [{"type": "time", "text": "7 pm"}],
        ),
    ],
)
def test_shapes_are_those_of_gold(values: list[Any], shape: Shape, found: Any) -> None:
    gold = tuple(Record({"text": str(i)}, {"slots": v}, Provenance("gold")) for i, v in enumerate(values))
    assert Shape.of(source(gold)) == shape
    assert shape.written({shape.slots[0]: ["7 pm"]}) == found


# -- short answers -------------------------------------------------------------------------------------------

CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Paris")
LANDS = ("Italy", "Norway", "Peru", "Egypt", "Ecuador", "France")
CAPITALS = tuple(
    Record({"question": f"What is the capital of {land}?"}, {"answer": city}, Provenance("gold", seed=i))
    for i, (city, land) in enumerate(zip(CITIES, LANDS, strict=True))
)


def filled(request: GenerateRequest) -> str:
    text = request.messages[-1][1]
    land = re.findall(r"capital of (\w+)", text)[0]
    if "Answer directly" in request.messages[0][1]:
        return "Rome"
    if "statement: " not in text:
        return "No gap here." if land == "Peru" else f"The capital of {land} is ____."
    if "____" in text:
        return "Atlantis." if land == "France" else CITIES[LANDS.index(land)]
    return "no" if "Atlantis" in text else "yes"


def test_short_answers_fill_a_gap() -> None:
    done = run(scripted(filled)[0], CAPITALS, source(CAPITALS), "short_answer")
    assert done.form == "cloze"
    assert [r.reason for r in done.records] == ["", "", "no_gap", "", "", "wrong_answer"]
    assert done.records[0].rationale == "The capital of Italy is Rome."
    assert done.log["wrong_not_returned"] == 1
    assert done.log["direct_right"] == 1


# -- the method ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_records() -> None:
    one, two = (run(scripted(solve)[0], SUMS, source(SUMS), "number", float, seed=2) for _ in range(2))
    assert one.records == two.records


def test_a_budget_passes_through_and_unreadable_rows_end_the_stage() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        run(scripted(spent)[0], SUMS, source(SUMS), "number", float)

    def broken(request: GenerateRequest) -> str:
        if "Answer directly" in request.messages[0][1]:
            return "5"
        raise ValueError("lost")

    with pytest.raises(StageEmpty, match="none of the first 2 rows could be solved"):
        run(scripted(broken)[0], SUMS, source(SUMS), "number", float, patience=2)


def test_tasks_without_another_form_are_refused() -> None:
    long = tuple(
        Record({"q": str(i)}, {"text": f"number {i} " + "is a long text of many words " * 5}, Provenance("gold"))
        for i in range(4)
    )
    with pytest.raises(InputError, match="no other form for the texts of 'text'"):
        Reformulation().check(source(long), {})
    two = tuple(replace(row, outputs={**row.outputs, "more": 1}) for row in SUMS)
    with pytest.raises(InputError, match="has answer, more"):
        Reformulation().check(source(two), {})
    odd = tuple(replace(row, outputs={"answer": [{"a": 1, "b": 2, "c": 3}]}) for row in SUMS)
    with pytest.raises(InputError, match="no slots that hold text"):
        Reformulation().check(source(odd), {})
    for rows in (SUMS, SLOTS, CAPITALS):
        Reformulation().check(source(rows), {})
    Reformulation().check(CLOSED, {})


def test_the_method_by_its_name() -> None:
    lm, _ = scripted(solve)
    program = dspy.Predict(build_signature([FieldSpec("question")], [FieldSpec("answer", float)], "Answer directly."))
    metric = default_metric({"answer": "number"})
    labeler = Labeler({-1: program}, lm, CompactAdapter(), ("answer",), metric=metric)
    method = load_method("reformulation")
    made = method(SUMS, Materials(source(SUMS), lm, CompactAdapter(), labeler), 3)
    assert len(made.records) == 3
    assert made.log[METHOD]["form"] == "equation"
    assert isinstance(method, Reformulation)
    assert list(method.programs(CLOSED)) == ["entailment"]
