"""Trials of the programs that answer, reason, rate and compare: gold rows say what is right."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import dspy

from limbeck.checks import wrong_equations
from limbeck.codecheck import unfence
from limbeck.compile.abstraction import ChainOfAbstraction, answer_of, refused, solution_of
from limbeck.compile.backtranslate import InstructionBacktranslation, Pairing
from limbeck.compile.children import first_answers
from limbeck.compile.constitution import Constitutional, drawn, text_field
from limbeck.compile.evolve_code import CodeSteps, EvolCode, Written
from limbeck.compile.label import Answer, LabelConfig
from limbeck.compile.rationales import comes_to
from limbeck.compile.reformulate import Reformulation, Solving, form_of
from limbeck.compile.rewriting import answers_of, text_of
from limbeck.compile.trials import Ground, Trial
from limbeck.compile.trials_write import code_steps, misspelt
from limbeck.documents import Passage
from limbeck.metrics import token_f1
from limbeck.principles import read_principles
from limbeck.programs.evolve_code import functions_of, is_constant, read_tests
from limbeck.programs.judge import as_request
from limbeck.programs.rationale import RATIONALES
from limbeck.programs.rewrite import changed_fields
from limbeck.records import Record

_GREEDY = {"temperature": 0.0}


def backtranslation_write(ground: Ground) -> Trial:
    """Given a gold output: token F1 of the input that is written for it with the gold input."""
    method, (field,) = cast(InstructionBacktranslation, ground.method), ground.source.fields
    rater = ground.programs["rate"]

    def pairing(part: Any, row: Record) -> Pairing:
        return Pairing(replace(ground.materials, source=ground.without(row)), method.config, part, rater)

    def run(part: Any, row: Record) -> Any:
        # Called here and not by the method, whose calls leave no trace to make demonstrations of.
        asking, answer = pairing(part, row), _output(row)
        return part(answer, **asking.settings(Passage(answer, row.id, 0), row.provenance.block))

    def score(row: Record, made: Any) -> float:
        return token_f1(row.inputs[field], made.text)

    def shown(row: Record) -> Sequence[Record]:
        return (row, *pairing(ground.programs["write"], row).shown(row.provenance.block))

    return Trial(run, score, shown)


def backtranslation_rate(ground: Ground) -> Trial:
    """A gold pair is rated above its input with another row's output, in points."""
    config, (field,) = cast(InstructionBacktranslation, ground.method).config, ground.source.fields
    settings = {**_GREEDY, "max_tokens": config.review_tokens}

    def run(part: Any, row: Record) -> Any:
        request, other = str(row.inputs[field]), _another(ground, row)
        right, wrong = (part(request, answer, config=settings).score for answer in (_output(row), _output(other)))
        return dspy.Prediction(right=right, wrong=wrong)

    def score(row: Record, made: Any) -> float:
        return float(bool(made.right) and bool(made.wrong) and made.right > made.wrong)

    return Trial(run, score, lambda row: (row, _another(ground, row)))


def _output(row: Record) -> str:
    return str(next(iter(row.outputs.values())))


def _another(ground: Ground, row: Record) -> Record:
    """Return a training row with other outputs than the row, where there is one."""
    rows = ground.without(row).gold
    others = [one for one in rows if one.outputs != row.outputs] or list(rows) or [row]
    return random.Random(ground.seed(row)).choice(others)


def compare(ground: Ground) -> Trial:
    """A row with typing errors asks for nothing new, another row does; both must be told."""
    source = ground.source
    changed = changed_fields(source.fields, [row.inputs for row in source.gold])
    if isinstance(ground.method, EvolCode):
        changed = code_steps(ground, ground.programs).changed

    def run(part: Any, row: Record) -> Any:
        text, other = text_of(row.inputs, changed), text_of(_another(ground, row).inputs, changed)
        same, new = (part(text, second, config=_GREEDY).equal for second in (misspelt(text, ground.seed(row)), other))
        return dspy.Prediction(same=same, new=not new)

    return Trial(run, lambda row, made: float(made.same and made.new), lambda row: (row, _another(ground, row)))


def star_reason(ground: Ground) -> Trial:
    """The task's metric of the answer, nothing where the rationale is missing, calculates wrong or breaks off."""
    names = ground.materials.labeler.output_fields

    def score(row: Record, made: Any) -> float:
        rationale = next((str(made[name]) for name in RATIONALES if made.get(name)), "")
        outputs = {name: made[name] for name in names}
        if not rationale.strip() or wrong_equations(rationale)[0] or not comes_to(rationale, row.outputs):
            return 0.0
        return ground.likeness(row, outputs)

    return Trial(lambda part, row: part(**row.inputs, config=_GREEDY), score)


def reformulation_solve(ground: Ground) -> Trial:
    """The task's metric of the answer that the other form leads to, nothing where it could not be solved."""
    method, materials = cast(Reformulation, ground.method), ground.materials
    config = replace(method.config, seed=materials.seed)
    form = form_of(ground.source)
    solving = Solving(ground.source, materials.labeler, config, ground.programs[form], form)

    def direct(row: Record) -> Answer:
        # Only of many labels a direct answer chooses which are asked for.
        if len(ground.source.labels) <= config.candidates:
            return Answer()
        return answers_of([row.inputs], [row.provenance.block], materials, method=method.name)[0]

    def run(part: Any, row: Record) -> Any:
        return part(as_request(row.inputs), **solving.asked(row, direct(row)))

    def score(row: Record, made: Any) -> float:
        outputs = solving.outputs(made)
        return ground.likeness(row, outputs) if outputs else 0.0

    return Trial(run, score)


def abstraction_write(ground: Ground) -> Trial:
    """The chain written for a problem: whether a tool run brings it to the row's answer."""
    return _chains(ground, told=False)


def abstraction_rewrite(ground: Ground) -> Trial:
    """The chain that a worked solution becomes: whether a tool run brings it to the row's answer."""
    return _chains(ground, told=True)


def _chains(ground: Ground, *, told: bool) -> Trial:
    config = cast(ChainOfAbstraction, ground.method).config
    rows = [r for r in ground.source.gold if answer_of(r, config.tools) and (not told or solution_of(r))]

    def run(part: Any, row: Record) -> Any:
        given = [as_request(row.inputs), *([solution_of(row)] if told else [])]
        return part(*given, config={**_GREEDY, "max_tokens": config.max_tokens})

    def score(row: Record, made: Any) -> float:
        return float(not refused(str(made.chain), answer_of(row, config.tools), config.tools))

    return Trial(run, score, rows=rows)


def code_solve(ground: Ground) -> Trial:
    """The share of a gold row's own tests that the solution passes in the sandbox."""
    steps = code_steps(ground, ground.programs)

    def run(part: Any, row: Record) -> Any:
        return part(
            str(row.inputs[steps.shape.problem]), steps.line(row), config={**_GREEDY, "max_tokens": steps.tokens}
        )

    def score(row: Record, made: Any) -> float:
        given: Any = row.inputs[steps.shape.tests]
        tests = read_tests("\n".join(map(str, given)) if isinstance(given, list) else str(given), _name(steps, row))
        (passed,) = steps.passes([(unfence(made.code, f"def {_name(steps, row)}"), tests)]) if tests else ((),)
        return sum(passed) / len(passed) if passed else 0.0

    return Trial(run, score)


def code_test(ground: Ground) -> Trial:
    """Of the tests asked for: how many say something and are passed by the gold solution, in the sandbox."""
    steps = code_steps(ground, ground.programs)
    config = steps.config

    def run(part: Any, row: Record) -> Any:
        settings = {**_GREEDY, "max_tokens": steps.tokens}
        return part(str(row.inputs[steps.shape.problem]), steps.line(row), count=config.tests, config=settings)

    def score(row: Record, made: Any) -> float:
        code = unfence(str(row.outputs[steps.shape.code]))
        written = Written((code,), tuple(read_tests(unfence(made.tests), _name(steps, row))[: config.tests]))
        tests = steps.useful(written)
        (passed,) = steps.passes([(code, tests)])
        good = [test for test, ok in zip(tests, passed, strict=True) if ok]
        return 0.0 if is_constant(good) else len(good) / config.tests

    return Trial(run, score)


def _name(steps: CodeSteps, row: Record) -> str:
    return next(iter(functions_of(f"{steps.line(row)} pass")))


def constitutional_revise(ground: Ground) -> Trial:
    """How surely the revision keeps the principle, less what it loses in likeness to the gold answer."""
    method, materials, field = cast(Constitutional, ground.method), ground.materials, text_field(ground.source)
    principles = read_principles(str(materials.options.get("constitution") or ""))
    config, labeler = method.config, replace(materials.labeler, lm=materials.lm)

    def run(part: Any, row: Record) -> Any:
        asked = LabelConfig(method.name, 1, None, materials.threads, materials.seed)
        answer = str(first_answers([row], labeler, asked)[0].outputs[field])
        (principle,) = drawn(principles, 1, materials.seed, row)
        settings = {
            "temperature": config.temperature,
            "max_tokens": min(config.most_tokens, 64 + 4 * len(answer.split())),
            "rollout_id": ground.seed(row),
        }
        request = as_request(row.inputs)
        made = part(request, answer, principle, config=settings, critique_tokens=config.critique_tokens)
        with dspy.context(trace=None):  # the judge is no part of what is tried
            broken = float(ground.programs["judge"](request, str(made.revision), principle).chance)
        return dspy.Prediction(before=answer, after=str(made.revision), broken=broken)

    def score(row: Record, made: Any) -> float:
        # In words: by the metric an answer that is wrong has nothing to lose.
        before, after = (token_f1(row.outputs[field], text) for text in (made.before, made.after))
        return (1 - made.broken) * (min(1.0, after / before) if before else after)

    return Trial(run, score)
