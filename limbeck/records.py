"""One candidate training row with its provenance, and its Parquet form.

A stage reads records and writes records. A rejected record stays, with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import datasets

# Levels of human involvement.
MANUAL, CLEANED, VERIFIED, CHECKED, SELF_RATED, ENVIRONMENT = 1, 2, 3, 4, 5, 6


def stable_hash(value: Any) -> str:
    """Return 16 hex digits that depend on the value alone, not on key order or process.

    >>> stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from.

    `block` is the fold whose gold rows the writing prompt did not show (-1: none kept out); `level` is the
    level of human involvement, 1 manual to 6 from an environment.
    """

    method: str
    parents: tuple[str, ...] = ()
    teacher: str = ""
    prompt_hash: str = ""
    seed: int = 0
    level: int = CHECKED
    licence: str = ""
    block: int = -1
    attributes: str = ""


@dataclass(frozen=True)
class Record:
    """One candidate row.

    `outputs` maps every output field to its value. `soft` is the label distribution of the program's one
    closed field, `soft_source` says where its numbers come from: "exact", "logprobs", "votes:K",
    "calibrated" or "" for none. `scores` holds every vote and verifier result by name. `calls` is the trace of
    a program of several predictors: one {"predictor", "inputs", "outputs"} per call, in order; empty where the
    one predictor's call follows from inputs, outputs and rationale.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    provenance: Provenance
    soft: Mapping[str, float] | None = None
    soft_source: str = ""
    rationale: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    weight: float = 1.0
    kept: bool = True
    reason: str = ""

    @property
    def id(self) -> str:
        """A stable name: a hash of inputs, method and seed (outputs may be corrected later)."""
        p = self.provenance
        return stable_hash([dict(self.inputs), p.method, p.seed, p.attributes])

    def reject(self, reason: str) -> Record:
        """Return this record rejected, with the rule's name as the reason.

        >>> Record({"x": 1}, {"y": 2}, Provenance("gold")).reject("duplicate").kept
        False
        """
        return replace(self, kept=False, reason=reason)


_JSON_COLUMNS = ("inputs", "outputs", "soft", "scores", "calls")


def _to_row(record: Record) -> dict[str, Any]:
    row = asdict(record)
    provenance = row.pop("provenance")
    provenance["parents"] = list(provenance["parents"])
    for name in _JSON_COLUMNS:
        row[name] = json.dumps(row[name], ensure_ascii=False, default=str)
    return {"id": record.id, **row, **{f"provenance_{k}": v for k, v in provenance.items()}}


def _from_row(row: dict[str, Any]) -> Record:
    row = dict(row)
    row.pop("id", None)
    provenance = {k.removeprefix("provenance_"): row.pop(k) for k in list(row) if k.startswith("provenance_")}
    provenance["parents"] = tuple(provenance["parents"])
    for name in _JSON_COLUMNS:
        row[name] = json.loads(row[name])
    row["calls"] = tuple(row["calls"])
    return Record(provenance=Provenance(**provenance), **row)


def to_dataset(records: Iterable[Record]) -> datasets.Dataset:
    """Return the records as a `datasets.Dataset`; nested values are JSON strings."""
    import datasets

    return cast(Any, datasets.Dataset).from_list([_to_row(r) for r in records])


def from_dataset(dataset: datasets.Dataset) -> list[Record]:
    """Return the records of a dataset that `to_dataset` made."""
    return [_from_row(cast(dict[str, Any], row)) for row in cast(Iterable[Any], dataset)]


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write the records to a Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    table: Any = cast(Any, pa).Table.from_pylist([_to_row(r) for r in records])
    cast(Any, pq).write_table(table, part)
    part.replace(path)


def read_records(path: Path) -> list[Record]:
    """Return the records of a Parquet file that `write_records` made."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = cast(Any, pq).read_table(path).to_pylist()
    return [_from_row(row) for row in rows]
