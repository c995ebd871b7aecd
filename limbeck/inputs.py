"""Rows from files and datasets, checked before any money or minutes are spent.

Reads JSON Lines, JSON, CSV, TSV, Parquet, `datasets.Dataset` and plain lists of mappings. Every problem is an
`InputError` that names the file, the row, the value, what is valid and the next command.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from limbeck.errors import InputError

if TYPE_CHECKING:
    import datasets

Source: TypeAlias = "str | Path | datasets.Dataset | Sequence[Mapping[str, Any]]"

MAX_CELL_BYTES = 1_000_000
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_DELIMITERS = (",", ";", "\t", "|")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for messages.

    >>> counted(1, "row"), counted(2, "class")
    ('1 row', '2 classes')
    """
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


@dataclass(frozen=True)
class Table:
    """Rows with the place each came from: `lines[i]` is the line (text files) or row number of `rows[i]`."""

    rows: tuple[dict[str, Any], ...]
    columns: tuple[str, ...]
    source: str
    lines: tuple[int, ...]
    unit: str = "row"

    def where(self, index: int) -> str:
        """Return the place of one row, for messages.

        >>> Table(({"x": 1},), ("x",), "a.csv", (2,), "line").where(0)
        'a.csv, line 2'
        """
        return f"{self.source}, {self.unit} {self.lines[index]}"

    def require(self, columns: Iterable[str]) -> None:
        """Raise `InputError` for the first column the table lacks, naming close ones."""
        for column in columns:
            if column not in self.columns:
                close = difflib.get_close_matches(column, self.columns, n=1, cutoff=0.6)
                guess = f"; did you mean {close[0]!r}?" if close else ""
                raise InputError(
                    f"{self.source} has no column {column!r}{guess}",
                    valid=", ".join(self.columns),
                    hint=f"name a column that is there, as in {(close or self.columns)[-1]!r}",
                )


def read_rows(source: Source, *, max_cell_bytes: int = MAX_CELL_BYTES) -> list[dict[str, Any]]:
    """Return the rows of `source` as dictionaries that all have the same keys.

    >>> read_rows([{"text": "hello", "label": "greeting"}])
    [{'text': 'hello', 'label': 'greeting'}]
    """
    return list(read_table(source, max_cell_bytes=max_cell_bytes).rows)


def read_table(source: Source, *, max_cell_bytes: int = MAX_CELL_BYTES) -> Table:
    """Return the rows of `source` with their places; raise `InputError` for whatever cannot be read.

    A cell may hold `max_cell_bytes` bytes of UTF-8 (1 MB by default: no model here reads more). Missing keys
    and NaN become None; dates become ISO 8601 text.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        rows, unit = _read_file(path)
        name = str(source)
    else:
        rows, unit, name = list(enumerate(_from_memory(source), 1)), "row", type(source).__name__
    if not rows:
        raise InputError(f"{name} has no rows", valid="two labelled rows or more", hint=f"add rows to {name}")
    columns = tuple(dict.fromkeys(key for _, row in rows for key in row))
    table = Table(
        tuple({c: _plain(row.get(c)) for c in columns} for _, row in rows),
        columns,
        name,
        tuple(line for line, _ in rows),
        unit,
    )
    _check_cells(table, max_cell_bytes)
    return table


def _read_file(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    suffix = path.suffix.lower()
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=3)
        raise InputError(
            f"there is no file {path}",
            valid=", ".join(close) or "the path of a labels file",
            hint=f"ls {path.parent}",
        )
    if not path.is_file() or suffix not in SUFFIXES:
        what = "a folder" if path.is_dir() else f"a {suffix or 'nameless'} file"
        raise InputError(
            f"cannot read {path}: {what}",
            valid="a file that ends in " + ", ".join(SUFFIXES),
            hint="export the table as CSV (UTF-8) and give that file",
        )
    if suffix == ".parquet":
        return _read_parquet(path), "row"
    text = _read_text(path)
    if suffix in (".csv", ".tsv"):
        return list(_parse_csv(text, path, "\t" if suffix == ".tsv" else None)), "line"
    if suffix == ".json" and (rows := _parse_json(text, path)) is not None:
        return rows, "row"
    return list(_parse_jsonl(text, path)), "line"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", valid="a readable file", hint=f"ls -l {path}"
        ) from error


def _read_text(path: Path) -> str:
    data = _read_bytes(path)
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4096]
    encoding = "UTF-16" if wide else "WINDOWS-1252"
    hint = f"iconv -f {encoding} -t UTF-8 {path} > {path.with_suffix('.utf8' + path.suffix)}"
    if wide:
        raise InputError(f"{path} is not UTF-8: it looks like UTF-16", valid="UTF-8", hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data[:3] == b"\xef\xbb\xbf" else 0)
        line = data.count(b"\n", 0, offset) + 1
        raise InputError(
            f"{path} is not UTF-8: byte {offset} (0x{data[offset]:02x}), on line {line}",
            valid="UTF-8, with or without a byte order mark",
            hint=hint,
        ) from error
    if not text.strip():
        raise InputError(f"{path} is empty", valid="one labelled row a line", hint=f"add rows to {path}")
    return text


def _parse_jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is not JSON: {error}; it starts {line[:60]!r}",
                valid='one JSON object a line, as in {"text": "...", "label": "..."}',
                hint=f"sed -n {number}p {path}",
            ) from error
        yield number, _object(row, path, f"line {number}")


def _parse_json(text: str, path: Path) -> list[tuple[int, dict[str, Any]]] | None:
    """Return the rows of a JSON list; None if the text is JSON Lines under another name."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            return None
        raise InputError(
            f"{path} is not JSON: {error}", valid="a list of objects", hint=f"python -m json.tool {path}"
        ) from error
    if not isinstance(value, list):
        raise InputError(
            f"{path} holds a {type(value).__name__}, not a list of rows",
            valid='a list of objects, as in [{"text": "...", "label": "..."}]',
            hint=f"head -c 200 {path}",
        )
    items = cast("list[Any]", value)
    return [(i, _object(item, path, f"row {i}")) for i, item in enumerate(items, 1)]


def _object(row: Any, path: Path | str, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(
            f"{path}, {place} is a {type(row).__name__}: {str(row)[:60]!r}",
            valid='an object, as in {"text": "...", "label": "..."}',
            hint=f"correct {place} of {path}",
        )
    return cast("dict[str, Any]", row)


@contextmanager
def _wide_cells() -> Generator[None]:
    """Lift csv's own limit of 131,072 characters a cell, which is process-wide, for one read."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parse_csv(text: str, path: Path, delimiter: str | None) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a CSV text; the delimiter is the one that cuts the header into most cells.

    `csv.Sniffer` guesses from the cells, and messages are full of commas; a header is not.
    """
    named = re.match(r"sep=(.)\r?\n", text)
    if named:  # Excel's own way to name the delimiter; an empty line keeps the line numbers
        text, delimiter = "\n" + text[named.end() :], named[1]
    with _wide_cells():
        chosen = delimiter or max(_DELIMITERS, key=lambda d: _header_cells(text, path, d))
        records = _records(text, path, chosen)
        first, header = next(records, (1, [""]))
        names = _header([cell.strip() for cell in header], path)
        rows: list[tuple[int, dict[str, Any]]] = []
        for line, cells in records:
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(names):
                raise InputError(
                    f"{path}, line {line} has {len(cells)} cells, the header (line {first}) has {len(names)}",
                    valid=f"{len(names)} cells parted by {chosen!r}; quote a cell that holds {chosen!r}",
                    hint=f"sed -n {line}p {path}",
                )
            rows.append((line, {n: c for n, c in zip(names, cells, strict=True) if n}))
    return rows


def _header_cells(text: str, path: Path, delimiter: str) -> int:
    nothing: list[str] = []
    try:
        return len(next(_records(text, path, delimiter), (1, nothing))[1])
    except InputError:
        return 0  # quotes do not fit this delimiter


def _records(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line number, cells) of every record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, the record that starts on line {start} is not CSV: {error}",
                valid='every quote closed, and a quote inside a quoted cell doubled: "say ""hi"""',
                hint=f"sed -n {start}p {path}",
            ) from error
        if any(cell.strip() for cell in cells):
            yield start, cells
        start = reader.line_num + 1


def _header(names: list[str], path: Path) -> list[str]:
    twice = sorted({n for n in names if n and names.count(n) > 1})
    # The first nameless column is a saved row index; a later one is a mistake.
    nameless = [i for i, n in enumerate(names) if not n and i > 0]
    while nameless and nameless[-1] == len(names) - 1:
        names.pop()
        nameless.pop()
    if twice or nameless or not any(names):
        fault = f"the column {twice[0]!r} twice" if twice else "a column without a name"
        raise InputError(
            f"{path} has {fault} in its header: {', '.join(names)}",
            valid="a first line with one name for every column",
            hint=f"head -1 {path}",
        )
    return names


def _read_parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = cast(Any, pq).read_table(path).to_pylist()
    except (cast("type[Exception]", pa.ArrowInvalid), OSError) as error:  # pyright: ignore[reportUnknownMemberType]
        raise InputError(
            f"{path} is not a Parquet file: {error}", valid="a whole Parquet file", hint=f"ls -l {path}"
        ) from error
    return list(enumerate(rows, 1))


def _from_memory(source: Any) -> list[dict[str, Any]]:
    if isinstance(source, Mapping):
        splits = cast("Mapping[str, Any]", source)
        raise InputError(
            f"{type(splits).__name__} is a mapping of {', '.join(splits)}, not rows",
            valid="a datasets.Dataset or a list of mappings",
            hint=f"pass one of them, as in data[{next(iter(splits), 'train')!r}]",
        )
    name = type(source).__name__
    rows = [_object(_as_dict(row), name, f"row {i}") for i, row in enumerate(source, 1)]
    for name, feature in cast("dict[str, Any]", getattr(source, "features", None) or {}).items():
        if hasattr(feature, "int2str"):  # a ClassLabel: the names mean something, the numbers do not
            for row in rows:
                if isinstance(row[name], int) and row[name] >= 0:
                    row[name] = feature.int2str(row[name])
    return rows


def _as_dict(row: Any) -> Any:
    return dict(cast("Mapping[str, Any]", row)) if isinstance(row, Mapping) else row


def _plain(value: Any) -> Any:
    """Return the value in JSON's types, NaN as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in cast("Sequence[Any]", value)]
    return value


def _check_cells(table: Table, limit: int) -> None:
    for index, row in enumerate(table.rows):
        for column, value in row.items():
            fault = _cell_fault(value, limit)
            if fault:
                raise InputError(
                    f"{table.where(index)}, column {column!r}: {fault}",
                    valid=f"text, numbers, true, false, lists and objects of at most {limit:,} bytes a cell",
                    hint=f"shorten or remove {table.unit} {table.lines[index]} of {table.source}",
                )


def _cell_fault(value: Any, limit: int) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except TypeError:
        return f"a {type(value).__name__} cannot be given to a language model"
    except UnicodeEncodeError as error:
        return f"half a surrogate pair (U+{ord(error.object[error.start]):04X}) at character {error.start}"
    return f"{size:,} bytes, over the limit; a missing closing quote can do this" if size > limit else ""
