"""The list of terms, how names resolve to it, and what a run does about it."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from chat_server import Body, answer, serve
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_run import SMALL, write_rows
from typer.testing import CliRunner

from limbeck.cli import app, main
from limbeck.errors import InputError
from limbeck.pipeline.config import EFFORTS, RunConfig, check, read_config, write_config
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.report import render_terminal
from limbeck.terms import catalogue, gguf_strings, resolve, rulings, show_all

VERDICTS = {"allowed", "conditional", "forbidden"}
# Name, family, verdict: the spellings that providers, hosts and files use.
NAMES = [
    ("embedded", "smollm", "allowed"),
    ("openai/gpt-5-mini", "openai", "conditional"),
    ("OpenAI/GPT-4o", "openai", "conditional"),
    ("anthropic/claude-haiku-4-5", "anthropic", "forbidden"),
    ("xai/grok-4", "xai", "forbidden"),
    ("gemini/gemini-2.5-flash", "gemini", "conditional"),
    ("mistral/mistral-large-latest", "mistral-api", "allowed"),
    ("deepseek/deepseek-chat", "deepseek-api", "allowed"),
    ("cohere/command-r-plus", "cohere", "conditional"),
    ("openrouter/meta-llama/llama-3-70b-instruct", "llama-3", "forbidden"),
    ("openrouter/meta-llama/llama-3.3-70b-instruct", "llama-3.1", "conditional"),
    ("openrouter/openai/gpt-5", "openai", "conditional"),
    ("openrouter/openai/gpt-oss-120b", "gpt-oss", "allowed"),
    ("openrouter/anthropic/claude-sonnet-4", "anthropic", "forbidden"),
    ("openrouter/qwen/qwen-2.5-72b-instruct", "qwen-72b", "conditional"),
    ("openrouter/qwen/qwen3-max", "dashscope", "conditional"),
    ("openrouter/deepseek/deepseek-chat-v3-0324", "deepseek-v3.1", "allowed"),
    ("fireworks_ai/accounts/fireworks/models/llama-v3p1-8b-instruct", "llama-3.1", "conditional"),
    ("fireworks_ai/accounts/fireworks/models/llama-v3-8b-instruct", "llama-3", "forbidden"),
    ("fireworks_ai/accounts/fireworks/models/qwen2p5-72b-instruct", "qwen-72b", "conditional"),
    ("together_ai/Qwen/Qwen2.5-72B-Instruct", "qwen-72b", "conditional"),
    ("together_ai/Qwen/Qwen2.5-7B-Instruct-Turbo", "qwen", "allowed"),
    ("together_ai/meta-llama/Llama-3-70b-chat-hf", "llama-3", "forbidden"),
    ("groq/llama3-8b-8192", "llama-3", "forbidden"),
    ("groq/openai/gpt-oss-20b", "gpt-oss", "conditional"),
    ("cerebras/qwen-3-32b", "qwen", "conditional"),
    ("ollama/llama3", "llama-3", "forbidden"),
    ("ollama/llama3.1:8b", "llama-3.1", "conditional"),
    ("ollama/llama2:13b-chat", "llama-2", "forbidden"),
    ("ollama/qwen:7b", "qwen-1", "forbidden"),
    ("ollama/qwen2.5:3b", "qwen-research", "conditional"),
    ("ollama/qwen2.5:7b", "qwen", "allowed"),
    ("ollama/mistral", "mistral", "allowed"),
    ("ollama/phi4", "phi", "allowed"),
    ("ollama/gemma3:4b", "gemma", "conditional"),
    ("ollama/gemma4:e4b", "gemma-4", "allowed"),
    ("ollama/deepseek-r1:14b", "deepseek-r1", "allowed"),
    ("ollama/deepseek-r1:70b", "deepseek-r1-distill-llama", "conditional"),
    ("hosted_vllm/allenai/OLMo-2-1124-7B-Instruct", "olmo", "allowed"),
    ("hf:meta-llama/Llama-2-7b", "llama-2", "forbidden"),
    ("hf:codellama/CodeLlama-7b-hf", "llama-2", "forbidden"),
    ("hf:meta-llama/Meta-Llama-3.1-8B", "llama-3.1", "conditional"),
    ("hf:meta-llama/Llama-4-Scout-17B-16E", "llama-3.1", "conditional"),
    ("hf:cognitivecomputations/dolphin-2.9-llama3-8b", "llama-3", "forbidden"),
    ("hf:huggyllama/llama-7b", "llama", "conditional"),
    ("hf:TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama", "allowed"),
    ("hf:HuggingFaceTB/SmolLM2-360M-Instruct", "smollm", "allowed"),
    ("hf:Qwen/Qwen1.5-7B-Chat", "qwen-1", "forbidden"),
    ("hf:Qwen/Qwen2-72B-Instruct", "qwen-1", "forbidden"),
    ("hf:Qwen/Qwen2-57B-A14B", "qwen", "allowed"),
    ("hf:Qwen/Qwen3-8B", "qwen", "allowed"),
    ("hf:deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-r1-distill-llama", "conditional"),
    ("hf:deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1", "allowed"),
    ("hf:deepseek-ai/DeepSeek-V3", "deepseek-v3", "conditional"),
    ("hf:mistralai/Codestral-22B-v0.1", "mistral-research", "conditional"),
    ("hf:mistralai/Mistral-Small-Instruct-2409", "mistral-research", "conditional"),
    ("hf:mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral", "allowed"),
    ("hf:ibm-granite/granite-3.3-8b-instruct", "granite", "allowed"),
    ("hf:CohereLabs/c4ai-command-r-08-2024", "command", "conditional"),
    ("gguf:/x/y/Meta-Llama-3-8B-Instruct.Q4_K_M.gguf", "llama-3", "forbidden"),
    ("gguf:/x/llama.cpp/models/mine.gguf", "unknown", "conditional"),
    ("gguf:/hub/models--meta-llama--Llama-2-7b/snapshots/ab12/mine.gguf", "llama-2", "forbidden"),
    ("hf:deepcogito/cogito-v1-preview-qwen-14B", "qwen-other", "conditional"),
    ("ibm/granite-13b-chat-v2", "unknown", "conditional"),
    ("llamagate/qwen2.5-coder-7b", "qwen", "allowed"),
    ("Qwen/Qwen3-8B", "qwen", "allowed"),
    ("nebius/Qwen/Qwen3-8B", "qwen", "conditional"),
    ("nobody/heard-of-it", "unknown", "conditional"),
    ("embedded/too", "unknown", "conditional"),
    ("", "unknown", "conditional"),
]


@pytest.mark.parametrize(("name", "family", "verdict"), NAMES)
def test_a_name_resolves_to_its_family(name: str, family: str, verdict: str) -> None:
    for spelling in (name, name.upper(), f" {name.lower()} "):
        ruling = resolve(spelling)
        assert (ruling.family, ruling.verdict) == (family, verdict)
        assert bool(ruling.condition) == (verdict != "allowed")
    assert resolve(name).licence == f"{family}: {verdict}"


@pytest.mark.parametrize(
    ("name", "address", "family", "verdict", "server"),
    [
        ("openai/my-model", "http://localhost:8000/v1", "unknown", "conditional", "local"),
        ("openai/llama3", "http://192.168.0.4:11434/v1", "llama-3", "forbidden", "local"),
        ("openai/Qwen3-8B", "http://vllm:8000/v1", "qwen", "allowed", "local"),
        ("openai/my-model", "https://api.openai.com/v1", "openai", "conditional", "openai"),
        ("mine/Qwen/Qwen3-8B", "https://openrouter.ai/api/v1", "qwen", "allowed", "openrouter"),
        ("openai/Qwen3-8B", "https://llm.example.com/v1", "qwen", "conditional", "other-server"),
        ("openai/glm-4.6", "https://api.z.ai/api/paas/v4", "zai", "forbidden", "zai"),
        ("openai/x", "http://[not-an-address", "unknown", "conditional", "other-server"),
        ("openai/x", "not an address at all", "unknown", "conditional", "other-server"),
        ("embedded", "http://localhost:8000/v1", "smollm", "allowed", "smollm"),
        ("hf:meta-llama/Llama-2-7b", "https://api.openai.com/v1", "llama-2", "forbidden", "local"),
    ],
)
def test_an_address_tells_whose_server_it_is(name: str, address: str, family: str, verdict: str, server: str) -> None:
    ruling = resolve(name, address)
    assert (ruling.family, ruling.verdict, ruling.entries[-1].id) == (family, verdict, server)


@given(st.text(max_size=80), st.one_of(st.just(""), st.text(max_size=60), st.just("http://localhost:1/v1")))
def test_every_name_has_a_verdict(name: str, address: str) -> None:
    ruling = resolve(name, address)
    assert ruling.verdict in VERDICTS
    assert ruling.told().startswith("terms of ")
    if ruling.family == "unknown":
        assert ruling.verdict == "conditional"


@given(
    st.sampled_from(["", "hf:", "gguf:", "openai/", "openrouter/", "ollama/"]),
    st.text("bdfkuvwyz-_/.~\0", max_size=300),
)
def test_a_name_without_a_family_is_conditional(beginning: str, rest: str) -> None:
    ruling = resolve(beginning + "z" + rest, "http://localhost:1/v1")
    assert (ruling.family, ruling.verdict) == ("unknown", "conditional")


# -- files ---------------------------------------------------------------------------------------------------


def _gguf(path: Path, **stated: str) -> Path:
    """Write a GGUF file with the real writer, its tokenizer's table after what it states of itself."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in stated.items():
        writer.add_string("general." + key.replace("__", "."), value)
    writer.add_array("general.tags", ["chat", "text"])
    writer.add_array("llama.some_numbers", [1, 2, 3])
    writer.add_uint32("llama.block_count", 2)
    writer.add_string("llama.last", "read")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("file", "stated", "family", "verdict"),
    [
        ("mine.gguf", {"name": "Meta Llama 3 8B Instruct"}, "llama-3", "forbidden"),
        (
            "mine.gguf",
            {"base_model__0__repo_url": "https://huggingface.co/meta-llama/Llama-2-7b"},
            "llama-2",
            "forbidden",
        ),
        ("mine.gguf", {"license": "llama3"}, "llama-3", "forbidden"),
        ("mine.gguf", {"license": "other", "license__name": "qwen-research"}, "qwen-research", "conditional"),
        ("mine.gguf", {"name": "Mine", "license": "Apache-2.0"}, "open-licence", "allowed"),
        ("mine.gguf", {"name": "Mine"}, "unknown", "conditional"),
        ("Qwen3-8B-Q4_K_M.gguf", {"name": "Qwen3 8B", "license": "apache-2.0"}, "qwen", "allowed"),
        ("Qwen3-8B-Q4_K_M.gguf", {"name": "Llama 2 7b"}, "llama-2", "forbidden"),
        ("Qwen3-8B-Q4_K_M.gguf", {"license": "cc-by-nc-4.0"}, "qwen", "conditional"),
        ("DeepSeek-R1-Distill-Llama-8B.gguf", {"license": "mit"}, "deepseek-r1-distill-llama", "conditional"),
    ],
)
def test_a_gguf_file_says_whose_it_is(
    tmp_path: Path, file: str, stated: dict[str, str], family: str, verdict: str
) -> None:
    path = _gguf(tmp_path / file, **stated)
    found = gguf_strings(path)
    assert found["llama.last"] == "read"
    assert not [key for key in found if key.startswith("tokenizer.")]
    for kind in ("gguf", "hf"):
        ruling = resolve(f"{kind}:{path}")
        assert (ruling.family, ruling.verdict) == (family, verdict)


@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_in_a_gguf_file_are_survived(data: bytes, marked: bool) -> None:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write((b"GGUF" if marked else b"") + data)
        file.flush()
        assert isinstance(gguf_strings(Path(file.name)), dict)


def test_a_file_that_is_not_there_states_nothing(tmp_path: Path) -> None:
    assert gguf_strings(tmp_path / "none.gguf") == {}


@pytest.mark.parametrize(
    ("card", "family", "verdict"),
    [
        ("---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-0.6B\n---\n# Mine\n", "qwen", "allowed"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama-3", "forbidden"),
        ("---\nbase_model:\n- meta-llama/Llama-2-7b-hf\ndatasets:\n- openai/gsm8k\n---\n", "llama-2", "forbidden"),
        (
            "---\ndatasets:\n- openai/gsm8k\nlicense: 'mit'\n---\nbase_model: meta-llama/Llama-2-7b\n",
            "open-licence",
            "allowed",
        ),
        ("no head at all", "unknown", "conditional"),
    ],
)
def test_a_model_folder_says_whose_it_is(tmp_path: Path, card: str, family: str, verdict: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(card, encoding="utf-8")
    ruling = resolve(f"hf:{folder}")
    assert (ruling.family, ruling.verdict) == (family, verdict)
    (folder / "README.md").unlink()
    assert resolve(f"hf:{folder}").family == "unknown"


# -- the list ------------------------------------------------------------------------------------------------


def test_every_entry_says_what_it_rests_on() -> None:
    ids = [entry.id for entry in catalogue()]
    assert len(ids) == len(set(ids)) > 40
    for entry in catalogue():
        assert entry.verdict in VERDICTS
        assert entry.kind in {"weights", "api", "host", "licence"}
        assert date.fromisoformat(entry.read_on) >= date(2026, 1, 1)
        assert not entry.dated or date.fromisoformat(entry.dated) <= date.fromisoformat(entry.read_on)
        assert entry.address.startswith("https://") or entry.id in ("unknown", "other-server")
        assert bool(entry.condition) == (entry.verdict != "allowed"), entry.id
        assert entry.checked or entry.source, f"{entry.id}: not checked against the text, and no source"
        assert entry.summary.endswith(".")
        assert len(entry.summary) <= 115
        assert not entry.condition.endswith(".")
        assert all(name == name.lower() for name in (*entry.providers, *entry.domains, *entry.licences))
        re.compile("|".join(entry.match))


def test_every_provider_that_limbeck_knows_is_in_the_list() -> None:
    from limbeck.models.openai_engine import PROVIDERS

    listed = {name for entry in catalogue() for name in entry.providers}
    assert set(PROVIDERS) <= listed


# -- the command ---------------------------------------------------------------------------------------------


def test_the_list_is_readable_at_80_columns() -> None:
    screen = Console(file=io.StringIO(), width=80)
    show_all(screen)
    shown = str(screen.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    words = shown.split()
    for entry in catalogue():
        assert entry.title.split()[0] in words


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 0, ["OpenAI", "Fireworks AI", "forbidden *", "conditional *"]),
        (
            ["openai/gpt-5-mini"],
            0,
            ["conditional", "does not compete", "services-agreement", "2026-11-25", "unchecked"],
        ),
        (["openai/mine", "--api-base", "http://localhost:8000/v1"], 0, ["conditional", "not in this list"]),
        (["ollama/llama3"], 1, ["forbidden", "1.b.v", "2024-04-18", "unless"]),
        (["embedded"], 0, ["allowed", "Apache-2.0"]),
        (["[red]x[/]"], 0, ["[red]x[/]: conditional"]),
    ],
)
def test_the_command_says_what_the_list_says(words: list[str], status: int, said: list[str]) -> None:
    done = CliRunner().invoke(app, ["terms", *words])
    assert done.exit_code == status
    for text in said:
        assert text in done.stdout


def test_the_command_speaks_json() -> None:
    one = CliRunner().invoke(app, ["terms", "groq/llama3-8b-8192", "--json"])
    found = json.loads(one.stdout)
    assert (one.exit_code, found["family"], found["verdict"]) == (1, "llama-3", "forbidden")
    assert [entry["id"] for entry in found["terms"]] == ["llama-3", "groq"]
    assert {"summary", "address", "read_on", "checked", "condition"} <= set(found["terms"][0])
    everything = json.loads(CliRunner().invoke(app, ["terms", "--json"]).stdout)
    assert [entry["id"] for entry in everything] == [entry.id for entry in catalogue()]


def test_the_list_loads_without_what_a_run_needs() -> None:
    code = "import sys; import limbeck.terms; print({'torch', 'dspy', 'numpy', 'gguf'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# -- runs ----------------------------------------------------------------------------------------------------

TOPICS = {
    "weather": ["rain", "hail", "snow", "fog", "wind", "frost"],
    "traffic": ["bus", "tram", "lane", "taxi", "train", "ferry"],
}


def _rows(start: int, end: int) -> list[dict[str, str]]:
    """Return rows of both classes in turn."""
    pairs = zip(TOPICS["weather"][start:end], TOPICS["traffic"][start:end], strict=True)
    return [
        {"message": f"the {word} again today, number {start}", "label": label}
        for pair in pairs
        for word, label in zip(pair, TOPICS, strict=True)
    ]


def _label(body: Body, _: int) -> Any:
    """Answer like a teacher that knows the words."""
    asked = str(body["messages"][-1]["content"])
    label = "traffic" if any(word in asked for word in TOPICS["traffic"]) else "weather"
    return answer(label, top={label: -0.1, "weather" if label == "traffic" else "traffic": -2.4})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", _rows(0, 4)),
        output=("label",),
        test=write_rows(tmp_path / "test.jsonl", _rows(4, 6)),
        synthetic_rows=0,
    )


@pytest.fixture
def student(tmp_path: Path) -> str:
    """A folder with a tiny random model."""
    tiny, folder = tiny_model("llama"), tmp_path / "tiny"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


class Told:
    """A reporter that keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def stage(self, name: str, *, cached: bool = False) -> None: ...
    def note(self, text: str) -> None: ...
    def step(self, what: str, done: int, total: int, detail: str = "") -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def of_terms(self) -> list[str]:
        return [text for text in self.warnings if text.startswith("terms of")]


def _accepted(folder: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return [json.loads(d) for (d,) in ledger.execute("select data from events where kind = 'terms accepted'")]


def test_a_forbidden_teacher_is_refused_before_anything_is_asked(config: RunConfig) -> None:
    with serve(_label) as server:
        forbidden = replace(config, teacher="openai/llama3", api_base=server.url)
        with pytest.raises(InputError, match=r"terms of the teacher openai/llama3 forbid.*1\.b\.v") as caught:
            run(forbidden)
        assert server.bodies == []
    assert not config.folder.exists()
    said = str(caught.value)
    assert "llama-models/blob/main/models/llama3/LICENSE, dated 2024-04-18, read on 2026-11-25" in said
    assert '--accept-terms "REASON"' in said
    assert "limbeck terms" in said


def test_the_refusal_comes_before_a_model_is_loaded_or_a_file_read(config: RunConfig) -> None:
    missing = replace(config, teacher="gguf:/no/such/Llama-2-7b.gguf", labels="/no/such/rows.jsonl")
    with pytest.raises(InputError, match=r"Llama-2-7b.gguf forbid"):
        run(missing)


def test_a_forbidden_reflection_model_is_refused_as_well(config: RunConfig) -> None:
    with pytest.raises(InputError, match="terms of the reflection model xai/grok-4 forbid"):
        run(replace(config, reflection="xai/grok-4"))
    assert rulings({"teacher": "embedded", "reflection model": ""}, "", "").keys() == {"teacher"}


def test_a_reason_is_kept_with_the_run(config: RunConfig, student: str) -> None:
    reason = "the maker gave written consent"
    with serve(_label) as server:
        accepted = replace(
            config, teacher="openai/llama3", api_base=server.url, student=student, accept_terms=f" {reason} "
        )
        told = Told()
        report = run(accepted, reporter=told).report
        assert report is not None
        asked = len(server.bodies)
        again = Told()
        run(accepted, reporter=again)
        assert len(server.bodies) == asked, "what is finished is not done twice"
    assert asked > 0
    terms = json.loads((config.folder / "report.json").read_text(encoding="utf-8"))["terms"]
    assert {name: terms[name] for name in ("model", "family", "verdict", "reason")} == {
        "model": "openai/llama3",
        "family": "llama-3",
        "verdict": "forbidden",
        "reason": reason,
    }
    assert "itself Llama 3" in terms["condition"]
    assert [entry["id"] for entry in terms["by_role"]["teacher"]["terms"]] == ["llama-3", "local"]
    (event,) = _accepted(config.folder)
    assert (event["role"], event["verdict"], event["reason"]) == ("teacher", "forbidden", reason)
    (line,) = told.of_terms()
    assert "forbidden" in line
    assert reason in line
    assert again.of_terms() == []
    assert line in report["warnings"]
    screen = Console(file=io.StringIO(), width=120)
    screen.print(render_terminal(report))
    shown = str(screen.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    assert f"terms of openai/llama3: forbidden; gone on because: {reason}" in shown
    assert read_config(config.folder).accept_terms == f" {reason} "


def test_a_condition_is_told_once_a_run_and_not_once_a_start(config: RunConfig) -> None:
    with serve(_label) as server:
        conditional = replace(config, teacher="openai/mine", api_base=server.url)
        first, second = Told(), Told()
        run(conditional, until="compile", reporter=first)
        run(conditional, until="compile", reporter=second)
    (line,) = first.of_terms()
    assert "have read its licence" in line
    assert "\n" not in line
    assert second.of_terms() == []
    assert _accepted(config.folder) == []


def test_the_dry_run_tells_what_a_run_would_say(config: RunConfig) -> None:
    teacher = "openai/llama3"
    plan = forecast(replace(config, teacher=teacher, api_base="http://localhost:1/v1"))
    assert any("forbidden" in text and "--accept-terms" in text for text in plan.warnings)
    allowed = forecast(config)
    assert not any(text.startswith("terms of") for text in allowed.warnings)


@pytest.mark.parametrize("reason", ["", "  ", "\t\n"])
def test_a_blank_reason_is_refused(config: RunConfig, reason: str) -> None:
    command = ["run", "--labels", config.labels, "--output", "label", "--dry-run", "--accept-terms", reason]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, InputError)
    assert "gives no reason" in str(done.exception)
    if reason:
        with pytest.raises(InputError, match="gives no reason"):
            check(replace(config, accept_terms=reason))


def test_the_command_line_refuses_with_status_2(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["limbeck", "run", "--labels", config.labels, "--output", "label", "--out", config.out]
    monkeypatch.setattr(sys, "argv", [*command, "--teacher", "hf:meta-llama/Llama-2-7b"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert "limbeck: the terms of the teacher hf:meta-llama/Llama-2-7b forbid" in shown.err
    assert not config.folder.exists()


def test_a_reason_changes_no_result_and_no_folder(config: RunConfig) -> None:
    accepted = replace(config, accept_terms="consent")
    assert accepted.identity() == config.identity()
    assert "accept_terms" not in config.identity()
    assert accepted.same_run(config)


def test_a_run_folder_from_before_the_option_still_reads(config: RunConfig) -> None:
    config.folder.mkdir()
    path = config.folder / "run.toml"
    write_config(replace(config, accept_terms='"quoted" \\ reason'), path)
    assert read_config(config.folder).accept_terms == '"quoted" \\ reason'
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("accept_terms")]
    path.write_text("\n".join([*kept, 'from_a_later_version = "x"']) + "\n", encoding="utf-8")
    assert "accept_terms" not in tomllib.loads(path.read_text(encoding="utf-8"))
    assert read_config(config.folder) == config


def test_a_report_from_before_the_field_is_still_shown(config: RunConfig) -> None:
    report = {"task": "t", "metric": "accuracy", "n_test": 4, "seed": 0, "systems": {}}
    report |= {"verdict": {"reason": "r", "ship": False}}
    screen = Console(file=io.StringIO(), width=120)
    screen.print(render_terminal(report))
    assert "terms of" not in str(screen.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


@pytest.mark.slow
def test_the_embedded_teacher_runs_as_before(config: RunConfig, embedded: Any) -> None:
    told = Told()
    run(config, until="compile", reporter=told)
    assert told.of_terms() == []
    assert _accepted(config.folder) == []
