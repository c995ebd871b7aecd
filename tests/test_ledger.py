"""The ledger: durable, shared by threads, copied from earlier runs, clear when the file is no good."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError, LimbeckError
from limbeck.ledger import CallRow, Ledger, Totals

ROW = CallRow("generate", "m", "teacher", {"messages": [["user", "hi"]]}, {"text": "yes"}, 3, 2, 1, 0.5, 7.0)


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path / "run" / "ledger.sqlite") as opened:
        yield opened


def test_a_call_survives_reopening_with_every_field(tmp_path: Path):
    row = replace(ROW, metered=True, usd=None)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_call("k", row)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.get_call("k") == row
        assert ledger.get_call("other") is None
        assert ledger.calls(role="teacher") == [row]
        assert ledger.calls(role="student") == []


def test_totals_add_up_over_processes_and_count_a_key_once(tmp_path: Path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_call("a", ROW)
        ledger.put_call("a", ROW)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put_call("b", replace(ROW, metered=True, usd=None))
        ledger.get_call("b")
        assert ledger.totals() == Totals(0.5, 2, 1, 6, 4, unpriced=1)
        assert ledger.totals(metered=True) == Totals(0.0, 1, 0, 3, 2, unpriced=1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.characters(categories=["Cs"]), key=st.text(max_size=9))
def test_any_text_comes_back_unchanged(ledger: Ledger, text: str, key: str):
    name = f"{key!r}{text!r}"
    ledger.put_call(name, replace(ROW, response={"text": text}))
    found = ledger.get_call(name)
    assert found is not None
    assert found.response["text"] == text


def test_once_pays_for_a_key_once_though_many_threads_ask(ledger: Ledger):
    made: list[int] = []
    barrier = threading.Barrier(8)
    hits: list[bool] = []

    def make() -> CallRow:
        made.append(1)
        return ROW

    def ask():
        barrier.wait()
        hits.append(ledger.once("k", make)[1])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(hits) == [False] + [True] * 7


def test_once_lets_the_next_try_after_a_failure(ledger: Ledger):
    def fail() -> CallRow:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        ledger.once("k", fail)
    assert ledger.once("k", lambda: ROW) == (ROW, False)
    assert ledger.once("k", fail) == (ROW, True)


def test_stages_and_events_are_kept_in_order(ledger: Ledger):
    ledger.finish_stage("compile", "h1", {"kept": 3}, 1.5)
    ledger.finish_stage("compile", "h1", {"kept": 4}, 2.5)
    ledger.finish_stage("evaluate", "h2", {}, 0.5)
    ledger.event("retry", wait=2.0)
    ledger.event("interrupted")
    assert ledger.stage("compile", "h1") == {"kept": 4}
    assert ledger.stage("compile", "h3") is None
    assert {(s.name, s.key, s.seconds) for s in ledger.stages()} == {
        ("compile", "h1", 2.5),
        ("evaluate", "h2", 0.5),
    }
    assert [e.kind for e in ledger.events()] == ["retry", "interrupted"]
    assert ledger.events("retry")[0].data == {"wait": 2.0}


# -- earlier runs ------------------------------------------------------------------------------------------


def test_a_call_of_an_earlier_run_is_copied_in_and_costs_nothing(tmp_path: Path):
    old = tmp_path / "old.sqlite"
    with Ledger(old) as ledger:
        ledger.put_call("k", ROW)
    with Ledger(tmp_path / "new.sqlite", siblings=[old, tmp_path / "gone.sqlite"]) as ledger:
        assert ledger.get_call("k") == ROW
        assert ledger.totals() == Totals(cached_calls=1)
    old.unlink()
    with Ledger(tmp_path / "new.sqlite") as ledger:
        assert ledger.get_call("k") == ROW
        assert ledger.totals() == Totals(cached_calls=1)


def test_an_earlier_run_that_is_still_going_is_read_and_never_written(tmp_path: Path):
    with Ledger(tmp_path / "old.sqlite") as old, Ledger(tmp_path / "b.sqlite", siblings=[old.path]) as new:
        old.put_call("k", ROW)
        assert new.get_call("k") == ROW
        new.put_call("mine", ROW)
        assert old.get_call("mine") is None


def test_the_own_file_is_no_sibling(tmp_path: Path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put_call("k", ROW)
    with Ledger(path, siblings=[path]) as ledger:
        assert ledger.events() == []
        assert ledger.totals().calls == 1


def garbage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t(x)")
    db.close()


@pytest.mark.parametrize("spoil", [garbage, foreign])
def test_a_spoilt_sibling_is_skipped_with_an_event(tmp_path: Path, spoil: Callable[[Path], None]):
    spoil(tmp_path / "old.sqlite")
    with Ledger(tmp_path / "l.sqlite", siblings=[tmp_path / "old.sqlite"]) as ledger:
        assert ledger.get_call("k") is None
        assert [e.kind for e in ledger.events()] == ["sibling_skipped"]


def test_a_sibling_that_breaks_while_in_use_is_dropped(tmp_path: Path):
    old = tmp_path / "old.sqlite"
    with Ledger(old) as ledger:
        ledger.put_call("k", ROW)
    with Ledger(tmp_path / "l.sqlite", siblings=[old]) as ledger:
        with sqlite3.connect(old) as db:
            db.execute("DROP TABLE calls")
        db.close()
        assert ledger.get_call("k") is None
        assert ledger.events("sibling_skipped")[0].data["reason"].startswith("no such table")


# -- what can go wrong ---------------------------------------------------------------------------------------


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path):
    garbage(tmp_path / "l.sqlite")
    with pytest.raises(LimbeckError, match=r"l\.sqlite.*\n.*valid.*\n.*--out DIR"):
        Ledger(tmp_path / "l.sqlite")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match=r"cannot use the ledger .*l\.sqlite"):
        Ledger(tmp_path / "file" / "l.sqlite")
    with pytest.raises(LimbeckError, match="unable to open"):
        Ledger(tmp_path)


def test_a_ledger_of_another_version_is_refused(tmp_path: Path):
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InputError, match="schema 99"):
        Ledger(path)


def test_a_full_disk_says_so_and_keeps_what_was_stored(tmp_path: Path):
    script = (
        "import sqlite3, sys\n"
        "real = sqlite3.connect\n"
        "def small(*args, **kwargs):\n"
        "    db = real(*args, **kwargs)\n"
        "    db.execute('PRAGMA max_page_count=30')\n"  # SQLite's own way to have no room
        "    return db\n"
        "sqlite3.connect = small\n"
        "from limbeck.ledger import CallRow, Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for i in range(1000):\n"
        "    ledger.put_call(str(i), CallRow('generate', 'm', 'r', {}, {'text': 'x' * 900}))\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "l.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "LimbeckError" in done.stderr
    assert "every finished call is kept" in done.stderr
    assert "free some space and run the same command again" in done.stderr
    with Ledger(path) as ledger:
        assert ledger.totals().calls == len(done.stdout.split()) > 10


def test_a_killed_process_loses_no_call_it_had_acknowledged(tmp_path: Path):
    script = (
        "import sys\n"
        "from limbeck.ledger import CallRow, Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    ledger.put_call(str(i), CallRow('generate', 'm', 'r', {}, {'text': str(i)}))\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "l.sqlite"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
    with Ledger(path) as ledger:
        rows: list[Any] = [ledger.get_call(str(i)) for i in acknowledged]
        assert [row.response["text"] for row in rows] == [str(i) for i in acknowledged]
        assert ledger.totals().calls - len(acknowledged) in (0, 1)
