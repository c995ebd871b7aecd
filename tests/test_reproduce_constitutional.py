"""Revisions under principles reproduced: made answers and their faults, what a critic learns, all parts at work."""

from __future__ import annotations

import random
import re

import pytest
from scripted import scripted

from limbeck.engine.loading import LoadedModel, load_model
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import StageEmpty
from limbeck.finetune.dpo import preference_rows, with_reference
from limbeck.finetune.rows import PlainRow
from limbeck.programs.constitution import PrincipleComparer, Reviser
from limbeck.reproduce import constitutional
from limbeck.reproduce.constitutional import (
    PRINCIPLES,
    REVISED,
    START,
    UNREVISED,
    Sizes,
    comparer_rows,
    critic_rows,
    further,
    pairs_of,
    preferences,
    revised,
)
from limbeck.reproduce.customers import RULES, Rule, make_reply, make_requests
from limbeck.reproduce.outcome import told
from limbeck.reproduce.setting import Setting


def drawn(number: int, rng: random.Random) -> list[Rule]:
    """Every combination of the rules in turn."""
    return [rule for place, rule in enumerate(RULES) if number >> place & 1]


def test_requests_are_different_and_the_same_for_a_seed() -> None:
    made = make_requests(300, seed=4)
    assert len({one.text for one in made}) == 300
    assert made == make_requests(300, seed=4)
    assert made != make_requests(300, seed=5)
    assert all(one.mail in one.text and one.fact in one.text for one in made)


def test_a_made_answer_passes_the_fact_on_and_breaks_just_the_rules_that_it_is_told_to() -> None:
    rng = random.Random(1)
    for number, request in enumerate(make_requests(160)):
        broken = drawn(number, rng)
        reply = make_reply(request, broken, rng)
        assert request.answered(reply.text)
        assert [rule for rule in RULES if rule.broken(reply.text)] == broken
        for rule in RULES:
            assert not rule.broken(reply.without(rule).text)
            assert request.answered(reply.without(rule).text)
            assert reply.breaking(rule) in reply.text
            assert bool(reply.breaking(rule)) == (rule in broken)


def test_an_answer_with_another_fact_does_not_count_however_harmless() -> None:
    one, other = make_requests(2, seed=8)
    assert not one.answered(make_reply(other, (), random.Random(0)).text)
    assert not one.answered("")


def test_half_of_what_a_critic_learns_is_that_there_is_nothing_to_criticise() -> None:
    rows = critic_rows(Reviser(), make_requests(60), random.Random(0))
    said = [row.completions[0][0] for row in rows if "look_for: " in row.messages[-1][1]]
    mended = [row.completions[0][0] for row in rows if "do: " in row.messages[-1][1]]
    assert (len(said), said.count("Nothing."), len(mended)) == (60, 30, 30)
    for rule in RULES:
        asked = [row for row in rows if f"look_for: {rule.principle.critique}" in row.messages[-1][1]]
        assert len(asked) == 20
        assert all(
            rule.broken(row.messages[-1][1].split("answer: ")[1]) == (row.completions[0][0] != "Nothing.")
            for row in asked
        )


def test_of_two_answers_that_a_critic_learns_to_compare_the_better_one_alone_keeps_the_principle() -> None:
    rows = comparer_rows(PrincipleComparer(PRINCIPLES), make_requests(60), random.Random(0))
    places: list[str] = []
    for place, row in enumerate(rows):
        rule, asked = RULES[place % 3], row.messages[-1][1]
        assert rule.principle.critique in row.messages[0][1]
        first, second = asked.split("answer_a: ")[1].split("\nanswer_b: ")
        places.append(row.completions[0][0])
        assert (rule.broken(first), rule.broken(second)) == ((False, True) if places[-1] == "A" else (True, False))
    assert 15 < places.count("A") < 45


def field(request: GenerateRequest, name: str) -> str:
    return re.findall(rf"^{name}: (.*)$", request.messages[-1][1], re.MULTILINE)[0]


def exact(request: GenerateRequest) -> str:
    """A critic without a fault: quotes the sentence that breaks the rule, and leaves it out."""
    if "answer_b: " in request.messages[-1][1]:
        rule = next(rule for rule in RULES if rule.principle.critique in request.messages[0][1])
        return "B" if rule.broken(field(request, "answer_a")) else "A"
    answer = field(request, "answer")
    if "look_for: " not in request.messages[-1][1]:
        quoted = re.findall(r'"(.*)"', field(request, "critique"))[0]
        return " ".join(answer.replace(quoted, "").split())
    rule = next(rule for rule in RULES if rule.principle.critique == field(request, "look_for"))
    sentences = re.split(r"(?<=[.])\s", answer)
    return next((f'"{one}" {rule.fault}.' for one in sentences if rule.broken(one)), "Nothing.")


def test_a_critic_without_a_fault_leaves_only_answers_that_break_nothing_and_pass_the_fact_on() -> None:
    rng = random.Random(2)
    answered = [
        (request, make_reply(request, drawn(number, rng), rng).text) for number, request in enumerate(make_requests(24))
    ]
    lm, backend = scripted(exact)
    done = revised(lm, answered[:2], answered)
    last = [str(record.outputs["answer"]) for record in done.records]
    assert all(request.answered(text) for (request, _), text in zip(answered, last, strict=True))
    assert not any(rule.broken(text) for rule in RULES for text in last)
    assert done.before == tuple(text for _, text in answered)
    assert done.outcomes == {"revised": 36, "nothing": 36}  # each rule is broken by half of the answers
    assert len(backend.requests) == 3 * 24 + 36
    assert all(len(request.messages) == 2 for request in backend.requests)  # no demonstration
    preferred = preferences(lm, done)
    changed = [pair for pair in zip(done.before, last, strict=True) if pair[0] != pair[1]]
    assert len(preferred.preferences) + preferred.counts["tie"] == len(changed) == 21
    for one in preferred.preferences:
        rule = next(rule for rule in RULES if rule.principle.name == one.principle)
        assert rule.broken(str(one.rejected["answer"]))
        assert not rule.broken(str(one.chosen["answer"]))
        assert one.p == 1.0
    assert preferred.preferences


def test_assistant_and_students_are_compared_on_the_same_requests(setting: Setting) -> None:
    outcome = constitutional.run(setting, Sizes(taught=6, criticised=6, asked=4, tested=5))
    assert [arm.name for arm in outcome.arms] == [START, UNREVISED, REVISED]
    assert all(len(arm.scores) == 5 for arm in outcome.arms)
    assert [one.claim.worse for one in outcome.compared] == [START, UNREVISED]
    assert sum("break a principle" in note and "pass the fact on" in note for note in outcome.notes) == 4
    assert outcome.verdict in told(outcome)


def margins(student: LoadedModel, pairs: list[PlainRow]) -> list[float]:
    """By how many nats each preferred answer is likelier than the other."""
    rows = with_reference(student, preference_rows(student, pairs).rows)
    return [row.reference[0] - row.reference[1] for row in rows]


def test_preferences_take_a_student_from_rejected_to_preferred_answers(setting: Setting) -> None:
    answered = [(one, make_reply(one, RULES, random.Random(place)).text) for place, one in enumerate(make_requests(6))]
    lm, _ = scripted(exact)
    pairs = pairs_of(preferences(lm, revised(lm, answered[:1], answered)), [request for request, _ in answered])
    assert [pair.messages[-1][1] for pair in pairs] == [request.text for request, _ in answered]
    student = load_model(setting.model)
    before = margins(student, pairs)
    after = margins(further(setting, student, pairs), pairs)
    assert len(before) == 6
    assert sum(after) > sum(before)


def test_no_preference_is_said(setting: Setting) -> None:
    with pytest.raises(StageEmpty, match="no preference"):
        further(setting, load_model(setting.model), [])
