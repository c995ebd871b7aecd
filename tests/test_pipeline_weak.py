"""A weak model in the teacher's place: its labels, the student that learns from them, what is refused before it."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pipeline import Recording
from tiny_run import SMALL, write_rows

from limbeck.engine.loading import LoadedModel
from limbeck.errors import InputError, ModelError
from limbeck.pipeline.config import EFFORTS, RunConfig, check
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.labelers import Folds, words_labeler
from limbeck.pipeline.parameters import local_parameters
from limbeck.pipeline.run import run, terms_of
from limbeck.pipeline.students import Recipe, confidences
from limbeck.records import Record, read_records

WORDS = {
    "weather": "rain hail fog storm cloud snow thunder breeze drizzle wind frost heat sun sleet gale mist ice haze",
    "traffic": "bus tram train lorry bridge taxi ferry park signal bicycle ticket road car wheel queue rail pier lane",
}


def rows(n: int, seed: int) -> list[dict[str, str]]:
    """Return rows of both classes in turn, whose words tell the class."""
    rng = random.Random(seed)
    return [
        {"message": " ".join(rng.sample(WORDS[label].split(), 7)), "label": label}
        for place in range(n)
        for label in (("weather", "traffic")[place % 2],)
    ]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_tiny: LoadedModel) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    model: Any = fresh_tiny.model
    model.config.max_position_embeddings = 4096
    model.save_pretrained(tmp_path / "tiny")
    tokenizer: Any = fresh_tiny.tokenizer
    tokenizer.save_pretrained(tmp_path / "tiny")
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", rows(16, 0)),
        output=("label",),
        test=write_rows(tmp_path / "test.jsonl", rows(10, 1)),
        unlabeled=write_rows(tmp_path / "pool.jsonl", [{"message": row["message"]} for row in rows(12, 2)]),
        student=f"hf:{tmp_path / 'tiny'}",
        weak="words",
    )


def candidates(config: RunConfig) -> list[Record]:
    return read_records(config.folder / "data" / "candidates.parquet")


def stage_of(report: Any, name: str) -> dict[str, Any]:
    (found,) = [one for one in report["stages"] if one["name"] == name]
    return found


def test_from_labels_to_a_student_of_weak_labels_without_a_teacher(config: RunConfig) -> None:
    seen = Recording()
    report: Any = run(config, reporter=seen).report
    assert {"student", "student_gold_only", "student_base", "linear_probe"} <= set(report["systems"])
    assert not any(name.startswith("teacher") for name in report["systems"])
    assert report["models"] == {"weak": "words", "student": config.student}
    assert report["terms"] == {}
    with sqlite3.connect(config.folder / "ledger.sqlite") as ledger:
        assert ledger.execute("select count(*) from calls where role = 'teacher'").fetchone() == (0,)

    found = candidates(config)
    assert len(found) == 12
    assert {(r.provenance.method, r.provenance.teacher) for r in found} == {("pool", "weak:words")}
    assert {r.provenance.block for r in found} == {0, 1}
    assert all(sum(r.soft.values()) == pytest.approx(1) for r in found if r.soft)
    right = [("weather", "traffic")[place % 2] for place in range(12)]
    assert [r.outputs["label"] for r in found] == right
    kept = read_records(config.folder / "data" / "kept.parquet")
    assert kept
    assert {r.soft_source for r in kept} == {"calibrated"}

    tried = stage_of(report, "finetune student")["tried"]
    assert {one.get("confidence", 0.0) for one in tried} == {0.5, 0.0}
    assert {one["normalize"] for one in tried} == {"labels"}
    told = stage_of(report, "weak to strong")
    assert (told["weak"], told["out_of_fold"]) == ("words", 1.0)
    assert told["ci95"][0] < told["out_of_fold"]
    assert told["student"] in [one["score"] for one in tried if one.get("confidence", 0.0) == told["confidence"]]
    # The random student is no match for words that tell the class.
    assert [text for text in seen.warnings if text.startswith("weak-above-strong: words scores 1.000")]

    students = json.loads((config.folder / "students.json").read_text(encoding="utf-8"))
    assert "teacher_compiled" not in students["systems"]
    (answer,) = load_run(config.folder, "student").predict([{"message": "rain and fog"}], probabilities=True)
    assert sum(answer["label_probabilities"].values()) == pytest.approx(1)

    again = Recording()
    assert run(config, reporter=again).report is not None
    assert {("compile", True), ("synthesize", True), ("curate", True)} <= set(again.stages)


@pytest.mark.parametrize("kind", ["encoder", "hf"])
def test_a_trained_weak_model_labels_by_folds(config: RunConfig, encoder_folder: Path, kind: str) -> None:
    weak = f"encoder:{encoder_folder}" if kind == "encoder" else config.student
    config = replace(config, weak=weak)
    run(config, until="synthesize", reporter=Recording())
    found = candidates(config)
    assert {r.provenance.teacher for r in found} == {f"weak:{weak}"}
    assert [r.provenance.block for r in found] == [0, 1] * 6
    assert all(r.kept and r.soft and set(r.soft) == {"weather", "traffic"} for r in found)
    assert all(sum(r.soft.values()) == pytest.approx(1) for r in found if r.soft)
    assert bool(terms_of(config)) == (kind == "hf"), "an encoder's and words' labels are under no model's terms"


def test_a_row_is_labelled_by_words_of_the_other_folds() -> None:
    given = rows(12, 0)
    labels = tuple(sorted(WORDS))
    folds = Folds(tuple(labels.index(row["label"]) for row in given), (0, 0, 1, 1) * 3, 2, labels)
    gold = [{"message": row["message"]} for row in given]
    labeler = words_labeler(gold, folds, [row["message"] for row in rows(12, 2)])
    first = labeler.predict_folds(["rain hail fog"])
    assert len(first) == 2
    # Other answers in a fold change the other fold's model, and leave its own as it was.
    turned = [1 - y if fold == 0 else y for y, fold in zip(folds.y_N, folds.fold_N, strict=True)]
    second = words_labeler(gold, replace(folds, y_N=tuple(turned)), []).predict_folds(["rain hail fog"])
    third = words_labeler(gold, folds, []).predict_folds(["rain hail fog"])
    np.testing.assert_allclose(second[0], third[0])
    assert abs(second[1] - third[1]).max() > 0.1


def test_with_one_label_a_class_one_model_labels_everything(config: RunConfig) -> None:
    write_rows(Path(config.labels), rows(2, 0))
    run(config, until="curate", reporter=Recording())
    assert {r.provenance.block for r in candidates(config)} == {-1}
    assert confidences(config)[0] > 0, "without folds the first recipe is the fixed default: with the loss"
    assert confidences(replace(config, weak="")) == (0.0,)


def test_a_weak_model_that_is_larger_than_the_student_is_refused(config: RunConfig) -> None:
    student = local_parameters(config.student)
    assert student is not None
    assert 5e4 < student < 2e5
    for refused in (run, forecast):
        with pytest.raises(InputError, match=r"has 135,000,000 parameters .* the weak model is the smaller one"):
            refused(replace(config, weak="embedded"))
    assert not config.folder.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlabeled": ""}, "there are none"),
        ({"student": "encoder"}, "is an encoder"),
        ({"teacher": "openai/gpt-5-mini"}, "--teacher openai/gpt-5-mini would ask"),
        ({"rounds": 2}, "--rounds"),
        ({"synthetic_rows": 5}, "--synthetic-rows"),
        ({"method": ("evol_instruct",)}, "--method"),
        ({"rule": ("toxic",)}, "--rule toxic"),
        ({"reflection": "embedded"}, "--reflection-model"),
        ({"kind": "text"}, "not one closed set of labels"),
    ],
)
def test_what_a_weak_model_cannot_do_is_refused_before_anything_is_spent(
    config: RunConfig, changes: dict[str, Any], said: str
) -> None:
    config = replace(config, **changes)
    check(config)
    with pytest.raises(InputError, match=said):
        run(config)
    assert not config.folder.exists()


def test_a_server_s_model_is_no_weak_one(config: RunConfig) -> None:
    with pytest.raises(InputError, match="--weak 'openai/gpt-5-mini'"):
        run(replace(config, weak="openai/gpt-5-mini"))


def test_a_file_that_is_not_there_is_found_before_the_run(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        run(replace(config, weak=f"gguf:{tmp_path / 'none.gguf'}"))
    assert not config.folder.exists()


def test_dry_run_counts_fits_and_no_call(config: RunConfig, encoder_folder: Path) -> None:
    words = forecast(replace(config, effort="standard"))
    assert words.total.calls == 0
    assert words.usd == 0
    assert not [text for text in words.warnings if "not-counted" in text or "terms" in text]
    minutes = {line.stage: line.minutes for line in words.lines}
    assert minutes["weak labels"] == 0
    assert minutes["finetune"]
    trained = forecast(replace(config, effort="standard", weak=f"encoder:{encoder_folder}"))
    assert {line.stage: line.minutes for line in trained.lines}["weak labels"]


def test_other_runs_keep_their_keys(config: RunConfig) -> None:
    assert "weak" not in replace(config, weak="").identity()
    assert config.identity()["weak"] == "words"
    assert "confidence" not in Recipe(1e-3, 1.0).values()
    assert Recipe(1e-3, 1.0, confidence=0.5).values()["confidence"] == 0.5
