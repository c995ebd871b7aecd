"""`limbeck compile --program`: what helps on dev rows is kept, told and used when rows are written, and asked once."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
from chat_server import Body, ChatServer, Reply, serve
from chat_server import answer as reply
from scripted import Scripted, scripted
from tiny_run import SMALL, write_rows
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.compile.label import Labeler, block_programs, prompt_hash
from limbeck.compile.optimize import Compiled
from limbeck.compile.parts import TRIALS
from limbeck.compile.prompts import ANY, SEEN, blind, loaded, read_states, row_key, stamp
from limbeck.compile.source import source_of
from limbeck.compile.synthesizers import BUILT_IN, Materials, WithPrograms, load_method
from limbeck.compile.trials import Ground, compile_part
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError
from limbeck.models import CompactAdapter
from limbeck.pipeline.config import EFFORTS, RunConfig, read_config
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.records import read_records
from limbeck.task import Task, task_from_labels

ROWS = [
    {"text": f"{word} {i} came {how}", "label": label}
    for i, how in enumerate(
        ("early", "at noon", "too late", "by night", "again", "for once", "on time", "twice", "alone")
    )
    for word, label in (("rain", "weather"), ("bus", "traffic"))
]
WORDS = {"weather": "rain", "traffic": "bus"}
WRITER = "label_conditioned.write"


def writes(system: str, question: str, turns: str, seed: int) -> str:
    """A writer that is right by chance, and always where a demonstration of its own is in view; else a reader."""
    if "count" not in question:
        return "weather" if "rain" in question.rsplit("text:", 1)[-1] else "traffic"
    good = "fresh" in turns or seed % 2
    label = (re.findall("label: (.*)", question) or ["weather"])[-1]
    word = WORDS[label] if good else "nothing"
    return "\n".join(f"{i}. {word} fresh as of {seed} and {i}" for i in range(1, 6))


def learns(request: GenerateRequest) -> str:
    said = " ".join(text for role, text in request.messages if role == "assistant")
    return writes(request.messages[0][1], request.messages[-1][1], said, request.seed or 0)


def never_learns(request: GenerateRequest) -> str:
    return writes(request.messages[0][1], request.messages[-1][1], "fresh", 1)


def task() -> Task:
    return task_from_labels(ROWS, output="label", instructions="Name the topic.")


def ground(say: Callable[[GenerateRequest], str], *, dev: int = 6, folds: bool = True) -> tuple[Ground, Scripted]:
    lm, backend = scripted(say)
    known, parts = task(), tuple(i // 2 % 2 for i in range(len(ROWS))) if folds else ()
    programs = block_programs(
        known.program, known.examples, parts or [0] * len(ROWS), 4, 0, labels=known.labels, output="label"
    )
    labeler = Labeler(programs, lm, CompactAdapter(), ("label",), label_field="label")
    materials = Materials(source_of(known, known.examples, parts), lm, CompactAdapter(), labeler, samples=1, threads=4)
    return Ground(cast(WithPrograms, load_method("label_conditioned")), materials, dev), backend


def compiled(say: Callable[[GenerateRequest], str] = learns, **options: Any) -> tuple[Compiled, Ground, Scripted]:
    found, backend = ground(say)
    return compile_part("write", found, TRIALS[WRITER](found), **options), found, backend


def test_what_helps_on_dev_rows_is_kept_with_demonstrations_of_training_rows() -> None:
    made, found, _ = compiled()
    assert made.kept
    assert made.optimizer == "bootstrap"
    assert made.compiled_score > made.baseline_score
    demos = cast(Any, made.program).write.demos
    assert len(demos) == 4
    gold = found.source.gold
    dev = {row_key(row.inputs) for row in gold[-6:]}
    for demo in demos:
        assert "fresh" in demo["texts"]
        seen = set(demo[SEEN].split())
        assert seen
        assert seen <= {row_key(row.inputs) for row in gold} - dev
        # Rows are answered many at once: what one was shown is no other row's business.
        trial = TRIALS[WRITER](found)
        assert seen in [{row_key(one.inputs) for one in trial.shown(row)} for row in gold[:-6]]


def test_what_does_not_help_is_dropped() -> None:
    made, found, _ = compiled(never_learns)
    assert not made.kept
    assert made.baseline_score == made.compiled_score == 1.0
    assert prompt_hash(made.program) == prompt_hash(found.programs["write"])


def test_an_optimizer_that_writes_instructions_compiles_a_part_too() -> None:
    def obeys(request: GenerateRequest) -> str:
        if "proposed_instruction" in request.messages[0][1]:
            return (
                "[[ ## proposed_instruction ## ]]\nWrite fresh ones.\n\n[[ ## proposed_prefix_for_output_field ## ]]\nx"
            )
        return writes("", request.messages[-1][1], request.messages[0][1], 0)

    made, _, _ = compiled(obeys, optimizer="copro")
    assert made.kept
    assert (made.baseline_score, made.compiled_score) == (0.5, 1.0)  # what says nothing reads as traffic
    assert "Write fresh ones." in cast(Any, made.program).write.signature.instructions


@pytest.mark.parametrize("name", ["labeled", "knn"])
def test_optimizers_that_show_rows_as_they_are_refuse(name: str) -> None:
    with pytest.raises(InputError, match="no demonstrations for a program that writes") as caught:
        compiled(optimizer=name)
    assert caught.value.valid == "bootstrap, random-search, simba, copro"  # mipro needs more rows, gepa a reader


def test_too_few_rows_are_refused_and_nothing_is_kept_unmeasured() -> None:
    found, backend = ground(learns, dev=len(ROWS) - 1)
    with pytest.raises(InputError, match=f"compile {WRITER}: it needs 2 training rows and there are 1"):
        compile_part("write", found, TRIALS[WRITER](found), optimizer="bootstrap")
    without = replace(found, dev=0)
    made = compile_part("write", without, TRIALS[WRITER](without))
    assert not made.kept
    assert "there are no dev rows to compare on" in made.notes[0]
    assert not backend.requests


def test_a_part_whose_demonstrations_are_not_found_keeps_its_own() -> None:
    found, _ = ground(lambda request: "the same")
    method = replace(found, method=cast(WithPrograms, load_method("evol_instruct")))
    made = compile_part("evolve", method, TRIALS["evol_instruct.evolve"](method))
    assert not made.kept
    assert cast(Any, made.program).deepen.demos


def test_a_compiled_state_goes_through_json_and_plain_dspy(tmp_path: Path) -> None:
    made, found, _ = compiled()
    path = tmp_path / "programs" / f"{WRITER}.json"
    path.parent.mkdir()
    cast(Any, made.program).save(str(path))
    plain = found.method.programs(found.source)["write"]
    cast(Any, plain).load(str(path))
    assert prompt_hash(plain) == prompt_hash(made.program)
    stamp(path, "these rows")
    cast(Any, found.method.programs(found.source)["write"]).load(str(path))  # DSPy does not mind the stamp
    assert read_states(tmp_path, ["label_conditioned"], "other rows") == ({}, [WRITER])
    states, others = read_states(tmp_path, ["label_conditioned", "evol_instruct"], "these rows")
    assert (list(states), others) == ([WRITER], [])
    materials = replace(found.materials, states=states)
    assert prompt_hash(materials.programs(found.method)["write"]) == prompt_hash(made.program)
    assert read_states(tmp_path, ["evol_instruct"], "") == ({}, [])


def test_a_file_brings_no_model_of_its_own(tmp_path: Path) -> None:
    made, found, _ = compiled()
    program = made.program.deepcopy()
    cast(Any, program).set_lm(dspy.LM("openai/elsewhere"))
    path = tmp_path / "programs" / f"{WRITER}.json"
    path.parent.mkdir()
    cast(Any, program).save(str(path))
    states, _ = read_states(tmp_path, ["label_conditioned"], "")
    mine = loaded("label_conditioned", found.programs, states)["write"]
    assert all(predictor.lm is None for predictor in cast(Any, mine).predictors())


@pytest.mark.parametrize("text", ["no json", "{}", "[]", '{"write": {"demos": []}}'])
def test_a_file_that_does_not_fit_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "programs" / f"{WRITER}.json"
    path.parent.mkdir()
    path.write_text(text)
    found, _ = ground(learns)

    def load() -> None:
        loaded("label_conditioned", found.programs, read_states(tmp_path, ["label_conditioned"], "")[0])

    with pytest.raises(InputError, match="does not fit this run") as caught:
        load()
    assert f"--program {WRITER}" in str(caught.value.hint)


def test_a_block_sees_no_demonstration_made_in_view_of_its_rows() -> None:
    made, found, _ = compiled()
    source = found.source
    for block in (0, 1):
        fold = {row_key(row.inputs) for row in source.gold if row.provenance.block == block}
        demos = cast(Any, blind(made.program, source, block)).write.demos
        assert demos
        assert len(demos) < 4
        assert not any(set(demo[SEEN].split()) & fold for demo in demos)
    assert blind(made.program, source, -1) is made.program
    assert blind(found.programs["write"], source, 0) is found.programs["write"]


def test_a_prompt_that_would_show_nothing_falls_back_on_the_plain_demonstrations() -> None:
    found, _ = ground(learns)
    method = cast(WithPrograms, load_method("evol_instruct"))
    plain = method.programs(found.source)["evolve"]
    state = cast(Any, plain).dump_state()
    everywhere = " ".join(row_key(row.inputs) for row in found.source.gold)
    for part in state.values():
        part["demos"] = [{**part["demos"][0], SEEN: everywhere}]
    mine = loaded("evol_instruct", {"evolve": plain}, {"evol_instruct.evolve": state})["evolve"]
    assert cast(Any, blind(mine, found.source, -1)).deepen.demos == cast(Any, mine).deepen.demos
    shown = cast(Any, blind(mine, found.source, 0)).deepen.demos
    assert shown == cast(Any, plain).deepen.demos
    assert not any(demo.get(SEEN) for demo in shown)


def test_a_row_sees_no_demonstration_of_its_own_and_unknown_ones_count_as_everybodys() -> None:
    found, _ = ground(learns, folds=False)
    program = found.programs["write"].deepcopy()
    rows = [row.inputs for row in found.source.gold[:2]]
    program.write.demos = [{"label": "weather", "texts": str(i), SEEN: row_key(row)} for i, row in enumerate(rows)]
    program.write.demos.append({"label": "weather", "texts": "2", SEEN: ANY})
    assert [d["texts"] for d in cast(Any, blind(program, found.source, -1, rows[0])).write.demos] == ["1"]
    assert len(program.write.demos) == 3


@pytest.mark.parametrize("method", ["label_conditioned", "self_instruct"])
def test_writing_shows_compiled_demonstrations_before_the_calls_own(method: str) -> None:
    found, backend = ground(learns, folds=False)
    synthesizer: Any = load_method(method)
    program: Any = synthesizer.programs(found.source)["write"]
    given = {"label": "weather"} if method == "label_conditioned" else {}
    program.write.demos = [dspy.Example(**given, style="any", count="1", texts="1. a compiled one")]
    states = {f"{method}.write": json.loads(json.dumps(program.dump_state()))}

    def prompts(materials: Materials) -> tuple[list[list[str]], set[str]]:
        backend.requests.clear()
        made = synthesizer(found.source.gold, materials, 4)
        asked = [r for r in backend.requests if "count" in r.messages[-1][1] and "topics" not in r.messages[0][1]]
        turns = [[text for role, text in r.messages if role == "assistant"] for r in asked]
        return turns, {r.provenance.prompt_hash for r in made.records}

    plain, hashes = prompts(found.materials)
    with_states, others = prompts(replace(found.materials, states=states))
    assert with_states
    assert all(turns[0] == "1. a compiled one" and len(turns) > 1 for turns in with_states)
    assert [turns[1:] for turns in with_states][: len(plain)] == plain[: len(with_states)]
    assert not hashes & others


def test_every_built_in_method_gets_its_programs_by_the_same_door() -> None:
    """Without compiled states they are the method's own, prompt for prompt."""
    source = ground(learns)[0].source
    for name in BUILT_IN:
        method = cast(WithPrograms, load_method(name))
        try:
            own = method.programs(source)
        except (InputError, ValueError):
            continue  # of tasks with other fields
        found = loaded(name, own, {})
        assert {part: prompt_hash(p) for part, p in found.items()} == {part: prompt_hash(p) for part, p in own.items()}
        assert all(found[part] is own[part] for part in own)


def test_a_spent_budget_ends_it() -> None:
    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("the budget is spent")

    found, _ = ground(spent)
    with pytest.raises(BudgetExceeded):
        compile_part("write", found, TRIALS[WRITER](found))


# -- in a run --------------------------------------------------------------------------------------------------


def served(learning: bool) -> Callable[[Body, int], Reply]:
    """The same writer and reader behind a server: seeds come from the request."""

    def say(body: Body, n: int) -> Reply:
        messages = body["messages"]
        texts = [str(m["content"]) for m in messages]
        turns = " ".join(str(m["content"]) for m in messages if m["role"] == "assistant")
        seed = zlib.crc32(json.dumps(body, sort_keys=True).encode()) if learning else 1
        return reply(writes(texts[0], texts[-1], turns, seed))

    return say


class Notes:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.notes: list[str] = []

    def stage(self, name: str, *, cached: bool = False) -> None:
        self.stages.append((name, cached))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)

    def step(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert done <= total


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    tested = [{"text": "rain at last", "label": "weather"}, {"text": "a bus at last", "label": "traffic"}]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", ROWS),
        output=("label",),
        test=write_rows(tmp_path / "test.jsonl", tested),
        teacher="openai/gpt-4o-mini",
        instructions="Name the topic.",
    )


def on(server: ChatServer, config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, api_base=server.url, **changes)


def prompts_of(server: ChatServer, start: int) -> list[str]:
    """The prompts that ask for new texts."""
    prompts = [json.dumps(body["messages"]) for body in server.bodies[start:]]
    return [prompt for prompt in prompts if "count" in prompt and "List topics" not in prompt]


def test_a_run_keeps_a_compiled_program_resumes_it_and_writes_with_it(config: RunConfig) -> None:
    with serve(served(learning=True)) as server:
        mine = on(server, config, program=(WRITER,))
        told = Notes()
        run(mine, until="compile", reporter=told)
        assert any(text.startswith(f"{WRITER} is compiled by bootstrap: ") for text in told.notes)
        state = json.loads((mine.folder / "programs" / f"{WRITER}.json").read_text(encoding="utf-8"))
        assert state["write"]["demos"]

        asked, again = len(server.bodies), Notes()
        run(mine, until="compile", reporter=again)
        assert len(server.bodies) == asked, "what is compiled is not compiled twice"
        assert (f"compile {WRITER}", True) in again.stages

        # As `limbeck run FOLDER` does, and as the same labels without --program do.
        later = Notes()
        run(replace(mine, program=()), until="synthesize", reporter=later)
        written = prompts_of(server, asked)
        assert written
        texts = {line.split(". ", 1)[1] for demo in state["write"]["demos"] for line in demo["texts"].splitlines()}
        assert sum(any(text in prompt for text in texts) for prompt in written) > len(written) / 2

        asked = len(server.bodies)
        run(read_config(mine.folder), until="synthesize")
        assert len(server.bodies) == asked
        kept = read_records(mine.folder / "data" / "candidates.parquet")

        # Without the program the rows are written anew, as they are in a folder that never had it.
        (mine.folder / "programs" / f"{WRITER}.json").unlink()
        run(replace(mine, program=()), until="synthesize")
        plain = read_records(mine.folder / "data" / "candidates.parquet")
        other = replace(mine, program=(), out=str(mine.folder.parent / "other"))
        run(other, until="synthesize")
        never = read_records(other.folder / "data" / "candidates.parquet")
    hashes = [{r.provenance.prompt_hash for r in rows} for rows in (kept, plain, never)]
    assert hashes[1] == hashes[2]
    assert not hashes[0] & hashes[1]


def test_a_program_compiled_on_other_labelled_rows_is_not_used(config: RunConfig) -> None:
    with serve(served(learning=True)) as server:
        mine = on(server, config, program=(WRITER,))
        run(mine, until="compile")
        assert (mine.folder / "programs" / f"{WRITER}.json").exists()
        told = Notes()
        run(replace(mine, program=(), seed=1), until="synthesize", reporter=told)
    assert any(f"{WRITER} was compiled on other labelled rows and is not used" in text for text in told.notes)


def test_a_run_drops_what_does_not_help_and_says_so(config: RunConfig) -> None:
    with serve(served(learning=False)) as server:
        mine, told = on(server, config, program=(WRITER,)), Notes()
        old = mine.folder / "programs" / f"{WRITER}.json"
        old.parent.mkdir(parents=True)
        old.write_text("{}")
        run(mine, until="compile", reporter=told)
        assert any(f"{WRITER} stays as it is: bootstrap did not beat it" in text for text in told.notes)
        assert not old.exists()


def test_a_whole_method_names_the_parts_that_it_leaves_out(config: RunConfig) -> None:
    with serve(served(learning=False)) as server:
        told = Notes()
        run(on(server, config, program=("textbook",)), until="compile", reporter=told)
    left_out = [text for text in told.notes if "has no metric from labels" in text]
    assert [text.split(" ")[0] for text in left_out] == ["textbook.passage", "textbook.grade"]
    assert {name for name, _ in told.stages if "textbook" in name} == {
        "compile textbook.exercise",
        "compile textbook.open_exercise",
    }


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"program": ("evolve",)}, "unknown program 'evolve'"),
        ({"program": ("evol_instruct.rewrite",)}, "unknown program 'evol_instruct.rewrite'"),
        (
            {"program": ("textbook.passage",)},
            "textbook.passage has no metric from labels: labels are of the task's rows",
        ),
        ({"program": ("chain_of_abstraction",)}, "needs answers that are numbers"),
        ({"program": ("adaptation",)}, "related"),
        ({"program": (WRITER,), "optimizer": "knn"}, "--optimizer knn shows labelled rows"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_any_call(
    config: RunConfig, changes: dict[str, Any], error: str
) -> None:
    with serve(served(learning=True)) as server:
        with pytest.raises(InputError, match=re.escape(error)) as caught:
            run(on(server, config, **changes), until="compile")
        assert not server.bodies
    assert not (config.folder / "run.toml").exists()
    if "unknown" in error:
        assert {"label_conditioned", WRITER, "evol_instruct.evolve"} <= set(str(caught.value.valid).split(", "))
        assert "textbook.passage" not in str(caught.value.valid)


def test_the_python_api_compiles_programs_in_their_stage_alone(config: RunConfig) -> None:
    with pytest.raises(InputError, match="by the stage compile alone"):
        run(replace(config, program=(WRITER,)))
    assert not config.folder.exists()


def test_a_program_is_no_part_of_the_runs_identity_and_the_forecast_names_it(config: RunConfig) -> None:
    more = replace(config, program=(WRITER,))
    assert more.identity() == config.identity()
    assert more.same_run(config)
    assert any(f"--program {WRITER}" in text for text in forecast(more).warnings)


def test_the_command_line_takes_programs_for_compile_alone(config: RunConfig) -> None:
    given = ["--labels", config.labels, "--output", "label", "--out", config.out, "--program", "evolve"]
    for command in ("run", "synthesize", "evaluate"):
        done = CliRunner().invoke(app, [command, *given])
        assert isinstance(done.exception, InputError)
        assert done.exception.message == "--program is for limbeck compile alone"
    done = CliRunner().invoke(app, ["compile", *given])
    assert isinstance(done.exception, InputError)
    assert "unknown program 'evolve'" in done.exception.message


@pytest.mark.slow
def test_the_embedded_model_compiles_a_program_and_writes_with_what_it_has(config: RunConfig, embedded: Any) -> None:
    told = Notes()
    mine = replace(config, teacher="embedded", program=("label_conditioned",), labels=config.labels)
    run(mine, until="compile", reporter=told)
    (said,) = [text for text in told.notes if text.startswith(WRITER)]
    path = mine.folder / "programs" / f"{WRITER}.json"
    assert path.exists() == (f"{WRITER} is compiled by bootstrap" in said)
    again = Notes()
    run(mine, until="compile", reporter=again)
    assert (f"compile {WRITER}", True) in again.stages
    run(read_config(mine.folder), until="synthesize")
    assert read_records(mine.folder / "data" / "candidates.parquet")
