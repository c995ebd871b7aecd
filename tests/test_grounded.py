"""Passages before a call's inputs, for any program, and in a run that was asked for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
import tiny_run
from chat_server import Body, Reply, answer, serve
from scripted import scripted
from test_aifeedback import Scoring
from tiny_run import write_rows

from limbeck.compile.retrieve import BM25, drawer, finder
from limbeck.documents import Passage
from limbeck.errors import InputError
from limbeck.models import LM
from limbeck.models.grounded import GroundedAdapter
from limbeck.pipeline.config import EFFORTS, RunConfig
from limbeck.pipeline.run import run
from limbeck.records import read_records

PAGES = [
    Passage("Tea stands for three minutes.", "tea.md", 0),
    Passage("The library opens at nine.", "library.md", 0),
    Passage("Cats hunt at night.", "cats.md", 0),
]
FIND = finder(BM25(PAGES), k=1)


def ask(signature: Any, adapter: Any, lm: Any, demos: Any = (), **inputs: Any) -> Any:
    with dspy.context(lm=lm, adapter=adapter):
        return dspy.Predict(signature)(demos=list(demos), **inputs)


def test_passages_stand_before_the_inputs_and_not_in_demonstrations() -> None:
    lm, backend = scripted(lambda request: "three minutes")
    demo = dspy.Example(question="When does the library open?", answer="at nine").with_inputs("question")
    made = ask("question -> answer", GroundedAdapter(FIND), lm, [demo], question="How long does tea stand?")
    assert dict(made) == {"answer": "three minutes"}
    messages = backend.requests[0].messages
    assert messages[-1][1] == f"passages: [1] {PAGES[0].text}\nquestion: How long does tea stand?"
    assert messages[1][1] == "question: When does the library open?"
    assert "passages" in messages[0][1]


def test_without_a_passage_the_prompt_is_the_plain_one() -> None:
    lm, backend = scripted(lambda request: "no")
    ask("question -> answer", GroundedAdapter(FIND), lm, question="Xylophone?")
    assert "passages" not in str(backend.requests[0].messages)


def test_a_signature_with_passages_of_its_own_keeps_them() -> None:
    lm, backend = scripted(lambda request: "no")
    ask("passages, question -> answer", GroundedAdapter(FIND), lm, passages="mine", question="tea?")
    assert backend.requests[0].messages[-1][1] == "passages: mine\nquestion: tea?"


def test_labels_are_scored_with_passages_in_view_also_without_blocking() -> None:
    seen: list[str] = []

    def chance(request: Any) -> float:
        seen.append(request.messages[-1][1])
        return 0.9

    class Choose(dspy.Signature):
        """Choose."""

        question: str = dspy.InputField()
        verdict: Literal["yes", "no"] = dspy.OutputField()

    lm = LM("scoring", Scoring(chance))
    assert ask(Choose, GroundedAdapter(FIND), lm, question="Does tea stand?").verdict == "yes"
    with dspy.context(lm=lm, adapter=GroundedAdapter(FIND)):
        asyncio.run(dspy.Predict(Choose).acall(question="Does tea stand?"))
    assert [text.count(PAGES[0].text) for text in seen] == [1] * len(seen)
    assert len(seen) >= 2


def test_a_writer_gets_other_passages_by_its_seed_and_the_same_by_the_same() -> None:
    find = drawer(BM25(PAGES), PAGES)
    assert find("which label says nothing", None) == ""
    drawn = [find("a label that says nothing: HUM", seed) for seed in range(12)]
    assert len(set(drawn)) == 3
    assert drawn == [find("a label that says nothing: HUM", seed) for seed in range(12)]
    assert {find("tea", seed) for seed in range(12)} == {f"[1] {PAGES[0].text}"}


CITIES = ("Leeds", "York", "Hull", "Ripon", "Selby", "Bury", "Thirsk", "Goole")


def _oracle(body: Body, n: int) -> Reply:
    """Know a town's river from the passages alone; as a writer ask for the town of the passage."""
    system, last = str(body["messages"][0]["content"]), str(body["messages"][-1]["content"])
    if "Answer with the river only" in system:
        asked = next((city for city in CITIES if city in last.rpartition("question:")[2]), "nowhere")
        return answer(f"River {asked}" if f"River {asked}." in last else "unknown")
    town = next((city for city in CITIES if f"River {city}." in last), "nowhere")
    return answer(f"1. Which river runs through the old town of {town}?")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    small = replace(tiny_run.SMALL, pool_rows=0, synthetic_rows=4, samples=1, demos=(False,))
    monkeypatch.setitem(EFFORTS, "quick", small)  # pyright: ignore[reportArgumentType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    folder = tmp_path / "pages"
    folder.mkdir()
    for city in CITIES:
        (folder / f"{city}.txt").write_text(f"Through {city} runs the water that people call River {city}.")
    rows = [{"question": f"{city} lies on what river?", "river": f"River {city}"} for city in CITIES]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", rows[:6]),
        output=("river",),
        kind="text",
        test=write_rows(tmp_path / "test.jsonl", rows[6:]),
        teacher="openai/gpt-5-mini",
        documents=str(folder),
    )


def test_a_run_that_is_grounded_writes_and_answers_from_documents(config: RunConfig) -> None:
    with serve(_oracle) as server:
        plain = replace(config, api_base=server.url)
        grounded = replace(plain, ground=True)
        run(grounded, until="synthesize")
        bodies = [str(body["messages"][-1]["content"]) for body in server.bodies]
        known = read_records(config.folder / "data" / "candidates.parquet")
        run(plain, until="synthesize")
        without = read_records(config.folder / "data" / "candidates.parquet")
        before = len(server.bodies)
        run(grounded, until="synthesize")
        assert len(server.bodies) == before, "what was paid for is found again"
    answered = [r for r in known if r.kept]
    assert answered
    assert all(str(r.outputs["river"]).removeprefix("River ") in str(r.inputs["question"]) for r in answered)
    assert any(text.startswith("passages:") for text in bodies)
    assert any(not text.startswith("passages:") for text in bodies), "the compiled prompt is chosen without"
    assert not any("River" in str(r.outputs.get("river")) for r in without)


def test_grounding_needs_documents_before_any_call(config: RunConfig) -> None:
    with pytest.raises(InputError, match="no documents were given"):
        run(replace(config, documents="", ground=True))
    assert not config.folder.exists()
