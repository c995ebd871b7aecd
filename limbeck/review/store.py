"""Where reviews live: two tables in a run's ledger, which rows are only ever added to.

The tables are made where they are missing and the ledger's schema version stays what it is: a ledger of before
gets them at its first review, and any limbeck that reads that version still opens it, as its own or as a sibling.
"""

from __future__ import annotations

import json
import sqlite3
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import InputError, LimbeckError
from limbeck.ledger import SCHEMA_VERSION
from limbeck.records import Record, read_records

# The rows that a run's student learns from, as the curate stage leaves them, and the ledger beside them.
KEPT, LEDGER = "data/kept.parquet", "ledger.sqlite"

VerdictName = Literal["accept", "reject", "correct"]
Part = Literal["random", "uncertain", "shared"]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS review_takes(id INTEGER PRIMARY KEY, created REAL NOT NULL, record TEXT NOT NULL, "
    "reviewer TEXT NOT NULL, part TEXT NOT NULL, shown INTEGER NOT NULL, outputs TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS review_verdicts(id INTEGER PRIMARY KEY, created REAL NOT NULL, record TEXT NOT NULL, "
    "reviewer TEXT NOT NULL, verdict TEXT NOT NULL, seen TEXT NOT NULL, outputs TEXT NOT NULL, "
    "rationale TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Take:
    """One row that a reviewer was given, with the outputs as they were then.

    `part` says why: drawn at "random", "uncertain", or "shared" with another reviewer. `shown` is False where a row
    was drawn at random that somebody has judged already: it counts into the random part and is not judged twice.
    """

    record: str
    reviewer: str
    part: Part
    outputs: Mapping[str, Any]
    shown: bool = True
    created: float = 0.0


@dataclass(frozen=True)
class Review:
    """What one reviewer said of one row: the outputs `seen`, and the `outputs` that are right ({} for "reject")."""

    record: str
    reviewer: str
    verdict: VerdictName
    seen: Mapping[str, Any]
    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rationale: str = ""
    created: float = 0.0


class Reviews:
    """The review tables of one open ledger; made by `open_reviews`."""

    def __init__(self, db: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._db, self._clock = db, clock

    def takes(self) -> list[Take]:
        """Return what was given to reviewers, in order."""
        found = self._read("review_takes", "record, reviewer, part, outputs, shown, created")
        return [
            Take(record, who, part, json.loads(outputs), bool(shown), created)
            for record, who, part, outputs, shown, created in found
        ]

    def reviews(self) -> list[Review]:
        """Return every verdict that was ever stored, in order: a later one replaces an earlier one."""
        found = self._read("review_verdicts", "record, reviewer, verdict, seen, outputs, rationale, created")
        return [
            Review(record, who, verdict, json.loads(seen), json.loads(outputs), rationale, created)
            for record, who, verdict, seen, outputs, rationale, created in found
        ]

    def _read(self, table: str, columns: str) -> list[Any]:
        query = "SELECT 1 FROM sqlite_master WHERE type='table' AND name=?"
        if self._db.execute(query, (table,)).fetchone() is None:
            return []  # nothing was reviewed here
        return self._db.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()

    def add_takes(self, takes: Sequence[Take]) -> None:
        """Add what a reviewer is given."""
        rows = [(self._clock(), t.record, t.reviewer, t.part, t.shown, _dump(t.outputs)) for t in takes]
        columns = "created, record, reviewer, part, shown, outputs"
        self._db.executemany(f"INSERT INTO review_takes({columns}) VALUES(?,?,?,?,?,?)", rows)

    def add_reviews(self, reviews: Sequence[Review]) -> None:
        """Add verdicts."""
        rows = [
            (self._clock(), r.record, r.reviewer, r.verdict, _dump(r.seen), _dump(r.outputs), r.rationale)
            for r in reviews
        ]
        columns = "created, record, reviewer, verdict, seen, outputs, rationale"
        self._db.executemany(f"INSERT INTO review_verdicts({columns}) VALUES(?,?,?,?,?,?,?)", rows)


@contextmanager
def open_reviews(
    run_folder: Path | str, *, write: bool = False, clock: Callable[[], float] = time.time
) -> Generator[Reviews]:
    """Open a run's reviews for a `with` block; with `write`, all that it adds is stored at its end, or none of it.

    A writing block holds the ledger's lock, so that two reviewers are not given the same rows by chance. Raises
    InputError for a folder that is no run's, LimbeckError where the ledger cannot be used.
    """
    path = Path(run_folder) / LEDGER
    if not path.is_file():
        raise InputError(
            f"{run_folder} is not a run folder: it has no {LEDGER}", valid="the folder of a run", hint="limbeck runs"
        )
    try:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            _check_version(db, path)
            if write:
                with _transaction(db):
                    yield Reviews(db, clock)
            else:
                yield Reviews(db, clock)
    except sqlite3.Error as error:
        raise LimbeckError(
            f"cannot use the reviews in {path}: {error}" + ("; nothing of this was stored" if write else ""),
            valid="a ledger.sqlite that limbeck wrote, on a disk with space, that no other program holds locked",
            hint="wait for what uses it or free some space, then the same command again",
        ) from error


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by another version of limbeck (schema {version})",
            valid=f"schema {SCHEMA_VERSION}",
            hint="limbeck runs",
        )


@contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[None]:
    # What people have typed is not to be lost with the power.
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA:
            db.execute(statement)
        yield
    except BaseException:
        if db.in_transaction:  # a full disk has rolled back by itself
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def read_reviews(run_folder: Path | str) -> list[Review]:
    """Return every verdict stored in a run, in order; none where nothing was reviewed."""
    with open_reviews(run_folder) as reviews:
        return reviews.reviews()


def read_takes(run_folder: Path | str) -> list[Take]:
    """Return every row that was given to a reviewer, in order."""
    with open_reviews(run_folder) as reviews:
        return reviews.takes()


def kept_records(run_folder: Path | str) -> list[Record]:
    """Return a run's kept rows as the curate stage left them, those of every round; a later round's answer counts.

    InputError where the run has not got there.
    """
    path = Path(run_folder) / KEPT
    if not path.is_file():
        raise InputError(
            f"{run_folder} has no {KEPT}: no rows have been curated yet",
            valid="a run folder after the curate stage",
            hint=f"limbeck curate {run_folder}",
        )
    rounds = int(settings(run_folder).get("rounds", 1))
    later = [path.with_stem(f"{path.stem}-{number}") for number in range(2, rounds + 1)]
    found = {r.id: r for file in (path, *later) if file.is_file() for r in read_records(file)}
    return list(found.values())


def settings(run_folder: Path | str) -> dict[str, Any]:
    """Return what a run was asked to do, as its run.toml says; nothing where it has none."""
    path = Path(run_folder) / "run.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", valid="the TOML that a run writes", hint="give the run's options again"
        ) from error


def _dump(value: Any) -> str:
    # ASCII escapes, as in the rest of the ledger: any text a row holds must be storable.
    return json.dumps(value, default=str)
