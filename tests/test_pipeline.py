"""The whole way on the embedded model, at a size that ends in a minute or two."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import answer, serve
from tiny_run import SMALL, write_rows

from limbeck.errors import BudgetExceeded, InputError
from limbeck.pipeline.config import EFFORTS, RunConfig, check, read_config, write_config
from limbeck.pipeline.deploy import load_run
from limbeck.pipeline.forecast import forecast
from limbeck.pipeline.run import run
from limbeck.records import read_records

WEATHER = [
    "Rain has flooded the harbour since noon",
    "Hail the size of plums broke two windows",
    "It is minus nine and the pond froze over",
    "Thick fog sits on the valley this morning",
    "A storm tore the roof off our barn",
    "Not one cloud, thirty degrees in the shade",
    "The first snow fell on the ridge tonight",
    "Thunder woke the whole street at four",
    "A mild breeze and sunshine until evening",
    "Drizzle again, bring an umbrella",
    "Wind from the north with gusts of eighty",
    "The heat wave goes into its third week",
    "Frost killed the apple blossom",
    "Black clouds gather behind the church tower",
    "Lightning struck the old oak by the mill",
]
TRAFFIC = [
    "Bus 14 stopped at the market and will not go on",
    "The night train was cancelled without notice",
    "A lorry lost its load on the ring road",
    "My tram came twenty minutes late",
    "Both lanes of the bridge are closed for repairs",
    "No taxi to be had at the station",
    "The ferry leaves from pier two instead of five",
    "Where can I park near the town hall?",
    "A broken signal holds up every train to Leeds",
    "Cyclists have no safe way across this junction",
    "The ticket machine swallowed my coins",
    "Diversion for line 7 because of a burst pipe",
    "Two cars collided at the roundabout",
    "The escalator down to platform three is out of order",
    "Rush hour: half an hour for one mile",
]


def _rows(n: int, start: int = 0) -> list[dict[str, str]]:
    """Return rows of both classes in turn; 30 different ones."""
    both = [
        (text, label)
        for pair in zip(WEATHER, TRAFFIC, strict=True)
        for text, label in zip(pair, ("weather", "traffic"), strict=True)
    ]
    return [{"message": text, "label": label} for text, label in both[start : start + n]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(EFFORTS, "quick", SMALL)  # pyright: ignore[reportArgumentType, reportUnknownMemberType]
    return RunConfig(
        out=str(tmp_path / "run"),
        labels=write_rows(tmp_path / "labels.jsonl", _rows(12)),
        output=("label",),
        test=write_rows(tmp_path / "test.jsonl", _rows(10, 12)),
        unlabeled=write_rows(tmp_path / "pool.jsonl", [{"message": r["message"]} for r in _rows(8, 22)]),
    )


class Recording:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.warnings: list[str] = []

    def stage(self, name: str, *, cached: bool = False) -> None:
        self.stages.append((name, cached))

    def note(self, text: str) -> None:
        assert text

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, what: str, done: int, total: int, detail: str = "") -> None:
        assert 0 <= done <= max(total, done)


@pytest.mark.slow
def test_the_whole_way_and_again(config: RunConfig, embedded: Any) -> None:
    report = run(config, reporter=Recording()).report
    assert report is not None
    systems = report["systems"]
    assert {"teacher", "teacher_compiled", "student_base", "student_gold_only", "student", "linear_probe"} <= set(
        systems
    )
    assert report["n_test"] == 10
    for entry in systems.values():
        assert entry["ci95"][0] <= entry["score"] <= entry["ci95"][1]
    assert systems["student_gold_only"]["score"] >= systems["student_base"]["score"] - 0.2
    assert report["verdict"]["reason"]
    assert report["cost"]["calls"] > 0

    tuned = next(stage for stage in report["stages"] if stage["name"] == "finetune student")
    assert {one["demos"] for one in tuned["tried"]} == {False, True}

    curated = next(stage for stage in report["stages"] if stage["name"] == "curate")
    assert curated["odd_labels"]["rows"] == 12, "what the labelers say of the user's own labels"
    assert {reason: n for reason, n in curated["rejected"].items() if reason not in curated["examples"]} == {}

    folder = config.folder
    # Demonstrations are counted into every prompt; where the plain prompt wins, it is less.
    assert 0.7 < forecast(config).total.tokens_in / _teacher_tokens(folder) < 4.0
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert stored["systems"].keys() == systems.keys()
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, entry in systems.items():
        assert sum(row["systems"][name]["score"] for row in said) / 10 == pytest.approx(entry["score"])
        assert all(
            (row["systems"][name]["prediction"]["label"] == row["label"]["label"]) == row["systems"][name]["score"]
            for row in said
        )
    test = {json.loads(line)["message"] for line in Path(config.test).read_text(encoding="utf-8").splitlines()}
    kept = read_records(folder / "data" / "kept.parquet")
    rejected = read_records(folder / "data" / "rejected.parquet")
    assert kept
    assert not test & {str(r.inputs["message"]) for r in kept}
    assert all(r.reason for r in rejected)
    assert all(r.provenance.teacher == "embedded" and r.provenance.prompt_hash for r in kept + rejected)

    again = Recording()
    calls = _calls(folder)
    second = run(config, reporter=again).report
    assert _calls(folder) == calls, "a finished run makes no call"
    assert second is not None
    assert second["systems"]["teacher"]["score"] == systems["teacher"]["score"]
    assert ("compile", True) in again.stages

    # The folder is enough: the files that the run began with may be gone.
    Path(config.labels).unlink()
    deployed = load_run(folder, "student")
    assert deployed.task.fingerprint
    (answer,) = deployed.predict([{"message": "Bus number 7 is late at the harbour"}], probabilities=True)
    assert answer["label"] in {"traffic", "weather"}
    assert sum(answer["label_probabilities"].values()) == pytest.approx(1.0)


def _teacher_tokens(folder: Path) -> int:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return int(ledger.execute("select sum(tokens_in) from calls where role = 'teacher'").fetchone()[0])


def _calls(folder: Path) -> int:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return int(ledger.execute("select count(*) from calls").fetchone()[0])


@pytest.mark.slow
def test_with_one_label_a_class_rows_are_labelled_by_what_saw_no_label(config: RunConfig, embedded: Any) -> None:
    labels = _rows(2)
    run(replace(config, labels=write_rows(Path(config.labels), labels)), until="curate", reporter=Recording())
    folder = config.folder
    rows = [*read_records(folder / "data" / "kept.parquet"), *read_records(folder / "data" / "rejected.parquet")]
    assert len(rows) >= 8
    assert {r.provenance.block for r in rows} == {-1}
    pooled = [r for r in rows if r.soft]
    assert pooled
    assert all(sum(r.soft.values()) == pytest.approx(1.0) for r in pooled if r.soft)
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        (payload,) = ledger.execute("select payload from stages where name = 'curate'").fetchone()
    model = json.loads(payload)["label_model"]
    # The student and the probe saw the rows they would be weighed on: no vote.
    assert set(model["weights"]) <= {"teacher", "encoder"}


@pytest.mark.slow
def test_personal_data_is_counted_and_dropped_where_asked(config: RunConfig, embedded: Any) -> None:
    personal = {"message": "Write to ann.lee@example.org about the flooded harbour road"}
    write_rows(Path(config.unlabeled), [personal, {"message": "A lorry blocks the harbour road"}])
    config = replace(config, synthetic_rows=0)
    counting = Recording()
    run(config, reporter=counting, until="curate")
    assert any("1 email" in text and "--pii mask" in text for text in counting.warnings)
    kept = config.folder / "data" / "kept.parquet"
    found = [*read_records(kept), *read_records(config.folder / "data" / "rejected.parquet")]
    assert not any(r.reason.startswith("pii") for r in found)

    calls = _calls(config.folder)
    run(replace(config, pii="drop", rule=("all",)), reporter=Recording(), until="curate")
    rejected = read_records(config.folder / "data" / "rejected.parquet")
    assert [r.inputs for r in rejected if r.reason == "pii_email"] == [personal]
    run(replace(config, pii="mask"), reporter=Recording(), until="curate")
    found = [*read_records(kept), *read_records(config.folder / "data" / "rejected.parquet")]
    assert any("<EMAIL_1>" in str(r.inputs["message"]) for r in found)
    assert _calls(config.folder) == calls, "curation asks the teacher nothing"

    labelled = len(Path(config.labels).read_text(encoding="utf-8").splitlines())
    for _ in range(2):  # a model is asked about the labelled rows, once; no row here is written
        run(replace(config, rule=("toxic",)), reporter=Recording(), until="curate")
        assert _calls(config.folder) == calls + labelled
    with sqlite3.connect(config.folder / "ledger.sqlite") as ledger:
        query = "select payload from stages where name = 'curate' order by created desc limit 1"
        log = json.loads(ledger.execute(query).fetchone()[0])["log"]["toxic"]
    assert log["labelled"] + log["unreadable"] == labelled
    assert (log.get("threshold", 0.0) >= 0.5) or log["refused"]


@pytest.mark.slow
def test_a_second_round_writes_what_the_student_got_wrong(
    config: RunConfig, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "quick", replace(SMALL, demos=(False,)))  # pyright: ignore[reportArgumentType]
    config = replace(config, rounds=2, synthetic_rows=6)
    run(config, reporter=Recording(), until="finetune")
    folder = config.folder
    first = read_records(folder / "data" / "candidates.parquet")
    second = read_records(folder / "data" / "candidates-2.parquet")
    assert second[: len(first)] == first
    written = second[len(first) :]
    assert written
    assert not {r.provenance.seed for r in written} & {r.provenance.seed for r in first}
    stages = _stages(folder)
    assert {"synthesize-2", "curate-2"} <= set(stages)
    assert stages.count("finetune student") == 1, "only the better round's student is trained on all rows"

    calls = _calls(folder)
    again = Recording()
    run(config, reporter=again, until="finetune")
    assert _calls(folder) == calls
    assert _stages(folder) == stages
    assert ("curate-2", True) in again.stages


def _stages(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return [str(row[0]) for row in ledger.execute("select name from stages order by rowid")]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_calls_nothing_twice(config: RunConfig, embedded: Any) -> None:
    command = [sys.executable, "-m", "limbeck.cli", "compile", "--labels", config.labels, "--output", "label"]
    command += ["--test", config.test, "--out", config.out]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = _start(command, environment)
    ledger = config.folder / "ledger.sqlite"
    for _ in range(1200):
        if process.poll() is not None or (ledger.exists() and _some_calls(ledger)):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode in (0, 130), shown
    if process.returncode == 130:
        assert f"limbeck compile {config.out}" in shown
        assert "Traceback" not in shown
    before = _calls(config.folder)
    done = subprocess.run([sys.executable, "-m", "limbeck.cli", "compile", config.out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _calls(config.folder) >= before


def test_an_interrupted_run_asks_a_server_nothing_twice(config: RunConfig) -> None:
    with serve(lambda body, n: replace(answer("traffic"), wait=0.2)) as server:
        options = ["--labels", config.labels, "--output", "label", "--teacher", "openai/gpt-5-mini"]
        options += ["--api-base", server.url, "--out", config.out]
        environment = {**os.environ, "OPENAI_API_KEY": "sk-test"}
        command = [sys.executable, "-m", "limbeck.cli", "compile"]
        process = _start([*command, *options], environment)
        while process.poll() is None and len(server.bodies) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
        assert process.returncode == 130, shown
        asked = len(server.bodies)
        done = subprocess.run([*command, config.out], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        sent = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert 3 <= asked < len(sent)
    assert len(sent) == len(set(sent))


def test_a_second_interrupt_does_not_wait_for_a_slow_server(config: RunConfig) -> None:
    with serve(lambda body, n: replace(answer("traffic"), wait=1.0 if n < 4 else 60.0)) as server:
        command = [sys.executable, "-m", "limbeck.cli", "compile", "--labels", config.labels, "--output", "label"]
        command += ["--teacher", "openai/gpt-5-mini", "--api-base", server.url, "--out", config.out]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": "sk-test"}
        process = _start(command, environment)
        assert process.stderr is not None
        while process.poll() is None and len(server.bodies) < 5:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown = ""
        while "Ctrl-C again" not in shown and (line := process.stderr.readline()):
            shown += line
        process.send_signal(signal.SIGINT)
        shown += process.communicate(timeout=30)[1]
    assert process.returncode == 130, shown
    assert f"limbeck compile {config.out}" in shown
    assert "Traceback" not in shown


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a command that SIGINT reaches, also where these tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)


def _some_calls(ledger: Path) -> bool:
    try:
        with sqlite3.connect(ledger) as connection:
            return int(connection.execute("select count(*) from calls").fetchone()[0]) > 2
    except sqlite3.OperationalError:
        return False


@pytest.mark.slow
def test_a_spent_budget_stops_before_the_next_call(config: RunConfig, embedded: Any) -> None:
    with pytest.raises(BudgetExceeded, match="tokens"):
        run(replace(config, max_tokens=600))
    spent = _calls(config.folder)
    with pytest.raises(BudgetExceeded):
        run(replace(config, max_tokens=600))
    assert _calls(config.folder) - spent <= 1


def test_dry_run_calls_nothing(config: RunConfig) -> None:
    plan = forecast(config)
    assert plan.total.calls > 0
    assert plan.usd == 0.0
    assert not config.folder.exists()


def test_dry_run_counts_further_rounds_at_their_most(config: RunConfig) -> None:
    once, thrice = (forecast(replace(config, rounds=rounds)) for rounds in (1, 3))
    (more,) = [line for line in thrice.lines if line.stage == "rounds 2 to 3, at most"]
    # Half of the 6 rows a round: 6 rows written, five a call, and read back, with all demonstrations as well.
    assert 6 + 2 <= more.calls <= 12 + 2
    assert thrice.total.calls == once.total.calls + more.calls
    assert more.minutes is not None
    assert more.minutes > 0


def test_dry_run_counts_the_calls_that_describe_opaque_labels(config: RunConfig, tmp_path: Path) -> None:
    def compile_calls(names: dict[str, str]) -> int:
        rows = [{**row, "label": names[row["label"]]} for row in _rows(12)]
        labels = write_rows(tmp_path / f"{names['weather']}.jsonl", rows)
        lines = forecast(replace(config, labels=labels, test="")).lines
        return next(line.calls for line in lines if line.stage == "compile")

    plain = compile_calls({"weather": "weather", "traffic": "traffic"})
    # Both prompts with descriptions as well; each label described on all rows and on those outside each fold.
    assert compile_calls({"weather": "WTR", "traffic": "TRF"}) == 2 * plain + 2 * (1 + SMALL.folds)


def test_dry_run_counts_what_a_method_says_of_its_cost(config: RunConfig) -> None:
    def calls(*method: str) -> int:
        lines = forecast(replace(config, method=method, synthetic_rows=20)).lines
        return next(line.calls for line in lines if line.stage == "synthesize")

    plain = calls("label_conditioned")
    assert calls("evol_instruct") > plain + 20
    chained = calls("label_conditioned>evol_instruct")
    assert calls("evol_instruct") < chained < calls("evol_instruct") + plain + 1
    assert plain < calls("label_conditioned", "evol_instruct") < calls("evol_instruct")
    lines = forecast(replace(config, rule=("toxic",))).lines
    assert next(line.calls for line in lines if line.stage == "toxic rows") >= 12
    assert calls("star") <= 12 * 3 + plain, "one row of each labelled one, however many are wanted"


@pytest.mark.parametrize(
    ("changes", "said"), [({"pii": "hide"}, "--pii 'hide'"), ({"rule": ("semantic",)}, "--rule 'semantic'")]
)
def test_rules_that_do_not_exist_are_refused_before_a_call(
    config: RunConfig, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        forecast(replace(config, **changes))
    with pytest.raises(InputError, match=said):
        run(replace(config, **changes))
    assert not config.folder.exists()


def test_configuration_survives_its_file(config: RunConfig) -> None:
    config.folder.mkdir()
    write_config(config, config.folder / "run.toml")
    assert read_config(config.folder) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"effort": "heroic"}, "heroic"),
        ({"labels": ""}, "labels"),
        ({"output": ()}, "--output"),
        ({"max_usd": -1.0}, "--max-usd"),
        ({"test_rows": -5}, "--test-rows"),
        ({"student": "openai/gpt-5-mini"}, "cannot be trained"),
        ({"label_distribution": "even"}, "--label-distribution"),
        ({"label_distribution": '{"traffic": -1}'}, "--label-distribution"),
        ({"max_usd": float("nan")}, "--max-usd"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(config: RunConfig, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(replace(config, **changes))


def test_an_unknown_model_costs_nothing(config: RunConfig) -> None:
    with pytest.raises(Exception, match="nosuch"):
        run(replace(config, teacher="nosuch"))
    assert _calls(config.folder) == 0


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        load_run(tmp_path)
