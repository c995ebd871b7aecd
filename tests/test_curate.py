"""Each curation rule on plain rows: what it must reject, and what it must leave alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.compile.curate import Curated, Judgement, curate
from limbeck.compile.dedup import record_text
from limbeck.compile.labelmodel import LabelModel, fixed_label_model
from limbeck.compile.pii import PiiConfig
from limbeck.compile.thresholds import CurateConfig
from limbeck.records import Provenance, Record
from limbeck.verifiers import NonEmpty, OfType

LABELS = ("HUM", "LOC")
GOLD = [
    Record({"text": "Who wrote the long novel about whales?"}, {"label": "HUM"}, Provenance("gold")),
    Record({"text": "Where is the highest mountain of Peru?"}, {"label": "LOC"}, Provenance("gold")),
]


def row(text: str, label: str = "HUM", method: str = "label_conditioned", **scores: float) -> Record:
    return Record({"text": text}, {"label": label}, Provenance(method), scores=scores)


def run(*records: Record, gold: list[Record] | None = None, protected: tuple[str, ...] = (), **more: Any) -> Curated:
    return curate(list(records), gold=GOLD if gold is None else gold, protected=protected, **more)


def judged(*records: Record, p: list[list[float]], model: LabelModel | None = None, **more: Any) -> Curated:
    model = model or fixed_label_model(LABELS, ["teacher"])
    return run(*records, judgement=Judgement("label", model, np.array(p)), **more)


GOOD = "Which painter lived in the south of France?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  ", "empty"),
        ("Who?", "too_short"),
        ("who " * 40, "too_long"),
        ("Label: which painter lived in the south?", "leaked_prompt"),
        ("Which painter lived in [city name] for years?", "leaked_prompt"),
        ("A hum of a painter who lived in France?", "leaked_label"),
        ("Who wrote the long novel about whales", "duplicate"),
        ("Who wrote the long novel about whale?", "near_duplicate"),
        ("What river flows through the old city of Rome?", "contaminated"),
        (GOOD, ""),
    ],
)
def test_text_rules_name_what_they_reject(text: str, reason: str) -> None:
    protected = ("What river flows through the old city of Rome, please?",)
    model = fixed_label_model(LABELS, ["teacher"])
    done = judged(row(text), p=[[0.9, 0.1]], model=model, protected=protected)
    assert [r.reason for r in (*done.kept, *done.rejected)] == [reason]
    assert done.counts == ({reason: 1} if reason else {})


def test_the_users_own_rows_are_not_held_to_rules_about_writing() -> None:
    done = run(row("Label: HUM?", method="pool"), row("Label: HUM?", method="self_instruct"))
    assert [r.provenance.method for r in done.kept] == ["pool"]


def test_what_gold_rows_do_is_no_leak() -> None:
    gold = [
        *GOLD,
        Record({"text": "label: where does [name] live, LOC or so"}, {"label": "LOC"}, Provenance("gold")),
    ]
    done = judged(row("label: what hum does [it] make in town"), p=[[0.9, 0.1]], gold=gold)
    assert len(done.kept) == 1


def test_of_two_copies_the_first_survivor_stays() -> None:
    bad = row(GOOD, "LOC")
    done = judged(bad, row(GOOD), row(GOOD.upper()), p=[[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert [r.reason for r in done.rejected] == ["disagrees", "duplicate"]
    assert [r.inputs["text"] for r in done.kept] == [GOOD]


def test_a_masked_gold_row_is_still_the_parent_of_what_was_made_from_it() -> None:
    parent = row("Write to ann@example.org about the order", method="gold")
    child = Record(parent.inputs, parent.outputs, Provenance("star", parents=(parent.id,), seed=1))
    other = Record(parent.inputs, parent.outputs, Provenance("label_conditioned", seed=1))
    config = CurateConfig(pii=PiiConfig(action="mask"))
    done = run(child, other, gold=[parent], config=config)
    assert [r.provenance.method for r in done.kept] == ["star"]
    assert "<EMAIL_1>" in str(done.kept[0].inputs)
    assert [r.reason for r in done.rejected] == ["duplicate"]


def test_verifiers_judge_the_label_that_is_kept() -> None:
    people = [OfType("label", Literal["HUM"])]
    done = judged(row(GOOD), p=[[0.35, 0.65]], config=CurateConfig(intended_share=0.0), verifiers=people)
    assert [r.reason for r in done.rejected] == ["verifier:label has its type"]


def test_agreement_gives_a_soft_target_between_the_two_opinions() -> None:
    done = judged(row(GOOD), p=[[0.7, 0.3]], config=CurateConfig(intended_share=0.5))
    (kept,) = done.kept
    assert kept.soft == pytest.approx({"HUM": 0.85, "LOC": 0.15})
    assert (kept.soft_source, kept.outputs["label"], kept.scores["agrees"]) == ("calibrated", "HUM", 1.0)


def test_a_mild_disagreement_is_kept_under_the_pools_label() -> None:
    done = judged(row(GOOD), p=[[0.35, 0.65]], config=CurateConfig(intended_share=0.0))
    assert [r.outputs["label"] for r in done.kept] == ["LOC"]
    assert [r.reason for r in judged(row(GOOD), p=[[0.1, 0.9]]).rejected] == ["disagrees"]


def test_pool_rows_take_the_label_models_word() -> None:
    done = judged(row(GOOD, "LOC", method="pool"), p=[[0.8, 0.2]])
    (kept,) = done.kept
    assert kept.outputs["label"] == "HUM"
    assert kept.soft == pytest.approx({"HUM": 0.8, "LOC": 0.2})


def test_low_confidence_and_failed_calls_stay_with_their_reason() -> None:
    failed = row("Which actor won the prize last year?").reject("failed")
    done = judged(row(GOOD, method="pool"), failed, p=[[0.55, 0.45], [np.nan, np.nan]])
    assert [r.reason for r in done.rejected] == ["low_confidence", "failed"]
    assert done.examples["failed"] == (failed.id,)


def test_a_class_the_labelers_get_wrong_is_not_kept_and_others_weigh_by_reliability() -> None:
    model = LabelModel(LABELS, {"t": 1.0}, (0.0, 0.0), True, {"HUM": 0.7, "LOC": 0.3}, (0.6, 0.4))
    texts = [GOOD, "What town did the poet leave in 1850?"]
    done = judged(*(row(t, method="pool") for t in texts), p=[[0.9, 0.1], [0.1, 0.9]], model=model)
    assert [r.reason for r in done.rejected] == ["unreliable_class"]
    assert [r.weight for r in done.kept] == [0.7]


def test_verifiers_come_last_vote_and_name_the_reason() -> None:
    checks = [NonEmpty("label"), OfType("label", int)]
    done = judged(row(GOOD), row("x"), p=[[0.9, 0.1], [0.9, 0.1]], verifiers=checks)
    assert done.counts == {"verifier:label has its type": 1, "too_short": 1}
    assert done.rejected[0].scores["verifier:label is not empty"] == 1.0
    assert done.rejected[0].scores["verifier:label has its type"] == 0.0


def test_open_answers_must_be_grounded_and_agreed_on() -> None:
    gold = [
        Record(
            {"text": "a table for two at 7 pm"},
            {"slots": {"time": "7 pm", "kind": "dinner"}},
            Provenance("gold"),
        )
    ]

    def made(time: str, agreement: float, text: str) -> Record:
        outputs = {"slots": {"time": time, "kind": "lunch"}}
        return Record({"text": text}, outputs, Provenance("self_instruct"), scores={"agreement": agreement})

    done = run(
        made("9 am", 1.0, "is 9 am on Monday still possible"),
        made("8 pm", 1.0, "could we come earlier than last week"),
        made("6 pm", 0.3, "six of us will arrive around 6 PM"),
        gold=gold,
    )
    assert [r.reason for r in (*done.kept, *done.rejected)] == ["", "ungrounded", "low_agreement"]


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="ab c?", max_size=12), max_size=12), st.integers(0, 100))
def test_nothing_is_lost_and_nothing_kept_twice(texts: list[str], seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet([1, 1], size=len(texts)).reshape(-1, 2)
    done = judged(*(row(text, method="pool") for text in texts), p=p.tolist() or np.zeros((0, 2)).tolist(), gold=[])
    assert len(done.kept) + len(done.rejected) == len(texts)
    assert sum(done.counts.values()) == len(done.rejected)
    kept = [record_text(r.inputs) for r in done.kept]
    assert len({" ".join(t.casefold().replace("?", " ").split()) or t for t in kept}) == len(kept)
    assert all(r.reason for r in done.rejected)
    assert not any(r.reason for r in done.kept)


def test_rows_and_probabilities_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        judged(row(GOOD), p=[[0.5, 0.5], [0.5, 0.5]])
