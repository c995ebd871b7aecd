"""From labels to a verdict: the stages in order, each read from the ledger where it is finished."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import dspy

from limbeck.compile.label import gold_records
from limbeck.compile.nearest import NearestDemos
from limbeck.compile.optimizers import KNNFewShot
from limbeck.errors import InputError
from limbeck.pipeline.config import STAGES, RunConfig, Stage, check
from limbeck.pipeline.consent import with_consent
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import Learnable, curate_stage, learnable
from limbeck.pipeline.data import FIRST, Turn, synthesize_stage, trusted_gold, writing_key
from limbeck.pipeline.dataquality import rules_key
from limbeck.pipeline.judge import (
    GOLD_ONLY,
    STUDENT,
    base_out_of_fold,
    build_report,
    choose,
    evaluate_systems,
    predictions,
)
from limbeck.pipeline.judging import RunJudge, judge_stage
from limbeck.pipeline.learn import ADAPTERS, FITS, Tuned, fit_final, fold_adapters, tune
from limbeck.pipeline.preferring import pairs_hash, prefer_stage
from limbeck.pipeline.prepare import check_task, prepare, read_task
from limbeck.pipeline.programs import compile_programs
from limbeck.pipeline.reasons import with_reasons
from limbeck.pipeline.rounds import Round, told, weaknesses
from limbeck.pipeline.runfolder import Reporter, RunFolder, Silent, open_run
from limbeck.pipeline.students import Recipe, confidences, gold_recipes, prompts_tried, steps_of, with_steps
from limbeck.pipeline.teacher import compile_closed, compile_open, with_instructions
from limbeck.pipeline.ways import CHAIN, OWN, Way, direct_way, teaches
from limbeck.pipeline.weak import compile_weakly, label_weakly, tell_gain
from limbeck.preferences import Preference
from limbeck.records import Record
from limbeck.report import write_predictions, write_report
from limbeck.task import Task
from limbeck.terms import Ruling, reported, rulings


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: the stage it reached, and the report where that is the last one."""

    stage: Stage
    report: Mapping[str, Any] | None


def run(
    config: RunConfig,
    *,
    until: Stage = "evaluate",
    reporter: Reporter | None = None,
    task: Task | None = None,
) -> Outcome:
    """Run the stages up to `until` and return what came of it.

    A start in a folder that has finished stages goes on after them. `task` takes the place of the files that the
    configuration names. Raises InputError before anything is spent, BudgetExceeded when a budget is spent.
    """
    if config.program and until != "compile":
        raise InputError(
            f"programs are compiled by the stage compile alone, and this run goes on to {until}",
            valid="until='compile' with `program`; what comes after it in that folder uses the programs",
        )
    own = task is None
    if task is None:
        check(config)
    terms = terms_of(config)
    task = read_task(config) if task is None else task
    check_task(config, task)
    task = with_consent(task, allow_code=config.allow_code)
    with open_run(config, reporter or Silent()) as folder:
        context = prepare(folder, task)
        folder.keep_config(labels=own)
        _tell_terms(folder, terms)
        return _Way(context, terms).go(until)


def terms_of(config: RunConfig) -> dict[str, Ruling]:
    """Return what the terms of the models that write or judge say of training on outputs, by role.

    Raises `InputError` where they forbid it and the configuration does not say why the run goes on.
    """
    return rulings(config.models_asked(), config.api_base, config.accept_terms)


def _tell_terms(folder: RunFolder, terms: Mapping[str, Ruling]) -> None:
    """Warn of conditions, once a run and not once a start, and store the reason for going on against the terms."""
    ledger, reason = folder.ledger, folder.config.accept_terms.strip()
    warned = {event.data.get("text") for event in ledger.events("warning")}
    accepted = [event.data for event in ledger.events("terms accepted")]
    for role, ruling in terms.items():
        if ruling.verdict == "allowed":
            continue
        text = ruling.told(reason)
        if text in warned:
            folder.warnings.append(text)
        else:
            folder.warn(text)
        said = {"role": role, **ruling.head(), "reason": reason}
        if reason and said not in accepted:
            ledger.event("terms accepted", **said)


class _Way:
    """The stages of one run, in order; each method reads what those before it stored."""

    def __init__(self, context: Context, terms: Mapping[str, Ruling]) -> None:
        self.context, self.terms = context, terms
        self.bare = context.task.program
        self.hashes: dict[str, Any] = {"task": context.task.fingerprint}

    def go(self, until: Stage) -> Outcome:
        """Do the stages up to `until`."""
        last = STAGES.index(until)
        compiled = self.compile()
        if last == 0:
            compile_programs(self.context, int(compiled["demos"]), self.program)
            return Outcome(until, None)
        self.synthesize(compiled)
        if last == 1:
            return Outcome(until, None)
        gold = self.gold_only()
        self.curate(compiled, gold)
        if last == 2:
            return Outcome(until, None)
        student = self.finetune(compiled, gold)
        if self.labelled:
            tell_gain(self.context, self.labelled, gold, student)
        return Outcome(until, self.evaluate(gold, student) if last == 4 else None)

    def _done(self, payload: Mapping[str, Any], name: str) -> dict[str, Any]:
        self.hashes[name] = payload["key"]
        return dict(payload)

    def compile(self) -> dict[str, Any]:
        """Compile the teacher's prompt; the chosen label descriptions become the task's."""
        context = self.context
        closed = compile_weakly if context.config.weak else compile_closed
        work = partial(closed if context.closed else compile_open, context)
        payload = self._done(context.run.stage("compile", context.key("compile"), work), "compile")
        for text in payload.get("notes", ()):
            context.run.warn(text)
        task = context.task.with_descriptions(payload["descriptions"]) if context.closed else context.task
        self.program: dspy.Module = task.program.deepcopy()
        cast(Any, self.program).load(str(context.run.path / "program.json"))
        if payload["prompt"] == KNNFewShot.name:
            # Its demonstrations are retrieved row by row; a plain program of its file shows them all.
            self.program = NearestDemos.restored(self.program, k=KNNFewShot.k)
        if context.closed:
            task = with_instructions(task, self.program)
        self.context = replace(context, task=task, plan=replace(context.plan, task=task))
        return payload

    def gold_only(self) -> Tuned:
        """Tune and train the student on the labels alone: the strong opponent, and a labeler."""
        context = self.context
        self.gold = self._gold_rows()
        if any(not self._gold_outside(fold) for fold in range(context.split.n_folds)):
            context.run.warn(
                "no-folds: the teacher got no labelled row outside of a fold right: fixed defaults take the place of "
                "out-of-fold choices; a stronger --teacher may help"
            )
            context = self.context = replace(context, split=replace(context.split, n_folds=0))
        recipes = gold_recipes(context.config, context.plan)
        context.run.reporter.stage("learn from the labels alone")

        tuned = tune(context, GOLD_ONLY, recipes, self._gold_outside, keep=context.closed)
        self._final(GOLD_ONLY, self.gold, tuned)
        return tuned

    def _gold_outside(self, fold: int) -> list[Record]:
        return [r for r in self.gold if r.provenance.block != fold]

    def _gold_rows(self) -> list[Record]:
        context = self.context
        rows = gold_records(context.split.gold, folds=context.split.folds if context.split.n_folds else None)
        if context.plan.writes_more:
            return trusted_gold(context, self.program, rows)
        return rows

    def _final(
        self, name: str, records: list[Record], tuned: Tuned, pairs: Sequence[Preference] = ()
    ) -> dict[str, Any]:
        context, recipe = self.context, tuned.recipe
        # Only where there is one: keys of rows without a rationale stay what they were.
        ids = [[r.id, dict(r.outputs), r.soft, round(r.weight, 6), *filter(None, [r.rationale])] for r in records]
        key = context.key(name, recipe.values(), ids, dict(context.task.label_descriptions))
        key += [pairs_hash(pairs)] if pairs else []

        def work() -> dict[str, Any]:
            payload = fit_final(context, name, recipe, records, pairs)
            log = {"records_in": len(records), "kept": recipe.summary(), "tried": list(tuned.tried)}
            return {**payload, "log": log}

        payload = self._done(context.run.stage(f"finetune {name}", key, work, show=False), name)
        self.hashes[ADAPTERS[name]] = payload["adapter_hash"]
        return payload

    def synthesize(self, compiled: Mapping[str, Any], turn: Turn = FIRST) -> None:
        """Label the pool and write new rows; in a later round, write what the student got wrong."""
        context = self.context
        parts = self.hashes["compile"], *writing_key(context), *turn.key()
        weak = bool(context.config.weak)
        payload = context.run.stage(
            f"synthesize{turn.suffix}",
            context.key("synthesize", *parts),
            lambda: (
                label_weakly(context) if weak else synthesize_stage(context, int(compiled["demos"]), self.program, turn)
            ),
        )
        done = self._done(payload, "synthesize")
        self.labelled = done if weak else {}

    def curate(self, compiled: Mapping[str, Any], gold: Tuned, turn: Turn = FIRST) -> None:
        """Keep what can be trusted."""
        context = self.context
        if turn == FIRST:
            self.judge: RunJudge | None = judge_stage(context)
        key = context.key("curate", self.hashes["synthesize"], self.hashes[GOLD_ONLY], *rules_key(context.config))
        if self.judge:
            key += ["judge", self.judge.key, context.config.judge_precision]
        compiled = {**compiled, **self.labelled}
        adapters = partial(fold_adapters, context, GOLD_ONLY, gold, self._gold_outside)
        payload = context.run.stage(
            f"curate{turn.suffix}",
            key,
            lambda: curate_stage(context, compiled, self.program, gold, adapters, turn=turn, judge=self.judge),
        )
        self._done(payload, "curate")

    def finetune(self, compiled: Mapping[str, Any], gold: Tuned) -> Tuned | None:
        """Tune and train the student on labels and kept rows, in rounds; None where nothing was kept."""
        context, best = self.context, self._tuned(gold, 1)
        for number in range(2, context.config.rounds + 1):
            if best is None or not best.tuned.scores:
                context.run.warn("rounds: one only, for without kept rows and folds there are no errors")
                break
            turn, before = Turn(number, weaknesses(context, best.tuned)), dict(self.hashes)
            self.synthesize(compiled, turn)
            self.curate(compiled, gold, turn)
            found = self._tuned(gold, number)
            if found is None or not told(context, found, best):
                self.hashes = before
                break
            best = found
        if best is None:
            return None
        beta = context.config.objectives.beta
        preferred = prefer_stage(context, best, beta, STUDENT) if beta else None
        tuned, pairs = (preferred.tuned, preferred.pairs) if preferred else (best.tuned, ())
        self._final(STUDENT, best.rows.gold + best.rows.kept, tuned, pairs)
        return tuned

    def _tuned(self, gold: Tuned, number: int) -> Round | None:
        context, spend = self.context, self.context.spend
        rows = learnable(context, self.gold, number)
        if not rows.enough(context.split.n_folds):
            return None
        objectives = context.config.objectives
        if objectives.rationales:
            rows = with_reasons(context, self.program, rows, number)
        way = self._way(rows)
        recipes = [
            with_steps(
                replace(
                    gold.recipe,
                    epochs=spend.passes(context.closed, context.plan.writes_more)[1],
                    gold_weight=weight,
                    normalize="labels" if context.config.weak else gold.recipe.normalize,
                    batch_size=16 if context.closed else 8,
                    stop=1.0,
                    demos=demos,
                    confidence=confidence,
                    way=way,
                    rationales=objectives.rationales,
                ),
                len(rows.gold) + len(rows.kept),
                len(context.task.labels) if context.closed else 0,
                # Fewer than the labels alone take made students worse (docs/experiments.md, what was changed).
                steps_of(gold.recipe, len(rows.gold)),
            )
            for demos in prompts_tried(context.config)
            if not (demos and way == CHAIN)  # demonstrations of answers are none of chains
            for weight in spend.gold_weights
            for confidence in confidences(context.config)
        ]
        context.run.reporter.stage("finetune")
        # DPO goes on from the folds' students.
        return Round(number, tune(context, STUDENT, recipes, rows.outside, keep=bool(objectives.beta)), rows)

    def _way(self, rows: Learnable) -> Way:
        """Return how the student answers: by chains where every fit has some, else directly where it learns reasons."""
        context = self.context
        fits = [rows.kept, *map(rows.outside, range(context.split.n_folds))]
        if context.plan.chains and all(any(teaches(CHAIN, r) for r in part) for part in fits):
            return CHAIN
        if context.plan.chains:
            context.run.warn("no-chains: the student answers by the task's own program: too few chains were kept")
        return direct_way(context.task) if context.config.objectives.rationales else OWN

    def evaluate(self, gold: Tuned, student: Tuned | None) -> dict[str, Any]:
        """Score every system on the test rows, choose what the run returns, write report.json."""
        context = self.context
        context.run.reporter.stage("evaluate")
        started = time.monotonic()
        base = base_out_of_fold(context) if gold.scores else []
        choice = choose(gold, student, base, blind=context.closed)
        recipes = {GOLD_ONLY: gold.recipe, **({STUDENT: student.recipe} if student else {})}
        results = evaluate_systems(context, self.bare, self.program, recipes)
        context.run.stage_log.append({"name": "evaluate", "seconds": round(time.monotonic() - started, 2)})
        report = build_report(context, results, choice, self.hashes)
        report["terms"] = reported(self.terms, context.config.accept_terms) if self.terms else {}
        # Chosen out of fold: a program picked on test rows would have no honest score.
        self._remember(choice.system, recipes)
        write_predictions(context.run.path, predictions(context, results))
        write_report(context.run.path, report)
        shutil.rmtree(context.run.path / FITS, ignore_errors=True)
        return report

    def _remember(self, system: str, recipes: Mapping[str, Recipe]) -> None:
        """Write what `limbeck predict` needs: each student's prompt and adapter, and the system of the verdict."""
        from limbeck.pipeline.deploy import write_students

        nearest = self.program.k if isinstance(self.program, NearestDemos) else 0
        write_students(self.context, system, recipes, nearest=nearest)
