"""Demonstrations, label descriptions and readable names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.compile.demos import draw_demos, fit_demo, with_demos
from limbeck.compile.describe import (
    Described,
    choose_descriptions,
    describe_labels,
    induce_by_fold,
    induce_descriptions,
    is_opaque,
    name_labels,
)
from limbeck.compile.split import Split, make_split
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError
from limbeck.ledger import Ledger
from limbeck.models import LM, Budget, CompactAdapter, connect
from limbeck.programs.describe import read_meaning
from limbeck.task import Task, task_from_labels

TEXTS = {
    "HUM": ["Who painted the chapel?", "Which singer wrote it?", "Who flew first?", "Who runs the firm?"],
    "LOC": ["Where do penguins live?", "Where is the museum?", "Which city is older?", "Where was he born?"],
    "NUM": ["How many bones are there?", "What year was it?", "How far is the moon?", "How old is it?"],
}


@dataclass
class Scripted:
    """A model that answers from a function of the last message, and scores by another."""

    answer: Callable[[str], str] = lambda prompt: "thing: something in common here"
    favour: Callable[[str, str], float] = lambda prompt, label: 0.0
    name: str = "scripted"
    fingerprint: str = "scripted"
    supports_score: bool = True
    supports_prefix: bool = True
    score_source: str = "exact"
    usd_per_token: tuple[float, float] | None = (0.0, 0.0)
    thinking_tokens: int = 0
    prompts: list[str] = field(default_factory=list[str])

    def generate(self, request: GenerateRequest) -> Generation:
        self.prompts.append(request.messages[-1][1])
        return Generation(self.answer(request.messages[-1][1]), 10, 5, "stop")

    def score(self, request: ScoreRequest) -> Scores:
        whole = "\n".join(text for _, text in request.messages)
        return Scores(tuple(self.favour(whole, label) for label in request.candidates), tokens_in=10)


def question_task(**options: Any) -> Task:
    rows = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in texts]
    return task_from_labels(rows, output="label", **options)


def split_of(task: Task) -> Split:
    gold = task.examples
    return Split(gold[::2], gold[1::2], (), tuple(i // 2 % 2 for i in range(6)) * 2, 2)


def label(demo: Any) -> str:
    return str(demo.label)


# -- demonstrations ------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 50))
def test_drawn_demos_are_balanced_interleaved_and_repeatable(k: int, seed: int) -> None:
    gold = [dspy.Example(text=t, label=name).with_inputs("text") for name, ts in TEXTS.items() for t in ts]
    drawn = draw_demos(gold, k, seed, labels=tuple(TEXTS), output="label")
    counts = Counter(map(label, drawn))
    assert len(drawn) == len({d.text for d in cast(list[Any], drawn)}) == k
    assert max(counts.values()) - min(counts[name] for name in TEXTS) <= 1
    assert all(label(a) != label(b) for a, b in pairwise(drawn))
    assert drawn == draw_demos(gold, k, seed, labels=tuple(TEXTS), output="label")


def test_a_block_never_shows_its_fold() -> None:
    task = question_task()
    folds = [i % 3 for i in range(12)]
    for fold in range(3):
        drawn = draw_demos(task.examples, 12, 0, exclude_fold=fold, folds=folds, labels=task.labels, output="label")
        assert len(drawn) == 8
        assert not {e for i, e in enumerate(task.examples) if folds[i] == fold} & set(drawn)
    with pytest.raises(InputError, match="folds of 1 rows for 12"):
        draw_demos(task.examples, 4, 0, exclude_fold=0, folds=[0])


def test_short_rows_are_preferred_and_huge_ones_come_last() -> None:
    rows = [dspy.Example(text="x" * (9 + i), label="a").with_inputs("text") for i in range(9)]
    huge = dspy.Example(text="x" * 5000, label="a").with_inputs("text")
    drawn = [draw_demos([huge, *rows], 3, seed) for seed in range(200)]
    lengths = [len(cast(Any, demo).text) for demos in drawn for demo in demos]
    assert max(lengths) < 20
    assert sum(lengths) / len(lengths) < 12.5  # 13 is the rows' own mean


def test_demos_hold_only_what_the_signature_names() -> None:
    task = question_task()
    extra = dspy.Example(text="Who?", label="HUM", dspy_label_probabilities={"HUM": 1.0}, augmented=True)
    no_answer = dspy.Example(text="Who?")
    program = with_demos(task.program, [extra, no_answer])
    (predictor,) = cast(list[Any], program.predictors())
    assert [dict(demo) for demo in predictor.demos] == [{"text": "Who?", "label": "HUM", "augmented": True}]
    assert cast(list[Any], task.program.predictors())[0].demos == []
    assert fit_demo(no_answer, predictor.signature) is None


# -- reading answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("person: asks who did something", ("person", "asks who did something")),
        ("**Meaning:** person: asks who. And more.\nNext line", ("person", "asks who")),
        ('"Person: asks who." More', ("person", "asks who")),
        ("HUM: a person or a group", ("", "a person or a group")),
        ("The one who did something", ("", "The one who did something")),
        ("person: who painted the chapel", ("person", "")),  # a quotation
        ("person: Who is it?", ("person", "")),
        ("hum: texts with the label HUM", ("", "")),
        ("", ("", "")),
        ("[[ ## meaning ## ]] person: asks who", ("", "")),
        ("I'm sorry, I cannot help", ("", "")),
        ("a1b2: asks who", ("", "asks who")),
    ],
)
def test_sloppy_answers_are_cleaned_or_dropped(answer: str, expected: tuple[str, str]) -> None:
    assert tuple(read_meaning(answer, "HUM", TEXTS["HUM"])) == expected


@given(st.text(max_size=300))
def test_any_answer_gives_a_short_line(answer: str) -> None:
    name, description = read_meaning(answer, "HUM", TEXTS["HUM"])
    assert len(description.split()) <= 20
    assert "\n" not in description
    assert len(name) <= 24


def test_long_answers_end_at_a_comma_or_the_twentieth_word() -> None:
    words = " ".join(f"w{i}" for i in range(30))
    assert read_meaning(f"person: {words}", "HUM", []).description.split()[-1] == "w19"
    cut = words.replace("w12", "w12,")
    assert read_meaning(f"person: {cut}", "HUM", []).description.split()[-1] == "w12"


# -- inducing ------------------------------------------------------------------------------------------------

MEANINGS = {"HUM": "person: asks who", "LOC": "place: asks where", "NUM": "number: asks for an amount"}


def truthful(prompt: str) -> str:
    return next(meaning for name, meaning in MEANINGS.items() if f"label: {name}" in prompt)


def test_every_label_is_named_and_described_from_its_own_rows() -> None:
    task, backend = question_task(), Scripted(truthful)
    described = describe_labels(task, task.examples, LM("scripted", backend), adapter=CompactAdapter())
    assert described == (
        Described("HUM", "person", "asks who"),
        Described("LOC", "place", "asks where"),
        Described("NUM", "number", "asks for an amount"),
    )
    prompt = next(p for p in backend.prompts if "label: HUM" in p)
    own, others = prompt.split("other_texts:")
    assert sum(text in own for text in TEXTS["HUM"]) == 3
    assert not any(text in others for text in TEXTS["HUM"])
    assert sum(text in others for name in ("LOC", "NUM") for text in TEXTS[name]) == 3
    assert name_labels(described) == {"HUM": "person", "LOC": "place", "NUM": "number"}


def test_names_and_descriptions_that_two_labels_share_are_dropped() -> None:
    task = question_task()
    lm = LM("scripted", Scripted(lambda prompt: "thing: asks for something new"))
    described = describe_labels(task, task.examples, lm, adapter=CompactAdapter())
    assert [one.name for one in described] == ["hum", "loc", "num"]
    assert [one.description for one in described] == ["", "", ""]


def test_with_many_labels_only_opaque_ones_cost_a_call() -> None:
    rows = [{"text": f"text {i} of it", "label": f"card topic {'xyz'[i // 2]}yz"} for i in range(6)]
    rows += [{"text": "one", "label": "Q1"}, {"text": "two", "label": "Q1"}]
    task, backend = task_from_labels(rows, output="label"), Scripted(lambda prompt: "digit: names a digit")
    lm = LM("scripted", backend)
    described = describe_labels(task, task.examples, lm, adapter=CompactAdapter(), max_calls=3)
    assert len(backend.prompts) == 1
    assert "label: Q1" in backend.prompts[0]
    assert {one.label: one.description for one in described if one.description} == {"Q1": "names a digit"}
    assert is_opaque("Q1")


def test_a_failed_call_leaves_one_label_out_and_a_spent_budget_ends_it(tmp_path: Any) -> None:
    task = question_task()

    def failing(prompt: str) -> str:
        if "label: LOC" in prompt:
            raise RuntimeError("no answer")
        return truthful(prompt)

    lm = LM("scripted", Scripted(failing))
    found = induce_descriptions(task, task.examples, lm, adapter=CompactAdapter())
    assert found == {"HUM": "asks who", "NUM": "asks for an amount"}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    poor = LM("scripted", Scripted(truthful), ledger=ledger, budget=Budget(max_tokens=1))
    with pytest.raises(BudgetExceeded):
        induce_descriptions(task, task.examples, poor, adapter=CompactAdapter())
    ledger.close()


def test_an_open_task_has_no_labels_to_describe() -> None:
    rows = [{"q": f"{n}+1?", "a": n + 1} for n in range(12)]
    task = task_from_labels(rows, output="a")
    with pytest.raises(InputError, match="no closed set"):
        describe_labels(task, task.examples, LM("scripted", Scripted()), adapter=CompactAdapter())


# -- choosing ------------------------------------------------------------------------------------------------


def knows_when_told(whole: str, candidate: str) -> float:
    """Right with some certainty where the prompt describes the labels, else at a loss."""
    question = whole.rsplit("text: ", 1)[1]
    right = next((name for name, texts in TEXTS.items() if question.strip() in texts), "")
    return 3.0 if "asks who" in whole and candidate == right else 0.0


def test_descriptions_that_make_gold_likelier_out_of_fold_are_chosen() -> None:
    task = question_task()
    good = {name: meaning.split(": ")[1] for name, meaning in MEANINGS.items()}
    split, lm = split_of(task), LM("scripted", Scripted(favour=knows_when_told))
    bad = dict.fromkeys(TEXTS, "some text that says nothing")
    candidates = {"none": {}, "bad": bad, "induced": good}
    chosen = choose_descriptions(task, split, lm, candidates, demos=2, adapter=CompactAdapter())
    assert (chosen.name, chosen.descriptions, chosen.measure) == ("induced", good, "log-likelihood")
    assert chosen.scores["none"] == pytest.approx(math.log(1 / 3))
    assert chosen.scores["induced"] == pytest.approx(math.log(math.e**3 / (math.e**3 + 2)))
    assert "all gold rows" in chosen.notes[0]
    same = choose_descriptions(task, split, lm, {"none": {}, "bad": bad}, adapter=CompactAdapter())
    assert same.name == "none"  # no gain: the shorter prompt


def test_a_fold_is_judged_with_descriptions_written_without_it() -> None:
    task, backend = question_task(), Scripted(truthful)
    split, lm = split_of(task), LM("scripted", backend)
    sets = induce_by_fold(task, split, lm, adapter=CompactAdapter())
    assert len(sets) == 2
    held = {cast(Any, split.gold[i]).text for i in split.held_out(0)}
    assert not any(text in prompt for prompt in backend.prompts[:3] for text in held)
    fold_blind = ({}, dict.fromkeys(TEXTS, "asks who"))
    lm = LM("scripted", Scripted(favour=knows_when_told))
    chosen = choose_descriptions(
        task,
        split,
        lm,
        {"none": {}, "induced": {"HUM": "asks who"}},
        by_fold={"induced": fold_blind},
        adapter=CompactAdapter(),
    )
    told = len(split.held_out(1)) / len(split.gold)
    expected = (1 - told) * math.log(1 / 3) + told * math.log(math.e**3 / (math.e**3 + 2))
    assert chosen.scores["induced"] == pytest.approx(expected)
    assert chosen.notes == ()


def test_without_folds_the_last_candidate_is_a_named_default() -> None:
    task = question_task()
    split = Split(task.examples, (), (), (0,) * 12, 0)
    chosen = choose_descriptions(task, split, LM("scripted", Scripted()), {"none": {}, "given": {"HUM": "who"}})
    assert chosen.name == "given"
    assert "fixed default" in chosen.notes[0]
    with pytest.raises(InputError):
        choose_descriptions(task, split, LM("scripted", Scripted()), {})


@pytest.mark.slow
def test_the_embedded_model_answers_without_ever_failing_the_stage() -> None:
    task, lm = question_task(), connect("embedded")
    described = describe_labels(task, task.examples, lm, adapter=CompactAdapter())
    assert [one.label for one in described] == list(task.labels)
    assert len({one.name for one in described}) == 3
    split = make_split(question_task(test=[{"text": "Who is that?", "label": "HUM"}]), n_folds=2)
    candidates = {"none": {}, "induced": {d.label: d.description for d in described if d.description}}
    chosen = choose_descriptions(task, split, lm, candidates, adapter=CompactAdapter())
    assert chosen.measure == "log-likelihood"
    assert all(math.log(0.01) <= score < 0.0 for score in chosen.scores.values())
