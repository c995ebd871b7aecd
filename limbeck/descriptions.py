"""Label descriptions from the user: a mapping, or a file with one label and one description a row."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.inputs import read_table


def read_descriptions(
    source: Mapping[str, str] | str | Path | None, labels: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the descriptions in the order of `labels`, and a warning about labels without one.

    A file is a JSON object of label to description, or a table whose first two columns are label and
    description. Raises `InputError` for a label the task does not have.
    """
    if source is None:
        return {}, []
    given = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    given = {str(label).strip(): " ".join(str(text or "").split()) for label, text in given.items()}
    for label in given:
        if label not in labels:
            close = difflib.get_close_matches(label, labels, n=1)
            raise InputError(
                f"a description is given for {label!r}, which no labelled row has",
                valid=", ".join(labels[:20]) or "a task with one closed output",
                hint=f"write {close[0]!r}" if close else "remove the line, or label a row of that class",
            )
    missing = [label for label in labels if not given.get(label)]
    warnings = (
        [f"missing-descriptions: {len(missing)} of {len(labels)} labels: {', '.join(missing[:5])}"] if missing else []
    )
    return {label: given[label] for label in labels if given.get(label)}, warnings


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() == ".json" and path.is_file():
        try:
            value: Any = json.loads(path.read_text("utf-8-sig"))
        except ValueError as error:
            raise InputError(
                f"{path} is not JSON: {error}",
                valid='an object, as in {"HUM": "a person or a group"}',
                hint=f"python -m json.tool {path}",
            ) from error
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
    table = read_table(path)
    columns = list(table.columns)
    if len(columns) < 2:
        raise InputError(
            f"{path} has the one column {columns[0]!r}",
            valid="two columns: label and description",
            hint=f"add a description column to {path}",
        )
    label, text = columns[:2]
    return {str(row[label]): row[text] or "" for row in table.rows}
