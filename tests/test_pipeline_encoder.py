"""An encoder as a run's student: behind the same LM, from labels to a report, refused where it cannot answer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import dspy
import pytest
from scripted import Scripted
from test_pipeline import Recording, _rows
from tiny_run import SMALL, write_rows

from limbeck.engine.loading import load_encoder
from limbeck.engine.requests import ScoreRequest, Scores
from limbeck.errors import InputError
from limbeck.ledger import Ledger
from limbeck.models import LM, CompactAdapter, connect
from limbeck.models.encoder_engine import EncoderBackend
from limbeck.models.kinds import is_encoder, is_local
from limbeck.pipeline.config import EFFORTS, RunConfig, check
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.fitting import class_rows
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.pipeline.students import Recipe, StudentPlan, gold_recipes, prompts_tried
from limbeck.records import Provenance, Record
from limbeck.task import Task, task_from_labels

WORDS = (
    *("rain", "hail", "minus", "fog", "storm"),
    *("cloud", "snow", "thunder", "breeze", "drizzle", "wind", "heat", "frost"),
)


class Sort(dspy.Signature):
    """Sort a message."""

    message: str = dspy.InputField()
    label: Literal["weather", "traffic"] = dspy.OutputField()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_folder: Path) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", replace(SMALL, synthetic_rows=0))  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", _rows(12)),
        output=("label",),
        test=write_rows(tmp_path / "test.jsonl", _rows(10, 12)),
        unlabeled=write_rows(tmp_path / "pool.jsonl", [{"message": r["message"]} for r in _rows(8, 22)]),
        student=f"encoder:{encoder_folder}",
    )


def test_a_program_runs_on_an_encoder_and_its_answers_are_in_the_ledger(encoder_folder: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lm = connect(f"encoder:{encoder_folder}/", ledger=ledger)
    program = dspy.Predict(Sort)
    with cast(Any, dspy).context(lm=lm, adapter=CompactAdapter()):
        said = program(message="Hail broke two windows")
        program(message="Hail broke two windows")
    assert said.label in ("weather", "traffic")
    probabilities = said["dspy_label_probabilities"]["label"]
    assert sum(probabilities.values()) == pytest.approx(1)
    assert said["dspy_probability_source"] == "exact"
    assert ledger.totals().calls == 1
    ledger.close()


@pytest.mark.parametrize(
    ("signature", "adapter"),
    [("message -> summary", CompactAdapter()), ("message -> reasoning, label: bool", CompactAdapter()), (Sort, None)],
)
def test_what_an_encoder_cannot_write_is_refused_before_any_call(
    encoder_folder: Path, tmp_path: Path, signature: Any, adapter: Any
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lm = connect(f"encoder:{encoder_folder}", ledger=ledger)
    with cast(Any, dspy).context(lm=lm, adapter=adapter), pytest.raises(InputError, match="writes no text"):
        dspy.Predict(signature)(message="Hail broke two windows")
    assert ledger.totals().calls == 0
    ledger.close()


def test_names() -> None:
    assert is_encoder("encoder")
    assert is_local("encoder:/models/minilm")
    assert not is_encoder("encoder:")
    assert not is_encoder("hf:encoder")


def test_options_that_do_not_fit_are_refused(config: RunConfig) -> None:
    check(replace(config, tune="head"))
    with pytest.raises(InputError, match="teacher 'encoder' is an encoder"):
        check(replace(config, teacher="encoder"))
    with pytest.raises(InputError, match="judge 'encoder' is an encoder"):
        check(replace(config, judge="encoder"))
    with pytest.raises(InputError, match="--tune 'all'"):
        check(replace(config, tune="all"))
    with pytest.raises(InputError, match="concerns encoders"):
        check(replace(config, student="embedded", tune="lora"))


def test_recipes_of_an_encoder_try_both_ways_unless_one_is_asked_for(config: RunConfig) -> None:
    task = task_from_labels(_rows(6), output="label", instructions="Sort the messages.")
    plan = StudentPlan(config.student, CompactAdapter(), task)
    both = gold_recipes(config, plan)
    assert [recipe.head_only for recipe in both] == [False, True]
    assert {recipe.normalize for recipe in both} == {"labels"}
    assert [recipe.head_only for recipe in gold_recipes(replace(config, tune="head"), plan)] == [True]
    assert [recipe.head_only for recipe in gold_recipes(replace(config, tune="lora"), plan)] == [False]
    assert (prompts_tried(config), prompts_tried(replace(config, student="embedded"))) == ((False,), (False, True))
    # What other students' stages are found by stays as it was.
    assert "head_only" not in gold_recipes(replace(config, student="embedded"), plan)[0].values()
    assert both[1].values()["head_only"]
    assert "head only" in both[1].summary()


def test_rows_hold_the_inputs_alone_and_every_label_has_its_share(encoder_folder: Path) -> None:
    task = task_from_labels(_rows(6), output="label", instructions="Sort the messages.")
    plan = StudentPlan(f"encoder:{encoder_folder}", CompactAdapter(), task)
    loaded = load_encoder(plan.base, device="cpu")
    given = {"message": "It rains"}, {"label": "weather"}
    soft = {"weather": 0.99, "traffic": 0.01}
    records = [
        Record(*given, Provenance("gold")),
        Record(*given, Provenance("pool"), soft=soft, weight=0.5),
    ]
    gold, pool = class_rows(plan, Recipe(1e-3, 1.0, gold_weight=2.0, normalize="labels"), records, loaded)
    order = task.labels.index("weather"), task.labels.index("traffic")
    assert [gold.masses[i] for i in order] == [1.0, 0.0]
    assert [pool.masses[i] for i in order] == pytest.approx([0.99, 0.01])
    assert (gold.weight, pool.weight) == (2.0, 0.5)
    text = cast(Any, loaded.tokenizer).decode(gold.ids, skip_special_tokens=True)
    assert text.strip() == "message: It rains"


def _open_task(kind: str) -> Task:
    if kind == "text":
        return task_from_labels(
            [{"q": f"What is {i}?", "a": f"It is {i}, as they say."} for i in range(12)], output="a"
        )
    examples = [dspy.Example(message=r["message"], label=r["label"]).with_inputs("message") for r in _rows(12)]
    return Task.from_program(dspy.ChainOfThought(Sort), examples)


@pytest.mark.parametrize("kind", ["text", "reasons"])
def test_a_run_whose_task_is_no_label_set_ends_before_any_call(config: RunConfig, kind: str) -> None:
    with pytest.raises(InputError, match="not one closed set of labels"):
        run(replace(config, labels="", test="", unlabeled="", output=()), task=_open_task(kind))
    assert not Path(config.out).exists()


class Teacher(Scripted):
    """Knows the weather by its words and gives probabilities."""

    def __init__(self) -> None:
        super().__init__(lambda request: "weather")
        self.supports_score = True  # pyright: ignore[reportIncompatibleVariableOverride]
        self.score_source = "exact"

    def score(self, request: ScoreRequest) -> Scores:
        weather = any(word in request.messages[-1][1].lower() for word in WORDS)
        right = "weather" if weather else "traffic"
        return Scores(tuple(math.log(0.9 if c == right else 0.1) for c in request.candidates), tokens_in=9)


def test_from_labels_to_a_report_and_predictions(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def connecting(name: str, **options: Any) -> LM:
        if name != config.teacher:
            return connect(name, **options)
        return LM(name, Teacher(), **{k: options[k] for k in ("ledger", "budget", "role")})

    monkeypatch.setattr("limbeck.pipeline.prepare.connect", connecting)
    plan = forecast(config)
    assert plan.total.minutes is not None
    report = run(config, reporter=Recording()).report
    assert report is not None
    systems = report["systems"]
    expected = {"teacher", "teacher_compiled", "student_base", "student_gold_only", "student", "encoder_probe"}
    assert expected <= set(systems)
    assert "linear_probe" not in systems  # it would be the encoder's own probe once more
    for name in ("student_base", "student_gold_only", "student", "encoder_probe"):
        assert systems[name]["probability_source"] == "exact"
        assert systems[name]["p50_ms"] > 0
    assert systems["student"]["usd_per_1k"] == 0
    tried = next(stage for stage in report["stages"] if stage["name"] == "finetune student_gold_only")["tried"]
    assert [one.get("head_only", False) for one in tried] == [False, False, True, True]

    deployed = load_run(config.folder, "student")
    rows = [{"message": r["message"]} for r in _rows(3)]
    found = list(deployed.predict(rows, probabilities=True))
    assert all(row["label"] in ("weather", "traffic") for row in found)
    assert all(sum(row["label_probabilities"].values()) == pytest.approx(1) for row in found)
    assert isinstance(deployed.lm.backend, EncoderBackend)
