"""The task: a DSPy program, labelled examples and a metric, from a labels file or from a user's `task.py`."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import dspy

from limbeck.cleaning import MAX_UNUSABLE_SHARE, Row, input_key, input_value
from limbeck.columns import OutputColumn
from limbeck.descriptions import read_descriptions
from limbeck.errors import InputError
from limbeck.inputs import Source, counted
from limbeck.introspect import (
    check_closed,
    closed_outputs,
    example_fields,
    kind_of,
    output_annotation,
    predictors_of,
    source_of,
)
from limbeck.metrics import Kind, Metric, default_metric
from limbeck.models.labels import label_text
from limbeck.prepare import Prepared, prepare
from limbeck.records import stable_hash
from limbeck.signatures.tasks import (
    FieldSpec,
    annotation_of,
    build_signature,
    default_instructions,
    describe_structure,
    literal,
    with_label_descriptions,
)
from limbeck.verifiers import Grounded, HoldsNumber, NonEmpty, OfType, Verifier, grounded_keys


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    `labels` is the closed set of `label_field`, the one closed output ("" and () where there is none or
    several). `test` is None where the user gave no test set. `columns` maps fields to the user's column names
    and `label_values` labels to the user's own values (true, 3), both only where they differ. `warnings` are
    "name: sentence".
    """

    name: str
    program: dspy.Module
    examples: tuple[dspy.Example, ...]
    metric: Metric
    metric_name: str
    kind: Kind
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    labels: tuple[str, ...] = ()
    label_field: str = ""
    label_descriptions: Mapping[str, str] = field(default_factory=dict[str, str])
    instructions: str = ""
    verifiers: tuple[Verifier, ...] = ()
    unlabeled: tuple[dict[str, Any], ...] = ()
    test: tuple[dspy.Example, ...] | None = None
    warnings: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    label_values: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_program(
        cls,
        program: dspy.Module,
        examples: Sequence[dspy.Example],
        metric: Metric | None = None,
        *,
        name: str = "task",
        test: Sequence[dspy.Example] | None = None,
        unlabeled: Iterable[Mapping[str, Any]] = (),
        verifiers: Sequence[Verifier] = (),
        label_descriptions: Mapping[str, str] | None = None,
    ) -> Task:
        """Return the task of any `dspy.Module`; examples must say their inputs (`with_inputs`).

        Without a metric the default of the outputs' types is taken. Test and unlabelled rows whose inputs
        are also labelled are left out, with a warning. Raises `InputError` for examples without inputs or
        outputs or with a value outside a closed set, and for a program without predictors.
        """
        inputs, outputs = example_fields(examples)
        closed = closed_outputs(program, outputs)
        check_closed([*examples, *(test or ())], closed)
        held, pool, warnings = _unseen(examples, test, unlabeled, inputs)
        warnings = (*warnings, *_repeated(examples, inputs))
        label_field = next(iter(closed)) if len(closed) == 1 else ""
        kinds: dict[str, Kind] = {f: kind_of(output_annotation(program, f)) for f in outputs}
        fitted = default_metric(kinds) if metric is None else None
        task = cls(
            name=name,
            program=program,
            examples=tuple(examples),
            metric=metric or cast(Metric, fitted),
            metric_name=fitted.name if fitted else getattr(metric, "__name__", type(metric).__name__),
            kind="classification" if label_field and outputs == (label_field,) else "program",
            input_fields=inputs,
            output_fields=outputs,
            labels=closed.get(label_field, ()),
            label_field=label_field,
            instructions=predictors_of(program)[0].signature.instructions,
            verifiers=tuple(verifiers),
            unlabeled=pool,
            test=held,
            warnings=warnings,
        )
        return task.with_descriptions(label_descriptions) if label_descriptions else task

    def with_descriptions(self, descriptions: Mapping[str, str]) -> Task:
        """Return the task with these label descriptions in the closed field of its program, a copy.

        They replace earlier ones. Raises `InputError` for a label that is not in the closed set.
        """
        known, _ = read_descriptions(descriptions, self.labels)
        program = self.program.deepcopy()
        for predictor in predictors_of(program):
            if self.label_field in predictor.signature.output_fields:
                old = predictor.signature.output_fields[self.label_field].json_schema_extra["desc"]
                desc = with_label_descriptions(old, self.label_descriptions, known)
                # An empty description would be printed; DSPy's placeholder is not.
                desc = desc or f"${{{self.label_field}}}"
                predictor.signature = predictor.signature.with_updated_fields(self.label_field, desc=desc)
        return replace(self, program=program, label_descriptions=known)

    def label_of(self, row: Any) -> str:
        """Return the label of an example or prediction as text; "" where the task has no closed output."""
        return label_text(row[self.label_field]) if self.label_field else ""

    def inputs_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the program's inputs out of one row under the user's column names.

        Raises `InputError` for a missing column.
        """
        wanted = {f: self.columns.get(f, f) for f in self.input_fields}
        for column in wanted.values():
            if column not in row:
                raise InputError(
                    f"a row has no column {column!r}",
                    valid=", ".join(wanted.values()),
                    hint=f"add a column {column!r}; the row has {', '.join(map(str, row))}",
                )
        return {f: input_value(row[c]) for f, c in wanted.items()}

    def outputs_of(self, prediction: Any) -> dict[str, Any]:
        """Return a prediction's outputs under the user's column names and in the user's own values."""
        found = {f: prediction[f] for f in self.output_fields if f in prediction}
        return {self.columns.get(f, f): self._native(f, v) for f, v in found.items()}

    def _native(self, name: str, value: Any) -> Any:
        if name == self.label_field:
            return self.label_values.get(str(value), value)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that changes what is learned or measured; the name is not part of it."""
        signatures = [
            [str(p.signature.instructions), [[n, str(f.annotation), f.json_schema_extra["desc"]]
             for n, f in p.signature.fields.items()]]
            for p in predictors_of(self.program)
        ]  # fmt: skip
        return stable_hash(
            {
                "program": [type(self.program).__qualname__, source_of(type(self.program)), signatures],
                "demos": [[dict(d) for d in p.demos] for p in predictors_of(self.program)],
                "examples": [e.toDict() for e in self.examples],
                "test": None if self.test is None else [e.toDict() for e in self.test],
                "unlabeled": self.unlabeled,
                "metric": [self.metric_name, source_of(self.metric)],
                "verifiers": [v.name for v in self.verifiers],
                "labels": self.labels,
                "descriptions": dict(self.label_descriptions),
                "fields": [self.input_fields, self.output_fields],
            }
        )


def _repeated(examples: Sequence[dspy.Example], fields: Sequence[str]) -> list[str]:
    """Return a warning if examples repeat each other's inputs: a copy may be held out while its like is learned."""
    again = len(examples) - len({input_key({f: e[f] for f in fields}) for e in examples})
    return [f"duplicate-rows: {counted(again, 'example')} with the inputs of an earlier one"] if again else []


def _unseen(
    examples: Sequence[dspy.Example],
    test: Sequence[dspy.Example] | None,
    unlabeled: Iterable[Mapping[str, Any]],
    fields: Sequence[str],
) -> tuple[tuple[dspy.Example, ...] | None, tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Return test and unlabelled rows whose inputs are not labelled, and a warning for each kind left out."""

    def key(row: Any) -> str:
        return input_key({f: row[f] for f in fields})

    seen = {key(e) for e in examples}
    held = None if test is None else tuple(e for e in test if key(e) not in seen)
    if test and not held:
        raise InputError(
            f"all {len(test)} test examples are also labelled examples",
            valid="test examples that no model has learned from",
            hint="give other test examples, or none: some labels are then cut off for testing",
        )
    seen |= {key(e) for e in held or ()}
    rows = [{f: row[f] for f in fields} for row in unlabeled]
    pool = tuple(row for row in rows if key(row) not in seen)
    gone = {"test": len(test or ()) - len(held or ()), "unlabeled": len(rows) - len(pool)}
    notes = [f"{n}-overlap: left out {counted(c, 'row')} that other rows repeat" for n, c in gone.items() if c]
    return held, pool, tuple(notes)


def task_from_labels(
    labels: Source,
    *,
    output: str | Sequence[str],
    inputs: Sequence[str] | None = None,
    instructions: str | None = None,
    test: Source | None = None,
    unlabeled: Source | None = None,
    label_descriptions: Mapping[str, str] | str | Path | None = None,
    name: str | None = None,
    kind: Kind | None = None,
    reasoning: bool | None = None,
) -> Task:
    """Return the task of a labels file, a `datasets.Dataset` or a list of rows.

    `kind` overrules what `limbeck.columns.infer_kind` finds. `reasoning` makes the program write a rationale
    first; by default it does for numbers, where small models need the steps. What was left out of the rows
    is in `warnings`; what cannot be mended raises `InputError`.

    >>> rows = [{"text": t, "label": l} for t, l in [("hi", "a"), ("ho", "b"), ("he", "a"), ("hu", "b")]]
    >>> task = task_from_labels(rows, output="label")
    >>> task.kind, task.labels, task.metric_name
    ('classification', ('a', 'b'), 'accuracy')
    """
    data = prepare(labels, output=output, inputs=inputs, test=test, unlabeled=unlabeled, kind=kind)
    closed = [c for c in data.outputs if c.labels]
    one = closed[0] if len(closed) == 1 else None
    found, notes = read_descriptions(label_descriptions, one.labels if one else ())
    task_kind: Kind = data.outputs[0].kind if len(data.outputs) == 1 else "program"
    into, out = tuple(data.inputs.values()), tuple(c.name for c in data.outputs)
    said = (instructions or "").strip() or default_instructions(task_kind, into, out)
    signature = build_signature(_input_specs(data), _output_specs(data, found), said)
    reasons = any(c.kind == "number" for c in data.outputs) if reasoning is None else reasoning
    metric = default_metric({c.name: c.kind for c in data.outputs})
    return Task(
        name=name or (Path(data.source).stem if isinstance(labels, (str, Path)) else "task"),
        program=dspy.ChainOfThought(signature) if reasons else dspy.Predict(signature),
        examples=tuple(_example(row) for row in data.rows),
        metric=metric,
        metric_name=metric.name,
        kind=task_kind,
        input_fields=into,
        output_fields=out,
        labels=one.labels if one else (),
        label_field=one.name if one else "",
        label_descriptions=found,
        instructions=said,
        verifiers=_verifiers(data, signature),
        unlabeled=tuple(dict(row.inputs) for row in data.unlabeled),
        test=None if data.test is None else tuple(_example(row) for row in data.test),
        warnings=(*data.warnings, *notes),
        columns={f: c for c, f in [*data.inputs.items(), *((o.column, o.name) for o in data.outputs)]},
        label_values={label: one.native[label] for label in one.labels} if one else {},
    )


def _example(row: Row) -> dspy.Example:
    return dspy.Example(**row.inputs, **row.outputs).with_inputs(*row.inputs)


def _input_specs(data: Prepared) -> list[FieldSpec]:
    def annotation(name: str) -> Any:
        return list[str] if all(isinstance(r.inputs[name], list) for r in data.rows) else str

    return [FieldSpec(name, annotation(name)) for name in data.inputs.values()]


def _output_specs(data: Prepared, descriptions: Mapping[str, str]) -> list[FieldSpec]:
    specs: list[FieldSpec] = []
    for column in data.outputs:
        values = [row.outputs[column.name] for row in data.rows]
        annotation, desc = _typed(column, values)
        # Descriptions are only read where there is one closed output.
        desc = with_label_descriptions(desc, {}, descriptions) if column.labels else desc
        specs.append(FieldSpec(column.name, annotation, desc))
    return specs


def _typed(column: OutputColumn, values: Sequence[Any]) -> tuple[Any, str]:
    if column.kind == "classification":
        return literal(column.labels), ""
    if column.kind != "extraction":
        return (float if column.kind == "number" else str), ""
    annotation = annotation_of(values, column.name)
    if annotation is Any:
        raise InputError(
            f"column {column.column!r} mixes lists and objects",
            valid="a JSON list in every row, or a JSON object in every row",
            hint="write an empty list where there is nothing",
        )
    return annotation, describe_structure(values, column.name)


def _verifiers(data: Prepared, signature: type[dspy.Signature]) -> tuple[Verifier, ...]:
    found: list[Verifier] = []
    for column in data.outputs:
        name = column.name
        if column.kind == "number":
            found.append(HoldsNumber(name))
        elif column.kind in ("short_answer", "text"):
            found.append(NonEmpty(name))
        else:
            found.append(OfType(name, signature.output_fields[name].annotation))
        if column.kind == "extraction":
            keys = grounded_keys((row.inputs, row.outputs[name]) for row in data.rows)
            found += [Grounded(name, keys)] if keys else []
    return tuple(found)


def check_context(task: Task, count_tokens: Callable[[str], int], limit: int, *, reserve: int = 0) -> Task:
    """Return the task without labelled and unlabelled rows that do not fit a model's context, with warnings.

    A row needs its inputs and outputs plus `reserve` tokens (instructions, demonstrations, the answer) within
    `limit` tokens. Test rows stay, for leaving hard ones out would flatter the score; each counts as wrong.
    Raises `InputError` if more than a fifth of the labelled or test rows do not fit.
    """

    def fits(row: Mapping[str, Any]) -> bool:
        text = "\n".join(str(v) for v in row.values())
        # A token is at least one byte, so short rows need no tokenizer.
        return len(text.encode()) + reserve <= limit or count_tokens(text) + reserve <= limit

    fitting = tuple(e for e in task.examples if fits(e.toDict()))
    pool = tuple(row for row in task.unlabeled if fits(row))
    long_test = [e for e in task.test or () if not fits(e.toDict())]
    warnings: list[str] = []
    for what, long, total, share in (
        (
            "labelled rows, left out",
            len(task.examples) - len(fitting),
            len(task.examples),
            MAX_UNUSABLE_SHARE,
        ),
        ("test rows, which count as wrong", len(long_test), len(task.test or ()), MAX_UNUSABLE_SHARE),
        ("unlabelled rows, left out", len(task.unlabeled) - len(pool), len(task.unlabeled), 1.0),
    ):
        if not long:
            continue
        said = f"{long} of {total} {what}: longer than {limit - reserve} tokens"
        if long > share * total:
            raise InputError(
                said,
                valid=f"at most {limit - reserve} tokens a row: context {limit}, prompt and answer {reserve}",
                hint="shorten the rows, or take a model with a longer context",
            )
        warnings.append(f"too-long: {said}")
    return replace(task, examples=fitting, unlabeled=pool, warnings=(*task.warnings, *warnings))
