"""Chains as training data: by rules, rewritten and written; what is refused and why; the program that runs them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from scripted import scripted

from limbeck.chains import ChainError
from limbeck.compile.abstraction import (
    METHOD,
    Abstracted,
    AbstractionConfig,
    ChainOfAbstraction,
    abstract_rows,
    answer_of,
    refused,
    solution_of,
)
from limbeck.compile.label import Labeler
from limbeck.compile.retrieve import BM25, search_tool
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, load_method
from limbeck.documents import Passage
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.evaluate import run_system
from limbeck.models import CompactAdapter
from limbeck.models.adapter import render
from limbeck.programs.abstraction import ChainProgram, ChainWriter
from limbeck.records import CHECKED, CLEANED, Provenance, Record

NAMES = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo"]
FOLDS = (0, 1, 0, 1, 0, 1)


def row(i: int, *, solution: str = "", **more: Any) -> Record:
    question = f"{NAMES[i]} has {i + 21} figs, buys {i + 3} and eats 2. How many are left?"
    origin = Provenance("gold", seed=i, level=1, block=FOLDS[i])
    return Record({"question": question}, {"answer": 2 * i + 22, **more}, origin, rationale=solution)


def worked(i: int) -> Record:
    had, bought = i + 21, i + 3
    both = had + bought
    return row(i, solution=f"{had}+{bought} = <<{had}+{bought}={both}>>{both} figs, then {both} - 2 = {both - 2}.")


GOLD = tuple(map(row, range(6)))
CHAIN = re.compile(r"problem: (\w+) has (\d+) figs, buys (\d+)")


def asked(request: GenerateRequest) -> str:
    return CHAIN.findall(request.messages[-1][1])[-1][0]


def chain(request: GenerateRequest) -> str:
    _, had, bought = CHAIN.findall(request.messages[-1][1])[-1]
    return f"[{had} + {bought} = y1] figs, then [y1 - 2 = y2]. The answer is y2."


def source(gold: tuple[Record, ...] = GOLD, folds: tuple[int, ...] = ()) -> Source:
    return Source({"question": str}, "Answer with the number.", gold, folds)


def run(answer: Any, records: Any = GOLD, src: Source | None = None, **config: Any) -> tuple[Abstracted, Any]:
    lm, backend = scripted(answer)
    found = abstract_rows(records, src or source(), lm=lm, adapter=CompactAdapter(), config=AbstractionConfig(**config))
    return found, backend


def test_worked_solutions_are_rewritten_by_rules_without_a_call() -> None:
    done, backend = run(chain, [worked(0), worked(1)])
    assert backend.requests == []
    assert done.ways == {"by rules": 2}
    record = done.records[0]
    assert record.rationale == "[21 + 3 = y1] figs, then [y1 - 2 = y2]. The answer is y2."
    assert record.outputs == {"answer": 22}
    assert record.provenance.level == CLEANED
    assert (record.provenance.method, record.provenance.parents) == (METHOD, (worked(0).id,))
    assert (record.provenance.teacher, record.provenance.prompt_hash) == ("", "")
    # A solution that a model wrote stays at its level.
    made = replace(worked(0), provenance=Provenance("star", teacher="big", level=CHECKED))
    origin = run(chain, [made])[0].records[0].provenance
    assert (origin.level, origin.teacher) == (CHECKED, "big")


def test_what_rules_cannot_rewrite_the_model_does_and_where_there_is_no_solution_it_writes() -> None:
    wordy = row(0, solution="Three more than twenty-one, less two.")
    done, backend = run(chain, [wordy, GOLD[1]])
    assert [r.provenance.attributes for r in done.records] == ["rewritten", "written"]
    assert [r.provenance.level for r in done.records] == [CHECKED, CHECKED]
    prompts = [r.messages[-1][1] for r in backend.requests]
    assert ["solution: Three more" in text for text in prompts] == [True, False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is 22.", "no_placeholder"),
        ("[21 figs + 3 = y1]", "unparsable"),
        ("[21 + 3 = y1], so [y3 - 2 = y2]", "undefined_variable"),
        ("[y2 + 3 = y1] and [y1 - 2 = y2]", "cycle"),
        ("[21 + 3 = y1]", "wrong_result"),
        ("[lookup(figs) = y1]", "unparsable"),
        ("[21 + 3 - 2 = y1]", ""),
    ],
)
def test_chains_are_refused_by_name(text: str, reason: str) -> None:
    assert refused(text, "22") == reason
    good = GOLD[1]
    done, _ = run(lambda r: text if asked(r) == "Ann" else chain(r), [GOLD[0], good], samples=1)
    assert [r.reason for r in done.records] == [reason, ""]
    assert done.records[0].rationale == text


def test_rejection_sampling_ends_with_the_first_chain_that_runs_to_the_answer() -> None:
    done, backend = run(lambda r: chain(r) if r.temperature > 0 else "It is 22.", [GOLD[0], GOLD[1]])
    assert [r.kept for r in done.records] == [True, True]
    assert [r.temperature > 0 for r in backend.requests] == [False, False, True, True]
    assert [r.scores["tries"] for r in done.records] == [2.0, 2.0]
    assert done.calls == 4


def test_prompts_show_kept_chains_of_the_same_block() -> None:
    rows = [replace(worked(i), provenance=replace(GOLD[i].provenance)) for i in range(4)] + list(GOLD[4:])
    done, backend = run(chain, rows, source(tuple(rows), FOLDS), demos=3)
    block = {r.inputs["question"].split()[0]: r.provenance.block for r in done.records}
    assert set(block.values()) == {0, 1}
    for request in backend.requests:
        shown = {name for role, text in request.messages[:-1] if role == "user" for name in NAMES if name in text}
        assert shown == {name for name in NAMES[:4] if block[name] == block[asked(request)]}
        assert len(request.messages) == 1 + 2 * (3 + len(shown)) + 1


def test_the_same_seed_gives_the_same_records() -> None:
    def answer(request: GenerateRequest) -> str:
        return chain(request) if request.seed % 2 else "It is 22."

    one, two = (run(answer, seed=3)[0] for _ in range(2))
    assert one.records == two.records
    assert 0 < sum(r.kept for r in one.records) < 6


def test_an_empty_stage_says_why_and_a_budget_passes_through() -> None:
    with pytest.raises(StageEmpty, match=r"in 18 calls \(6 no_placeholder\)"):
        run(lambda _: "It is 22.")

    def spent(_: GenerateRequest) -> str:
        raise BudgetExceeded("--max-usd 1 is spent")

    with pytest.raises(BudgetExceeded):
        run(spent)

    def broken(_: GenerateRequest) -> str:
        raise ValueError("no answer")

    with pytest.raises(StageEmpty, match="none of the first 2 calls gave a chain"):
        run(broken, patience=2)


def test_answers_and_solutions_are_found_where_rows_have_them() -> None:
    text = {"solution": "4 + 5 = <<4+5=9>>9\n#### 9"}
    only = Record({"question": "?"}, text, Provenance("gold"))
    assert answer_of(only, {}) == "9"
    assert solution_of(only) == "4 + 5 = <<4+5=9>>9"
    assert answer_of(row(0, note="it is done"), {}) == "22"
    assert solution_of(row(0, note="no equation")) == ""
    words = Record({"question": "?"}, {"answer": "Rome"}, Provenance("gold"))
    assert answer_of(words, {}) == ""
    assert answer_of(words, {"search": str}) == "Rome"


def test_a_tool_may_bring_out_the_answer() -> None:
    city = Record({"question": "What is the capital of the land of pizza?"}, {"answer": "Rome"}, Provenance("gold"))
    tools = {"search": {"the land of pizza": "Italy", "the capital of Italy": "Rome"}.__getitem__}
    said = "It is [search(the land of pizza) = y1], whose capital is [search(the capital of y1) = y2]."
    done, backend = run(lambda _: said, [city], source((city,)), tools=tools)
    assert done.records[0].rationale == said
    assert "with the tool search" in backend.requests[0].messages[0][1]
    with pytest.raises(InputError, match="answers that are numbers"):
        ChainOfAbstraction().check(source((city,)), {})
    ChainOfAbstraction(AbstractionConfig(tools=tools)).check(source((city,)), {})


def test_rows_without_a_number_are_told_apart() -> None:
    words = Record({"question": "Who?"}, {"answer": "Ann"}, Provenance("gold", seed=9))
    done, backend = run(chain, [words, GOLD[0]])
    assert [r.reason for r in done.records] == ["no_number", ""]
    assert len(backend.requests) == 1


def test_the_method_by_its_name() -> None:
    lm, _ = scripted(chain)
    labeler = Labeler({-1: dspy.Predict("question -> answer")}, lm, CompactAdapter(), ("answer",))
    method = load_method("chain_of_abstraction")
    made = method([*GOLD[:2], worked(2)], Materials(source(), lm, CompactAdapter(), labeler, samples=1), 9)
    assert made.log == {METHOD: {"written": 2, "by rules": 1, "calls": 2}}
    assert isinstance(method, ChainOfAbstraction)
    assert list(method.programs(source())) == ["rewrite", "write"]


def test_a_program_decodes_a_chain_and_learns_from_such_records() -> None:
    program = ChainProgram({"question": str}, "answer", "Answer with the number.")
    lm, _ = scripted(lambda _: "She has [21 + 3 = y1], in the end [y1 - 2 = y2].")
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        made = program(question="How many?")
    assert (made.answer, made.filled) == (22, "She has 21 + 3 = 24, in the end 24 - 2 = 22.")
    record = run(chain, [worked(0)])[0].records[0]
    rendered = render(
        program.reason, adapter=CompactAdapter(), inputs=record.inputs, outputs={"reasoning": record.rationale}
    )
    assert rendered.completions == ((record.rationale, 1.0),)
    lm, _ = scripted(lambda _: "She has 22.")
    unreadable = pytest.raises(AdapterParseError, match="no_placeholder")
    with dspy.context(lm=lm, adapter=CompactAdapter()), unreadable as told:
        program(question="How many?")
    assert isinstance(told.value.__cause__, ChainError)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[y2 + 1 = y1] and [y1 + 1 = y2]", "cycle"),
        ("[2 + y7 = y1]", "undefined_variable"),
        ("[lookup(figs) = y1]", "unparsable"),
        ("[search(plums) = y1]", "tool_error"),
    ],
)
def test_a_chain_that_cannot_run_costs_its_row_and_no_stage(said: str, reason: str) -> None:
    search = search_tool(BM25([Passage("Figs ripen late.", "figs.md", 0)]))
    program = ChainProgram({"question": str}, "answer", "Answer with the number.", tools={"search": search})
    lm, _ = scripted(lambda _: said)
    examples = [dspy.Example(question="How many?", answer=2).with_inputs("question")] * 2
    done = run_system("student", program, lm, examples, lambda *_: 1.0, adapter=CompactAdapter())
    assert done.scores == (0.0, 0.0)
    assert all(reason in error for error in done.errors)


def test_a_program_searches_documents_runs_any_tool_and_calculates_with_what_they_found() -> None:
    pages = [Passage("The fig is a tree. A fig tree bears 40 figs.", "figs.md", 0), Passage("Plums.", "plums.md", 0)]

    def number(text: str) -> str:
        """Return the number in a text."""
        return re.findall(r"\d+", text)[0]

    tools: dict[str, Any] = {"search": search_tool(BM25(pages)), "number": dspy.Tool(number)}
    lm, _ = scripted(
        lambda _: (
            "A tree bears [search(how many figs bears a tree) = y1], so [number(y1) = y2]. He has [3 * 4 = y3], in all "
            "[y2 + y3 = y4]. The answer is y4."
        )
    )
    for text, wanted in ((False, 52), (True, "52")):
        program = ChainProgram({"question": str}, "answer", "Answer with the number.", tools=tools, text=text)
        with dspy.context(lm=lm, adapter=CompactAdapter()):
            made = program(question="How many?")
        assert made.answer == wanted
        assert "search(how many figs bears a tree) = A fig tree bears 40 figs." in made.filled


def test_fences_around_a_chain_are_taken_off() -> None:
    lm, _ = scripted(lambda _: "```text\n[1 + 1 = y1]\n```")
    with dspy.context(lm=lm, adapter=CompactAdapter()):
        assert ChainWriter()(problem="?").chain == "[1 + 1 = y1]"
