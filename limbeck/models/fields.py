"""How fields are described, written and read back in a prompt of `CompactAdapter`."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false

from __future__ import annotations

import json
import re
from typing import Any

import json_repair
from dspy.adapters.utils import annotation_allows_none, format_field_value, get_annotation_name, parse_value
from pydantic import TypeAdapter

from limbeck.models.labels import closed_values, label_text, match_label

_HEADER = re.compile(r"\[\[\s*##\s*(\w+)\s*##\s*\]\]")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NUMBER_TYPES = (int, float)


def header(name: str) -> str:
    """Return the line that opens a field's section."""
    return f"[[ ## {name} ## ]]\n"


def opens_section(text: str) -> bool:
    """Return whether a text begins with some field's header, however it is spaced."""
    return _HEADER.match(text) is not None


def described(name: str, info: Any) -> str:
    """Return a field's line: name, type or labels, description; labels with descriptions appear once."""
    extra = info.json_schema_extra
    desc = str(extra.get("desc") or "")
    desc = "" if desc == f"${{{name}}}" else desc.strip()
    if extra.get("constraints"):
        desc = f"{desc} ({extra['constraints']})".strip()
    closed = closed_values(info.annotation)
    if closed is None or extra["__dspy_field_type"] == "input":
        # A description that says the form in words is a tenth of the schema's length.
        kind = "" if desc.startswith("JSON ") else _kind(info.annotation)
        return f"{name}{f' ({kind})' if kind else ''}{f': {desc}' if desc else ''}"
    labels = [label_text(value) for value in closed]
    lines = [line.strip().lstrip("-* ") for line in desc.splitlines()]
    if all(any(line.startswith(f"{label}:") for line in lines) for label in labels):
        return f"{name}, one of:\n{desc}"
    return f"{name}, one of: {'; '.join(labels)}{f'. {desc}' if desc else ''}"


def _kind(annotation: Any) -> str:
    """Return how to write a value of an open type, "" for text."""
    if annotation is str or get_annotation_name(annotation) == "str":
        return ""
    if annotation in _NUMBER_TYPES:
        return "a number" if annotation is float else "a whole number"
    schema = TypeAdapter(annotation).json_schema()
    if "$defs" in schema or schema.get("type") == "object":
        return f"JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
    return f"JSON, {get_annotation_name(annotation)}"


def written(info: Any, value: Any) -> str:
    """Return the text of a field's value; a label's own text for closed sets."""
    if closed_values(info.annotation):
        return label_text(value)
    return str(format_field_value(field_info=info, value=value))


def sections(completion: str, names: list[str]) -> dict[str, str]:
    """Return each output field's text: under headers, as `name:` lines or JSON, or all for one field."""
    pieces = _HEADER.split(completion)
    found = {name: text.strip() for name, text in zip(pieces[-2::-2], pieces[-1::-2], strict=False)}
    lead = pieces[0].strip()
    if not found.keys() & set(names):
        if len(names) == 1:
            return {names[0]: re.sub(rf"^{names[0]}\s*:\s*", "", lead, flags=re.IGNORECASE)}
        return _json_fields(completion, names) or _named_lines(completion, names)
    missing = [name for name in names if name not in found]
    if lead and missing:  # a prompt that opened the first field's section is continued without its header
        found[missing[0]] = lead
    return found


def _json_fields(completion: str, names: list[str]) -> dict[str, str]:
    start = completion.find("{")
    loaded = json_repair.loads(completion[start:]) if start >= 0 else None
    if not isinstance(loaded, dict):
        return {}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in loaded.items()}
    return {name: texts[name] for name in names if name in texts}


def _named_lines(completion: str, names: list[str]) -> dict[str, str]:
    pieces = re.split(rf"^\W*({'|'.join(map(re.escape, names))})\W*?:", completion, flags=re.M | re.I)
    lower = {name.lower(): name for name in names}
    return {lower[name.lower()]: text.strip() for name, text in zip(pieces[1::2], pieces[2::2], strict=False)}


def parsed(text: str, annotation: Any) -> Any:
    """Return the value that a text stands for; raises ValueError where it is none of its type."""
    closed = closed_values(annotation)
    if closed is not None:
        return match_label(text, closed)
    if annotation in _NUMBER_TYPES:
        return _number(text, annotation)
    if annotation is not str and annotation_allows_none(annotation) and text.strip() in ("None", "null"):
        return None
    return parse_value(text, annotation)


def _number(text: str, kind: type) -> Any:
    # Of a sentence the last number counts: "3 + 4 = 7".
    numbers = _NUMBER.findall(text)
    if not numbers:
        raise ValueError(f"{text[:80]!r} holds no number")
    value = float(numbers[-1].replace(",", ""))
    if kind is int:
        if not value.is_integer():
            raise ValueError(f"{numbers[-1]} is not whole")
        return int(value)
    return value
