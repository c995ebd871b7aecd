"""Problems solved in another form that the model knows better, and checked by the way back.

The form follows from what the answers are. Numbers: an expression that is calculated by a tool, so that the model has
to understand and not to calculate (PAL, Gao et al. 2022, arXiv:2211.10435), back by a masked number (Weng et al. 2022,
arXiv:2212.09561). Labels: a yes-or-no statement a label (Yin et al. 2019, arXiv:1909.00161), back by the original task
between the best two. Slots: a question a slot (QA-SRL, He et al. 2015, doi:10.18653/v1/D15-1076), back by the slot that
a value names. Short answers: a statement with a gap, back by whether the filled statement holds. A gold row's solution
must be its label, which also measures the form and the way back; any other row must lead back, and its agreement with
the direct answer is a score.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import dspy

from limbeck.columns import infer_kind
from limbeck.compile.children import child_of, first_answers, pick_rows
from limbeck.compile.concurrent import concurrently
from limbeck.compile.label import FAILED, Answer, LabelConfig, Labeler, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD, Cost, Materials, Synthesized, block_of_child
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.metrics import is_number, likeness
from limbeck.models.labels import label_text
from limbeck.programs.judge import as_request
from limbeck.programs.reformulate import Cloze, Entailment, Equation, Questions
from limbeck.records import Record, stable_hash

METHOD = "reformulation"
Form = Literal["equation", "entailment", "questions", "cloze"]
Progress = Callable[[int, int], None]
_FORMS: Mapping[str, Form] = {
    "number": "equation",
    "classification": "entailment",
    "extraction": "questions",
    "short_answer": "cloze",
}
_RIGHT = 0.99
_SHOWN = 160


@dataclass(frozen=True)
class ReformulationConfig:
    """How problems are solved.

    Of many labels only the `candidates` that the direct answer finds likeliest are asked for. With `way_back` False
    what does not lead back is kept as well. StageEmpty when the first `patience` rows cannot be read.
    """

    candidates: int = 8
    way_back: bool = True
    max_tokens: int = 200
    patience: int = 24
    threads: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Reformulated:
    """One record a row, rejected ones among them; `log` compares the form with the direct answer on gold rows."""

    records: tuple[Record, ...]
    form: Form
    unreadable: int
    log: Mapping[str, int]


class Reformulation:
    """Answers rows through another form; see `limbeck.compile.reformulate`.

    Demonstrations of a compiled prompt take the place of the built-in ones.
    """

    name = METHOD
    begins = False
    cost = Cost(calls=4.0, answers=0.0, each=True)

    def __init__(self, config: ReformulationConfig | None = None) -> None:
        self.config = config or ReformulationConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task whose answers have no other form."""
        form_of(source)

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the program that solves the task's problems in their form."""
        form = form_of(source)
        made: Mapping[Form, Callable[[], dspy.Module]] = {
            "equation": Equation,
            "entailment": lambda: Entailment(source.instructions),
            "questions": lambda: Questions(Shape.of(source).slots),
            "cloze": Cloze,
        }
        return {form: made[form]()}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return one record a row, of at most `wanted` rows, answered through the form."""
        done = reformulate(
            pick_rows(records, wanted, materials.seed),
            materials.source,
            replace(materials.labeler, lm=materials.lm),
            config=replace(self.config, threads=materials.threads, seed=materials.seed),
            program=next(iter(materials.programs(self).values())),
            progress=materials.show("solving in another form"),
        )
        counts = {"failed_calls": done.unreadable} if done.unreadable else {}
        return Synthesized(done.records, counts, {METHOD: {"form": done.form, **done.log}})


@dataclass(frozen=True)
class Shape:
    """How extracted values are written, as the gold rows do it.

    "object": slots are keys, `lists` where they hold lists; "pairs": a list of objects, of whose two keys one (`key`)
    names the slot and the other (`value`) holds the text; "list": a list of texts, whose one slot is the field.
    """

    kind: Literal["object", "pairs", "list"]
    slots: tuple[str, ...]
    key: str = ""
    value: str = ""
    lists: bool = False

    @classmethod
    def of(cls, source: Source) -> Shape:
        """Return the shape that all gold rows share; raises InputError where they share none."""
        name = _field(source)
        values: list[Any] = [row.outputs[name] for row in source.gold if name in row.outputs]
        if all(isinstance(value, dict) for value in values):
            keys = tuple(dict.fromkeys(str(key) for value in values for key in value))
            inner = [entry for value in values for entry in value.values()]
            lists = any(isinstance(entry, list) for entry in inner)
            if keys and all(_texts(entry) for entry in inner):
                return cls("object", keys, lists=lists)
        items: list[Any] = [item for value in values if isinstance(value, list) for item in cast("list[Any]", value)]
        if items and all(isinstance(item, str) for item in items):
            return cls("list", (name,))
        found = [item for item in items if isinstance(item, dict) and len(item) == 2 and _texts(list(item.values()))]
        keys = tuple(dict.fromkeys(str(key) for item in found for key in item))
        if items and len(found) == len(items) and len(keys) == 2:
            # The key of fewer values names slots: "slot" or "type", not the text.
            key, value = sorted(keys, key=lambda one: len({item[one] for item in found}))
            return cls("pairs", tuple(dict.fromkeys(str(item[key]) for item in found)), key, value)
        raise InputError(
            f"--method {METHOD} asks a question a slot, and {name!r} has no slots that hold text",
            valid='{"time": "7 pm"}, [{"slot": "time", "value": "7 pm"}] or ["7 pm"] in every row',
        )

    def written(self, found: Mapping[str, Sequence[str]]) -> Any:
        """Return the values found as the gold rows write them.

        >>> Shape("pairs", ("time",), "slot", "value").written({"time": ["7 pm"]})
        [{'slot': 'time', 'value': '7 pm'}]
        """
        if self.kind == "object":
            return {slot: list(values) if self.lists else values[0] for slot, values in found.items()}
        pairs = [(slot, value) for slot, values in found.items() for value in values]
        return [value if self.kind == "list" else {self.key: slot, self.value: value} for slot, value in pairs]


def form_of(source: Source) -> Form:
    """Return the form that the task's answers call for; raises InputError where there is none."""
    name = _field(source)
    values = [row.outputs[name] for row in source.gold if name in row.outputs]
    kind = "classification" if source.label_field == name and source.labels else infer_kind(values)
    if kind == "classification" and not source.labels:
        # Few numbers or words may look like classes; the task says that they are none.
        kind = "number" if all(map(is_number, values)) else "short_answer"
    if kind not in _FORMS:
        raise InputError(
            f"--method {METHOD} knows no other form for the texts of {name!r}",
            valid="a task whose output is a number, a label, extracted values or a few words",
            hint="--method self_instruct",
        )
    if kind == "extraction":
        Shape.of(source)
    return _FORMS[kind]


def reformulate(
    records: Sequence[Record],
    source: Source,
    labeler: Labeler,
    *,
    config: ReformulationConfig | None = None,
    program: dspy.Module | None = None,
    progress: Progress | None = None,
) -> Reformulated:
    """Return the rows answered through the form of the task, the same for the same seed.

    A row is rejected for what kept it from being solved (unparsable, not_reformulated, no_statement_holds, ungrounded,
    no_gap, failed), a gold row for another answer than its own (wrong_answer), any other for the way back (round_trip).
    Gold rows keep their outputs. `progress` gets (rows done, rows). Raises StageEmpty where no row is kept;
    BudgetExceeded and KeyboardInterrupt pass through.
    """
    config = config or ReformulationConfig()
    program = program or next(iter(Reformulation(config).programs(source).values()))
    run = Solving(source, labeler, config, program, form_of(source))
    asked = LabelConfig(METHOD, 1, None, config.threads, config.seed, config.patience)
    direct = first_answers(records, labeler, asked)
    errors: list[str] = []
    done: list[Any] = []

    def watch(made: Any) -> None:
        done.append(made)
        errors.extend([made] if isinstance(made, str) else [])
        if len(errors) == len(done) == config.patience:
            raise StageEmpty(f"none of the first {len(done)} rows could be solved; the first: {errors[0]}")
        if progress is not None:
            progress(len(done), len(records))

    jobs = list(zip(records, direct, strict=True))
    solved = concurrently(lambda job: run.solve(*job), jobs, threads=config.threads, done=watch)
    made = [run.record(*job, solution) for job, solution in zip(jobs, solved, strict=True)]
    rows = tuple(record for record, _ in made)
    if not any(record.kept for record in rows):
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(record.reason for record in rows).items())
        raise StageEmpty(f"no row was solved in another form ({why or 'there was none'})", hint="a larger --teacher")
    log: Counter[str] = Counter()
    for _, measured in made:
        log.update(measured)  # a sum of counters would leave out what never happened
    return Reformulated(rows, run.form, len(errors), dict(log))


@dataclass(frozen=True)
class Solving:
    """What every row of one call of the method shares."""

    source: Source
    labeler: Labeler
    config: ReformulationConfig
    program: dspy.Module
    form: Form

    def asked(self, record: Record, direct: Answer) -> dict[str, Any]:
        """Return what the program is told beside the row's text: settings, a seed, or the labels' statements."""
        seed = int(stable_hash([self.config.seed, record.id])[:7], 16)
        given: dict[str, Any] = {"config": {"temperature": 0.0, "max_tokens": self.config.max_tokens}}
        if self.form == "equation":
            given["seed"] = seed
        elif self.form == "entailment":
            given["statements"] = {label: self._statement(label) for label in self._candidates(direct, seed)}
        return given

    def solve(self, record: Record, direct: Answer) -> Any:
        """Return the program's prediction, or what went wrong."""
        program = blind(self.program, self.source, block_of_child(record, self.source), record.inputs)
        with dspy.context(lm=self.labeler.lm, adapter=self.labeler.adapter, trace=None):
            try:
                return cast(Any, program)(as_request(record.inputs), **self.asked(record, direct))
            except BudgetExceeded:
                raise
            except Exception as error:  # one unparsable answer never ends a stage
                return f"{type(error).__name__}: {error}"[:_SHOWN]

    def record(self, parent: Record, direct: Answer, made: Any) -> tuple[Record, Counter[str]]:
        """Return the row's record, and what a gold row says of the form and of the way back."""
        origin = child_of(
            parent,
            self.source,
            METHOD,
            self.labeler.lm,
            seed=self.config.seed,
            prompt=prompt_hash(self.program),
            attributes=self.form,
        )
        if isinstance(made, str):
            return Record(parent.inputs, {}, origin, weight=parent.weight).reject(FAILED), Counter()
        gold = parent.provenance.method == GOLD
        outputs = self.outputs(made)
        scores = {**parent.scores, "confidence": float(made.confidence)}
        if made.returned is not None:
            scores["round_trip"] = float(made.returned)
        if outputs and direct.outputs and not gold:
            scores["agreement"] = self.like(parent, direct.outputs, outputs)
        right = bool(outputs) and gold and self.like(parent, parent.outputs, outputs) >= _RIGHT
        lost = "wrong_answer" if gold and not right else ""
        lost = lost or ("round_trip" if not gold and made.returned is False and self.config.way_back else "")
        reason = made.fault or lost
        record = Record(
            parent.inputs,
            parent.outputs if right else outputs,
            origin,
            # Probabilities and questions lead to no answer that a student could write.
            rationale=str(made.form) if self.form in ("equation", "cloze") else "",
            scores=scores,
            weight=parent.weight,
        )
        log = self._measured(parent, direct, made, right) if gold else Counter[str]()
        return (record.reject(reason) if reason else record), log

    def _measured(self, parent: Record, direct: Answer, made: Any, right: bool) -> Counter[str]:
        told = bool(direct.outputs) and self.like(parent, parent.outputs, direct.outputs) >= _RIGHT
        back = {
            f"{kind}_{way}": int(is_right == right and made.returned is returned)
            for kind, is_right in (("right", True), ("wrong", False))
            for way, returned in (("and_returned", True), ("not_returned", False))
        }
        return Counter({"gold": 1, "right": int(right), "direct_right": int(told), **back})

    def _statement(self, label: str) -> str:
        field, meaning = self.source.label_field.replace("_", " "), self.source.meanings.get(label, "")
        return f'The {field} is "{label}"{f": {meaning}" if meaning else ""}'

    def _candidates(self, direct: Answer, seed: int) -> Sequence[str]:
        labels, most = self.source.labels, self.config.candidates
        if len(labels) <= most:
            return labels
        # Without probabilities the direct answer stands among labels drawn by the seed.
        said = label_text(direct.outputs[self.source.label_field]) if direct.outputs else ""
        chances = direct.soft or {said: 1.0}
        drawn = {label: stable_hash([seed, label]) for label in labels}
        likeliest = sorted(labels, key=lambda label: (-chances.get(label, 0.0), drawn[label]))[:most]
        return [label for label in labels if label in likeliest]

    def outputs(self, made: Any) -> dict[str, Any]:
        """Return the answer of a prediction as the task writes it; {} for a fault."""
        if made.fault:
            return {}
        answer = Shape.of(self.source).written(made.answer) if self.form == "questions" else made.answer
        return {_field(self.source): answer}

    def like(self, row: Record, gold: Mapping[str, Any], outputs: Mapping[str, Any]) -> float:
        """Return the metric's score of outputs against others for a row, without a metric whether they are equal."""
        name = _field(self.source)
        if self.labeler.metric is None:
            return float(label_text(gold[name]) == label_text(outputs[name]))
        example = cast(Any, dspy.Example(**row.inputs, **gold)).with_inputs(*row.inputs)
        return likeness(self.labeler.metric, example, dspy.Prediction(**outputs))


def _field(source: Source) -> str:
    """Return the task's one output field; raises InputError where there are several."""
    names = list(dict.fromkeys(name for row in source.gold for name in row.outputs))
    if len(names) != 1:
        raise InputError(
            f"--method {METHOD} solves for one output, and the task has {', '.join(names) or 'none'}",
            valid="a task with one output field",
        )
    return names[0]


def _texts(value: Any) -> bool:
    entries = cast("list[Any]", value) if isinstance(value, list) else [value]
    return all(isinstance(entry, str) for entry in entries)
