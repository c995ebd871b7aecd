"""The compile stage: descriptions, demonstrations or an optimizer, chosen where the teacher did not see the answer.

For one closed field the candidates are the prompt with and without demonstrations and descriptions. Each gold row
is answered by a prompt that shows no row of its fold, so that a choice among prompts is made on all gold rows and
the same predictions later calibrate the teacher. Other programs go through DSPy's optimizers on train and dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import dspy
import numpy as np

from limbeck.compile.demos import draw_demos, row_length, with_demos
from limbeck.compile.describe import induce_by_fold, induce_descriptions, is_opaque
from limbeck.compile.optimize import UNCOMPILED, Compiled, compile_program
from limbeck.compile.optimizers import INSTRUCTING, Optimizer, built_in, for_effort
from limbeck.models import LM, connect
from limbeck.models.kinds import is_local
from limbeck.pipeline.context import Context
from limbeck.pipeline.runfolder import RunFolder
from limbeck.pipeline.students import Matrix, label_matrix, predict, usefulness
from limbeck.task import Task

# Characters that one token holds on average in English; demonstrations are drawn to fit a token budget.
_CHARS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Prompt:
    """One candidate prompt of the teacher: label descriptions, demonstrations or none.

    `by_fold` holds induced descriptions written without sight of each fold's rows, for judging them there.
    """

    name: str
    descriptions: Mapping[str, str]
    demos: int
    by_fold: tuple[Mapping[str, str], ...] = ()

    def shown(self, block: int) -> Mapping[str, str]:
        """Return the descriptions that a prompt for a block may show."""
        return self.by_fold[block] if self.by_fold and block >= 0 else self.descriptions


def demo_budget(gold: Sequence[dspy.Example], tokens: int) -> int:
    """Return how many demonstrations fit the token budget, by the median row; at least 4."""
    lengths = sorted(row_length(e) for e in gold)
    median = lengths[len(lengths) // 2] / _CHARS_PER_TOKEN + 12
    return max(4, min(len(gold), int(tokens / median)))


def program_for(context: Context, task: Task, demos: int, *, block: int, seed: int = 0) -> dspy.Module:
    """Return the task's program with demonstrations that show no gold row of the block (-1: any row)."""
    if not demos:
        return task.program.deepcopy()
    drawn = draw_demos(
        context.split.gold,
        demos,
        context.config.seed + seed,
        exclude_fold=block if block >= 0 else None,
        folds=context.split.folds,
        labels=task.labels,
        output=context.output,
    )
    return with_demos(task.program, drawn)


def _out_of_fold(context: Context, prompt: Prompt) -> tuple[list[float], list[float], Matrix]:
    """Return (usefulness, hits, probabilities [N, K]) of a prompt on every gold row, by prompts blind to its fold."""
    gold, labels = context.split.gold, context.task.labels
    values, hits = [0.0] * len(gold), [0.0] * len(gold)
    matrix: Matrix = np.full((len(gold), len(labels)), np.nan)
    blocks = range(context.split.n_folds) if prompt.demos or prompt.by_fold else (-1,)
    for number, block in enumerate(blocks):
        rows = [i for i, f in enumerate(context.split.folds) if block in (-1, f)]
        task = context.task.with_descriptions(prompt.shown(block))
        program = program_for(context, task, prompt.demos, block=block)
        result = predict(context.plan, program, context.answerer, [gold[i] for i in rows], "teacher")
        given = [context.task.label_of(gold[i]) for i in rows]
        useful = usefulness(result, context.output, labels, given)
        matrix[rows] = label_matrix(result, context.output, labels)
        for i, value, hit in zip(rows, useful, result.scores, strict=True):
            values[i], hits[i] = value, hit
        context.run.reporter.step(f"teacher out of fold: {prompt.name}", number + 1, len(blocks))
    return values, hits, matrix


def _described(context: Context) -> tuple[dict[str, str], tuple[Mapping[str, str], ...]]:
    """Return the label descriptions to try, and those that are blind to each fold where they are induced.

    The user's own go first. Otherwise the teacher writes them from gold rows: at the quick level only where a
    label's name says nothing ("HUM"), since readable names are seldom improved on and each costs a call.
    """
    task, split = context.task, context.split
    if task.label_descriptions:
        return dict(task.label_descriptions), ()
    if context.config.effort == "quick" and not any(is_opaque(label) for label in task.labels):
        return {}, ()
    options: dict[str, Any] = {"seed": context.config.seed, "adapter": context.plan.adapter}
    step = context.run.reporter.step
    found = induce_descriptions(
        task,
        split.gold,
        context.teacher,
        progress=lambda done, total: step("describing the labels", done, total),
        **options,
    )
    blind = induce_by_fold(task, split, context.teacher, **options) if split.n_folds and found else ()
    return found, blind


def compile_closed(context: Context) -> dict[str, Any]:
    """Choose the teacher's prompt for a closed task; return the stage's payload.

    Without folds (one row a class) nothing can be compared: descriptions and demonstrations are both kept, as
    the fixed default.
    """
    notes: list[str] = []
    wanted = _instructing(context)
    if wanted:
        compiled = _optimize(context, wanted)
        notes = list(compiled.notes)
        if compiled.kept:
            # Its instructions go on; demonstrations are drawn per block, so that no row is shown its own answer.
            context = replace(context, task=with_instructions(context.task, compiled.program))
        elif compiled.optimizer != UNCOMPILED:
            notes.append(f"{compiled.optimizer} did not beat the plain prompt on dev rows: it is not kept")
    described, blind = _described(context)
    k = demo_budget(context.split.gold, context.spend.demo_tokens)
    both = Prompt("demonstrations and descriptions", described, k, blind)
    shown = Prompt("demonstrations", {}, k)
    candidates = [Prompt("descriptions", described, 0, blind), both] if described else []
    if not context.given:
        # What the user said of the labels belongs to the task; what the teacher wrote has to prove itself.
        candidates = [Prompt("zero-shot", {}, 0), shown, *candidates]
    if context.split.n_folds < 2:
        chosen = both if described else shown
        tried: list[dict[str, Any]] = []
        oof = None
    else:
        measured = [(p, *_out_of_fold(context, p)) for p in candidates]
        # The first of equals wins: the shorter prompt.
        best = max(range(len(measured)), key=lambda i: (round(float(np.mean(measured[i][1])), 6), -i))
        chosen, _, _, matrix = measured[best]
        oof = np.nan_to_num(matrix, nan=1.0 / len(context.task.labels)).tolist()
        tried = [
            {"prompt": p.name, "useful": float(np.mean(v)), "accuracy": float(np.mean(h))} for p, v, h, _ in measured
        ]
    task = context.task.with_descriptions(chosen.descriptions)
    program = program_for(context, task, chosen.demos, block=-1)
    cast(Any, program).save(str(context.run.path / "program.json"))
    return {
        "files": ["program.json"],
        "prompt": chosen.name,
        "descriptions": dict(chosen.descriptions),
        "induced": described,
        "demos": chosen.demos,
        "tried": tried,
        "notes": notes,
        "oof": oof,
        "log": {"records_in": len(context.split.gold), "kept": chosen.name, "tried": tried},
    }


def _instructing(context: Context) -> Sequence[Optimizer]:
    """Return the optimizers that may write instructions for a task of labels: the user's, or the effort level's.

    Those that change demonstrations alone have no part here: each block of rows has its own.
    """
    if context.config.optimizer:
        return (built_in()[context.config.optimizer],)
    return [one for one in for_effort(context.config.effort, context.task) if one.name in INSTRUCTING]


def reflection(run: RunFolder) -> LM | None:
    """Return the model that writes instructions where the user named one; a server's is the teacher's server."""
    name, api_base = run.config.reflection, run.config.api_base
    if not name:
        return None
    return connect(name, api_base=None if is_local(name) else api_base or None, ledger=run.ledger, budget=run.budget)


def _optimize(context: Context, optimizers: Sequence[Optimizer] = ()) -> Compiled:
    """Run these optimizers, else the one that the user named, else those of the effort level."""
    config, run = context.config, context.run
    # One that writes instructions needs room for them; one that answers rows does not.
    writes = bool(optimizers) or config.optimizer in INSTRUCTING
    return compile_program(
        context.task,
        context.split,
        context.teacher if writes else context.answerer,
        optimizer=optimizers if optimizers and not config.optimizer else config.optimizer or None,
        effort=config.effort,
        seed=config.seed,
        adapter=context.plan.adapter,
        reflection_lm=reflection(run),
        progress=lambda what, done, total: run.reporter.step(f"compiling: {what}", done, total),
    )


def with_instructions(task: Task, program: dspy.Module) -> Task:
    """Return the task with the instructions that a compiled program of one predictor has."""
    copy = task.program.deepcopy()
    found = cast(Any, program).predictors()[0].signature.instructions
    for predictor in cast(list[Any], copy.predictors()):
        predictor.signature = predictor.signature.with_instructions(found)
    return replace(task, program=copy)


def compile_open(context: Context) -> dict[str, Any]:
    """Compile the teacher's program with one of DSPy's optimizers; return the stage's payload."""
    compiled = _optimize(context)
    cast(Any, compiled.program).save(str(context.run.path / "program.json"))
    return {
        "files": ["program.json"],
        "prompt": compiled.optimizer if compiled.kept else "uncompiled",
        "descriptions": {},
        "demos": 0,
        "tried": [],
        "oof": None,
        "baseline": compiled.baseline_score,
        "compiled": compiled.compiled_score,
        "notes": list(compiled.notes),
        "log": {
            "records_in": len(context.split.gold),
            "kept": compiled.optimizer if compiled.kept else "uncompiled",
            "baseline": compiled.baseline_score,
            "compiled": compiled.compiled_score,
        },
    }
