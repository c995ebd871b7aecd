"""Labelling by blocks, rejection sampling and consensus, scripted and with the embedded model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import dspy
import numpy as np
import pytest
from scripted import scripted

from limbeck.compile.label import (
    Answer,
    LabelConfig,
    Labeler,
    block_programs,
    consensus,
    gold_records,
    label_pool,
    probability_matrix,
)
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter, connect
from limbeck.records import MANUAL
from limbeck.signatures.tasks import FieldSpec, build_signature, literal
from limbeck.verifiers import HoldsNumber

LABELS = ("city", "food")
TEXTS = ["Paris", "bread", "Rome", "cheese", "Oslo", "soup"]


def example(text: str, label: str) -> dspy.Example:
    return dspy.Example(text=text, label=label).with_inputs("text")


GOLD = [example(text, LABELS[i % 2]) for i, text in enumerate(TEXTS)]
FOLDS = (0, 0, 1, 1, 2, 2)


def classifier() -> dspy.Module:
    fields = [FieldSpec("text")], [FieldSpec("label", literal(LABELS))]
    return dspy.Predict(build_signature(*fields, "Say whether it is a city or food."))


def labeler(lm: Any, **more: Any) -> Labeler:
    programs = block_programs(classifier(), GOLD, FOLDS, 4, 0, labels=LABELS, output="label")
    return Labeler(programs, lm, CompactAdapter(), ("label",), "label", **more)


def said(request: GenerateRequest) -> str:
    return request.messages[-1][1].removeprefix("text: ")


def test_a_blocks_prompt_never_shows_its_fold() -> None:
    lm, backend = scripted(lambda request: "food")
    records = label_pool([{"text": f"row {i}"} for i in range(9)], labeler(lm))
    assert [r.provenance.block for r in records] == [0, 1, 2] * 3
    for request in backend.requests:
        block = int(said(request).split()[1]) % 3
        shown = " ".join(content for _, content in request.messages[:-1])
        hidden = [text for text, fold in zip(TEXTS, FOLDS, strict=True) if fold == block]
        assert not any(text in shown for text in hidden)
        assert sum(text in shown for text in TEXTS) == 4
    assert len({r.provenance.prompt_hash for r in records}) == 3


def test_records_keep_the_inputs_order_and_failures_are_counted_not_raised() -> None:
    lm, _ = scripted(lambda request: "no idea" if "3" in said(request) else "City")
    progress: list[tuple[int, int]] = []
    rows = [{"text": f"row {i}"} for i in range(7)]
    records = label_pool(rows, labeler(lm), progress=lambda *done: progress.append(done))
    assert [dict(r.inputs) for r in records] == rows
    assert [r.reason for r in records] == ["", "", "", "failed", "", "", ""]
    assert all(r.outputs == {"label": "city"} for r in records if r.kept)
    assert progress[-1] == (7, 7)
    p = probability_matrix(records, LABELS, "label")
    assert np.isnan(p[3]).all()
    assert p[0].tolist() == [1.0, 0.0]


def test_a_stage_in_which_everything_fails_ends_early() -> None:
    lm, backend = scripted(lambda request: "no idea")
    with pytest.raises(StageEmpty, match="no idea"):
        label_pool([{"text": str(i)} for i in range(200)], labeler(lm), config=LabelConfig(patience=6, threads=2))
    assert 6 <= len(backend.requests) < 20
    with pytest.raises(StageEmpty, match="none of the first 2 calls"):
        label_pool([{"text": "a"}, {"text": "b"}], labeler(lm))


def test_a_spent_budget_passes_through() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    lm, _ = scripted(spent)
    with pytest.raises(BudgetExceeded):
        label_pool([{"text": "a"}, {"text": "b"}], labeler(lm))


def test_votes_become_the_distribution_where_the_model_gives_none() -> None:
    lm, backend = scripted(lambda request: LABELS[request.seed % 2])
    config = LabelConfig(samples=8, temperature=0.9)
    (record,) = label_pool([{"text": "Bern"}], labeler(lm), config=config)
    cities = sum(request.seed % 2 == 0 for request in backend.requests)
    assert len({request.seed for request in backend.requests}) == 8
    assert {request.temperature for request in backend.requests} == {0.9}
    assert record.soft is not None
    assert record.soft.get("city", 0.0) == cities / 8
    assert record.soft_source == "votes:8"


def test_rejection_sampling_drops_what_a_verifier_refuses() -> None:
    program = dspy.Predict("question -> answer")
    lm, _ = scripted(lambda request: ["seven", "7", "7"][request.seed % 3])
    asker = Labeler({-1: program}, lm, CompactAdapter(), ("answer",), "", (HoldsNumber("answer"),))
    config = LabelConfig(samples=12)
    (record,) = label_pool([{"question": "3 + 4?"}], asker, config=config)
    assert record.outputs == {"answer": "7"}
    assert record.scores["verifier:answer holds a number"] == 1.0
    assert 0 < record.scores["usable"] < 1
    assert record.scores["agreement"] == pytest.approx((record.scores["usable"] * 12 - 1) / 11)
    never, _ = scripted(lambda request: "seven")
    (refused,) = label_pool([{"question": "3 + 4?"}], replace(asker, lm=never), config=config)
    assert refused.reason == "verifier:answer holds a number"


def test_consensus_takes_the_sample_most_like_the_others() -> None:
    metric = default_metric({"answer": "short_answer"})
    samples = [Answer({"answer": text}) for text in ("in Paris", "Paris", "Paris France", "Rome")]
    chosen = consensus({"question": "?"}, samples, metric)
    assert chosen.outputs["answer"] in ("Paris", "in Paris")
    assert chosen.scores["agreement"] == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert consensus({}, [Answer(reason="failed"), Answer(reason="failed")]).reason == "failed"


def test_a_program_with_its_own_model_still_answers_by_the_labelers() -> None:
    other, unused = scripted(lambda request: "food")
    lm, _ = scripted(lambda request: "city")
    program = classifier()
    program.set_lm(other)
    asker = Labeler({-1: program}, lm, CompactAdapter(), ("label",), "label")
    (record,) = label_pool([{"text": "Bern"}], asker)
    assert record.outputs == {"label": "city"}
    assert not unused.requests


def test_without_folds_there_is_one_block_that_shows_everything() -> None:
    programs = block_programs(classifier(), GOLD, (), 6, 0, labels=LABELS, output="label")
    assert list(programs) == [-1]
    (predictor,) = programs[-1].predictors()
    assert {demo["text"] for demo in predictor.demos} == set(TEXTS)


def test_gold_rows_become_records_of_people_with_their_folds() -> None:
    records = gold_records(GOLD, folds=FOLDS)
    assert [r.provenance.block for r in records] == list(FOLDS)
    assert {r.provenance.level for r in records} == {MANUAL}
    assert records[0].inputs == {"text": "Paris"}
    assert records[0].outputs == {"label": "city"}


def test_the_embedded_model_labels_out_of_fold_with_exact_probabilities() -> None:
    lm = connect("embedded")
    rows = [dict(r.inputs) for r in gold_records(GOLD)]
    records = label_pool(rows, labeler(lm), blocks=FOLDS)
    again = label_pool(rows, labeler(lm), blocks=FOLDS)
    p = probability_matrix(records, LABELS, "label")
    assert p.sum(axis=1) == pytest.approx(np.ones(6))
    assert {r.soft_source for r in records} == {"exact"}
    assert [r.outputs["label"] for r in records] == [LABELS[int(i)] for i in p.argmax(axis=1)]
    assert probability_matrix(again, LABELS, "label") == pytest.approx(p, abs=0.05)


def test_a_boolean_label_is_its_text() -> None:
    class Old(dspy.Signature):
        """Is it old?"""

        text: str = dspy.InputField()
        old: bool = dspy.OutputField()
        kind: Literal["a", "b"] = dspy.OutputField()

    lm, _ = scripted(lambda request: "[[ ## old ## ]]\nTrue\n[[ ## kind ## ]]\nb")
    asker = Labeler({-1: dspy.Predict(Old)}, lm, CompactAdapter(), ("old", "kind"), "old")
    (record,) = label_pool([{"text": "Troy"}], asker)
    assert record.outputs == {"old": "True", "kind": "b"}
