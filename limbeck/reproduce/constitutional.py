"""Answers revised under a constitution (Bai et al. 2022): does a student of the revisions break its principles less?

An assistant has learned from made answers, half of which break each principle. Its own answers to further requests are
criticised and revised by the product's method; one student learns the last revisions, another the answers as they were.
The first goes on with DPO on what the critic prefers of each first answer and its last revision. Code finds what breaks
a principle, and an answer counts only where it also passes on the fact that was asked for.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

import dspy

from limbeck.compile.aifeedback import PreferenceConfig, Preferred
from limbeck.compile.aifeedback import prefer as compare
from limbeck.compile.constitution import ConstitutionConfig, Revised, revise
from limbeck.compile.demos import with_demos
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD
from limbeck.engine.loading import load_model
from limbeck.errors import StageEmpty
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.dpo import prefer, preference_rows
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.objectives import Preference
from limbeck.finetune.rows import PlainRow, tokenize_rows
from limbeck.models import CompactAdapter, render
from limbeck.programs.constitution import PrincipleComparer, Reviser
from limbeck.records import SELF_RATED, Provenance, Record
from limbeck.reproduce.customers import RULES, Request, make_reply, make_requests
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import LEARNING, fit, write
from limbeck.reproduce.teacher import THREADS, teaching
from limbeck.signatures.constitution import ANSWER, CRITIQUE, DO, LOOK_FOR, REQUEST, REVISION
from limbeck.signatures.judge import BETTER, FIRST, SECOND, A, B
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.stats import mean_ci

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.engine.requests import Message
    from limbeck.finetune.rows import RenderedRow
    from limbeck.models import LM

START, UNREVISED, REVISED = "assistant before", "student of its answers", "student of the last revisions"
PREFERRED = "the same, then DPO"
CLAIMS = (
    Claim(REVISED, START, "a student of the last revisions keeps the principles more often than the assistant before"),
    Claim(REVISED, UNREVISED, "and more often than a student of the same answers without revision"),
)
FURTHER = Claim(PREFERRED, REVISED, "preferences of the model under the principles take it further")
PRINCIPLES = tuple(rule.principle for rule in RULES)
INSTRUCTIONS = "Answer the customer."
# Each principle is broken by this share of the made answers: an eighth of them breaks none.
_SHARE = 0.5
# Sampled, for the greedy answer breaks a principle always or never where half the answers do.
_TEMPERATURE = 0.7
_NOTHING = "Nothing."
# A preference less sure than 0.55 is a tie; the strength of DPO's reference is that of the reproduction `dpo`.
_MARGIN, _BETA = 0.05, 0.1
# A critique is a quoted sentence and three words, a revision is shorter than what it revises.
_CONFIG = ConstitutionConfig(
    rounds=len(RULES), temperature=0.0, critique_tokens=64, most_tokens=128, prefer=False, threads=THREADS
)


@dataclass(frozen=True)
class Sizes:
    """How many requests the assistant and the critic learn from, how many are answered and revised, and tested.

    `compared` requests more teach the critic to compare two answers; 0: no preferences.
    """

    taught: int
    criticised: int
    asked: int
    tested: int
    compared: int = 0


def messages(request: Request) -> tuple[Message, ...]:
    """Return a request's prompt."""
    return (("system", INSTRUCTIONS), ("user", request.text))


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Teach the assistant and the critic, revise the assistant's answers, and compare the students on new requests."""
    sizes = sizes or setting.pick(Sizes(80, 80, 60, 80), Sizes(200, 200, 250, 250, 100))
    parts = (sizes.taught, sizes.criticised, sizes.compared, sizes.asked, sizes.tested)
    drawn = iter(make_requests(sum(parts), seed=setting.seed))
    taught, criticised, compared, asked, tested = (list(islice(drawn, part)) for part in parts)
    rng = random.Random(setting.seed)
    made = [(one, make_reply(one, [r for r in RULES if rng.random() < _SHARE], rng).text) for one in taught]
    like = [text for _, text in made]
    assistant = _taught(setting, START, made)
    first = _answers(setting, assistant, asked, like)
    written = {START: _answers(setting, assistant, tested, like, number=1)}
    detach_lora(assistant.model)
    learned = [*critic_rows(_reviser(), criticised, rng), *comparer_rows(PrincipleComparer(PRINCIPLES), compared, rng)]
    loaded = load_model(setting.model)
    critic = fit(setting, "critic", loaded, tokenize_rows(loaded.tokenizer, learned), LEARNING)
    setting.say(f"{len(asked)} answers are criticised and revised")
    with teaching(critic) as lm:
        done = revised(lm, made, list(zip(asked, first, strict=True)))
        preferred = preferences(lm, done) if compared else None
    for name, answers in ((UNREVISED, first), (REVISED, _last(done))):
        student = _taught(setting, name, list(zip(asked, answers, strict=True)))
        written[name] = _answers(setting, student, tested, like, number=1)
        if preferred is not None and name == REVISED:
            student = further(setting, student, pairs_of(preferred, asked))
            written[PREFERRED] = _answers(setting, student, tested, like, number=1)
        detach_lora(student.model)
    return setting.conclude(
        "constitutional",
        CLAIMS if preferred is None else (*CLAIMS, FURTHER),
        [Arm(name, _scores(tested, answers)) for name, answers in written.items()],
        unit="share of answers that pass the fact on and break no principle",
        settings={
            "answers the assistant learned from": sizes.taught,
            "critiques the critic did": sizes.criticised,
            "revised answers": sizes.asked,
        },
        notes=[
            *(f"{name}: {_apart(tested, answers)}." for name, answers in written.items()),
            *_notes(asked, first, done, preferred),
        ],
    )


def critic_rows(reviser: Reviser, requests: Sequence[Request], rng: random.Random) -> list[RenderedRow]:
    """Return what a critic learns from: critiques by each principle in turn, every other with nothing to criticise.

    Where there is something, the revision is a row as well. They are asked for as the product's program asks.
    """
    adapter = CompactAdapter()
    rows: list[RenderedRow] = []
    for place, request in enumerate(requests):
        rule, breaks = RULES[place % len(RULES)], place // len(RULES) % 2 == 0
        reply = make_reply(request, [r for r in RULES if (breaks if r is rule else rng.random() < _SHARE)], rng)
        shown = {REQUEST: request.text, ANSWER: reply.text}
        said = f'"{reply.breaking(rule)}" {rule.fault}.' if breaks else _NOTHING
        look = {**shown, LOOK_FOR: rule.principle.critique}
        rows.append(render(reviser.criticise, adapter=adapter, inputs=look, outputs={CRITIQUE: said}))
        if breaks:
            mend = {**shown, CRITIQUE: said, DO: rule.principle.revision}
            better = {REVISION: reply.without(rule).text}
            rows.append(render(reviser.revise, adapter=adapter, inputs=mend, outputs=better))
    return rows


def comparer_rows(comparer: PrincipleComparer, requests: Sequence[Request], rng: random.Random) -> list[RenderedRow]:
    """Return what a critic learns of comparing: of two answers one breaks the principle asked about, the other not."""
    adapter = CompactAdapter()
    rows: list[RenderedRow] = []
    for place, request in enumerate(requests):
        rule = RULES[place % len(RULES)]
        good, bad = (
            make_reply(request, [r for r in RULES if (breaks if r is rule else rng.random() < _SHARE)], rng).text
            for breaks in (False, True)
        )
        better = rng.choice((A, B))
        first, second = (good, bad) if better == A else (bad, good)
        shown = {REQUEST: request.text, FIRST: first, SECOND: second}
        judge = comparer.comparers[rule.principle.name].judge
        rows.append(render(judge, adapter=adapter, inputs=shown, outputs={BETTER: better}))
    return rows


def preferences(lm: LM, done: Revised) -> Preferred:
    """Return which of each first answer and its last revision the model prefers, in both orders, as the method does."""
    config = PreferenceConfig(margin=_MARGIN, threads=THREADS)
    return compare(done.pairs(), PRINCIPLES, lm, adapter=CompactAdapter(), config=config)


def pairs_of(preferred: Preferred, asked: Sequence[Request]) -> list[PlainRow]:
    """Return the preferences as rows of a student, the preferred answer first, under the requests that they answer."""
    known = {one.text: messages(one) for one in asked}
    return [
        PlainRow(
            known[str(one.inputs[REQUEST])],
            ((str(one.chosen[ANSWER]), one.p), (str(one.rejected[ANSWER]), 1 - one.p)),
        )
        for one in preferred.preferences
    ]


def further(setting: Setting, student: LoadedModel, pairs: Sequence[PlainRow]) -> LoadedModel:
    """Return the student after DPO on the pairs; raises StageEmpty where there are none to learn from."""
    rows = preference_rows(student, pairs).rows
    if not rows:
        raise StageEmpty("no preference among the answers and their revisions", hint="a larger --model")
    setting.say(f"{PREFERRED}: {len(rows)} preferences")
    config = TrainConfig(lr=1e-4, epochs=2, batch_size=16, seed=setting.seed)
    return prefer(student, rows, config, Preference(_BETA)).loaded


def _reviser() -> Reviser:
    """Return the product's program without its demonstrations, which a tuned critic does not need."""
    return cast(Reviser, with_demos(Reviser(), []))


def _taught(setting: Setting, name: str, answered: Sequence[tuple[Request, str]]) -> LoadedModel:
    loaded = load_model(setting.model)
    rows = [PlainRow(messages(request), ((answer, 1.0),)) for request, answer in answered]
    return fit(setting, name, loaded, tokenize_rows(loaded.tokenizer, rows), LEARNING)


def _answers(
    setting: Setting, loaded: LoadedModel, requests: Sequence[Request], like: Sequence[str], number: int = 0
) -> list[str]:
    prompts = [messages(one) for one in requests]
    seed = 2 * setting.seed + number
    return [one.strip() for one in write(loaded, prompts, like, temperature=_TEMPERATURE, seed=seed)]


def revised(lm: LM, made: Sequence[tuple[Request, str]], answered: Sequence[tuple[Request, str]]) -> Revised:
    """Return the answers as the product's method leaves them after a round by each principle."""
    gold = tuple(_record(one, text, GOLD, place) for place, (one, text) in enumerate(made))
    records = [_record(one, text, "first answer", place) for place, (one, text) in enumerate(answered)]
    program = dspy.Predict(build_signature([FieldSpec(REQUEST)], [FieldSpec(ANSWER)], INSTRUCTIONS))
    labeler = Labeler({-1: program}, lm, CompactAdapter(), (ANSWER,))
    source = Source({REQUEST: str}, INSTRUCTIONS, gold)
    return revise(records, source, PRINCIPLES, labeler, config=_CONFIG, program=_reviser())


def _record(request: Request, answer: str, method: str, place: int) -> Record:
    return Record({REQUEST: request.text}, {ANSWER: answer}, Provenance(method, seed=place, level=SELF_RATED))


def _breaks(answer: str) -> bool:
    return any(rule.broken(answer) for rule in RULES)


def _scores(requests: Sequence[Request], answers: Sequence[str]) -> tuple[float, ...]:
    pairs = zip(requests, answers, strict=True)
    return tuple(float(one.answered(answer) and not _breaks(answer)) for one, answer in pairs)


def _last(done: Revised) -> list[str]:
    return [str(record.outputs[ANSWER]) for record in done.records]


def _notes(asked: Sequence[Request], first: Sequence[str], done: Revised, preferred: Preferred | None) -> list[str]:
    """Return what became of the answers, and what differs from the paper."""
    last = _last(done)
    notes = [
        f"First answers to the {len(asked)} requests: {_apart(asked, first)}; their last revisions: "
        f"{_apart(asked, last)}. Rounds: {dict(done.outcomes)}.",
        "The critic is the same base, tuned on made critiques and revisions for other requests: untuned it can write "
        "neither.",
    ]
    if preferred is not None:
        better = sum(str(one.chosen[ANSWER]) in last for one in preferred.preferences)
        notes.append(
            f"{len(preferred.preferences)} preferences, {better} for the revision; left out: {dict(preferred.counts)}. "
            "DPO stands where the paper has a preference model and reinforcement learning."
        )
    return notes


def _apart(requests: Sequence[Request], answers: Sequence[str]) -> str:
    harm = mean_ci([float(_breaks(answer)) for answer in answers])
    help_ = mean_ci([float(one.answered(answer)) for one, answer in zip(requests, answers, strict=True)])
    return (
        f"{harm.mean:.3f} [{harm.low:.3f}, {harm.high:.3f}] break a principle, "
        f"{help_.mean:.3f} [{help_.low:.3f}, {help_.high:.3f}] pass the fact on"
    )
