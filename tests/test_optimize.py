"""Every optimizer runs, keeps only what helps, stays silent, and stops when the budget is spent."""

from __future__ import annotations

import json
import math
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import dspy
import numpy as np
import pytest

from limbeck.compile.feedback import with_feedback
from limbeck.compile.nearest import NearestDemos, text_encoder
from limbeck.compile.optimize import compile_program
from limbeck.compile.optimizers import (
    COPRO,
    GEPA,
    SIMBA,
    BootstrapFewShot,
    Job,
    KNNFewShot,
    LabeledFewShot,
    MIPROv2,
    Optimizer,
    RandomSearch,
    built_in,
    for_effort,
    reasons,
)
from limbeck.compile.split import Split
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError
from limbeck.ledger import Ledger
from limbeck.models import LM, Budget, CompactAdapter, connect
from limbeck.task import Task, task_from_labels

COLOURS = ("red", "blue", "green", "pink", "grey", "brown")
ROWS = [
    {"text": f"the {colour} {thing}", "label": "fruit" if thing in ("apple", "plum") else "tool"}
    for colour in COLOURS
    for thing in ("apple", "hammer", "plum", "saw")
]


class Sorts(dspy.Signature):
    """Name the kind of thing."""

    text: str = dspy.InputField()
    label: Literal["fruit", "tool"] = dspy.OutputField()


@dataclass
class Scripted:
    """A model that learns from demonstrations only: without them it always says "tool".

    `shaky` makes every third text unreadable; whoever asks for instructions gets some.
    """

    shaky: bool = False
    name: str = "scripted"
    fingerprint: str = "scripted"
    supports_score: bool = True
    supports_prefix: bool = True
    score_source: str = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def _counted(self) -> int:
        with self._lock:
            self.calls += 1
            return self.calls

    def knows(self, messages: Any) -> str:
        question = messages[-1][1]
        fruit = any(name in question for name in ("apple", "plum"))
        shown = any(role == "assistant" for role, _ in messages) or "sharper" in messages[0][1]
        return "fruit" if fruit and shown else "tool"

    def generate(self, request: GenerateRequest) -> Generation:
        calls = self._counted()
        wanted = re.findall(r"\[\[ ## (\w+) ## \]\]", request.messages[0][1])
        if self.shaky and calls % 3 == 0:
            text = "nothing of the sort"
        elif "new_instruction" in request.messages[0][1]:  # GEPA asks for JSON
            text = json.dumps({"new_instruction": f"sharper words {calls}"})
        elif wanted:
            said = {"label": self.knows(request.messages)}
            text = "\n\n".join(f"[[ ## {n} ## ]]\n{said.get(n, f'sharper {calls}')}" for n in wanted)
        else:
            text = f"sharper words {calls}"
        return Generation(text, 10, 5, "stop")

    def score(self, request: ScoreRequest) -> Scores:
        self._counted()
        right = self.knows(request.messages)
        return Scores(tuple(2.0 if c == right else 0.0 for c in request.candidates), tokens_in=10)


def colour_task(**options: Any) -> Task:
    return task_from_labels(ROWS, output="label", instructions="Name the kind of thing.", **options)


def split_of(task: Task, train: int = 12) -> Split:
    rows = task.examples
    return Split(rows[:train], rows[train:], (), (0,) * len(rows), 0)


def scripted(**options: Any) -> LM:
    return LM("scripted", Scripted(**options))


ADAPTER = CompactAdapter()
SMALL: tuple[Optimizer, ...] = (
    LabeledFewShot(),
    BootstrapFewShot(),
    RandomSearch(candidates=2),
    MIPROv2(trials=3, candidates=4),
    GEPA(calls=40),
    SIMBA(steps=1, candidates=2, batch=6),
    COPRO(breadth=2, depth=1),
    KNNFewShot(k=3),
)


@pytest.mark.parametrize("optimizer", SMALL, ids=lambda one: one.name)
def test_every_optimizer_finds_the_better_prompt_and_saves_it(
    optimizer: Optimizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, path = colour_task(), tmp_path / "program.json"
    split, lm = split_of(task), scripted()
    compiled = compile_program(task, split, lm, optimizer=optimizer, adapter=ADAPTER, reflection_lm=lm, seed=0)
    assert (compiled.kept, compiled.optimizer, compiled.notes) == (True, optimizer.name, ())
    assert (compiled.baseline_score, compiled.compiled_score) == (0.5, 1.0)
    assert compiled.paired is not None
    assert compiled.paired.difference == 0.5
    assert capsys.readouterr() == ("", "")
    cast(Any, compiled.program).save(str(path))
    assert json.loads(path.read_text())["lm"] is None
    plain = cast(Any, dspy.Predict(Sorts))
    plain.load(str(path))
    with dspy.context(lm=lm, adapter=ADAPTER):
        assert plain(text="the yellow plum").label == "fruit"
        assert cast(Any, compiled.program)(text="the yellow plum").label == "fruit"


def test_the_same_seed_shows_the_same_demos_and_every_class() -> None:
    task = colour_task()
    runs = [
        compile_program(task, split_of(task), scripted(), optimizer="labeled", adapter=ADAPTER, seed=seed)
        for seed in (0, 0, 1)
    ]
    shown = [[d.text for d in cast(Any, run.program).predictors()[0].demos] for run in runs]
    assert shown[0] == shown[1] != shown[2]
    labels = [d.label for d in cast(Any, runs[0].program).predictors()[0].demos]
    assert labels.count("fruit") == labels.count("tool") == 6


def test_a_program_that_gains_nothing_stays_uncompiled() -> None:
    task = replace(colour_task(), metric=lambda example, prediction, trace=None: 1.0)  # pyright: ignore[reportUnknownLambdaType]
    compiled = compile_program(task, split_of(task), scripted(), adapter=ADAPTER)
    assert not compiled.kept
    assert compiled.scores == {"uncompiled": 1.0, "labeled": 1.0, "labeled-short": 1.0}
    assert cast(Any, compiled.program).predictors()[0].demos == []


def test_of_equal_candidates_the_shorter_prompt_is_taken() -> None:
    task, lm = colour_task(), scripted()
    pair = for_effort("quick", task)
    assert [one.name for one in pair] == ["labeled", "labeled-short"]
    steps: list[tuple[str, int, int]] = []
    compiled = compile_program(task, split_of(task), lm, adapter=ADAPTER, progress=lambda *step: steps.append(step))
    assert compiled.scores == {"uncompiled": 0.5, "labeled": 1.0, "labeled-short": 1.0}
    assert "flatters" in compiled.notes[-1]
    assert steps[-1] == ("labeled-short", 12, 12)


def test_rationales_are_bootstrapped_and_unreadable_answers_do_not_end_the_stage(tmp_path: Path) -> None:
    task, lm = colour_task(reasoning=True), scripted(shaky=True, supports_prefix=False)
    assert reasons(task)
    assert [one.name for one in for_effort("quick", task)] == ["bootstrap"]
    rows = [row for row in task.examples if cast(Any, row).label == "tool"]
    split = replace(split_of(task), train=tuple(rows))
    compiled = compile_program(task, split, lm, adapter=CompactAdapter(score_closed=False))
    path = tmp_path / "program.json"
    cast(Any, compiled.program).save(str(path))
    demos = json.loads(path.read_text())["predict"]["demos"]
    assert compiled.kept
    assert demos
    assert all(demo["reasoning"].startswith("sharper") and demo["label"] == "tool" for demo in demos)
    assert set(demos[0]) == {"augmented", "text", "reasoning", "label"}


def test_rows_are_bootstrapped_in_batches_and_the_ledger_answers_dspy(tmp_path: Path) -> None:
    class Watched(Scripted):
        def _counted(self) -> int:
            alone.append(threading.current_thread() is threading.main_thread())
            return super()._counted()

    alone: list[bool] = []
    task = colour_task(reasoning=True)
    lm = LM("hf:scripted", Watched(), ledger=Ledger(tmp_path / "ledger.sqlite"))
    compiled = compile_program(task, split_of(task), lm, adapter=ADAPTER)
    assert compiled.scores.keys() == {"uncompiled", "bootstrap"}
    # DSPy asks row after row on the main thread: all that it asked had been answered on others.
    assert alone
    assert not any(alone)


def test_an_optimizer_that_breaks_is_noted_and_the_program_stays() -> None:
    @dataclass(frozen=True)
    class Broken:
        name: str = "broken"

        def refuse(self, task: Task, split: Split, reflection_lm: dspy.LM | None) -> str:
            return ""

        def run(self, job: Job) -> dspy.Module:
            raise ValueError("no instruction came back")

    task = colour_task()
    compiled = compile_program(task, split_of(task), scripted(), optimizer=Broken(), adapter=ADAPTER)
    assert (compiled.kept, compiled.compiled_score) == (False, 0.5)
    assert compiled.notes == ("broken failed: ValueError: no instruction came back",)


@pytest.mark.parametrize("optimizer", SMALL[1:7], ids=lambda one: one.name)
def test_a_spent_budget_ends_the_search_at_once(optimizer: Optimizer, tmp_path: Path) -> None:
    task, ledger = colour_task(), Ledger(tmp_path / "ledger.sqlite")
    split = split_of(task)
    free = LM("scripted", Scripted(), ledger=ledger)
    compile_program(task, replace(split, train=()), free, adapter=ADAPTER)  # the baseline is paid for
    backend = Scripted()
    lm = LM("scripted", backend, ledger=ledger, budget=Budget(max_tokens=1))
    with pytest.raises(BudgetExceeded):
        compile_program(task, split, lm, optimizer=optimizer, adapter=ADAPTER, reflection_lm=lm)
    assert backend.calls == 0
    ledger.close()


def test_an_interrupt_passes_through() -> None:
    def interrupted(example: Any, prediction: Any, trace: Any = None) -> float:
        if trace is not None:
            raise KeyboardInterrupt
        return 0.0

    task = replace(colour_task(), metric=interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile_program(task, split_of(task), scripted(), optimizer="bootstrap", adapter=ADAPTER)


def test_refusals_say_why() -> None:
    task, lm = colour_task(), scripted()
    split, tiny = split_of(task), split_of(task, train=2)
    with pytest.raises(InputError, match=r"unknown optimizer 'mipro3'(.|\n)*valid: labeled, bootstrap"):
        compile_program(task, split, lm, optimizer="mipro3")
    with pytest.raises(InputError, match="reflection model"):
        compile_program(task, split, lm, optimizer="gepa")
    for name, needed in {"mipro": 8, "simba": 8, "copro": 8, "knn": 7, "random-search": 4}.items():
        reason = built_in()[name].refuse(task, tiny, None)
        assert reason == f"it needs {needed} training rows and there are 2"
    assert "dev rows" in MIPROv2().refuse(task, split_of(task, train=23), None)
    own = replace(task, metric=lambda example, prediction, trace=None: 1.0)  # pyright: ignore[reportUnknownLambdaType]
    assert "metric with feedback" in GEPA().refuse(own, split, lm)
    assert GEPA().refuse(task, split, lm) == ""


def test_mipro_refuses_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr("limbeck.compile.optimizers.find_spec", absent)
    task = colour_task()
    assert "pip install optuna" in MIPROv2().refuse(task, split_of(task), None)


def test_effort_widens_the_search_and_notes_who_was_left_out() -> None:
    task = colour_task()
    names = {e: [one.name for one in for_effort(e, task)] for e in ("standard", "thorough")}
    assert names["standard"] == ["labeled", "labeled-short", "random-search", "mipro"]
    assert names["thorough"] == [*names["standard"], "gepa"]
    split = split_of(task, train=3)
    compiled = compile_program(task, split, scripted(), effort="thorough", adapter=ADAPTER)
    assert sorted(compiled.scores) == ["labeled", "labeled-short", "uncompiled"]
    left = [note.split(" was left out")[0] for note in compiled.notes if "left out" in note]
    assert left == ["random-search", "mipro", "gepa"]


def test_without_dev_rows_demonstrations_are_a_named_default() -> None:
    task = colour_task()
    split = Split(task.examples[:2], (), (), (0, 0), 0)
    compiled = compile_program(task, split, scripted(), adapter=ADAPTER)
    assert compiled.kept
    assert math.isnan(compiled.compiled_score)
    assert "fixed default" in compiled.notes[0]
    assert len(cast(Any, compiled.program).predictors()[0].demos) == 2


def test_feedback_says_what_was_right() -> None:
    task = colour_task()
    metric = with_feedback(task)
    row = task.examples[0]
    wrong = cast(Any, metric(row, dspy.Prediction(label="tool")))
    assert (wrong.score, wrong.feedback) == (
        0.0,
        "The score is 0.00. label should be 'fruit' and was 'tool'.",
    )
    assert cast(Any, metric(row, dspy.Prediction(label="fruit"))).feedback == "This is right."
    assert "not given" in cast(Any, metric(row, dspy.Prediction())).feedback

    def own(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        if pred_name == "boom":
            raise ValueError("unreadable")
        return dspy.Prediction(score=0.5, feedback="half")

    explained = with_feedback(replace(task, metric=own))
    assert cast(Any, explained(row, wrong, None, "predict", None)).feedback == "half"
    assert "unreadable" in cast(Any, explained(row, wrong, None, "boom", None)).feedback


def test_the_nearest_rows_are_shown_nearest_last_also_after_a_save(tmp_path: Path) -> None:
    task, lm = colour_task(), scripted()
    program = NearestDemos(task.program, task.examples, k=2)
    with dspy.context(lm=lm, adapter=ADAPTER):
        program(text="the red apple")
    shown = [m["content"] for m in lm.history[-1]["messages"] if m["role"] == "user"]
    assert shown[-2:] == ["text: the red apple"] * 2
    assert len(shown) == 3
    program.save(str(tmp_path / "program.json"))
    plain = task.program.deepcopy()
    plain.load(str(tmp_path / "program.json"))
    again = NearestDemos.restored(plain, k=2)
    with dspy.context(lm=lm, adapter=ADAPTER):
        again(text="the red apple")
    assert [m["content"] for m in lm.history[-1]["messages"] if m["role"] == "user"] == shown


@pytest.mark.parametrize("installed", [True, False])
def test_texts_become_unit_vectors(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr("limbeck.engine.loading.encoder_path", lambda: None)
    found = text_encoder()(["the red apple", "the red apple", "theorems of algebra"])
    assert found.dtype == np.float32
    assert found[0] @ found[1] == pytest.approx(1.0, abs=1e-5)
    assert found[0] @ found[2] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labeled", "bootstrap"])
def test_the_embedded_model_is_compiled(name: str, tmp_path: Path) -> None:
    task, lm = colour_task(), connect("embedded")
    split = replace(split_of(task), train=task.examples[:6], dev=task.examples[18:])
    compiled = compile_program(task, split, lm, optimizer=name, adapter=ADAPTER)
    assert set(compiled.scores) == {"uncompiled", name}
    assert compiled.kept == (compiled.compiled_score > compiled.baseline_score)
    cast(Any, compiled.program).save(str(tmp_path / "program.json"))
    plain = cast(Any, dspy.Predict(Sorts))
    plain.load(str(tmp_path / "program.json"))
    with dspy.context(lm=lm, adapter=ADAPTER):
        assert plain(text="the red plum").label in ("fruit", "tool")
