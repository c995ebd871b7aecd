"""MIPROv2 (Opsahl-Ong et al. 2024): instructions and demonstrations searched together, against less than that.

A program that labels texts runs on the small model, which answers with its most probable label and also writes the
instructions that are tried. Four programs are compared on the same test rows: as it is, with demonstrations that the
program itself bootstrapped, with the best of several such sets on dev rows, and as MIPROv2 compiles it after scoring as
many programs on the same dev rows. As in every compilation here, one that is no better on dev is not kept.
"""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from limbeck.compile.optimize import UNCOMPILED, Compiled, compile_program
from limbeck.compile.optimizers import THREADS, BootstrapFewShot, MIPROv2, Optimizer, RandomSearch
from limbeck.compile.split import Split
from limbeck.errors import InputError, StageEmpty
from limbeck.evaluate import run_system
from limbeck.ledger import Ledger
from limbeck.models import LM, CompactAdapter, connect
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.weak_to_strong import read_labelled

if TYPE_CHECKING:
    from limbeck.task import Task

BOOTSTRAP, SEARCH, MIPRO = "bootstrapped demonstrations", "the best of several such sets", "MIPROv2"
CLAIMS = (
    Claim(MIPRO, UNCOMPILED, "the program that MIPROv2 compiles beats the uncompiled one"),
    Claim(MIPRO, SEARCH, "searching instructions as well beats demonstrations alone (on 5 of 7 tasks, by up to 13)"),
)

_BOOTSTRAPPED, _LABELED = 4, 8
_SHOWN = 300


@dataclass(frozen=True)
class Sizes:
    """Rows to compile on, to choose on and to test on, and what is searched.

    `trials` programs are scored on dev besides the uncompiled one, of `candidates` instructions and as many sets of
    demonstrations; `tokens` bounds an instruction.
    """

    train: int
    dev: int
    tested: int
    trials: int
    candidates: int
    tokens: int = 200


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Compile the program in each way and compare what came out on the test rows."""
    sizes = sizes or setting.pick(Sizes(20, 40, 100, 9, 5), Sizes(24, 64, 200, 29, 10))
    task = read_labelled(setting, "mipro")
    split = cut(task, sizes, setting.seed)
    for name, one in ways(sizes):
        if reason := one.refuse(task, split, None):
            raise InputError(f"{name} cannot run: {reason}", valid="rows to compile and to choose on, and optuna")
    setting.folder.mkdir(parents=True, exist_ok=True)
    # A program that is scored twice is asked once.
    with closing(Ledger(setting.folder / "ledger.sqlite")) as ledger:
        lm = connect(setting.model, ledger=ledger, role="student", in_bulk=True, max_tokens=sizes.tokens)
        found = {name: _compiled(setting, name, one, task, split, lm) for name, one in ways(sizes)}
        setting.say(f"{len(found) + 1} programs answer {len(split.test)} test rows")
        programs = {UNCOMPILED: task.program, **{name: one.program for name, one in found.items()}}
        arms = [Arm(name, _scores(name, program, task, split, lm)) for name, program in programs.items()]
        calls = ledger.totals().calls
    return setting.conclude(
        "mipro",
        CLAIMS,
        arms,
        unit="accuracy",
        chance=1 / len(task.labels),
        settings={
            "data": Path(setting.data).name or "the quickstart's rows",
            "labels": len(task.labels),
            "train rows": len(split.train),
            "dev rows": len(split.dev),
            "programs scored on dev": sizes.trials + 1,
            "calls": calls,
        },
        notes=[
            "The model that labels also writes the instructions that are tried.",
            *(_told(name, one) for name, one in found.items()),
            _prompt(found[MIPRO]),
        ],
    )


def ways(sizes: Sizes) -> list[tuple[str, Optimizer]]:
    """Return the optimizers by the name of their arm; the two that search score equally many programs on dev."""
    # DSPy's random search tries three sets beside its candidates: none, labelled rows, and one in the rows' order.
    drawn, k, labeled = max(1, sizes.trials - 2), _BOOTSTRAPPED, _LABELED
    searched = MIPROv2(trials=sizes.trials, candidates=sizes.candidates, bootstrapped=k, labeled=labeled)
    return [
        (BOOTSTRAP, BootstrapFewShot(bootstrapped=k, labeled=labeled)),
        (SEARCH, RandomSearch(candidates=drawn, bootstrapped=k, labeled=labeled)),
        (MIPRO, searched),
    ]


def cut(task: Task, sizes: Sizes, seed: int) -> Split:
    """Return the task's rows in a seeded order, cut into train, dev and test rows; fewer of each where rows are few."""
    rows = list(task.examples)
    random.Random(seed).shuffle(rows)
    train, dev = min(sizes.train, len(rows) // 4), min(sizes.dev, len(rows) // 3)
    tested = rows[train + dev :][: sizes.tested]
    return Split(
        tuple(rows[:train]), tuple(rows[train : train + dev]), tuple(tested), folds=(0,) * (train + dev), n_folds=0
    )


def _compiled(setting: Setting, name: str, optimizer: Optimizer, task: Task, split: Split, lm: LM) -> Compiled:
    setting.say(name)
    found = compile_program(task, split, lm, optimizer=optimizer, seed=setting.seed, adapter=CompactAdapter())
    if found.optimizer == UNCOMPILED:
        raise StageEmpty(f"{name}: {'; '.join(found.notes)}", hint="another --model")
    return found


def _scores(name: str, program: Any, task: Task, split: Split, lm: LM) -> tuple[float, ...]:
    return run_system(
        name, program, lm, split.test, task.metric, adapter=CompactAdapter(), threads=THREADS, latency_rows=0
    ).scores


def _told(name: str, one: Compiled) -> str:
    kept = "kept" if one.kept else "not kept"
    return f"{name}: {one.compiled_score:.3f} on dev rows after {one.baseline_score:.3f} uncompiled, {kept}."


def _prompt(one: Compiled) -> str:
    """Return what MIPROv2 chose, in a sentence."""
    (predictor,) = cast("list[Any]", one.program.predictors())
    told = shorten(str(predictor.signature.instructions), _SHOWN, placeholder=" ...")
    return f"MIPROv2 chose {len(predictor.demos)} demonstrations and the instructions: {told}"
