"""The one module that knows DSPy's adapters: short prompts, and closed fields answered by scoring.

DSPy's ChatAdapter repeats the answer's format in every user turn, which small models pay for in time and
context. CompactAdapter says everything constant once, in the system message, so that engines keep it cached.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.utils import apply_output_field_defaults, format_field_value, get_annotation_name
from dspy.utils.exceptions import AdapterParseError

from limbeck.engine.requests import Message
from limbeck.models.backend import LabelScores, ScoresUnavailable
from limbeck.models.decoding import Decoding
from limbeck.models.fields import described, header, opens_section, parsed, sections, written
from limbeck.models.labels import closed_values, label_text, sharpen
from limbeck.models.lm import LM

PROBABILITIES, SOURCE = "dspy_label_probabilities", "dspy_probability_source"
_HEADER_START = "[[ ##"
_recorder: contextvars.ContextVar[list[ScoredField] | None] = contextvars.ContextVar("recorder", default=None)


@dataclass(frozen=True)
class ScoredField:
    """One scored answer: the field's name, the probability of each label's text, and their source."""

    name: str
    probabilities: Mapping[str, float]
    source: str


def label_probabilities(prediction: Any) -> dict[str, dict[str, float]]:
    """Return {field: {label: probability}} of a prediction's scored fields, {} where there are none.

    DSPy hides keys that start with `dspy_` from demos and saved programs; that is where they are.
    """
    return dict(prediction.get(PROBABILITIES) or {})


def probability_source(prediction: Any) -> str:
    """Return where a prediction's probabilities come from: "exact", "logprobs", "votes:K", "" for none."""
    return str(prediction.get(SOURCE) or "")


@contextmanager
def recorded_scores() -> Generator[list[ScoredField]]:
    """Collect every field scored in this context, also where a module makes its own prediction of them."""
    seen: list[ScoredField] = []
    token = _recorder.set(seen)
    try:
        yield seen
    finally:
        _recorder.reset(token)


class CompactAdapter(ChatAdapter):
    """A ChatAdapter with short prompts that scores closed output fields where the LM can.

    One output field is answered by its bare value, several under `[[ ## name ## ]]` headers. With a
    `limbeck.LM` that gives probabilities, `Literal`, bool and enum fields are chosen by their probability
    and cannot be unparsable. With one whose answers can be continued, headers are opened for the model where it
    does not write them; such calls do not go through DSPy's JSON fallback. With any other LM this is an ordinary
    adapter. `score_closed=False` generates closed fields as well.
    """

    def __init__(self, *, score_closed: bool = True, **options: Any) -> None:
        options = {"use_json_adapter_fallback": False, **options}
        super().__init__(**options)
        self.score_closed = score_closed

    # -- calling ---------------------------------------------------------------------------------------------

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return one dictionary of output values per sample."""
        if self._goes_by_field(lm, signature):
            try:
                return self._by_field(lm, lm_kwargs, signature, self.format(signature, demos, inputs))
            except ScoresUnavailable:
                pass  # a server that turned out to give none: generate, as with any LM
        return super().__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        if self._goes_by_field(lm, signature):
            return await asyncio.to_thread(self, lm, lm_kwargs, signature, demos, inputs)
        return await super().acall(lm, lm_kwargs, signature, demos, inputs)

    def _goes_by_field(self, lm: Any, signature: Any) -> bool:
        if not isinstance(lm, LM) or self.use_native_function_calling:
            return False
        if len(signature.output_fields) > 1:
            return lm.backend.supports_prefix
        return any(self.scored_values(lm, signature, name) for name in signature.output_fields)

    def scored_values(self, lm: LM, signature: Any, name: str) -> Sequence[Any] | None:
        """Return the values of a closed field that this LM scores, None for a field that it writes."""
        if not (self.score_closed and lm.supports_score):
            return None
        return closed_values(signature.output_fields[name].annotation)

    def _by_field(
        self, lm: LM, lm_kwargs: Mapping[str, Any], signature: Any, messages: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        decoding = Decoding.of(lm.kwargs, lm_kwargs)
        if decoding.n == 1:
            return [_Answering(self, lm, lm_kwargs, decoding, signature, messages, 0).run()]
        # Together, so that a local engine answers the samples in one batch.
        with ThreadPoolExecutor(min(decoding.n, 16)) as pool:
            answers = [
                _Answering(self, lm, lm_kwargs, decoding, signature, messages, sample) for sample in range(decoding.n)
            ]
            jobs = [pool.submit(contextvars.copy_context().run, answer.run) for answer in answers]
            return [job.result() for job in jobs]

    # -- formatting ------------------------------------------------------------------------------------------

    def format_system_message(self, signature: Any) -> str:
        """Return everything that is the same for every row: instructions, fields, the answer's form."""
        inputs = "\n".join(described(name, info) for name, info in signature.input_fields.items())
        outputs = "\n".join(described(name, info) for name, info in signature.output_fields.items())
        parts = [signature.instructions.strip(), f"Input fields:\n{inputs}", f"Output fields:\n{outputs}"]
        names = list(signature.output_fields)
        if len(names) == 1:
            parts.append(f"Answer with the {names[0]} only.")
        else:
            # No placeholders under the headers: small models copy them.
            form = ", then ".join(f"the {name} under {header(name).strip()}" for name in names)
            parts.append(f"Answer with {form}.")
        return "\n\n".join(parts)

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return one `name: value` line per input field; the format is the system message's business."""
        lines = [prefix] if prefix else []
        for name, info in signature.input_fields.items():
            if name in inputs:
                value = str(format_field_value(field_info=info, value=inputs[name]))
                lines.append(f"{name}:\n{value}" if "\n" in value else f"{name}: {value}")
        return "\n".join([*lines, *([suffix] if suffix else [])])

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the bare value of a single output field, or every given field under its header."""
        names = list(signature.output_fields)
        texts = {
            name: written(signature.output_fields[name], outputs[name])
            for name in names
            if outputs.get(name) is not None
        }
        if len(names) == 1:
            return texts.get(names[0], "")
        # A missing rationale is left out: small models would copy any words that stand for it.
        return "\n\n".join(header(name) + text for name, text in texts.items())

    def format_demos(self, signature: Any, demos: list[Any]) -> list[dict[str, Any]]:
        """Return a user and an assistant turn for every demo that has an input and an output."""

        def complete(demo: Any) -> bool:
            return all(demo.get(name) is not None for name in signature.fields)

        messages: list[dict[str, Any]] = []
        for demo in sorted(demos, key=complete):  # the complete ones stand next to the question
            if any(k in demo for k in signature.input_fields) and any(
                demo.get(k) is not None for k in signature.output_fields
            ):
                answer = self.format_assistant_message_content(signature, demo)
                question = self.format_user_message_content(signature, demo)
                messages += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
        return messages

    # -- parsing ---------------------------------------------------------------------------------------------

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return a completion's output values; raises AdapterParseError where one is missing or wrong."""
        found = sections(completion, list(signature.output_fields))
        values = {
            name: self.parse_field(signature, name, text, completion)
            for name, text in found.items()
            if name in signature.output_fields
        }
        values = apply_output_field_defaults(signature, values)
        if values.keys() != signature.output_fields.keys():
            raise AdapterParseError(
                adapter_name="CompactAdapter",
                signature=signature,
                lm_response=completion,
                parsed_result=cast(Any, values),  # DSPy says str and passes dictionaries
            )
        return values

    def parse_field(self, signature: Any, name: str, text: str, completion: str = "") -> Any:
        """Return one field's value; raises AdapterParseError where its text is no such value."""
        annotation = signature.output_fields[name].annotation
        try:
            return parsed(text, annotation)
        except ValueError as error:
            raise AdapterParseError(
                adapter_name="CompactAdapter",
                signature=signature,
                lm_response=completion or text,
                message=f"the answer's field {name} is not a {get_annotation_name(annotation)}: {error}",
            ) from error


@dataclass
class _Answering:
    """One sample of one call, answered field by field: closed fields scored, open fields generated."""

    adapter: CompactAdapter
    lm: LM
    lm_kwargs: Mapping[str, Any]
    decoding: Decoding
    signature: Any
    messages: list[dict[str, Any]]
    sample: int
    text: str = ""
    scored: list[ScoredField] = field(default_factory=list[ScoredField])

    def run(self) -> dict[str, Any]:
        """Return the values of all output fields, with probabilities for the scored ones."""
        names, values = list(self.signature.output_fields), dict[str, Any]()
        while len(values) < len(names):
            left = names[len(values) :]
            self.text += "\n\n" if values else ""
            if len(names) > 1:
                self.text += header(left[0])
            closed = self._closed(left[0])
            if closed:
                values[left[0]] = self._choose(left[0], closed, last=len(left) == 1)
            else:
                fields = list(takewhile(lambda name: not self._closed(name), left))
                values |= self._write(fields, left[len(fields) :])
        recorder = _recorder.get()
        if recorder is not None:
            recorder.extend(self.scored)
        if self.scored:
            values[PROBABILITIES] = {one.name: dict(one.probabilities) for one in self.scored}
            values[SOURCE] = ",".join(sorted({one.source for one in self.scored}))
        return values

    def _closed(self, name: str) -> Sequence[Any] | None:
        return self.adapter.scored_values(self.lm, self.signature, name)

    def _choose(self, name: str, closed: Sequence[Any], last: bool) -> Any:
        by_text = {label_text(value): value for value in closed}
        # What follows a value that is not the last one is a blank line, whatever the next header.
        scores = self.lm.score(
            self.messages,
            assistant_prefix=self.text,
            candidates=list(by_text),
            suffix="" if last else "\n\n",
        )
        self.scored.append(ScoredField(name, scores.probabilities, scores.source))
        label = self._pick(scores, name)
        self.text += label
        return by_text[label]

    def _pick(self, scores: LabelScores, name: str) -> str:
        if self.decoding.temperature <= 0:
            return scores.best
        weights = sharpen(scores.probabilities, self.decoding.temperature)
        draw = random.Random(f"{self.decoding.seed_of(self.sample)}/{name}")
        return draw.choices(list(weights), list(weights.values()))[0]

    def _write(self, names: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
        """Write the first of these fields, and the next ones as far as the model goes on under their headers.

        `after` are the fields behind them, where writing ends. Raises AdapterParseError where the first one's text
        is empty or no such value.
        """
        ends = [_HEADER_START] if len(names) == 1 else [header(name).strip() for name in after]
        stop = (*self.decoding.stop, *ends)
        settings = {**self.lm_kwargs, "stop": stop, "assistant_prefix": self.text, "n": 1}
        written = self.lm.complete(self.messages, sample=self.sample, **settings).strip()
        found = sections(written if opens_section(written) else header(names[0]) + written, list(names))
        first = found.get(names[0], "")
        if not first:
            raise AdapterParseError(
                adapter_name="CompactAdapter",
                signature=self.signature,
                lm_response=written,
                message=f"the answer's field {names[0]} is empty",
            )
        values = {names[0]: self.adapter.parse_field(self.signature, names[0], first)}
        self.text += first
        for name in takewhile(found.get, names[1:]):
            try:
                values[name] = self.adapter.parse_field(self.signature, name, found[name])
            except AdapterParseError:
                break  # asked again, alone
            self.text += "\n\n" + header(name) + found[name]
        return values


# -- rendering training rows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """One training row as text: the prompt's messages, and each answer with its share of the probability."""

    messages: tuple[Message, ...]
    completions: tuple[tuple[str, float], ...]
    weight: float = 1.0


def render(
    predictor: Any,
    *,
    adapter: Any,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    demos: Sequence[Any] | None = None,
    soft: Mapping[str, float] | None = None,
    weight: float = 1.0,
) -> Rendered:
    """Return a training row exactly as the program would ask for it and answer it.

    `predictor` is a `dspy.Predict`, whose demos are used unless `demos` says otherwise, or a signature.
    `soft` is the distribution over the labels of the signature's one closed field, by text; the completions
    are the labels given, in their order, masses of zero included, and sum to 1.
    """
    # A signature has an attribute of that name as well, its text.
    signature = predictor if isinstance(predictor, type) else predictor.signature
    shown = list(getattr(predictor, "demos", []) if demos is None else demos)
    messages = tuple(
        (str(message["role"]), str(message["content"])) for message in adapter.format(signature, shown, dict(inputs))
    )
    answers = [(dict(outputs), 1.0)] if soft is None else _soft_outputs(signature, outputs, soft)
    completions = tuple((adapter.format_assistant_message_content(signature, answer), mass) for answer, mass in answers)
    return Rendered(messages, completions, weight)


def render_program(
    program: Any, trace: Sequence[tuple[Any, Mapping[str, Any], Mapping[str, Any]]], *, adapter: Any
) -> list[Rendered]:
    """Return one training row per step of a trace, with the signature and demos that `program` has.

    A step is (predictor of `program` or its name, inputs, outputs), as `dspy.settings.trace` records it.
    """
    by_name = dict(program.named_predictors())
    rows: list[Rendered] = []
    for step, inputs, outputs in trace:
        predictor = by_name[step] if isinstance(step, str) else step
        rows.append(render(predictor, adapter=adapter, inputs=inputs, outputs=dict(outputs)))
    return rows


def _soft_outputs(
    signature: Any, outputs: Mapping[str, Any], soft: Mapping[str, float]
) -> list[tuple[dict[str, Any], float]]:
    fields = signature.output_fields
    closed = [(name, values) for name in fields if (values := closed_values(fields[name].annotation))]
    if len(closed) != 1:
        raise ValueError(f"soft labels need exactly one closed output field, not {len(closed)}")
    name, values = closed[0]
    by_text = {label_text(value): value for value in values}
    total = sum(soft.values())
    return [({**outputs, name: by_text[label]}, mass / total) for label, mass in soft.items()]
