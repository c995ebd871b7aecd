"""Bootstrapped rationales: what is tried and kept, that a told answer leaves no trace, blocks, several predictors."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import dspy
import pytest
from scripted import scripted

from limbeck.compile.label import Labeler
from limbeck.compile.rationales import METHOD, Star, StarConfig, Starred, star, with_rationales
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, load_method
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.programs.rationale import Reasoner, mentions_answer
from limbeck.records import CHECKED, Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature, literal
from limbeck.verifiers import HoldsNumber

NAMES = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo"]
FOLDS = (0, 1, 2, 0, 1, 2)
GOLD = tuple(
    Record(
        {"question": f"{name} has {i + 2} figs and buys {i + 1}. How many now?"},
        {"answer": 2 * i + 3},
        Provenance("gold", seed=i, level=1, block=FOLDS[i]),
    )
    for i, name in enumerate(NAMES)
)
METRIC = default_metric({"answer": "number"})


def asked(request: GenerateRequest) -> str:
    return re.findall(r"question: (\w+)", request.messages[-1][1])[-1]


def right(request: GenerateRequest) -> str:
    a, b = map(int, re.findall(r"(\d+) figs and buys (\d+)", request.messages[-1][1])[-1])
    return f"{a} and {b} more, so {a} + {b} = {a + b}.\n\n[[ ## answer ## ]]\n{a + b}"


def wrong(_: GenerateRequest) -> str:
    return "It is hard to say.\n\n[[ ## answer ## ]]\n0"


def told(request: GenerateRequest) -> bool:
    return "known_answer: " in request.messages[-1][1]


def source(folds: tuple[int, ...] = ()) -> Source:
    return Source({"question": str}, "Answer with the number.", GOLD, folds)


def labeler(lm: Any, program: dspy.Module | None = None, **more: Any) -> Labeler:
    signature = build_signature([FieldSpec("question")], [FieldSpec("answer", float)], "Answer with the number.")
    found = program or Reasoner(signature)
    return Labeler({-1: found}, lm, CompactAdapter(), ("answer",), **cast(Any, {"metric": METRIC, **more}))


def run(answer: Any, records: Any = GOLD, src: Source | None = None, **config: Any) -> tuple[Starred, Any]:
    lm, backend = scripted(answer)
    return star(records, src or source(), labeler(lm), config=StarConfig(**config)), backend


def by_name(request: GenerateRequest) -> str:
    """Ann and Bo are answered at once, Cy at the second try, Di when told, Ed tells, Flo never is."""
    name = asked(request)
    if name in ("Ann", "Bo"):
        return right(request)
    if name == "Cy":
        return right(request) if request.temperature > 0 else wrong(request)
    if name == "Di":
        return right(request) if told(request) else wrong(request)
    if name == "Ed":
        return (
            right(request).replace("more, so", "more. Since the answer is 11, so") if told(request) else wrong(request)
        )
    return "nonsense without an answer"


def test_what_is_right_is_kept_and_what_is_not_is_told_once() -> None:
    done, backend = run(by_name, samples=2)
    kept = {r.inputs["question"].split()[0]: r.provenance.attributes for r in done.records if r.kept}
    assert kept == {"Ann": "direct", "Bo": "direct", "Cy": "direct", "Di": "rationalized"}
    assert (done.direct, done.rationalized, done.failed) == (3, 1, 2)
    assert [r.reason for r in done.records if not r.kept] == ["mentions_answer", "failed"]
    assert done.calls == 6 + 4 + 3
    # What is told is told to those alone that had no other way.
    assert {asked(r) for r in backend.requests if told(r)} == {"Di", "Ed", "Flo"}
    assert [r.scores["tries"] for r in done.records] == [1, 1, 2, 3, 3, 3]


def test_records_train_a_program_that_reasons_and_say_where_they_come_from() -> None:
    done, _ = run(by_name)
    for parent, record in zip(GOLD, done.records, strict=True):
        assert record.inputs == parent.inputs
        assert record.outputs == parent.outputs
        assert record.calls == ()
        origin = record.provenance
        assert (origin.method, origin.parents, origin.level) == (METHOD, (parent.id,), CHECKED)
        assert "known_answer" not in record.rationale
    assert done.records[3].rationale == "5 and 4 more, so 5 + 4 = 9."
    merged = with_rationales(GOLD, done.records)
    assert [bool(row.rationale) for row in merged] == [True, True, True, True, False, False]
    assert [row.provenance for row in merged] == [row.provenance for row in GOLD]


def test_a_rationale_that_calculates_wrong_is_refused_although_it_ends_right() -> None:
    done, _ = run(lambda r: right(r).replace("= 3.", "= 5.") if asked(r) == "Ann" else right(r))
    assert [r.reason for r in done.records] == ["wrong_equation", *[""] * 5]


def test_a_rationale_that_breaks_off_is_refused_although_the_answer_is_right() -> None:
    def breaks_off(request: GenerateRequest) -> str:
        return right(request).replace("1 more, so 2 + 1 = 3.", "1 more, so 2 +")

    done, _ = run(breaks_off)
    assert [r.reason for r in done.records] == ["unfinished", *[""] * 5]


def test_later_tries_show_kept_rationales_of_the_same_block_and_never_the_row() -> None:
    first: set[str] = set()

    def answer(request: GenerateRequest) -> str:
        fresh = asked(request) not in first
        first.add(asked(request))
        return wrong(request) if fresh and asked(request) in ("Ann", "Cy") else right(request)

    done, backend = run(answer, src=source(FOLDS), threads=1)
    again = [r for r in backend.requests if r.temperature > 0]
    assert {asked(r) for r in again} == {"Ann", "Cy"}
    block = {r.inputs["question"].split()[0]: r.provenance.block for r in done.records}
    fold = dict(zip(NAMES, FOLDS, strict=True))
    assert all(block[name] != fold[name] for name in NAMES)
    for request in again:
        shown = [re.findall(r"question: (\w+)", text)[0] for role, text in request.messages[:-1] if role == "user"]
        kept = {name for name in NAMES if block[name] == block[asked(request)]} - {"Ann", "Cy"}
        assert set(shown) == set(sorted(kept)[:3]) if len(kept) <= 3 else len(shown) == 3
        assert all(fold[name] != block[asked(request)] for name in shown)
        assert asked(request) not in shown


def test_a_demonstration_that_is_the_row_itself_is_not_shown_to_it() -> None:
    lm, backend = scripted(right)
    program = Reasoner(build_signature([FieldSpec("question")], [FieldSpec("answer", float)], "Answer."))
    whole = [
        {"question": r.inputs["question"], "reasoning": "One adds.", "answer": r.outputs["answer"]} for r in GOLD[:2]
    ]
    bare = dspy.Example(question=GOLD[2].inputs["question"], answer=7)
    program.reason.predict.demos = [*(dspy.Example(**row) for row in whole), bare]
    star(GOLD[:2], source(), labeler(lm, program))
    shown = {asked(r): [text for role, text in r.messages[:-1] if role == "user"] for r in backend.requests}
    # The demonstration without a rationale is not shown either: it would teach to leave it out.
    assert [len(texts) for texts in shown.values()] == [1, 1]
    assert all(f"question: {name}" not in texts[0] for name, texts in shown.items())


class Two(dspy.Module):
    """Plans, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.solve = dspy.Predict(
            build_signature([FieldSpec("question"), FieldSpec("plan")], [FieldSpec("answer", float)], "Solve.")
        )

    def forward(self, question: str) -> dspy.Prediction:
        plan = self.plan(question=question).plan
        return dspy.Prediction(answer=self.solve(question=question, plan=plan).answer)


def test_a_program_of_several_predictors_keeps_its_calls_without_what_it_was_told() -> None:
    def answer(request: GenerateRequest) -> str:
        if "plan:" not in request.messages[-1][1]:
            return "add both"
        return right(request).split("\n")[-1] + ".0" if told(request) or asked(request) != "Bo" else "1"

    lm, backend = scripted(answer)
    done = star(GOLD[:2], source(), labeler(lm, Two()))
    assert [r.provenance.attributes for r in done.records] == ["direct", "rationalized"]
    told_ones = [r for r in backend.requests if told(r)]
    assert len(told_ones) == 2  # both predictors are told
    for record in done.records:
        assert [call["predictor"] for call in record.calls] == ["plan", "solve"]
        assert [set(call["inputs"]) for call in record.calls] == [{"question"}, {"question", "plan"}]
        # The user's own value, not the model's 5.0.
        assert record.calls[1]["outputs"] == record.outputs
        assert record.rationale == "add both"


def test_kept_calls_become_demonstrations_of_each_predictor() -> None:
    seen: set[str] = set()

    def answer(request: GenerateRequest) -> str:
        if "plan:" not in request.messages[-1][1]:
            return "add both"
        fresh = asked(request) not in seen
        seen.add(asked(request))
        return "1" if fresh and asked(request) == "Bo" else right(request).split("\n")[-1]

    lm, backend = scripted(answer)
    star(GOLD[:2], source(), labeler(lm, Two()), config=StarConfig(threads=1))
    last = [r for r in backend.requests if asked(r) == "Bo"][-2:]
    assert [[text for role, text in r.messages if role == "assistant"] for r in last] == [["add both"], ["3"]]


def test_rows_without_an_answer_are_kept_where_a_verifier_accepts() -> None:
    rows = [replace(row, outputs={}) for row in GOLD[:2]]
    lm, _ = scripted(lambda r: right(r) if asked(r) == "Ann" else "So.\n\n[[ ## answer ## ]]\nmany")
    text = Reasoner(build_signature([FieldSpec("question")], [FieldSpec("answer")], "Answer."))
    done = star(rows, source(), labeler(lm, text, verifiers=(HoldsNumber("answer"),)))
    assert [(r.kept, r.reason) for r in done.records] == [(True, ""), (False, "verifier:answer holds a number")]
    assert done.records[0].outputs == {"answer": "3"}


def test_the_same_seed_gives_the_same_records() -> None:
    one, two = (run(by_name, seed=4)[0] for _ in range(2))
    assert one.records == two.records
    assert {r.id for r in run(by_name, seed=5)[0].records}.isdisjoint(r.id for r in one.records)


def test_an_empty_stage_says_why_and_a_budget_passes_through() -> None:
    with pytest.raises(StageEmpty, match=r"in 24 calls \(6 wrong_answer\)"):
        run(wrong)
    with pytest.raises(StageEmpty, match="none of the first 3 calls"):
        run(lambda _: "nonsense", patience=3)

    def spent(_: GenerateRequest) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        run(spent)


TEXTS = ("the bus is late", "rain at noon", "a tram stands still", "fog in the valley")
LABELLED = tuple(
    Record({"text": t}, {"label": ["traffic", "weather"][i % 2]}, Provenance("gold", seed=i))
    for i, t in enumerate(TEXTS)
)


def materials(lm: Any, program: dspy.Module, src: Source) -> Materials:
    found = Labeler({-1: program}, lm, CompactAdapter(), ("label",), label_field="label")
    return Materials(src, lm, CompactAdapter(), found, samples=1)


def test_a_task_that_does_not_reason_gets_rationales_from_a_chain_of_thought() -> None:
    src = Source(
        {"text": str},
        "Name the topic.",
        LABELLED,
        label_field="label",
        labels=("traffic", "weather"),
        meanings={"traffic": "about roads", "weather": "about the sky"},
    )

    def answer(request: GenerateRequest) -> str:
        label = "traffic" if re.search("bus|tram", request.messages[-1][1]) else "weather"
        return f"It is about {label}.\n\n[[ ## label ## ]]\n{label}"

    lm, backend = scripted(answer)
    plain = dspy.Predict(build_signature([FieldSpec("text")], [FieldSpec("label", literal(src.labels))], "Name it."))
    method = load_method("star")
    made = method(LABELLED, materials(lm, plain, src), 3)
    assert len(made.records) == 3
    assert all(r.kept and r.rationale.startswith("It is about") for r in made.records)
    assert made.log == {"star": {"direct": 3, "rationalized": 0, "failed": 0, "calls": 3}}
    assert "traffic: about roads" in backend.requests[0].messages[0][1]
    assert isinstance(method, Star)
    assert list(method.programs(src)) == ["reason"]


def test_a_task_without_answers_is_refused() -> None:
    bare = tuple(replace(row, outputs={}) for row in GOLD)
    with pytest.raises(InputError, match="no row has one"):
        Star().check(replace(source(), gold=bare), {})
    Star().check(source(), {})


@pytest.mark.parametrize(
    ("rationale", "tells"),
    [
        ("3 and 4 make 7, so the answer is 7.", False),
        ("The known answer is 7, and 3 + 4 = 7.", True),
        ("As the answer is 7, he has 7.", True),
        ("The correct answer was given as 7.", True),
        ("We are told the answer, 7.", True),
        ("Using the hint, 3 + 4 = 7.", True),
        ("To get the right answer we add.", True),
        ("The answer should be 7.", True),
        ("He is given 4 more. The total is 7.", False),
        ("We know that he has 3.", False),
        ("The provided numbers are 3 and 4.", False),
    ],
)
def test_rationales_that_tell_are_found(rationale: str, tells: bool) -> None:
    assert mentions_answer(rationale, {"question": "He has 3 and gets 4."}) is tells


def test_the_words_of_the_inputs_tell_nothing() -> None:
    assert not mentions_answer("The hint points at Rome.", {"clue": "A hint: it is in Italy."})
