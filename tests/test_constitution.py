"""Answers revised under a constitution: rounds and their outcomes, what keeps the former answer, levels, refusals."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import scripted

from limbeck.compile.constitution import METHOD, Constitutional, ConstitutionConfig, Revised, drawn, revise
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.models import CompactAdapter
from limbeck.principles import Principle
from limbeck.programs.constitution import Reviser
from limbeck.records import CHECKED, SELF_RATED, Provenance, Record
from limbeck.verifiers import Verdict

PRINCIPLES = (
    Principle("short", "What could be left out?", "Leave it out."),
    Principle("kind", "What could hurt?", "Say it kindly.", 3.0),
    Principle("true", "What is false?", "Correct it."),
)
GOLD = tuple(
    Record(
        {"request": f"Tell me about thing {i}."}, {"answer": f"A person's words on {i}."}, Provenance("gold", seed=i)
    )
    for i in range(3)
)
MADE = tuple(
    Record(
        {"request": f"And about thing {i}?"}, {"answer": f"First words on {i}."}, Provenance("self_instruct", seed=i)
    )
    for i in range(3, 6)
)


def step(request: GenerateRequest) -> str:
    """Which call this is."""
    text = request.messages[-1][1]
    return "critique" if "look_for: " in text else "revision" if "critique: " in text else "answer"


def field(request: GenerateRequest, name: str) -> str:
    return re.findall(rf"^{name}: (.*)$", request.messages[-1][1], re.MULTILINE)[0]


def improves(request: GenerateRequest) -> str:
    """Criticises each time, and marks each revision with what it did."""
    if step(request) == "critique":
        return f"It is too much: {field(request, 'look_for')}"
    return f"{field(request, 'answer')} [{field(request, 'do')}]" if step(request) == "revision" else "Model words."


class LongEnough:
    """Refuses answers of less than three letters."""

    name = "long enough"

    def __call__(self, inputs: Any, outputs: Any) -> Verdict:
        return Verdict(sum(c.isalpha() for c in outputs["answer"]) > 2)


def source(gold: tuple[Record, ...] = GOLD, **more: Any) -> Source:
    return Source(dict.fromkeys(gold[0].inputs, str), "Answer the request.", gold, **more)


def labeler(lm: Any) -> Labeler:
    program = dspy.Predict("request -> answer")
    program.demos = [dspy.Example(request=GOLD[0].inputs["request"], answer=GOLD[0].outputs["answer"])]
    return Labeler({-1: program}, lm, CompactAdapter(), ("answer",))


def run(answer: Any, records: Any = MADE, **config: Any) -> tuple[Revised, Any]:
    lm, backend = scripted(answer)
    return revise(records, source(), PRINCIPLES, labeler(lm), config=ConstitutionConfig(**config)), backend


def test_each_round_revises_the_last_revision_by_another_principle() -> None:
    done, backend = run(improves, rounds=4)
    for parent, record in zip(MADE, done.records, strict=True):
        applied = record.provenance.attributes.split(" > ")
        assert sorted(applied) == ["kind", "short", "true"]  # there are three, and none is drawn twice
        does = {one.name: one.revision for one in PRINCIPLES}
        marks = " ".join(f"[{does[name]}]" for name in applied)
        assert record.outputs == {"answer": f"{parent.outputs['answer']} {marks}"}
        assert (record.provenance.parents, record.provenance.level) == ((parent.id,), SELF_RATED)
        assert record.scores["revisions"] == 3
    assert done.outcomes == {"revised": 9}
    assert done.changed == 3
    assert done.before == tuple(r.outputs["answer"] for r in MADE)
    assert Counter(map(step, backend.requests)) == {"critique": 9, "revision": 9}


def test_a_gold_row_is_answered_anew_and_without_being_shown_its_own_answer() -> None:
    done, backend = run(improves, GOLD[:1], rounds=1)
    assert done.before == ("Model words.",)
    answered = [r for r in backend.requests if step(r) == "answer"]
    assert not any("A person's words" in text for r in answered for _, text in r.messages)
    assert done.records[0].outputs["answer"].startswith("Model words. [")
    pair = done.pairs()[0]
    assert (pair.first, pair.second) == (done.records[0].outputs, {"answer": "Model words."})
    assert pair.parents == (done.records[0].id,)


@pytest.mark.parametrize(
    ("critique", "revision", "outcome"),
    [
        ("I'm sorry, but I cannot criticise this.", "unused", "refused"),
        ("As an AI, I have no opinion.", "unused", "refused"),
        ("There is nothing to criticise in the answer.", "unused", "nothing"),
        ("No issues found.", "unused", "nothing"),
        ("Nothing.", "unused", "nothing"),
        ("It is rude.", "I cannot help with that.", "refused"),
        ("It is rude.", "First  words on 3.", "unchanged"),
        ("It is rude.", '"First words on 3."', "unchanged"),
        ("It is rude.", "Here is the revised answer: First words on 3.", "unchanged"),
        ("It is rude.", "Following the critique, I say it kindly.", "leaked"),
        ("It hurts people by taking away rights.", "It hurts people by taking away their rights, so stop.", "leaked"),
        ("It is rude.", "revision:", "empty"),
        ("Nothing in the answer is polite, it scolds.", "Kind words.", "revised"),
        ("No part of it is kind.", "Revised answer: Kind words.", "revised"),
        ("It is rude.", "I cannot recommend it enough.", "revised"),
    ],
)
def test_what_cannot_be_used_keeps_the_former_answer(critique: str, revision: str, outcome: str) -> None:
    made = MADE[:1]
    if outcome == "revised" and revision.startswith("I cannot"):
        made = (replace(made[0], outputs={"answer": "I can't say how good it is."}),)
    done, _ = run(lambda r: critique if step(r) == "critique" else revision, made, rounds=1)
    assert done.outcomes == {outcome: 1}
    assert done.changed == (outcome == "revised")
    kept = done.records[0]
    assert kept.kept
    assert (kept.outputs == made[0].outputs) == (outcome != "revised")
    assert bool(done.pairs()) == (outcome == "revised")
    if outcome == "revised":
        assert kept.outputs["answer"] in ("Kind words.", revision)


def test_a_round_that_cannot_be_read_is_counted_and_the_next_one_goes_on() -> None:
    def answer(request: GenerateRequest) -> str:
        if step(request) == "critique" and "hurt" in field(request, "look_for"):
            raise ValueError("lost")
        return improves(request)

    done, _ = run(answer, rounds=3)
    assert done.outcomes == {"revised": 6, "unparsable": 3}
    assert all("kind" not in r.provenance.attributes for r in done.records)


def test_a_row_without_an_answer_is_rejected_for_its_reason() -> None:
    rows = [replace(MADE[0], outputs={}), replace(MADE[1], outputs={})]

    def answer(request: GenerateRequest) -> str:
        if step(request) != "answer":
            return improves(request)
        return " . " if "thing 3" in field(request, "request") else "So it is."

    lm, _ = scripted(answer)
    strict = replace(labeler(lm), verifiers=(LongEnough(),))
    done = revise(rows, source(), PRINCIPLES, strict)
    assert [(r.kept, r.reason) for r in done.records] == [(False, "verifier:long enough"), (True, "")]
    assert done.records[0].outputs == {}
    with pytest.raises(StageEmpty, match="none of 1 rows has an answer"):
        revise(rows[:1], source(), PRINCIPLES, strict)


def test_the_same_seed_gives_the_same_records_and_another_draws_anew() -> None:
    one, two = (run(improves, rounds=2, seed=4)[0] for _ in range(2))
    assert one == two
    found = {r.provenance.attributes for seed in range(6) for r in run(improves, rounds=1, seed=seed)[0].records}
    assert found == {"short", "kind", "true"}


def test_heavier_principles_are_drawn_more_often() -> None:
    rows = [Record({"q": i}, {}, Provenance("m", seed=i)) for i in range(1500)]
    first = Counter(drawn(PRINCIPLES, 1, 0, row)[0].name for row in rows)
    assert 0.55 < first["kind"] / 1500 < 0.65
    assert [len({p.name for p in drawn(PRINCIPLES, 9, 0, row)}) for row in rows[:3]] == [3, 3, 3]


def test_a_budget_passes_through_and_an_outage_ends_the_stage() -> None:
    def spent(_: GenerateRequest) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        run(spent)

    def broken(_: GenerateRequest) -> str:
        raise ValueError("lost")

    with pytest.raises(StageEmpty, match="no round of the first 2 rows could be read"):
        run(broken, patience=2)


def materials(lm: Any, **options: Any) -> Materials:
    return Materials(source(), lm, CompactAdapter(), labeler(lm), options=options)


def brief(folder: Path) -> Path:
    path = folder / "own.toml"
    path.write_text('[[principle]]\nname = "brief"\ncritique = "Is it long?"\nrevision = "Cut."\n', encoding="utf-8")
    return path


def test_the_method_reads_the_users_constitution(tmp_path: Path) -> None:
    path = brief(tmp_path)
    lm, backend = scripted(improves)
    method = Constitutional(ConstitutionConfig(prefer=False))
    made = method(MADE, materials(lm, constitution=str(path)), 2)
    assert [r.provenance.attributes for r in made.records] == ["brief", "brief"]
    assert made.log == {METHOD: {"changed": 2, "unchanged": 0, "rounds": {"revised": 2}}}
    assert "look_for: Is it long?" in backend.requests[0].messages[-1][1]
    path.write_text("[[principle]]\nname = 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.toml, line 2: name is 3"):
        method.check(source(), {"constitution": str(path)})


def compares(better: str) -> Any:
    """Revises as `improves` does; of two answers the one with a mark is `better` ("A" in its place, or unreadable)."""

    def answer(request: GenerateRequest) -> str:
        if "answer_a: " not in request.messages[-1][1]:
            return improves(request)
        return better or ("A" if "[" in field(request, "answer_a") else "B")

    return answer


def compared(folder: Path, better: str) -> Synthesized:
    given = materials(scripted(compares(better))[0], constitution=str(brief(folder)))
    return Constitutional()(MADE, given, 9)


def test_the_method_prefers_revisions_or_first_answers(tmp_path: Path) -> None:
    made = compared(tmp_path, "")
    assert [one.rejected for one in made.preferences] == [row.outputs for row in MADE]
    assert [one.chosen for one in made.preferences] == [row.outputs for row in made.records]
    assert {one.provenance.parents for one in made.preferences} == {(row.id,) for row in made.records}
    log = made.log[METHOD]["preferences"]
    assert (log["pairs"], log["revision_better"], log["identical"], log["tie"]) == (3, 3, 0, 0)
    always_first = compared(tmp_path, "A")
    assert always_first.preferences == ()  # a judge that always likes the first place has no preference
    assert always_first.log[METHOD]["preferences"]["tie"] == 3


def test_comparisons_that_cannot_be_read_lose_no_revision(tmp_path: Path) -> None:
    made = compared(tmp_path, "perhaps")
    assert len([r for r in made.records if r.kept]) == 3
    assert made.preferences == ()
    assert "could be read" in made.log["warnings"][0]


def test_the_method_measures_violations_where_it_is_asked_to() -> None:
    def answer(request: GenerateRequest) -> str:
        if "Answer with the violates only" in request.messages[0][1]:
            return "no" if "[" in field(request, "answer") else "yes"
        return f"{field(request, 'answer')} [mended]" if step(request) == "revision" else improves(request)

    made = Constitutional(ConstitutionConfig(rounds=1, measure=True))(MADE, materials(scripted(answer)[0]), 9)
    changes = made.log[METHOD]["violations"]
    assert changes[-1]["principle"] == "any principle"
    assert (changes[-1]["before"][0], changes[-1]["after"][0], changes[-1]["difference"]) == (1.0, 0.0, -1.0)


def test_tasks_that_answer_with_no_text_are_refused() -> None:
    method = Constitutional()
    method.check(source(), {})
    labelled = source(label_field="answer", labels=("a", "b"))
    numbers = tuple(replace(row, outputs={"answer": 3}) for row in GOLD)
    two = tuple(replace(row, outputs={**row.outputs, "more": "text"}) for row in GOLD)
    for bad in (labelled, source(numbers), source(two)):
        with pytest.raises(InputError, match="revises texts"):
            method.check(bad, {})
    assert list(method.programs(source())) == ["revise", "judge"]


def test_the_request_may_have_several_fields() -> None:
    gold = tuple(Record({"task": "Add.", "numbers": "1, 2"}, r.outputs, Provenance("m", level=CHECKED)) for r in GOLD)
    lm, backend = scripted(improves)
    revise(gold[:1], source(gold), PRINCIPLES, labeler(lm), config=ConstitutionConfig(rounds=1), program=Reviser())
    assert "request:\ntask: Add.\nnumbers: 1, 2" in backend.requests[0].messages[-1][1]
