"""Label-conditioned generation: parser, attributes, plan and stops scripted; one real pass."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile.attributes import Attributes, lengths_of, propose
from limbeck.compile.source import Source, source_of
from limbeck.compile.synthesize import Synthesis, SynthesisConfig, label_counts, synthesize
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.models import CompactAdapter, connect
from limbeck.programs.generate import ANY_STYLE, Condition, InputWriter, TopicProposer, numbered, parse_lines
from limbeck.records import Provenance, Record
from limbeck.task import task_from_labels

ROWS = [
    ("Who wrote Hamlet ?", "HUM"),
    ("Who was the first man on the moon ?", "HUM"),
    ("Who invented the telephone ?", "HUM"),
    ("Where is the Louvre ?", "LOC"),
    ("What river flows through Cairo ?", "LOC"),
    ("What is the capital of Peru ?", "LOC"),
]
GOLD = tuple(Record({"text": t}, {"label": y}, Provenance("gold", seed=i)) for i, (t, y) in enumerate(ROWS))
MEANINGS = {"HUM": "asks for a person", "LOC": "asks for a place"}


def source(**more: Any) -> Source:
    given: dict[str, Any] = {"folds": (0, 1, 2, 0, 1, 2), "meanings": MEANINGS, **more}
    return Source({"text": str}, "Choose the type.", GOLD, label_field="label", labels=("HUM", "LOC"), **given)


def run(lm: Any, src: Source | None = None, **config: Any) -> Synthesis:
    return synthesize(src or source(), lm=lm, adapter=CompactAdapter(), config=SynthesisConfig(topics=False, **config))


def new_lines(request: GenerateRequest) -> str:
    """Two lines nobody has written before: the seed is in them."""
    return f"1. Who is number {request.seed} here ?\n2. Where was {request.seed} seen last ?"


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("1. Who came?\n2. Who left?", ["Who came?", "Who left?"]),
        ("Sure, here are two:\n\n1) Who came?\n2) Who left?\n\nHope it helps!", ["Who came?", "Who left?"]),
        ('- "Who came?"\n- “Who left?”', ["Who came?", "Who left?"]),
        ("1. **Who came?**\n2. Text: Who left?", ["Who came?", "Who left?"]),
        ("Who came?\nWho left?", ["Who came?", "Who left?"]),
        ('1. "Question 3: Who came?"', ["Who came?"]),
        ("1. Who came?\nlabel: LOC\n2. Where?", ["Who came?"]),
        ("1. Who came?\n[[ ## completed ## ]]", ["Who came?"]),
        ('1. "Hi" he said, "and bye"', ['"Hi" he said, "and bye"']),
        ("1. In 1999 who won?\n2. ---", ["In 1999 who won?"]),
        ("2001 was a good year", ["2001 was a good year"]),
        ("\n \n", []),
    ],
)
def test_lines_of_small_models_are_read(answer: str, texts: list[str]) -> None:
    assert parse_lines(answer, limit=5, field="question") == texts


def test_no_more_lines_than_asked_for() -> None:
    assert parse_lines("1. a\n2. b\n3. c", limit=2) == ["a", "b"]


@given(st.lists(st.from_regex(r"[a-z]{3}( [a-z]{1,5}){0,6}[.?]?", fullmatch=True), max_size=8))
def test_what_is_numbered_is_read_back(texts: list[str]) -> None:
    assert parse_lines(numbered(texts), limit=8) == texts


def test_attributes_are_dealt_evenly_and_by_seed() -> None:
    attributes = Attributes((4, 9), {"HUM": ("music", "war", "films")}, tones=("casual", "polite"))
    styles = attributes.styles("HUM", 12, seed=3)
    assert styles == attributes.styles("HUM", 12, seed=3)
    assert styles != attributes.styles("HUM", 12, seed=4)
    lengths = Counter(re.findall(r"about (\d+) words", " ".join(styles)))
    assert lengths == {"4": 6, "9": 6}
    assert sum("written by" in style for style in styles) == 4
    assert "about music" in " ".join(styles)
    assert "written by" in attributes.styles("LOC", 2, seed=3)[1]
    assert attributes.styles("HUM", 0, seed=3) == []


def test_lengths_are_those_of_the_real_rows() -> None:
    assert lengths_of([row.inputs["text"] for row in GOLD]) == (4, 5, 7)
    assert lengths_of(["a b"] * 3) == (2,)


@given(st.integers(1, 200), st.dictionaries(st.sampled_from(["HUM", "LOC"]), st.floats(0.1, 5), min_size=1))
def test_counts_sum_to_the_total_and_follow_the_shares(total: int, shares: dict[str, float]) -> None:
    counts = label_counts(source(), SynthesisConfig(total=total, distribution=shares))
    assert sum(counts.values()) == total
    whole = sum(shares.values())
    assert all(abs(counts[label] - total * share / whole) < 1 for label, share in shares.items())


def test_distributions_by_name() -> None:
    gold = (*GOLD, Record({"text": "Who?"}, {"label": "HUM"}, Provenance("gold")))
    src = Source({"text": str}, "", gold, label_field="label", labels=("HUM", "LOC"))
    assert label_counts(src, SynthesisConfig(total=14)) == {"HUM": 7, "LOC": 7}
    assert label_counts(src, SynthesisConfig(total=14, distribution="observed")) == {"HUM": 8, "LOC": 6}


@pytest.mark.parametrize("shares", [{"NUM": 1.0}, {"HUM": -1.0, "LOC": 2.0}, {"HUM": 0.0}, {}])
def test_impossible_distributions_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="distribution"):
        label_counts(source(), SynthesisConfig(distribution=shares))


def test_prompts_show_the_label_its_meaning_and_no_row_of_the_block() -> None:
    lm, backend = scripted(new_lines)
    done = run(lm, total=24, per_call=2)
    folds = {row.id: fold for row, fold in zip(GOLD, source().folds, strict=True)}
    assert {r.provenance.block for r in done.records} == {0, 1, 2}
    by_id = {row.id: row for row in GOLD}
    for record in done.records:
        assert record.provenance.parents
        assert record.provenance.block not in {folds[parent] for parent in record.provenance.parents}
        assert {by_id[p].outputs["label"] for p in record.provenance.parents} == {record.outputs["label"]}
    for request in backend.requests:
        last = request.messages[-1][1].splitlines()
        label = last[0].removeprefix("label: ")
        assert last[1] == f"meaning: {MEANINGS[label]}"
        assert last[-1] == "count: 2"
        shown = "\n".join(text for _, text in request.messages[:-1])
        hidden = {fold for row, fold in zip(GOLD, source().folds, strict=True) if row.inputs["text"] in shown}
        assert len(hidden) == 2
        assert request.stop == ("\n3.",)
    assert len({request.messages[0] for request in backend.requests}) == 1


def test_the_same_seed_writes_the_same_and_half_the_calls_have_a_style() -> None:
    one, two = (run(scripted(new_lines)[0], total=16, per_call=2, seed=5) for _ in range(2))
    assert one.records == two.records
    other = run(scripted(new_lines)[0], total=16, per_call=2, seed=6)
    assert {r.id for r in other.records}.isdisjoint(r.id for r in one.records)
    styles = Counter(r.provenance.attributes == ANY_STYLE for r in one.records)
    assert styles[True] == styles[False] == 8
    assert len({r.id for r in one.records}) == len(one.records)


def test_waves_fill_what_copies_left_open() -> None:
    def repeats(request: GenerateRequest) -> str:
        fresh = request.seed % 3
        return new_lines(request) if fresh else "1. Who wrote Hamlet ?\n2. who wrote hamlet"

    done = run(scripted(repeats)[0], total=20, per_call=2)
    assert done.new == {"HUM": 10, "LOC": 10}
    assert done.calls > 10
    assert len(done.records) == 2 * done.calls


def test_calls_are_bounded() -> None:
    lm, backend = scripted(new_lines)
    done = run(lm, total=100, per_call=2, max_calls=7)
    assert done.calls == len(backend.requests) == 7


def test_calls_in_a_row_without_anything_new_end_the_stage() -> None:
    lm, backend = scripted(lambda request: "1. Who came?\n2. Who came?")
    done = run(lm, total=20, per_call=2, patience=12, max_calls=500)
    assert sum(done.new.values()) == 1
    assert len(backend.requests) == 10 + 10 + 10


def test_nothing_usable_ends_the_stage_with_the_reason() -> None:
    lm, backend = scripted(lambda request: "...")
    with pytest.raises(StageEmpty, match="no line that is a text"):
        run(lm, total=200, per_call=1, patience=5, threads=2)
    assert len(backend.requests) < 20


def test_a_label_that_is_refused_costs_the_others_nothing() -> None:
    def choosy(request: GenerateRequest) -> str:
        wanted = request.messages[-1][1]
        return "I'm sorry, but I can't write such texts." if "label: HUM" in wanted else new_lines(request)

    lm, backend = scripted(choosy)
    done = run(lm, total=40, per_call=1, patience=6, threads=2)
    assert {r.outputs["label"] for r in done.records} == {"LOC"}
    assert not any("sorry" in str(r.inputs) for r in done.records)
    assert done.refused["HUM"] == done.failed >= 20
    assert done.new["LOC"] == 20
    (warning,) = done.warnings
    assert "label 'HUM': the teacher refused" in warning
    assert "wrote 0 of 20 rows" in warning
    assert len(backend.requests) < 100


def test_a_teacher_that_refuses_everything_ends_the_stage_with_its_words() -> None:
    with pytest.raises(StageEmpty, match="it refuses: As an AI"):
        run(scripted(lambda request: "As an AI language model, I cannot do that.")[0], total=20, per_call=2)


def test_a_spent_budget_passes_through() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        run(scripted(spent)[0], total=4)


def test_a_label_without_gold_rows_in_the_block_is_still_written() -> None:
    gold = (GOLD[0], GOLD[3])
    src = Source({"text": str}, "Choose.", gold, (0, 1), "label", ("HUM", "LOC"))
    done = run(scripted(new_lines)[0], src, total=8, per_call=2)
    assert {r.provenance.parents for r in done.records if r.provenance.block == 0} == {(), (GOLD[3].id,)}


def test_several_input_columns_are_written_one_row_a_call() -> None:
    rows = [({"style": f"note {i}", "question": f"is it {i} ?"}, "yes" if i % 2 else "no") for i in range(4)]
    gold = tuple(Record(inputs, {"label": y}, Provenance("gold")) for inputs, y in rows)
    src = Source({"style": str, "question": str}, "Answer.", gold, (), "label", ("yes", "no"))
    lm, backend = scripted(lambda r: f"[[ ## style ## ]]\nnote {r.seed}\n\n[[ ## question ## ]]\nis it {r.seed} ?")
    done = run(lm, src, total=4)
    assert {tuple(r.inputs) for r in done.records} == {("style", "question")}
    assert done.calls == 4
    assert "wanted_style: " in backend.requests[0].messages[-1][1]
    assert ("assistant", "[[ ## style ## ]]\nnote 0\n\n[[ ## question ## ]]\nis it 0 ?") in [
        message for request in backend.requests for message in request.messages
    ]


def test_a_task_says_what_its_writers_know() -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    task = task_from_labels(rows, output="label", label_descriptions=MEANINGS)
    found = source_of(task, task.examples, (0, 1, 2, 0, 1, 2))
    assert found.fields == {"text": str}
    assert (found.labels, found.label_field, dict(found.meanings)) == (("HUM", "LOC"), "label", MEANINGS)
    assert [(r.inputs["text"], r.outputs["label"], r.provenance.block) for r in found.gold] == [
        (text, label, i % 3) for i, (text, label) in enumerate(ROWS)
    ]
    assert found.blocks == (0, 1, 2)
    assert source_of(task, task.examples).blocks == (-1,)


def test_long_inputs_are_not_written_as_lines() -> None:
    text = "one paragraph\nand another"
    gold = (Record({"text": text}, {"label": "a"}, Provenance("gold")),)
    assert not Source({"text": str}, "", gold).one_line
    assert source().one_line


def test_topics_are_asked_for_once_a_label_and_a_poor_answer_falls_back() -> None:
    def answer(request: GenerateRequest) -> str:
        if "label: HUM" in request.messages[-1][1]:
            return "1. Music.\n2. sports\n3. the kings of old\n4. who was the first man on the moon ?\n5. music"
        return "I cannot do that"

    lm, backend = scripted(answer)
    proposer = TopicProposer("text", "Choose.", labelled=True, described=False)
    examples = {"HUM": ["Who wrote Hamlet ?"], "LOC": ["Where ?"]}
    found = propose(proposer, examples, {}, lm, adapter=CompactAdapter(), lengths=(5,), seed=0)
    assert found.topics == {"HUM": ("music", "sports", "the kings of old")}
    assert len(backend.requests) == 2


def test_a_writer_shows_rows_in_the_form_it_reads() -> None:
    writer = InputWriter({"text": str}, "Choose.", labelled=True, described=False, several=True)
    (demo,) = writer.demos([{"text": "a b"}, {"text": "c\nd"}], Condition("HUM"))
    assert dict(demo.items()) == {"label": "HUM", "style": ANY_STYLE, "count": "2", "texts": "1. a b\n2. c d"}
    assert writer.demos([], Condition("HUM")) == []


def test_the_embedded_model_writes_new_texts_for_both_labels() -> None:
    lm = connect("embedded")
    config = SynthesisConfig(total=4, per_call=2, demos=2, other_labels=1, temperature=0.7, topics=True)
    progress: list[tuple[int, int]] = []
    done = synthesize(source(), lm=lm, adapter=CompactAdapter(), config=config, progress=lambda *p: progress.append(p))
    assert {r.outputs["label"] for r in done.records} == {"HUM", "LOC"}
    assert sum(done.new.values()) >= 2
    assert all(r.inputs["text"].strip() and "\n" not in r.inputs["text"] for r in done.records)
    assert progress[-1][1] == 4
