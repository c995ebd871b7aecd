"""Self-Instruct: ROUGE-L against a plain definition, the filter's rules, blocks; one real pass."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile.label import Labeler
from limbeck.compile.rouge import RougeIndex, lcs, rouge_l
from limbeck.compile.selfinstruct import InputFilter, SelfInstructConfig, SelfInstructed, self_instruct
from limbeck.compile.source import Source
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import StageEmpty
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter, connect
from limbeck.records import Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.verifiers import HoldsNumber

NAMES = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo"]
GOLD = tuple(
    Record(
        {"question": f"{name} has {i + 2} red apples and buys {i + 1} more. How many apples has {name} now?"},
        {"answer": 2 * i + 3},
        Provenance("gold", seed=i),
    )
    for i, name in enumerate(NAMES)
)
FOLDS = tuple(i % 2 for i in range(10))
words = st.lists(st.sampled_from("abcd"), max_size=9)


def source(**more: Any) -> Source:
    return Source({"question": str}, "Answer with the number.", GOLD, more.get("folds", FOLDS))


def labeler(lm: Any, blocks: tuple[int, ...] = (0, 1)) -> Labeler:
    signature = build_signature([FieldSpec("question")], [FieldSpec("answer", float)], "Answer with the number.")
    programs = {block: dspy.Predict(signature) for block in blocks}
    checks = (HoldsNumber("answer"),)
    metric = default_metric({"answer": "number"})
    return Labeler(programs, lm, CompactAdapter(), ("answer",), verifiers=checks, metric=metric)


def is_writing(request: GenerateRequest) -> bool:
    return "count:" in request.messages[-1][1]


def lines(request: GenerateRequest, count: int = 2) -> str:
    """Lines of random words, drawn by the seed: never similar."""
    rng = random.Random(request.seed)
    letters = "abcdefghijklmnop"
    texts = [" ".join("".join(rng.sample(letters, 5)) for _ in range(8)) for _ in range(count)]
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))


def run(lm: Any, **config: Any) -> SelfInstructed:
    options: dict[str, Any] = {"per_call": 2, **config}
    return self_instruct(source(), labeler(lm), config=SelfInstructConfig(**options))


@given(words, words)
def test_lcs_equals_the_textbook_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert lcs(a, b) == lcs(b, a) == table[-1][-1]


@given(st.lists(words.map(" ".join), max_size=6), words.map(" ".join))
def test_the_index_skips_only_what_cannot_be_similar(texts: list[str], new: str) -> None:
    index = RougeIndex(threshold=0.7)
    for text in texts:
        index.add(text)
    filled = [text for text in texts if text]
    assert index.similar(new) == any(rouge_l(new, text) > 0.7 for text in filled if new)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How many apples", "too_short"),
        ("word " * 151, "too_long"),
        ("Draw the apples that Ann has bought today", "blacklisted"),
        ("Ann has 2 red apples and buys 9 more. How many apples has Ann now?", "similar"),
        ("A train leaves at six and needs four hours. When does it come?", ""),
    ],
)
def test_the_papers_rules_name_what_they_reject(text: str, reason: str) -> None:
    rules = InputFilter([row.inputs["question"] for row in GOLD], SelfInstructConfig())
    assert rules.reason(text) == reason
    assert rules.reason(text) == (reason or "similar")


def test_rules_that_gold_rows_break_give_way() -> None:
    rules = InputFilter(["two maps", "long " * 200], SelfInstructConfig())
    assert rules.reason("three people") == ""
    assert rules.reason("word " * 180) == ""
    assert InputFilter(["a map of the town please"], SelfInstructConfig()).reason("fold that map for me now") == ""


def test_prompts_hold_eight_demonstrations_two_of_them_generated_none_of_the_block() -> None:
    lm, backend = scripted(lambda r: lines(r) if is_writing(r) else "5")
    done = run(lm, total=24, wave=4, samples=1, demos=5)
    gold = {row.id: FOLDS[i] for i, row in enumerate(GOLD)}
    made = {record.id: record for record in done.records}
    for record in done.records:
        parents = record.provenance.parents
        assert len(parents) == 5
        assert record.provenance.block not in {gold[p] for p in parents if p in gold}
        assert all(made[p].provenance.block == record.provenance.block for p in parents if p in made)
    assert Counter(sum(p in made for p in r.provenance.parents) for r in done.records).keys() == {0, 2}
    first = next(r for r in backend.requests if is_writing(r))
    assert first.messages[-2][1].count("\n") == 4
    assert len([r for r in done.records if r.kept]) == 24


def test_rejected_inputs_stay_with_their_reason_and_are_not_answered() -> None:
    def answer(request: GenerateRequest) -> str:
        if not is_writing(request):
            return "12"
        return lines(request, 1) + f"\n2. {GOLD[0].inputs['question']}"

    lm, backend = scripted(answer)
    done = run(lm, total=6, samples=2)
    assert done.counts == {"similar": 6}
    assert [r.kept for r in done.records] == [True, False] * 6
    assert all(r.outputs == {"answer": 12.0} and r.scores["agreement"] == 1.0 for r in done.records if r.kept)
    assert all(not r.outputs for r in done.records if not r.kept)
    assert sum(not is_writing(r) for r in backend.requests) == 12


def test_answers_that_no_sample_can_give_are_rejected() -> None:
    def answer(request: GenerateRequest) -> str:
        if is_writing(request):
            return lines(request)
        return "no number" if request.messages[-1][1].removeprefix("question: ")[0] < "h" else "3"

    done = run(scripted(answer)[0], total=12, samples=2)
    assert done.counts == {"failed": sum(r.reason == "failed" for r in done.records)}
    assert 0 < done.counts["failed"] < 12


def test_the_same_seed_gives_the_same_records() -> None:
    one, two = (run(scripted(lambda r: lines(r) if is_writing(r) else "5")[0], total=8, seed=3) for _ in range(2))
    assert one.records == two.records


def test_calls_are_bounded_and_an_empty_stage_says_why() -> None:
    lm, backend = scripted(lambda r: f"1. {GOLD[0].inputs['question']}" if is_writing(r) else "5")
    with pytest.raises(StageEmpty, match="similar"):
        run(lm, total=40, wave=3, patience=5)
    assert len(backend.requests) == 6
    lm, backend = scripted(lambda r: lines(r, 1) if is_writing(r) else "5")
    done = run(lm, total=40, max_calls=5, samples=1)
    assert done.calls == 5
    assert len(done.records) == 5


def test_the_embedded_model_writes_and_answers() -> None:
    lm = connect("embedded", max_tokens=12)
    asked = source(folds=())
    progress: list[tuple[str, int, int]] = []
    # Free answers: whether a model this small answers with a number is chance.
    signature = build_signature([FieldSpec("question")], [FieldSpec("answer", str)], "Answer in a few words.")
    done = self_instruct(
        asked,
        Labeler({-1: dspy.Predict(signature)}, lm, CompactAdapter(), ("answer",)),
        config=SelfInstructConfig(total=2, per_call=2, demos=4, samples=2, rouge=0.95, max_calls=3),
        progress=lambda *p: progress.append(p),
    )
    assert done.records
    assert all(record.reason or record.scores["agreement"] in (0.0, 1.0) for record in done.records)
    assert {stage for stage, _, _ in progress} == {"write", "answer"}
