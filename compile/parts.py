"""Which parts of which methods can be compiled against labels, by the names that `--program` takes.

A part that is not here has no metric from labels; for a built-in one `WITHOUT` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from limbeck.compile import trials_answer as answer
from limbeck.compile import trials_write as write
from limbeck.compile.abstraction import solution_of
from limbeck.compile.evolve_code import shape_of
from limbeck.compile.related import RELATED, read_related
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import WithPrograms, known_methods, load_method
from limbeck.compile.trials import Ground, Trial
from limbeck.errors import InputError, LimbeckError
from limbeck.programs.rationale import reasons
from limbeck.task import Task

TRIALS: Mapping[str, Callable[[Ground], Trial]] = {
    "label_conditioned.write": write.label_conditioned_write,
    "simple.write": write.label_conditioned_write,
    "self_instruct.write": write.self_instruct_write,
    "evol_instruct.evolve": write.evolve,
    "evol_instruct.compare": answer.compare,
    "evol_code.evolve": write.evolve_code,
    "evol_code.compare": answer.compare,
    "evol_code.solve": answer.code_solve,
    "evol_code.test": answer.code_test,
    "instruction_backtranslation.write": answer.backtranslation_write,
    "instruction_backtranslation.rate": answer.backtranslation_rate,
    "textbook.exercise": write.exercise,
    "textbook.open_exercise": write.open_exercise,
    "cleaning.repair": write.repair,
    "cleaning.rephrase": write.rephrase,
    "adaptation.adapt": write.adapt,
    "star.reason": answer.star_reason,
    "chain_of_abstraction.rewrite": answer.abstraction_rewrite,
    "chain_of_abstraction.write": answer.abstraction_write,
    "reformulation.equation": answer.reformulation_solve,
    "reformulation.entailment": answer.reformulation_solve,
    "reformulation.questions": answer.reformulation_solve,
    "reformulation.cloze": answer.reformulation_solve,
    "constitutional.revise": answer.constitutional_revise,
}
WITHOUT: Mapping[str, str] = {
    "textbook.passage": "labels are of the task's rows, and no row is a passage",
    "textbook.grade": "labels do not say how much a passage teaches",
    "constitutional.judge": "labels do not say which answers break a principle",
}


def refusal(name: str, task: Task, source: Source, options: Mapping[str, Any]) -> str:
    """Return why labels give no metric for a part of a method that fits the task, "" where they do."""
    if name not in TRIALS:
        return WITHOUT.get(name, "its method names none")
    if name == "star.reason" and reasons(task.program, task.output_fields):
        return "this task's own program reasons, and star asks that one; limbeck compile has compiled it"
    if name == "textbook.exercise" and not source.labels:
        return "this task has no labels to write for; textbook.open_exercise is the part that it uses"
    if name == "adaptation.adapt" and not any(
        row.outputs for row in read_related(str(options.get(RELATED) or ""), source)
    ):
        return "the related rows have no outputs of this task to be read back"
    if name == "evol_code.solve" and not shape_of(source).tests:
        return "the rows have no tests"
    if name == "chain_of_abstraction.rewrite" and not any(solution_of(row) for row in source.gold):
        return "no row has a worked solution"
    return ""


def parts_of(method: str, source: Source, options: Mapping[str, Any]) -> list[str]:
    """Return the names of a method's parts for a task; InputError where the method does not fit it."""
    found = load_method(method)
    found.check(source, options)
    programs = cast(WithPrograms, found).programs(source) if hasattr(found, "programs") else {}
    return [f"{method}.{part}" for part in programs]


def resolve_programs(
    given: Sequence[str], task: Task, source: Source, options: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Return the parts that names of methods and parts ask for, and a note on each part left out of a whole method.

    Raises InputError for an unknown name, for a method that does not fit the task, and where labels give no metric for
    a part that is named, or for all parts of a method.
    """
    found: list[str] = []
    notes: list[str] = []
    for text in given:
        name = text.replace("-", "_")
        method, dot, _ = name.partition(".")
        if method not in known_methods():
            raise _unknown(text, task, source, options)
        parts = parts_of(method, source, options)
        if dot and name not in parts:
            raise _unknown(text, task, source, options)
        wanted = [name] if dot else parts
        why = {one: refusal(one, task, source, options) for one in wanted}
        if all(why.values()):
            said = "; ".join(f"{one} has no metric from labels: {reason}" for one, reason in why.items())
            raise InputError(
                f"--program {text}: {said or f'{method} has no programs'}", valid=_valid(task, source, options)
            )
        found += [one for one, reason in why.items() if not reason]
        notes += [f"{one} is not compiled, for it has no metric from labels: {why[one]}" for one in wanted if why[one]]
    return list(dict.fromkeys(found)), notes


def _unknown(text: str, task: Task, source: Source, options: Mapping[str, Any]) -> InputError:
    return InputError(f"unknown program {text!r}", valid=_valid(task, source, options), hint="limbeck compile --help")


def _valid(task: Task, source: Source, options: Mapping[str, Any]) -> str:
    """Return the methods and parts that can be compiled for this task."""
    names: list[str] = []
    for method in sorted(known_methods()):
        try:
            parts = parts_of(method, source, options)
            usable = [name for name in parts if not refusal(name, task, source, options)]
        except LimbeckError:  # a method that does not fit the task
            continue
        names += [method, *usable] if usable else []
    return ", ".join(names)
