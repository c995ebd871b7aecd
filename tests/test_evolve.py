"""Evol-Instruct: rounds and lineages, every elimination rule, what prompts show, answers; calls that fail."""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, scripted

from limbeck.compile.evolve import (
    STOP_WORDS,
    Eliminator,
    EvolInstruct,
    EvolveConfig,
    Job,
    apologizes,
    says_nothing,
)
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized, load_method, parse_methods, write_rows
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.programs.evolve import Comparer
from limbeck.records import CHECKED, Provenance, Record
from limbeck.signatures.evolve import BREADTH, IN_DEPTH, OPERATIONS
from limbeck.signatures.tasks import FieldSpec, build_signature, literal

ROWS = ["Name three rivers.", "Plan a meal for guests.", "Why do cats purr?", "Write a poem about rain."]
GOLD = tuple(
    Record({"request": text}, {"answer": f"Answer number {i}."}, Provenance("gold", seed=i, level=1))
    for i, text in enumerate(ROWS)
)


def asked(request: GenerateRequest) -> str:
    """What the request asks for: "evolve", "compare" or "answer"."""
    system = request.messages[0][1]
    if system.startswith("Compare two"):
        return "compare"
    return "evolve" if "Do not answer" in system else "answer"


def row_in(request: GenerateRequest) -> str:
    return re.findall(r"^request: (.*)$", request.messages[-1][1], re.M)[-1]


def more_words(request: GenerateRequest) -> str:
    """The row with a dozen new words, drawn by the seed."""
    rng = random.Random(request.seed)
    return " ".join([row_in(request), *("".join(rng.sample("abcdefghij", 5)) for _ in range(12))])


def honest(request: GenerateRequest) -> str:
    if asked(request) == "evolve":
        return more_words(request)
    return "twelve words" if asked(request) == "compare" else "Certainly: the Nile."


def materials(lm: Any, **more: Any) -> Materials:
    source = Source({"request": str}, "Answer the request.", GOLD)
    signature = build_signature([FieldSpec("request")], [FieldSpec("answer")], "Answer the request.")
    metric = default_metric({"answer": "text"})
    labeler = Labeler({-1: dspy.Predict(signature)}, lm, CompactAdapter(), ("answer",), metric=metric)
    return Materials(source, lm, CompactAdapter(), labeler, samples=1, threads=4, **more)


def run(
    answer: Callable[[GenerateRequest], str], wanted: int = 16, seed: int = 0, **config: Any
) -> tuple[Synthesized, Scripted]:
    lm, backend = scripted(answer)
    return EvolInstruct(EvolveConfig(**config))(GOLD, materials(lm, seed=seed), wanted), backend


def test_every_row_goes_through_four_rounds_each_from_the_one_before() -> None:
    done, backend = run(honest)
    known = {row.id: row for row in (*GOLD, *done.records)}
    rounds = [record.provenance.attributes for record in done.records]
    assert Counter(text.split(":")[0] for text in rounds) == {f"round {n}": 4 for n in (1, 2, 3, 4)}
    for record in done.records:
        parent = known[record.provenance.parents[0]]
        number = int(record.provenance.attributes[6])
        assert record.inputs["request"].startswith(parent.inputs["request"])
        assert parent.provenance.method == ("gold" if number == 1 else "evol_instruct")
        assert number == 1 or parent.provenance.attributes.startswith(f"round {number - 1}")
        assert record.kept
        assert record.outputs == {"answer": "Certainly: the Nile."}
        assert record.provenance.level == CHECKED
    assert {r.provenance.parents[0] for r in done.records if ": " in r.provenance.attributes} >= {r.id for r in GOLD}
    assert done.log["evol_instruct"]["rounds"] == {str(n): {"kept": 4} for n in (1, 2, 3, 4)}
    assert Counter(map(asked, backend.requests)) == {"evolve": 16, "compare": 16, "answer": 16}
    assert len({record.id for record in done.records}) == 16


def test_the_six_operations_are_drawn_uniformly_and_told_to_the_model() -> None:
    done, backend = run(honest, wanted=240)
    counts = Counter(record.provenance.attributes.split(": ")[1] for record in done.records)
    assert set(counts) == set(OPERATIONS)
    # Five standard deviations of a draw of 240 around 40.
    assert all(abs(count - 40) < 29 for count in counts.values())
    told = Counter(
        how for r in backend.requests if asked(r) == "evolve" for how in re.findall("\nhow: (.*)", r.messages[-1][1])
    )
    assert told == {IN_DEPTH[name]: count for name, count in counts.items() if name != BREADTH}


def test_what_is_eliminated_goes_into_the_next_round_as_it_was() -> None:
    def answer(request: GenerateRequest) -> str:
        # Of each row the first round gains nothing.
        plain = request.messages[-1][1]
        if asked(request) == "compare" and re.findall(r"^first: (.*)$", plain, re.M)[-1] in ROWS:
            return "Nothing new." if len(seen) < 4 and not seen.add(plain) else "more"
        return honest(request)

    seen: set[str] = set()
    done, _ = run(answer, max_calls=16)
    gold = {row.id for row in GOLD}
    by_round = {n: [r for r in done.records if r.provenance.attributes[6] == n] for n in "1234"}
    assert [r.reason for r in by_round["1"]] == ["no_gain"] * 4
    assert {r.provenance.parents[0] for r in by_round["2"]} == gold
    assert all(r.kept for r in by_round["2"])
    assert {r.provenance.parents[0] for r in by_round["3"]} == {r.id for r in by_round["2"]}
    assert done.log["evol_instruct"]["rounds"]["1"] == {"no_gain": 4}


def test_other_lineages_begin_for_what_was_eliminated() -> None:
    def answer(request: GenerateRequest) -> str:
        return "a rewritten prompt" if asked(request) == "evolve" and request.seed % 2 else honest(request)

    done, _ = run(answer, wanted=16)
    kept = sum(record.kept for record in done.records)
    assert 12 <= kept <= 20
    assert len(done.records) > kept
    assert done.log["evol_instruct"]["lineages"] > 4
    rounds = done.log["evol_instruct"]["rounds"].values()
    assert sum(sum(tally.values()) for tally in rounds) == len(done.records)
    assert {name for tally in rounds for name in tally} == {"kept", "leaked"}


def job(text: str, operation: str = "deepen") -> Job:
    return Job(Record({"request": text}, {}, Provenance("gold")), operation, 1, 0)


TEN = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
    ("operation", "new", "reason"),
    [
        ("deepen", f"{TEN} and here is some more of it", ""),
        ("deepen", f"{TEN}, says the Rewritten Prompt", "leaked"),
        ("deepen", f"{TEN} as in the given prompt", "leaked"),
        ("deepen", f"output fields: {TEN}", "leaked"),
        ("deepen", f"{TEN} new_request: eleven", "leaked"),
        ("deepen", TEN.upper() + "!", "unchanged"),
        ("deepen", " ", "unchanged"),
        ("deepen", "name THREE rivers", "duplicate"),
        ("deepen", "seven words are less than eight words", "too_short"),
        ("deepen", "eight words are enough for ten words here", ""),
        ("deepen", f"{TEN} {'more ' * 40}", ""),
        ("deepen", f"{TEN} {'more ' * 41}", "too_long"),
        (BREADTH, "a shorter one, four", ""),
        (BREADTH, "a short one", "too_short"),
        (BREADTH, "more " * 31, "too_long"),
    ],
)
def test_rules_about_the_text_name_what_they_reject(operation: str, new: str, reason: str) -> None:
    rules = Eliminator(materials(None).source, ("request",), EvolveConfig())
    assert rules.text_reason(job(TEN, operation), {"request": new}) == reason
    # What passes is remembered.
    assert rules.text_reason(job(TEN, operation), {"request": new}) == (reason or "duplicate")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("Sorry to say so, " + "but it is a long story " * 20, ""),
        ("...", "empty_answer"),
        ("It is what it is, and so are they!", "empty_answer"),
        ("No", ""),
        ("name three rivers in Asia", "echo"),
        ("The Ganges, the Indus and the Mekong", ""),
    ],
)
def test_rules_about_the_answer_name_what_they_reject(answer: str, reason: str) -> None:
    rules = Eliminator(materials(None).source, ("request",), EvolveConfig())
    assert rules.answer_reason({"request": "Name three rivers in Asia."}, {"answer": answer}) == reason


def test_rules_that_gold_rows_break_themselves_give_way() -> None:
    rows = [
        ("Apologize to a guest who uses the phrase rewritten prompt.", "I am so sorry."),
        ("Which word is it?", "the"),
        ("Correct this: he go home.", "Correct this: he goes home."),
    ]
    gold = tuple(Record({"request": t}, {"answer": a}, Provenance("gold", seed=i)) for i, (t, a) in enumerate(rows))
    rules = Eliminator(Source({"request": str}, "", gold), ("request",), EvolveConfig())
    assert rules.text_reason(job(TEN), {"request": f"{TEN} in a rewritten prompt"}) == ""
    assert rules.text_reason(job(TEN), {"request": f"{TEN} in a given prompt"}) == "leaked"
    for answer in ("sorry", "of", "Correct that: she go."):
        assert rules.answer_reason({"request": "Correct that: she go."}, {"answer": answer}) == ""


@given(st.lists(st.sampled_from(sorted(STOP_WORDS))), st.sampled_from(["", "?!", "..."]))
def test_stop_words_and_punctuation_say_nothing_and_one_other_word_says_something(words: list[str], end: str) -> None:
    text = " ".join(words) + end
    assert says_nothing({"answer": text})
    assert not says_nothing({"answer": f"{text} river"})
    assert not says_nothing({"answer": text, "count": 3})
    assert not says_nothing({})


@given(st.integers(0, 90))
def test_an_apology_is_a_refusal_below_eighty_words(count: int) -> None:
    assert apologizes({"answer": "sorry" + " word" * count}, 80) == (count < 79)


def test_refusals_seen_in_the_answers_are_eliminated() -> None:
    def answer(request: GenerateRequest) -> str:
        refuses = asked(request) == "answer" and row_in(request).startswith(ROWS[0])
        return "Sorry, I cannot." if refuses else honest(request)

    done, _ = run(answer, wanted=16, max_calls=16)
    assert {r.reason for r in done.records if r.inputs["request"].startswith(ROWS[0])} == {"refusal"}
    assert all(r.kept for r in done.records if not r.inputs["request"].startswith(ROWS[0]))


def closed_materials(lm: Any, **more: Any) -> Materials:
    rows = [("Who wrote Hamlet?", "HUM"), ("Where is the Louvre?", "LOC"), ("Who came?", "HUM"), ("Where to?", "LOC")]
    gold = tuple(
        Record({"request": t}, {"label": y}, Provenance("gold", seed=i, level=1, block=i // 2))
        for i, (t, y) in enumerate(rows)
    )
    meanings = {"HUM": "asks for a person", "LOC": "asks for a place"}
    source = Source({"request": str}, "Choose.", gold, (0, 0, 1, 1), "label", ("HUM", "LOC"), meanings)
    signature = build_signature([FieldSpec("request")], [FieldSpec("label", literal(["HUM", "LOC"]))], "Choose.")
    program = dspy.Predict(signature)
    labeler = Labeler({0: program, 1: program}, lm, CompactAdapter(), ("label",), label_field="label")
    return Materials(source, lm, CompactAdapter(), labeler, threads=4, **more)


def test_in_a_closed_task_the_label_is_shown_and_kept_and_nothing_is_answered() -> None:
    lm, backend = scripted(honest)
    given = closed_materials(lm, distribution={"HUM": 3.0, "LOC": 1.0})
    done = EvolInstruct()(given.source.gold, given, 32)
    known = {row.id: row for row in (*given.source.gold, *done.records)}
    for record in done.records:
        root = record
        while root.provenance.parents:
            root = known[root.provenance.parents[0]]
        assert record.outputs == root.outputs
        # The student judged on the root's fold must not learn from it.
        assert record.provenance.block == 1 - root.provenance.block
    assert Counter(record.outputs["label"] for record in done.records) == {"HUM": 24, "LOC": 8}
    assert set(map(asked, backend.requests)) == {"evolve", "compare"}
    prompts = [r.messages[-1][1] for r in backend.requests if asked(r) == "evolve"]
    assert {tuple(prompt.splitlines()[:2]) for prompt in prompts} == {
        ("label: HUM", "meaning: asks for a person"),
        ("label: LOC", "meaning: asks for a place"),
    }


def test_a_passage_is_shown_and_stays_as_it_is() -> None:
    row = {"passage": "word " * 200, "how": "Who came?"}
    gold = tuple(Record(row, {"answer": str(i)}, Provenance("gold", seed=i)) for i in range(2))
    lm, backend = scripted(lambda r: "Who came there last, and when?" if asked(r) == "evolve" else "7 words")
    names = build_signature([FieldSpec("passage"), FieldSpec("how")], [FieldSpec("answer")], "Answer.")
    labeler = Labeler({-1: dspy.Predict(names)}, lm, CompactAdapter(), ("answer",))
    source = Source({"passage": str, "how": str}, "Answer.", gold)
    given = Materials(source, lm, CompactAdapter(), labeler, samples=1)
    (record,) = EvolInstruct(EvolveConfig(rounds=1, max_calls=1))(gold, given, 1).records
    assert record.inputs == {**row, "how": "Who came there last, and when?"}
    # A column named like the prompt's own field keeps its name.
    assert any("how: Who came?" in r.messages[-1][1] for r in backend.requests)
    compared = next(r for r in backend.requests if asked(r) == "compare")
    assert "word word" not in compared.messages[-1][1]


def test_the_same_seed_gives_the_same_records() -> None:
    one, two, other = run(honest)[0], run(honest)[0], run(honest, seed=1)[0]
    assert one == two
    assert {r.id for r in one.records}.isdisjoint(r.id for r in other.records)


def test_failed_calls_are_counted_by_round_and_a_failed_comparison_is_no_pass() -> None:
    def answer(request: GenerateRequest) -> str:
        fails = {"evolve": 3, "compare": 5}.get(asked(request), 0)
        if fails and zlib.crc32(request.messages[-1][1].encode()) % fails == 0:
            raise ValueError("no")
        return honest(request)

    done, _ = run(answer, wanted=40)
    rounds = Counter[str]()
    for tally in done.log["evol_instruct"]["rounds"].values():
        rounds.update(tally)
    reasons = Counter(r.reason or "kept" for r in done.records)
    assert rounds == reasons + Counter({"failed_calls": rounds["failed_calls"]})
    assert done.counts["failed_calls"] == rounds["failed_calls"] + reasons["not_compared"]


def test_nothing_usable_ends_the_stage_with_the_reasons() -> None:
    lm, backend = scripted(lambda r: "nothing" if asked(r) == "compare" else honest(r))
    with pytest.raises(StageEmpty, match="10 no_gain"):
        EvolInstruct(EvolveConfig(patience=10))(GOLD, materials(lm), 400)
    assert len(backend.requests) == 20

    def broken(request: GenerateRequest) -> str:
        raise ValueError("the model is gone")

    lm, backend = scripted(broken)
    with pytest.raises(StageEmpty, match="the model is gone"):
        EvolInstruct(EvolveConfig(patience=10))(GOLD, materials(lm), 400)
    assert len(backend.requests) < 20
    with pytest.raises(StageEmpty, match="no row to begin with"):
        EvolInstruct()([], materials(lm), 4)


def test_what_was_evolved_can_be_cleaned_in_a_chain() -> None:
    def answer(request: GenerateRequest) -> str:
        if "in other words" in request.messages[0][1] or "spelling" in request.messages[0][1]:
            return f"Please, {row_in(request)}"
        return honest(request)

    made = write_rows(parse_methods(["evol_instruct>cleaning"]), materials(scripted(answer)[0]), 8)
    kept = [record for record in made.records if record.kept]
    assert kept
    for record in kept:
        assert record.provenance.method == "cleaning"
        assert record.inputs["request"].startswith("Please, ")
        assert record.outputs == {"answer": "Certainly: the Nile."}
        # A machine's row stays one, however much it is cleaned.
        assert record.provenance.level == CHECKED
    assert set(made.log["evol_instruct>cleaning"]) >= {"evol_instruct", "cleaning"}


def test_a_spent_budget_passes_through() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        run(spent)


def test_a_task_without_text_is_refused() -> None:
    tags = Record({"tags": ["a"]}, {"label": "HUM"}, Provenance("gold"))
    with pytest.raises(InputError, match="none of the inputs is one: tags"):
        load_method("evol_instruct").check(Source({"tags": list[str]}, "", (tags,)), {})


@pytest.mark.parametrize(
    ("added", "equal"),
    [
        ("nothing", True),
        ("Nothing.", True),
        ("(none)", True),
        ("no new", True),
        ("nothing but salt", False),
        ("no sugar", False),
        ("two people", False),
    ],
)
def test_nothing_added_means_equal(added: str, equal: bool) -> None:
    with dspy.context(lm=scripted(lambda r: f"{added}\nmore")[0], adapter=CompactAdapter()):
        made: Any = Comparer(["text"])("one", "other")
    assert made.equal == equal
