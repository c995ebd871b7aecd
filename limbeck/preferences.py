"""One pair of answers of which one is preferred, and its Parquet and JSON Lines form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.records import Provenance, stable_hash

_JSON = ("inputs", "chosen", "rejected")
_FIELDS = (*_JSON, "p", "principle", "provenance")


@dataclass(frozen=True)
class Preference:
    """A preference between two answers to the same inputs.

    `chosen` and `rejected` map every output field to its value; `p` is the probability, in [0.5, 1], that the chosen
    one is better by `principle` ("" for none in particular).
    """

    inputs: Mapping[str, Any]
    chosen: Mapping[str, Any]
    rejected: Mapping[str, Any]
    p: float
    principle: str
    provenance: Provenance

    @property
    def id(self) -> str:
        """A stable name: a hash of inputs, answers and principle, whichever answer was chosen."""
        answers = sorted(stable_hash(dict(answer)) for answer in (self.chosen, self.rejected))
        return stable_hash([dict(self.inputs), answers, self.principle])


def write_preferences(preferences: Iterable[Preference], path: Path) -> None:
    """Write preferences, whole or not at all: Parquet, or JSON Lines where the path ends in .jsonl.

    In Parquet inputs and answers are JSON texts, since their fields differ from task to task.
    """
    rows = [{"id": one.id, **asdict(one)} for one in preferences]
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
        part.write_text("".join(lines), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table: Any = cast(Any, pa).Table.from_pylist([_flat(row) for row in rows], schema=_schema())
        cast(Any, pq).write_table(table, part)
    part.replace(path)


def read_preferences(path: Path) -> list[Preference]:
    """Return the preferences of a file that `write_preferences` made; raises InputError for a line that is none."""
    if path.suffix == ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        return [_read_line(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = cast(Any, pq).read_table(path).to_pylist()
    return [_preference({**row, **{name: json.loads(row[name]) for name in _JSON}}) for row in rows]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, **{name: json.dumps(row[name], ensure_ascii=False, default=str) for name in _JSON}}


def _schema() -> Any:
    """Return the columns' types, which a table without rows cannot show."""
    import pyarrow

    pa = cast(Any, pyarrow)
    kinds: dict[str, Any] = {"seed": pa.int64(), "level": pa.int64(), "block": pa.int64()}
    kinds["parents"] = pa.list_(pa.string())
    origin = pa.struct([(name, kinds.get(name, pa.string())) for name in Provenance.__dataclass_fields__])
    texts = [(name, pa.string()) for name in ("id", *_JSON)]
    return pa.schema([*texts, ("p", pa.float64()), ("principle", pa.string()), ("provenance", origin)])


def _read_line(line: str, where: str) -> Preference:
    try:
        return _preference(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where} is no preference: {type(error).__name__}: {error}",
            valid=f"a JSON object with {', '.join(_FIELDS)}",
        ) from error


def _preference(row: Mapping[str, Any]) -> Preference:
    origin: dict[str, Any] = dict(row["provenance"])
    origin["parents"] = tuple(origin["parents"])
    values: dict[str, Any] = {name: row[name] for name in _FIELDS if name != "provenance"}
    return Preference(**values, provenance=Provenance(**origin))
