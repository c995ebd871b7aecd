"""The ledger: one SQLite file per run that remembers every model call, stage and event.

It is the response cache, the resume point, the budget's meter and the report's source. Every call is its own
transaction (WAL, synchronous=NORMAL), so a killed process loses the calls in flight and nothing else. A call
that an earlier run (`siblings`) has paid for is copied in instead of being made again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import InputError, LimbeckError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE calls(
    key TEXT PRIMARY KEY, created REAL NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL, role TEXT NOT NULL,
    request TEXT NOT NULL, response TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, usd REAL, ms REAL NOT NULL,
    metered INTEGER NOT NULL, copied INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE stages(
    name TEXT NOT NULL, key TEXT NOT NULL, created REAL NOT NULL, seconds REAL NOT NULL,
    payload TEXT NOT NULL, PRIMARY KEY(name, key)
);
CREATE TABLE events(id INTEGER PRIMARY KEY, created REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL);
"""
_CALL_COLUMNS = "kind, model, role, request, response, tokens_in, tokens_out, cached_tokens, usd, ms, metered"


@dataclass(frozen=True)
class CallRow:
    """One model call: what was asked, what came back and what it cost.

    `usd` is None where the model's price is not known; `ms` is the caller's waiting time, retries included;
    `metered` says that a budget counted it.
    """

    kind: Literal["generate", "score"]
    model: str
    role: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    usd: float | None = 0.0
    ms: float = 0.0
    metered: bool = False


@dataclass(frozen=True)
class StageRow:
    """One finished stage: its name, the hash of everything it depends on, its JSON payload and seconds."""

    name: str
    key: str
    payload: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Event:
    """One thing that happened: seconds since the epoch, a kind and its data."""

    created: float
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Totals:
    """What a run has spent: `calls` were paid for here, `cached_calls` were answered from a ledger.

    `usd` leaves out the `unpriced` calls, whose model's price is not known.
    """

    usd: float = 0.0
    calls: int = 0
    cached_calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unpriced: int = 0

    def __add__(self, other: Totals) -> Totals:
        """Add two totals field by field."""
        return Totals(
            self.usd + other.usd,
            self.calls + other.calls,
            self.cached_calls + other.cached_calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.unpriced + other.unpriced,
        )


@dataclass
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Ledger:
    """One run's ledger; safe to share between threads, safe to kill.

    `siblings` are the ledgers of earlier runs: read only, and skipped with an event when they cannot be read.

    >>> import tempfile
    >>> with Ledger(Path(tempfile.mkdtemp()) / "ledger.sqlite") as ledger:
    ...     ledger.put_call("k", CallRow("generate", "m", "teacher", {}, {"text": "hello"}, tokens_in=3))
    ...     ledger.get_call("k").response["text"], ledger.totals().tokens_in
    ('hello', 3)
    """

    def __init__(
        self, path: Path | str, *, siblings: Sequence[Path] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.RLock()
        self._turns: dict[str, _Turn] = {}
        self._open()
        self._hits = 0
        self._siblings = [db for s in siblings if (db := self._open_sibling(Path(s))) is not None]
        self._all, self._metered = self._read_totals("1=1"), self._read_totals("metered=1")

    # -- opening ---------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._guard():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            with self._guard():
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._migrate()
        except BaseException:
            self._db.close()
            raise

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._db.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            raise InputError(
                f"{self.path} was written by another version of limbeck (schema {version})",
                valid=f"schema {SCHEMA_VERSION}",
                hint="choose another run folder with --out DIR",
            )

    def _open_sibling(self, path: Path) -> sqlite3.Connection | None:
        """Open an earlier run's ledger read only, or say in an event why it cannot serve."""
        if path.resolve() == self.path.resolve() or not path.is_file():
            return None
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1, check_same_thread=False)
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version == SCHEMA_VERSION:
                db.execute("SELECT 1 FROM calls LIMIT 1").fetchone()
                return db
            reason = f"schema {version}"
        except sqlite3.Error as error:
            reason = str(error)
        if db is not None:
            db.close()
        self.event("sibling_skipped", path=str(path), reason=reason)
        return None

    @contextmanager
    def _guard(self) -> Generator[None]:
        """Hold the lock and turn SQLite's errors into ones that say what to do."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                text = str(error).lower()
                if any(sign in text for sign in ("full", "disk i/o", "no space")):
                    raise LimbeckError(
                        f"cannot write {self.path}: {error}; every finished call is kept",
                        valid="free disk space",
                        hint="free some space and run the same command again: it goes on from here",
                    ) from error
                raise LimbeckError(
                    f"cannot use the ledger {self.path}: {error}",
                    valid="a ledger.sqlite that limbeck wrote and no other program holds locked",
                    hint="move the file away or choose another run folder with --out DIR",
                ) from error

    def close(self) -> None:
        """Close the file and the siblings; the ledger cannot be used afterwards."""
        with self._lock:
            for db in (self._db, *self._siblings):
                db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- calls -----------------------------------------------------------------------------------------------

    def get_call(self, key: str) -> CallRow | None:
        """Return the answer that this run, or an earlier one, already has for a key; count it as a hit."""
        with self._guard():
            row = self._select(self._db, key)
            if row is None:
                row = self._from_siblings(key)
            if row is not None:
                self._hits += 1
            return row

    def _select(self, db: sqlite3.Connection, key: str) -> CallRow | None:
        with closing(db.execute(f"SELECT {_CALL_COLUMNS} FROM calls WHERE key=?", (key,))) as cursor:
            found = cursor.fetchone()
        return None if found is None else _call_row(found)

    def _from_siblings(self, key: str) -> CallRow | None:
        for db in list(self._siblings):
            try:
                row = self._select(db, key)
            except (sqlite3.Error, ValueError) as error:
                self._siblings.remove(db)
                db.close()
                self.event("sibling_skipped", reason=str(error))
                continue
            if row is not None:
                self._insert(key, row, copied=True)
                return row
        return None

    def put_call(self, key: str, row: CallRow) -> None:
        """Store a paid call under its key and add it to the totals; a key that is there already stays.

        Raises LimbeckError when the disk is full.
        """
        with self._guard():
            if self._insert(key, row, copied=False):
                spent = Totals(row.usd or 0.0, 1, 0, row.tokens_in, row.tokens_out, int(row.usd is None))
                self._all += spent
                if row.metered:
                    self._metered += spent

    def _insert(self, key: str, row: CallRow, *, copied: bool) -> bool:
        values = (
            *(key, self._clock(), row.kind, row.model, row.role, _dump(row.request), _dump(row.response)),
            *(row.tokens_in, row.tokens_out, row.cached_tokens, row.usd, row.ms, row.metered, copied),
        )
        marks = ",".join("?" * len(values))
        return self._db.execute(f"INSERT OR IGNORE INTO calls VALUES({marks})", values).rowcount == 1

    def once(
        self, key: str, make: Callable[[], CallRow], *, hold: AbstractContextManager[Any] | None = None
    ) -> tuple[CallRow, bool]:
        """Return the call stored under `key`, or make and store it; the flag says that it was stored.

        Threads that ask for the same key wait for the first of them, so that no call is paid for twice.
        `hold` is entered around making and storing: a budget's reservation, which a hit does not need.
        """
        with self._turn_of(key):
            row = self.get_call(key)
            if row is not None:
                return row, True
            with hold or nullcontext():
                row = make()
                self.put_call(key, row)
            return row, False

    @contextmanager
    def _turn_of(self, key: str) -> Generator[None]:
        with self._lock:
            turn = self._turns.setdefault(key, _Turn())
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    del self._turns[key]

    # -- totals ----------------------------------------------------------------------------------------------

    def totals(self, *, metered: bool = False) -> Totals:
        """Return what this run has spent, over all its processes; `metered` keeps to calls under a budget.

        `cached_calls` counts the answers this process took from the ledger or its siblings.
        """
        with self._lock:
            return self._metered if metered else self._all + Totals(cached_calls=self._hits)

    def _read_totals(self, condition: str) -> Totals:
        sums = "TOTAL(usd), COUNT(*), 0, SUM(tokens_in), SUM(tokens_out), SUM(usd IS NULL)"
        with self._guard():
            query = f"SELECT {sums} FROM calls WHERE copied=0 AND {condition}"
            usd, *counts = self._db.execute(query).fetchone()
        return Totals(float(usd), *(int(n or 0) for n in counts))

    def calls(self, *, role: str | None = None) -> list[CallRow]:
        """Return the calls of this ledger in order of time, all or those of one role."""
        query = f"SELECT {_CALL_COLUMNS} FROM calls WHERE ?1 IS NULL OR role=?1 ORDER BY created"
        with self._guard():
            found = self._db.execute(query, (role,)).fetchall()
        return [
            CallRow(kind, model, who, json.loads(request), json.loads(response), *numbers, metered=bool(metered))
            for kind, model, who, request, response, *numbers, metered in found
        ]

    # -- stages and events -----------------------------------------------------------------------------------

    def stage(self, name: str, key: str) -> dict[str, Any] | None:
        """Return the payload of a stage that finished with this key, or None."""
        with self._guard():
            query = "SELECT payload FROM stages WHERE name=? AND key=?"
            found = self._db.execute(query, (name, key)).fetchone()
        return None if found is None else json.loads(found[0])

    def finish_stage(self, name: str, key: str, payload: Mapping[str, Any], seconds: float) -> None:
        """Store a finished stage; its payload must be JSON."""
        with self._guard():
            values = (name, key, self._clock(), seconds, _dump(payload))
            self._db.execute("INSERT OR REPLACE INTO stages VALUES(?,?,?,?,?)", values)

    def stages(self) -> list[StageRow]:
        """Return the finished stages in the order in which they ended."""
        with self._guard():
            query = "SELECT name, key, payload, seconds FROM stages ORDER BY created, rowid"
            found = self._db.execute(query).fetchall()
        return [StageRow(name, key, json.loads(payload), seconds) for name, key, payload, seconds in found]

    def event(self, kind: str, **data: Any) -> None:
        """Store something that happened, such as a retry or an interruption."""
        with self._guard():
            values = (self._clock(), kind, _dump(data))
            self._db.execute("INSERT INTO events(created, kind, data) VALUES(?,?,?)", values)

    def events(self, kind: str | None = None) -> list[Event]:
        """Return the events in order, all or those of one kind."""
        with self._guard():
            query = "SELECT created, kind, data FROM events WHERE ?1 IS NULL OR kind=?1 ORDER BY id"
            found = self._db.execute(query, (kind,)).fetchall()
        return [Event(created, what, json.loads(data)) for created, what, data in found]


def _call_row(columns: Sequence[Any]) -> CallRow:
    kind, model, role, request, response, *numbers, metered = columns
    return CallRow(kind, model, role, json.loads(request), json.loads(response), *numbers, metered=bool(metered))


def _dump(value: Any) -> str:
    # ASCII escapes: a lone surrogate in a user's row must not be what SQLite refuses.
    return json.dumps(value, default=str)
