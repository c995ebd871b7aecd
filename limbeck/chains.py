"""Chains of abstraction: reasoning whose results are placeholders, "[20 + 35 = y1]", that tools fill in afterwards.

Gao et al. 2024 (arXiv:2401.17464): a whole chain is decoded first, then its calls run; a later call takes earlier
results by their names, and calls that do not wait for each other run at once. A placeholder is "[EXPRESSION = NAME]"
for the calculator or "[TOOL(text) = NAME]" for another tool. Expressions are read by the grammar of `limbeck.answers`:
no text is evaluated as code.
"""

from __future__ import annotations

import contextvars
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias, cast

from limbeck.answers import Quantity, parse_answer
from limbeck.errors import BudgetExceeded
from limbeck.expressions import MOST_BITS

Reason = Literal["unparsable", "undefined_variable", "cycle", "no_placeholder", "tool_error"]
Value: TypeAlias = "Fraction | str"
# A tool takes the text of its call and returns what it found; a `dspy.Tool` of one argument is one as well.
Tool: TypeAlias = Callable[[str], Any]

_NAME = r"[A-Za-z]_?\d{1,3}"
_MENTION = re.compile(rf"(?<![\w.]){_NAME}(?!\w)")
_BRACKET = re.compile(r"\[([^\[\]\n]+)\]")
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\((.*)\)", re.DOTALL)
_FINAL = re.compile(rf"(?:####|\banswer\b\s*(?:is\b|:|=))\W*({_NAME})(?!\w|\s*[-+*/])", re.IGNORECASE)
_NAMELESS = re.compile(r"[\w)%]\s*[-+*/]\s*[\w($]")
_TIMES = re.compile(r"(?<=[\d.)%])\s*[xX×·⋅]\s*(?=[-\d.(])")
_ARITHMETIC = re.compile(r"[\d\s.,+\-*/^%()]*\d[\d\s.,+\-*/^%()]*")
_SIGNS = str.maketrans({"÷": "/", "−": "-", "–": "-", "$": "", "€": "", "£": ""})
# Decimals that people read as such; what needs more is shown as a fraction.
_MOST_DECIMALS = 8


class ChainError(ValueError):
    """A chain that cannot be read or run; `reason` names the rule it breaks."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason: Reason = reason
        super().__init__(f"{reason}: {message}")


@dataclass(frozen=True)
class Step:
    """One placeholder: `tool` "" is the calculator, `uses` the names whose results its argument takes.

    `start` and `end` are its place in the chain's text.
    """

    name: str
    tool: str
    argument: str
    uses: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Chain:
    """A chain that has been read: its steps in waves, each of which needs the results of earlier waves only.

    `answer` is the name whose result answers: that after "the answer is", else the last one defined.
    """

    text: str
    waves: tuple[tuple[Step, ...], ...]
    answer: str

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in the order of the text."""
        return tuple(sorted((step for wave in self.waves for step in wave), key=lambda step: step.start))


@dataclass(frozen=True)
class ChainRun:
    """What the tools gave: each name's value, the answer's, and the chain with the values in their places."""

    values: Mapping[str, Value]
    answer: Value
    text: str


def parse_chain(text: str) -> Chain:
    """Return the chain of a text; raises ChainError for one that cannot be run.

    A step may take the result of a later one, as long as none waits for itself.

    >>> [[step.name for step in wave] for wave in parse_chain("[2 * 3 = y1], [4 + 1 = y2], [y1 - y2 = y3]").waves]
    [['y1', 'y2'], ['y3']]
    """
    found = [(_split(match[1]), match) for match in _BRACKET.finditer(text) if _is_call(match[1])]
    if not found:
        raise ChainError("no_placeholder", "the chain has no [EXPRESSION = NAME]")
    names = [name for (_, name), _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ChainError("unparsable", f"{name} is defined twice")
    letters = {name[0] for name in names}
    for name in _MENTION.findall(text):
        if name[0] in letters and name not in names:
            raise ChainError("undefined_variable", f"{name} has no placeholder")
    steps = [_step(call, name, names, match.span()) for (call, name), match in found]
    said = _FINAL.findall(text)
    answer = said[-1] if said and said[-1] in names else names[-1]
    return Chain(text, _waves(steps), answer)


def is_chain(text: str) -> bool:
    """Return whether a text is a chain that can be run.

    >>> is_chain("[2 + 3 = y1]"), is_chain("2 + 3 = 5")
    (True, False)
    """
    try:
        return bool(parse_chain(text))
    except ChainError:
        return False


def run_chain(chain: Chain, tools: Mapping[str, Tool] | None = None, *, threads: int = 8) -> ChainRun:
    """Return the results of a chain's calls; calls of one wave run at once.

    Raises ChainError where a tool is not known or fails, and where a calculation has no value.

    >>> run_chain(parse_chain("He has [20 + 35 = y1], then [y1 * 2 = y2] eggs.")).text
    'He has 20 + 35 = 55, then 55 * 2 = 110 eggs.'
    """
    values: dict[str, Value] = {}
    for wave in chain.waves:
        if len(wave) == 1:
            values[wave[0].name] = _called(wave[0], values, tools or {})
            continue
        with ThreadPoolExecutor(min(threads, len(wave))) as pool:
            jobs = [
                pool.submit(contextvars.copy_context().run, _called, step, dict(values), tools or {}) for step in wave
            ]
            values |= {step.name: job.result() for step, job in zip(wave, jobs, strict=True)}
    return ChainRun(values, values[chain.answer], _filled(chain, values))


def calculate(expression: str) -> Fraction:
    """Return the exact value of an arithmetic expression; raises ChainError where it has none.

    Currency signs do not count, "x" between numbers multiplies and "%" divides by a hundred.

    >>> calculate("(1,000 - 250) x 20%"), calculate("0.1 + 0.2")
    (Fraction(150, 1), Fraction(3, 10))
    """
    plain = _TIMES.sub("*", expression.translate(_SIGNS)).strip()
    found = parse_answer(plain) if _ARITHMETIC.fullmatch(plain) else None
    value: Any = found.value if isinstance(found, Quantity) else None
    if value is None or not value.is_Rational:
        raise ChainError("unparsable", f"{expression.strip()[:80]!r} is no calculation")
    exact = Fraction(int(value.p), int(value.q))
    if _is_huge(exact):
        raise ChainError("unparsable", f"{expression.strip()[:80]!r} is too large")
    return exact


def shown(value: Value) -> str:
    """Return a value as text: an exact decimal where it has a short one, else a fraction.

    >>> shown(Fraction(7, 2)), shown(Fraction(10, 3)), shown("Rome")
    ('3.5', '10/3', 'Rome')
    """
    if isinstance(value, str):
        return value
    scaled = value * 10**_MOST_DECIMALS
    if value.denominator == 1 or scaled.denominator > 1:
        return str(value)
    sign, digits = "-" if value < 0 else "", f"{abs(scaled.numerator):0{_MOST_DECIMALS + 1}d}"
    return f"{sign}{digits[:-_MOST_DECIMALS]}.{digits[-_MOST_DECIMALS:].rstrip('0')}"


def as_number(value: Value) -> int | float | str:
    """Return a value as a plain int or float; text stays text. Raises ChainError for what no float can hold.

    >>> as_number(Fraction(4)), as_number(Fraction(1, 4))
    (4, 0.25)
    """
    if isinstance(value, str):
        return value
    try:
        return int(value) if value.denominator == 1 else float(value)
    except OverflowError as error:
        raise ChainError("tool_error", "a result is too large") from error


def _is_call(inside: str) -> bool:
    """Return whether brackets hold a call, with its name or lacking it; "[1]" and "[y1]" are none."""
    return "=" in inside or (any(c.isdigit() for c in inside) and _NAMELESS.search(inside) is not None)


def _split(inside: str) -> tuple[str, str]:
    """Return the call and the name of "20 + 35 = y1", or of "y1 = 20 + 35", as models also write it."""
    left, _, right = (part.strip() for part in inside.rpartition("="))
    if re.fullmatch(_NAME, right):
        call, name = left, right
    else:
        name, _, call = (part.strip() for part in inside.partition("="))
    if not re.fullmatch(_NAME, name) or not call or "=" in call:
        raise ChainError("unparsable", f"[{inside[:80]}] is not [EXPRESSION = NAME]")
    return call, name


def _step(call: str, name: str, names: Sequence[str], span: tuple[int, int]) -> Step:
    found = _CALL.fullmatch(call)
    tool, argument = (found[1], found[2].strip()) if found else ("", call)
    mentioned = dict.fromkeys(_MENTION.findall(argument))
    # "B12" may be a word of a search; in a calculation it can only be a name.
    unknown = [one for one in mentioned if one not in names] if not tool else []
    if unknown:
        raise ChainError("undefined_variable", f"{unknown[0]} has no placeholder")
    return Step(name, tool, argument, tuple(one for one in mentioned if one in names), *span)


def _waves(steps: Sequence[Step]) -> tuple[tuple[Step, ...], ...]:
    waves: list[tuple[Step, ...]] = []
    done: set[str] = set()
    left: list[Step] = [*steps]
    while left:
        ready: tuple[Step, ...] = tuple(step for step in left if set(step.uses) <= done)
        if not ready:
            raise ChainError("cycle", f"{left[0].name} waits for itself")
        waves.append(ready)
        done |= {step.name for step in ready}
        left = [step for step in left if step not in ready]
    return tuple(waves)


def _called(step: Step, values: Mapping[str, Value], tools: Mapping[str, Tool]) -> Value:
    if not step.tool:
        return calculate(_MENTION.sub(lambda match: _operand(values[match[0]]), step.argument))
    if step.tool not in tools:
        raise ChainError("unparsable", f"there is no tool {step.tool!r}; known: {', '.join(tools) or 'none'}")
    argument = _MENTION.sub(lambda match: shown(values.get(match[0], match[0])), step.argument)
    try:
        return _value(_asked(tools[step.tool], argument))
    except BudgetExceeded:
        raise
    except Exception as error:  # a tool is somebody's own code, run on whatever a model wrote
        raise ChainError("tool_error", f"{step.tool}({argument[:60]}): {type(error).__name__}: {error}") from error


def _asked(tool: Any, argument: str) -> Any:
    parameters = getattr(tool, "args", None)
    # A dspy.Tool knows its parameters and takes them by name only.
    if isinstance(parameters, Mapping) and parameters:
        return tool(**{str(next(iter(cast("Mapping[str, Any]", parameters)))): argument})
    return tool(argument)


def _is_huge(value: Fraction) -> bool:
    """Return whether a value is too large to be written out: Python refuses to, beyond 4300 digits."""
    return max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS


def _value(found: Any) -> Value:
    if isinstance(found, (int, float, Fraction)) and not isinstance(found, bool):
        if isinstance(found, float) and not math.isfinite(found):
            raise ValueError(f"{found} is no finite number")
        exact = Fraction(str(found)) if isinstance(found, float) else Fraction(found)
        if _is_huge(exact):
            raise ValueError("the number is too large")
        return exact
    return str(found)


def _operand(value: Value) -> str:
    """Return a value as it stands in a calculation; text that is itself a number counts as one."""
    exact = calculate(value) if isinstance(value, str) else value
    return f"({exact.numerator}/{exact.denominator})" if exact.denominator > 1 else f"({exact.numerator})"


def _filled(chain: Chain, values: Mapping[str, Value]) -> str:
    def fill(text: str) -> str:
        text = re.sub(rf"\[\s*({_NAME})\s*\]", r"\1", text)
        return _MENTION.sub(lambda match: shown(values.get(match[0], match[0])), text)

    parts: list[str] = []
    at = 0
    for step in chain.steps:
        call = f"{step.tool}({step.argument})" if step.tool else step.argument
        parts += [fill(chain.text[at : step.start]), f"{fill(call)} = {shown(values[step.name])}"]
        at = step.end
    return "".join([*parts, fill(chain.text[at:])])
