"""What a column holds: its kind, its values in the prompt's form and its field name.

The kind decides type, metric, program and split, so it is inferred by a few stated rules that `kind=` (on the
command line `--kind`) overrules.
"""

from __future__ import annotations

import json
import keyword
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import dspy

from limbeck.errors import InputError
from limbeck.metrics import Kind, is_number, parse_number

KINDS: tuple[Kind, ...] = tuple(k for k in get_args(Kind) if k != "program")
MAX_LABEL_CHARACTERS = 80
_IDENTIFIER = re.compile(r"\S*[^\W_][_/.:-][^\W_]\S*|[A-Z][A-Z0-9]{1,9}")
# "Ticket ID", "row_id", "orderId"; not "paid".
_ENDS_IN_ID = re.compile(r"(?:^|[\W_])[Ii][Dd]$|(?<=[a-z])I[Dd]$")
_ID_NAMES = {"id", "_id", "uid", "uuid", "guid", "index", "idx", "row_id", "example_id", "unnamed: 0"}
# Names that are methods or arguments in DSPy or pydantic: a field of that name shadows them.
_CALL_ARGUMENTS = {"lm", "demos", "config", "new_signature", "prediction", "base", "trace"}
_RESERVED = (
    {name for owner in (dspy.Signature, dspy.Example, dspy.Prediction) for name in dir(owner)}
    | {name for name in dir(type(dspy.Signature)) if not name.startswith("_")}
    | _CALL_ARGUMENTS
    | {"reasoning", "augmented", "label_probabilities", "probability_source"}
)


@dataclass(frozen=True)
class OutputColumn:
    """One output column and its field name; `native` maps the labels of a closed set to the file's values."""

    column: str
    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    native: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dropped_keys: tuple[str, ...] = ()

    def convert(self, value: Any, where: str) -> Any:
        """Return the value as the program's output; raise `InputError` if the column cannot hold it."""
        if self.kind == "classification":
            return as_label(value)
        if self.kind == "number":
            return self._number(value, where)
        if self.kind != "extraction":
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        found = structure(value)
        if found is None:
            raise self._mismatch("a JSON list or object", value, where)
        return without_keys(found, self.dropped_keys)

    def _number(self, value: Any, where: str) -> float:
        number = parse_number(value)
        if number is None:
            raise self._mismatch("a number", value, where)
        return int(number) if number.is_integer() else number

    def _mismatch(self, what: str, value: Any, where: str) -> InputError:
        return InputError(
            f"{where}, column {self.column!r} is not {what}: {str(value)[:60]!r}",
            valid=f"{what} in every row of {self.column!r}",
            hint="correct the row, or say what the column holds with --kind " + "|".join(KINDS),
        )


def field_names(columns: Iterable[str]) -> dict[str, str]:
    """Return the prompt's field name of every column: an identifier that shadows nothing, unique.

    >>> field_names(["Customer message", "copy", "text"])
    {'Customer message': 'Customer_message', 'copy': 'copy_', 'text': 'text'}
    """
    names: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"\W+", "_", column).strip("_") or "field"
        name = f"field_{name}" if not name.isidentifier() else name
        while name in _RESERVED or keyword.iskeyword(name) or name in names.values():
            name += "_"
        names[column] = name
    return names


def looks_like_id(column: str, values: Sequence[Any]) -> bool:
    """Return whether the column only names its rows: an id's name and no value twice."""
    named = column.strip().casefold() in _ID_NAMES or _ENDS_IN_ID.search(column.strip()) is not None
    return named and len({str(v) for v in values}) == len(values)


def is_blank(value: Any) -> bool:
    """Return whether a cell holds nothing: None or blanks. An empty list is an answer, not a blank."""
    return value is None or (isinstance(value, str) and not value.strip())


def as_label(value: Any) -> str:
    """Return a label as text: true, 3 and 3.0 become "true", "3" and "3".

    >>> as_label(True), as_label(3.0), as_label(" news  desk ")
    ('true', '3', 'news desk')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(str(value).split())


def structure(value: Any) -> Any:
    """Return a list or object, parsed if it is JSON text; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return cast(Any, value) if isinstance(value, (list, dict)) else None


def infer_kind(values: Sequence[Any], test_values: Sequence[Any] = ()) -> Kind:
    """Return the kind of a column from its values, none of them blank.

    Lists and objects are extraction. Whole numbers with few distinct values (at most 10, and at most one for
    every three rows) are classes, other numbers numbers. Texts of at most 80 characters are classes if every
    value stands for two rows on average, if all test values are among them, or if most look like identifiers
    (card_arrival, HUM, a/b: one row a class is usual with many classes). Other texts are short answers up
    to a median of 8 words, else text.

    >>> infer_kind(["spam", "ham", "spam", "ham"]), infer_kind(["12", "30.5", "7"]), infer_kind([["a"], []])
    ('classification', 'number', 'extraction')
    """
    if all(structure(v) is not None for v in values):
        return "extraction"
    texts = [as_label(v) for v in values]
    distinct = set(texts)
    if all(isinstance(v, bool) for v in values):
        return "classification"
    if all(is_number(v) for v in values):
        whole = all(cast(float, parse_number(v)).is_integer() for v in values)
        return "classification" if whole and len(distinct) <= min(10, len(texts) // 3) else "number"
    if all(len(t) <= MAX_LABEL_CHARACTERS for t in texts) and (
        2 * len(distinct) <= len(texts)
        or (test_values and {as_label(v) for v in test_values} <= distinct)
        or _look_like_identifiers(distinct)
    ):
        return "classification"
    lengths = sorted(len(t.split()) for t in texts)
    return "short_answer" if lengths[len(lengths) // 2] <= 8 and lengths[-1] <= 30 else "text"


def _look_like_identifiers(texts: set[str]) -> bool:
    single = all(" " not in t for t in texts)
    return single and 2 * sum(_IDENTIFIER.fullmatch(t) is not None for t in texts) > len(texts)


def output_column(
    column: str, field: str, values: Sequence[Any], test_values: Sequence[Any], kind: Kind | None
) -> OutputColumn:
    """Return the column with its kind, given or inferred, and its closed set; `InputError` for one class."""
    chosen = kind or infer_kind(values, test_values)
    if len({json.dumps(v, sort_keys=True, default=str) for v in values}) < 2:
        raise InputError(
            f"column {column!r} holds the one value {str(values[0])[:60]!r} in all {len(values)} rows",
            valid="at least two different values",
            hint="add rows of another class, or name another column with --output",
        )
    if chosen != "classification":
        return OutputColumn(column, field, chosen)
    _refuse_lookalikes(column, values)
    native: dict[str, Any] = {}
    for value in values:
        label = as_label(value)
        if label not in native or value == label:
            native[label] = value
    return OutputColumn(column, field, chosen, tuple(sorted(native)), native)


def _refuse_lookalikes(column: str, values: Iterable[Any]) -> None:
    """Raise `InputError` for labels that look alike ("1" and "1.0" as well): merging them could be wrong."""
    seen: dict[str, str] = {}
    pairs: list[str] = []
    for raw in dict.fromkeys(map(as_label, values)):
        other = seen.setdefault(_looks(raw), raw)
        if other != raw:
            pairs.append(f"{other!r} and {raw!r}")
    if pairs:
        raise InputError(
            f"labels in column {column!r} differ only in case, blanks or how they are encoded: {'; '.join(pairs[:5])}",
            valid="one spelling for every label",
            hint="write each label one way in every file, then run again",
        )


def _looks(label: str) -> str:
    """Return what a person sees of a label: no case, no blanks, no invisible characters, no ".0" of a number."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", "".join(seen.split())).casefold()


def check_test_labels(column: OutputColumn, values: Sequence[Any], source: str) -> None:
    """Raise `InputError` if test rows hold labels that no labelled row has."""
    _refuse_lookalikes(column.column, [*column.native.values(), *values])
    unknown = sorted({as_label(v) for v in values} - set(column.labels))
    if unknown:
        raise InputError(
            f"{source} has {len(unknown)} labels that no labelled row has: {', '.join(unknown[:5])}",
            valid=", ".join(column.labels[:20]) + (", ..." if len(column.labels) > 20 else ""),
            hint="label a row of each, or say that the column is open with --kind short_answer",
        )


def offset_keys(values: Sequence[Any], texts: Sequence[str]) -> tuple[str, ...]:
    """Return the two keys that hold character offsets of a third key's text; () if there are none.

    A language model cannot count characters, and the text says as much: {"value": "7 pm", "start": 12, ...}.
    """
    pairs = [
        (cast("dict[str, Any]", item), text)
        for value, text in zip(values, texts, strict=True)
        if isinstance(value, list)
        for item in cast("list[Any]", value)
        if isinstance(item, dict)
    ]
    if not pairs:
        return ()
    first = pairs[0][0]
    numbers = [k for k, v in first.items() if isinstance(v, int) and not isinstance(v, bool)]
    strings = [k for k, v in first.items() if isinstance(v, str)]
    for start in numbers:
        for end in numbers:
            if start != end and any(all(_spans(o, t, start, end, s) for o, t in pairs) for s in strings):
                return (start, end)
    return ()


def _spans(item: Mapping[str, Any], text: str, start: str, end: str, key: str) -> bool:
    a, b = item.get(start), item.get(end)
    return isinstance(a, int) and isinstance(b, int) and text[a:b] == item.get(key)


def without_keys(value: Any, keys: Sequence[str]) -> Any:
    """Return a list of objects without these keys."""
    if not keys or not isinstance(value, list):
        return value
    drop: Callable[[Any], Any] = lambda o: {k: v for k, v in o.items() if k not in keys}  # noqa: E731
    return [drop(item) if isinstance(item, dict) else item for item in cast("list[Any]", value)]
