"""The signature of a task, built from its columns: typed output fields and label descriptions.

Structured values become TypedDicts, so that what DSPy parses is plain lists and dicts that go into JSON as
they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, cast

import dspy
from pydantic import ConfigDict
from typing_extensions import TypedDict

# More distinct values than this do not describe a key, they fill the prompt.
MAX_KEY_VALUES = 12


@dataclass(frozen=True)
class FieldSpec:
    """One field: its name in the prompt, its type and what it holds, "" if the name says it all."""

    name: str
    annotation: Any = str
    desc: str = ""


def build_signature(
    inputs: Sequence[FieldSpec], outputs: Sequence[FieldSpec], instructions: str
) -> type[dspy.Signature]:
    """Return the signature class of these fields.

    >>> sig = build_signature([FieldSpec("text")], [FieldSpec("label", literal(["a", "b"]))], "Choose.")
    >>> sig.signature, sig.instructions
    ('text -> label', 'Choose.')
    """
    fields: dict[str, Any] = {}
    make: Any = dspy
    for field, specs in ((make.InputField, inputs), (make.OutputField, outputs)):
        for spec in specs:
            # A field without a description gets DSPy's "${name}", which adapters leave out of the prompt.
            fields[spec.name] = (spec.annotation, field(desc=spec.desc) if spec.desc else field())
    return make.Signature(fields, instructions)


def _words(name: str) -> str:
    return name.replace("_", " ").strip()


def literal(labels: Sequence[str]) -> Any:
    """Return the closed type of these labels, in this order.

    >>> literal(["ham", "spam"])
    typing.Literal['ham', 'spam']
    """
    return cast(Any, Literal)[tuple(labels)]


def with_label_descriptions(desc: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return the field description with a line for every label of `new` in place of those of `old`.

    DSPy's placeholder "${name}" stands for no description.

    >>> with_label_descriptions("${label}", {}, {"HUM": "a person or a group", "LOC": "a place"})
    'HUM: a person or a group\\nLOC: a place'
    """
    rest = "" if desc.startswith("${") else desc.removesuffix(_label_lines(old)).rstrip()
    return "\n".join(part for part in (rest, _label_lines(new)) if part)


def _label_lines(descriptions: Mapping[str, str]) -> str:
    return "\n".join(f"{label}: {' '.join(text.split())}" for label, text in descriptions.items())


def annotation_of(values: Iterable[Any], name: str) -> Any:
    """Return the type that fits every value; None among them makes it optional.

    Objects become a TypedDict whose keys are all optional, numbers float where one is not an integer, and
    whatever does not agree `Any`.

    >>> annotation_of([["a"], []], "tags")
    list[str]
    """
    seen = list(values)
    known = [v for v in seen if v is not None]
    inner = _annotation_of_known(known, name)
    return inner if len(known) == len(seen) or inner is Any else inner | None


def _annotation_of_known(values: list[Any], name: str) -> Any:
    types: set[Any] = {type(v) for v in values}
    if types == {dict}:
        return typed_dict(cast("list[dict[str, Any]]", values), name)
    if types == {list}:
        items = [item for value in cast("list[list[Any]]", values) for item in value]
        return list[annotation_of(items, _singular(name))] if items else list[str]
    if types == {int, float}:
        return float
    if len(types) == 1 and types <= {str, int, float, bool}:
        return types.pop()
    return str if not values else Any


def typed_dict(values: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return a TypedDict over the keys of all values, in the order first seen, none of them required.

    A number where text is expected becomes text: models drop quotes, and one slip should not cost the answer.
    """
    keys = dict.fromkeys(key for value in values for key in value)
    fields = {k: NotRequired[annotation_of((v[k] for v in values if k in v), k)] for k in keys}
    title = "".join(part.capitalize() for part in name.split("_")) or "Item"
    made: Any = TypedDict(title, fields)  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    made.__pydantic_config__ = ConfigDict(coerce_numbers_to_str=True)
    return made


def _singular(name: str) -> str:
    if name.endswith("ies"):
        return name[:-3] + "y"
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else f"{name}_item"


def describe_structure(values: Sequence[Any], name: str) -> str:
    """Return one line that says what JSON an extraction field holds, with the values of its closed keys.

    >>> describe_structure([[{"slot": "time", "value": "7 pm"}], []], "slots")
    'JSON list of objects with the keys slot and value; [] if there is none'
    """
    lists = [cast("list[Any]", v) for v in values if isinstance(v, list)]
    if not lists:
        objects = [cast("dict[str, Any]", v) for v in values if isinstance(v, dict)]
        return f"JSON object with the keys {_keys(objects)}; leave out what is not there"
    items = [item for value in lists for item in value]
    objects = [cast("dict[str, Any]", i) for i in items if isinstance(i, dict)]
    what = f"objects with the keys {_keys(objects)}" if objects else _words(name)
    return f"JSON list of {what}; [] if there is none"


def _keys(objects: Sequence[Mapping[str, Any]]) -> str:
    parts: list[str] = []
    for key in dict.fromkeys(k for o in objects for k in o):
        found = [o[key] for o in objects if isinstance(o.get(key), str)]
        known = sorted(set(found))
        closed = 2 <= len(known) <= min(MAX_KEY_VALUES, len(found) // 2)
        parts.append(f"{key} ({', '.join(map(_quote, known))})" if closed else key)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _quote(text: str) -> str:
    return f'"{text}"'


_INSTRUCTIONS = {
    "classification": "Choose the {output} that fits the {inputs}.",
    "extraction": "Extract the {output} from the {inputs}. Answer with JSON only.",
    "number": "Work out the {output} from the {inputs}. Answer with a number.",
    "short_answer": "Give the {output} for the {inputs} in a few words.",
    "text": "Write the {output} for the {inputs}.",
    "program": "Give the {output} for the {inputs}.",
}


def default_instructions(kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Return one sentence that states the task from its kind and its columns' names.

    >>> default_instructions("classification", ["text"], ["news_topic"])
    'Choose the news topic that fits the text.'
    """
    return _INSTRUCTIONS[kind].format(inputs=_join(inputs), output=_join(outputs))


def _join(names: Sequence[str]) -> str:
    words = [_words(n) for n in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
