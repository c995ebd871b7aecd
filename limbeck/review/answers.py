"""What a corrected answer may be: the fields of the rows, their kinds of value, and the task's labels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError
from limbeck.records import Record
from limbeck.review.store import kept_records, settings

_SHOWN_LABELS = 20
_SHOWN = 60


@dataclass(frozen=True)
class Allowed:
    """The output fields with the kinds of value seen in each, and the labels of those with a closed set."""

    kinds: Mapping[str, frozenset[str]]
    labels: Mapping[str, tuple[str, ...]]

    def checked(self, outputs: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Return corrected outputs, labels as the rows write them; InputError names the place of what does not fit.

        >>> Allowed({"label": frozenset({"text"})}, {"label": ("spam", "ham")}).checked({"label": " ham "}, "line 1")
        {'label': 'ham'}
        """
        return {name: self._value(name, value, place) for name, value in outputs.items()}

    def _value(self, name: str, value: Any, place: str) -> Any:
        if name not in self.kinds:
            raise InputError(f"{place}: there is no output {name!r}", valid=", ".join(self.kinds))
        labels = self.labels.get(name)
        if labels:
            text = str(value).strip()
            found = next((said for said in (text, text.lower()) if said in labels), None)
            if found is None:
                close = difflib.get_close_matches(text, labels, n=1)
                guess = f"; did you mean {close[0]!r}?" if close else ""
                more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
                raise InputError(
                    f"{place}: {text[:_SHOWN]!r} is no label of {name!r}{guess}",
                    valid=", ".join(labels[:_SHOWN_LABELS]) + more,
                )
            return found
        if isinstance(value, str) and not value.strip():
            raise InputError(f"{place}: {name!r} is blank", valid="an answer; without one, reject the row")
        if _kind(value) not in self.kinds[name]:
            raise InputError(
                f"{place}: {name!r} holds {_kind(value)}: {str(value)[:_SHOWN]!r}",
                valid=f"{' or '.join(sorted(self.kinds[name]))}, as in the run's rows",
            )
        return value


def allowed_answers(run_folder: Path | str, records: Sequence[Record] | None = None) -> Allowed:
    """Return what the outputs of a run's rows may hold; `records` are its kept rows where they are at hand.

    Kinds of value are those of the rows. The labels are those of the rows' soft labels, which all name every label;
    where they do not, those of the labels file or the task.py that the run was started with.
    """
    records = kept_records(run_folder) if records is None else records
    kinds: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.outputs.items():
            kinds.setdefault(name, set()).add(_kind(value))
    known = {name: frozenset(found) for name, found in kinds.items()}
    named = {tuple(record.soft) for record in records if record.soft}
    if len(named) == 1 and len(known) == 1:
        return Allowed(known, {next(iter(known)): named.pop()})
    return Allowed(known, _labels_of_the_task(Path(run_folder)))


def _labels_of_the_task(run_folder: Path) -> dict[str, tuple[str, ...]]:
    """Return every closed output's labels as the task has them; this imports dspy, and a task.py is run."""
    config = settings(run_folder)
    if not config:
        return {}
    if config.get("task_file"):
        from limbeck.introspect import closed_outputs
        from limbeck.taskfile import load_task

        task = load_task(config["task_file"])
        return closed_outputs(task.program, task.output_fields)
    from limbeck.prepare import prepare

    copy = run_folder / "data" / f"labels{Path(config['labels']).suffix}"
    data = prepare(
        copy if copy.is_file() else Path(config["labels"]),
        output=cast("list[str]", config["output"]),
        inputs=config.get("inputs") or None,
        kind=config.get("kind") or None,
    )
    return {column.name: column.labels for column in data.outputs if column.labels}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "nothing" if value is None else "text"
