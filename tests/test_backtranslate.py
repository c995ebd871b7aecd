"""Instruction Backtranslation: the reader of ratings, each rule, the two rounds and their raters; one real pass."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile.backtranslate import (
    TAGS,
    BacktranslationConfig,
    InstructionBacktranslation,
    MentionsText,
    tag_of,
)
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.models import CompactAdapter, connect
from limbeck.programs.backtranslate import PairRater, RequestWriter, parse_score
from limbeck.records import CHECKED, SELF_RATED, Provenance, Record

SUBJECTS = ("bread", "tea", "soap", "paint", "paper", "glass", "cheese", "ink")
GOLD = tuple(
    Record(
        {"question": f"How is {subject} made?"},
        {"answer": f"To make {subject}, take the best you have and wait for {i} days before you use it."},
        Provenance("gold", seed=i),
    )
    for i, subject in enumerate(SUBJECTS)
)
ANIMALS = ("cat", "dog", "cow", "fox", "owl", "bee", "ant", "hen", "pig", "rat")


def source(**more: Any) -> Source:
    return Source({"question": str}, "Answer the question.", GOLD, **more)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Ten documents of one sentence each."""
    habits = ("sleeps at noon", "eats what it finds", "lives on hills", "likes rain", "builds a nest of straw and wool")
    for i, animal in enumerate(ANIMALS):
        text = f"{habits[i % 5].capitalize()} is what a {animal} does, {'all year' if i > 4 else 'in summer'} long. "
        text += f"Old farmers say of the {animal} {animal} {animal} that it knows the weather of the next {i + 2} days."
        (tmp_path / f"{animal}.txt").write_text(text)
    return str(tmp_path)


def rates(request: GenerateRequest) -> bool:
    return request.messages[0][1].startswith("Rate")


def asked(request: GenerateRequest) -> str:
    return request.messages[-1][1]


def subject(text: str) -> str:
    return next(word for word in (*ANIMALS, *SUBJECTS) if re.search(rf"\b{word}\b", text))


def writes(request: GenerateRequest) -> str:
    about = subject(asked(request))
    return f"{about}, {about}s, {about}like: what is a {about}?"


def told_apart(request: GenerateRequest) -> str:
    """A rater that sees whether question and answer are about one thing, and likes animals with an o."""
    question, answer = asked(request).split("answer: ")
    about = subject(question)
    score = 1 if about != subject(answer) else 5 if "o" in about else 4 if "a" in about else 2
    return f"It is about {about}.\nScore: {5 if about in SUBJECTS and score > 1 else score}"


def run(
    answer: Any, folder: str, wanted: int = 10, src: Source | None = None, **config: Any
) -> tuple[Synthesized, list[GenerateRequest]]:
    lm, backend = scripted(answer)
    materials = Materials(
        src or source(), lm, CompactAdapter(), cast(Any, None), threads=4, seed=3, options={"documents": folder}
    )
    made = InstructionBacktranslation(BacktranslationConfig(**config))((), materials, wanted)
    return made, backend.requests


def both(request: GenerateRequest) -> str:
    return told_apart(request) if rates(request) else writes(request)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It fits.\nScore: 4", 4),
        ("Score: 2 at first, but then\n**Score: 5**", 5),
        ("I like it. score is 3/5.", 3),
        ("Score: <4>", 4),
        ("Rating - 1", 1),
        ("Score: 4.5", 4),
        ("Score: 5.0", 5),
        ("Score: 5.5", None),
        ("Score: 0", None),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: four", None),
        ("It answers in full.\n4", 4),
        ("It answers in full.\n(3 out of 5)", 3),
        ("There are 4 steps.", None),
        ("The underscore: 4", None),
        ("", None),
    ],
)
def test_ratings_of_small_models_are_read(text: str, score: int | None) -> None:
    assert parse_score(text) == score


@given(st.text())
def test_a_rating_is_one_to_five_or_none(text: str) -> None:
    assert parse_score(text) in (None, 1, 2, 3, 4, 5)


@given(st.integers(1, 5), st.text(st.characters(exclude_categories=["N", "Cs"])))
def test_the_last_line_counts_whatever_the_reason_says(score: int, reason: str) -> None:
    assert parse_score(f"{reason}\nScore: {score}") == score


def test_pairs_rated_well_are_kept_with_both_ratings(folder: str) -> None:
    made, _ = run(both, folder)
    kept = {subject(r.inputs["question"]): r for r in made.records if r.kept}
    assert set(kept) == {"cat", "dog", "cow", "fox", "owl", "ant", "rat"}
    low = [r for r in made.records if not r.kept]
    assert {r.reason for r in low} == {"low_rating"}
    assert {subject(r.inputs["question"]) for r in low} == {"bee", "hen", "pig"}
    assert kept["dog"].scores == {"rating_1": 5.0, "rating_2": 5.0}
    assert kept["dog"].outputs["answer"].startswith("Eats what it finds is what a dog does")
    assert made.log["ratings"] == {"1": {"2": 3, "4": 3, "5": 4}, "2": {"2": 3, "4": 3, "5": 4}}
    assert (made.log["documents"], made.log["candidates"], made.log["round"]) == (10, 10, 2)
    assert json.loads(json.dumps(made.log)) == made.log


def test_more_good_pairs_than_wanted_leave_the_best(folder: str) -> None:
    made, _ = run(both, folder, wanted=4, per_row=3)
    assert {r.scores["rating_2"] for r in made.records if r.kept} == {5.0}
    assert sum(r.kept for r in made.records) == 4
    assert {r.scores["rating_2"] for r in made.records if r.reason == "surplus"} == {4.0}


def test_a_higher_threshold_keeps_fewer(folder: str) -> None:
    made, _ = run(both, folder, keep=5)
    assert sum(r.kept for r in made.records) == 4


def test_no_more_passages_are_tried_than_the_wanted_rows_allow(folder: str) -> None:
    made, requests = run(both, folder, wanted=1, per_row=3)
    assert sum(not rates(r) for r in requests) <= 3
    assert sum(r.kept for r in made.records) <= 1


def test_gold_rows_are_shown_turned_round_and_those_of_the_block_are_not(folder: str) -> None:
    folds = (0, 1, 0, 1, 0, 1, 0, 1)
    made, requests = run(both, folder, src=source(folds=folds))
    by_id = {row.id: fold for row, fold in zip(GOLD, folds, strict=True)}
    assert {r.provenance.block for r in made.records} == {0, 1}
    for record in made.records:
        assert record.provenance.parents
        assert record.provenance.block not in {by_id[parent] for parent in record.provenance.parents}
    written = [r for r in requests if not rates(r)]
    pairs = {(r.outputs["answer"], r.inputs["question"]) for r in GOLD}
    for request in written:
        texts = [text.removeprefix("answer: ") for _, text in request.messages[1:-1]]
        assert set(zip(texts[::2], texts[1::2], strict=True)) <= pairs
    assert len({request.messages[:-1] for request in written}) == 2


def test_the_second_rater_sees_the_best_and_worst_of_the_first_but_never_the_pair_it_rates(folder: str) -> None:
    _, requests = run(both, folder)
    plain = [r for r in requests if rates(r) and len(r.messages) == 2]
    shown = [r for r in requests if rates(r) and len(r.messages) > 2]
    assert (len(plain), len(shown)) == (10 + 16, 10 + 16)
    scores = {re.sub(r"\D", "", text) for r in shown for role, text in r.messages[1:-1] if role == "assistant"}
    assert scores == {"2", "5"}
    for request in shown:
        assert request.messages[-1] not in request.messages[1:-1]
    assert sorted({len(r.messages) for r in shown}) == [2 + 2 * 3, 2 + 2 * 4]


def test_a_second_rater_that_tells_gold_from_swapped_pairs_less_well_does_not_count(folder: str) -> None:
    def confused(request: GenerateRequest) -> str:
        if rates(request) and len(request.messages) > 2:
            return "Good.\nScore: 5"
        return both(request)

    made, _ = run(confused, folder)
    assert made.log["round"] == 1
    assert made.log["rater_1"]["told_apart"] == 4.0
    assert made.log["rater_2"]["told_apart"] == 0.0
    assert sum(r.kept for r in made.records) == 7
    assert {r.scores["rating_2"] for r in made.records} == {5.0}


def test_rows_count_as_checked_only_where_the_rater_passed_its_trial(folder: str) -> None:
    made, _ = run(both, folder)
    assert {r.provenance.level for r in made.records} == {CHECKED}
    made, _ = run(lambda r: "Score: 4" if rates(r) else writes(r), folder)
    assert {r.provenance.level for r in made.records} == {SELF_RATED}
    assert made.log["rounds"] == "1: not both good and bad pairs to show in another"


def test_inputs_that_no_student_could_answer_go_before_they_are_rated(folder: str) -> None:
    spoiled = {
        "cat": "What does the passage say about the cat?",
        "dog": "Is it true of the dog dog dog that it knows the weather of the next 3 days?",
        "cow": "How is bread made",
        "fox": '"',
    }

    def answer(request: GenerateRequest) -> str:
        return told_apart(request) if rates(request) else spoiled.get(subject(asked(request)), writes(request))

    made, requests = run(answer, folder)
    reasons = {r.inputs["question"]: r.reason for r in made.records if not r.kept and r.reason != "low_rating"}
    assert reasons == {
        spoiled["cat"]: "mentions_text",
        spoiled["dog"]: "holds_answer",
        spoiled["cow"]: "similar",
    }
    assert made.counts == {"no_input": 1}
    assert not any(spoiled["cat"] in asked(r) for r in requests if rates(r))


def test_a_text_may_be_spoken_of_where_real_inputs_do() -> None:
    assert not MentionsText(["Sum up the text below."])("What does this passage mean?")
    assert MentionsText(["Who was it?"])("Summarize the following article for a child.")
    assert not MentionsText([])("What is an article of law?")


def test_short_and_repeated_passages_are_counted(folder: str) -> None:
    Path(folder, "zebra.md").write_text("# The dog\n\n" + Path(folder, "dog.txt").read_text().upper())
    Path(folder, "short.txt").write_text("Too short.")
    made, _ = run(both, folder)
    assert made.counts == {"passage_short": 1, "passage_repeated": 1}
    assert sum(r.kept for r in made.records) == 7


def test_unreadable_ratings_are_counted_and_end_nothing(folder: str) -> None:
    def answer(request: GenerateRequest) -> str:
        if rates(request) and subject(asked(request)) in ("dog", "cat", "bee"):
            return "I like this one a lot."
        return both(request)

    made, _ = run(answer, folder)
    assert {subject(r.inputs["question"]) for r in made.records if r.reason == "unrated"} == {"dog", "cat", "bee"}
    assert made.log["ratings"]["1"]["unrated"] == made.log["ratings"]["2"]["unrated"] == 3
    assert sum(r.kept for r in made.records) == 5


def test_a_rating_that_cannot_be_read_leaves_the_one_before(folder: str) -> None:
    def answer(request: GenerateRequest) -> str:
        if rates(request) and len(request.messages) > 2 and subject(asked(request)) in ANIMALS:
            return "Fine."
        return both(request)

    made, _ = run(answer, folder)
    assert made.log["round"] == 2
    assert made.log["ratings"]["2"] == {"unrated": 10}
    assert sum(r.kept for r in made.records) == 7


@pytest.mark.parametrize("rating", ["Nice.", "Score: 3"])
def test_documents_without_a_row_end_the_stage_and_say_why(folder: str, rating: str) -> None:
    with pytest.raises(StageEmpty, match=r"kept nothing \(10 (unrated|low_rating)\); ratings by round: .*10"):
        run(lambda r: rating if rates(r) else writes(r), folder)


def test_calls_that_all_fail_end_the_stage_with_the_first_error(folder: str) -> None:
    def broken(request: GenerateRequest) -> str:
        raise ValueError("no such thing")

    with pytest.raises(StageEmpty, match="no such thing"):
        run(broken, folder, patience=4)


def test_a_spent_budget_passes_through(folder: str) -> None:
    def spent(request: GenerateRequest) -> str:
        if rates(request):
            raise BudgetExceeded("spent")
        return writes(request)

    with pytest.raises(BudgetExceeded):
        run(spent, folder)


def test_a_failed_rating_is_none_and_a_failed_writing_is_counted(folder: str) -> None:
    def answer(request: GenerateRequest) -> str:
        if subject(asked(request)) == ("dog" if rates(request) else "cat"):
            raise ValueError("lost")
        return both(request)

    made, _ = run(answer, folder)
    assert made.counts["failed_calls"] == 3
    assert [subject(r.inputs["question"]) for r in made.records if r.reason == "unrated"] == ["dog"]


def test_the_same_seed_gives_the_same_records(folder: str) -> None:
    one, two = run(both, folder)[0], run(both, folder)[0]
    assert one == two
    assert len({r.id for r in one.records}) == len(one.records)


def test_rows_of_documents_and_labelled_rows_carry_different_tags(folder: str) -> None:
    made, _ = run(both, folder)
    assert {tag_of(r) for r in made.records} == {TAGS["tag:document"]}
    assert tag_of(GOLD[0]) == TAGS["tag:seed"] != TAGS["tag:document"]
    assert tag_of(Record({}, {}, Provenance("self_instruct"))) == ""
    assert {r.provenance.attributes for r in made.records} >= {"tag:document; cow.txt#0"}


def test_passages_are_as_long_as_real_outputs(folder: str) -> None:
    Path(folder, "long.txt").write_text("The tapir sleeps at noon and eats at night. " * 40)
    made, _ = run(lambda r: "Score: 4" if rates(r) else f"Where does number {len(asked(r))} live?", folder, wanted=40)
    assert max(len(r.outputs["answer"].split()) for r in made.records) <= 60


@pytest.mark.parametrize(
    ("src", "message"),
    [
        (Source({"a": str, "b": str}, "", GOLD), "2 input fields"),
        (Source({"a": list[str]}, "", GOLD), "1 input fields"),
        (Source({"a": str}, "", GOLD, label_field="answer", labels=("x", "y")), "2 labels"),
        (Source({"a": str}, "", (Record({"a": "x"}, {"y": "a man"}, Provenance("gold")),)), "'a man'"),
        (Source({"a": str}, "", (Record({"a": "x"}, {"y": ["a", "b"]}, Provenance("gold")),)), "no passage"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(src: Source, message: str, folder: str) -> None:
    with pytest.raises(InputError, match=message):
        InstructionBacktranslation().check(src, {"documents": folder})


def test_documents_are_required(folder: str, tmp_path: Path) -> None:
    method = InstructionBacktranslation()
    method.check(source(), {"documents": folder})
    with pytest.raises(InputError, match="no documents were given"):
        method.check(source(), {"documents": ""})
    with pytest.raises(InputError, match="there is no folder"):
        method.check(source(), {"documents": str(tmp_path / "missing")})


def test_the_programs_answer_alone_and_keep_demonstrations_of_their_own() -> None:
    programs = InstructionBacktranslation().programs(source())
    writer, rater = cast(RequestWriter, programs["write"]), cast(PairRater, programs["rate"])
    lm, backend = scripted(lambda request: "Score: 3" if rates(request) else 'Question: "Why?"')
    writer.write.demos = writer.demos([("Who?", "A man.")])
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        assert writer("Because.").text == "Why?"
        assert "A man." in backend.requests[0].messages[1][1]
        assert rater("Why?", "Because.").score == 3


def test_an_output_called_review_keeps_its_name() -> None:
    rater = PairRater("film", "review", "Review the film.")
    assert rater.review == "its_review"
    demo = rater.demo("Alien", "Good.", "Score: 5")
    assert (demo["review"], demo["its_review"]) == ("Good.", "Score: 5")


def test_the_embedded_model_writes_an_input_for_a_text() -> None:
    writer = RequestWriter("question", "answer", "Answer the question.")
    demos = writer.demos([(r.inputs["question"], r.outputs["answer"]) for r in GOLD[:3]])
    with dspy.context(lm=connect("embedded"), adapter=CompactAdapter()):
        made = writer("To make wine, press the grapes and wait for a year.", demos=demos, config={"max_tokens": 24})
    assert "wine" in made.text
