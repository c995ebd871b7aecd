r"""Answers compared by value: "1/2" is "0.5" is "\frac{1}{2}", "1.5 km" is "1500 m", "x = 3" is "3".

Numbers and formulas are read by `limbeck.expressions`. Exact numbers are compared exactly, decimals within a
rounding, formulas by their values at a few points (identity testing: Schwartz 1980, doi:10.1145/322217.322225),
since expanding them could take for ever. What is too long, too deep or too large is not read, and compared as text.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import cmath
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, cast

import sympy

from limbeck.expressions import CONSTANTS, MOST_BITS, NAMES, Unreadable, parse_expression, value_at
from limbeck.metrics import RELATIVE_TOLERANCE
from limbeck.notation import plain_signs

_MOST_CHARACTERS = 300
_POINTS, _ENOUGH, _EXACT, _NOTHING = 8, 3, 1e-9, 1e-13
_FLOAT = 1e-12  # what adding up floats may lose


@dataclass(frozen=True)
class Quantity:
    """A SymPy expression, its base units with their powers and the factor to them.

    `step` is the size of the last decimal place that was written, 0 without decimals.
    """

    value: Any
    unit: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    percent: bool = False
    step: Fraction = Fraction(0)


@dataclass(frozen=True)
class Relation:
    """An equation or inequality as `gap sign 0`; `alone` is the right side of "x = 3" or "1 + 2 = 3"."""

    gap: Any
    sign: str
    alone: Quantity | None


@dataclass(frozen=True)
class Collection:
    """Several answers: "{}" for a set, "" for a bare list, else the brackets around them."""

    brackets: str
    items: tuple[Quantity | Relation | Collection, ...]


Answer: TypeAlias = Quantity | Relation | Collection


def same_answer(
    gold: Any, predicted: Any, *, percent: bool | None = None, tolerance: float = RELATIVE_TOLERANCE
) -> bool:
    r"""Return whether two answers have the same value or, where gold has none, the same text.

    A unit that one side lacks makes no difference. `percent` says that a percentage is asked, so that "50%" is
    "50" as well as "0.5"; by default it is where gold has the sign. Decimals may be rounded: by `tolerance`, a
    share of the value, and by one in the last place written at the most.
    Sentences are read at "the answer is", "####" or "\boxed{}", else at their last number.

    >>> same_answer("1/2", "0.5"), same_answer("3", "So x = 3 apples."), same_answer("x^2-1", "(x-1)(x+1)")
    (True, True, True)
    """
    if _text(gold) and _text(gold) == _text(predicted):
        return True
    a, b = parse_answer(gold), parse_answer(predicted)
    if isinstance(a, Quantity) and isinstance(predicted, str):
        lettered = re.match(r"\(?([A-Za-z])(?:\)|[.:](?:\s|$))", predicted.strip())
        if lettered and a.value.is_Symbol:  # a choice that is written out: "D) 17,818"
            b = parse_answer(lettered[1])
        stuck = b is None or (isinstance(b, Relation) and not b.alone and re.search("[A-Za-z]{2}", predicted))
        numbers = _NUMBER.findall(predicted) if stuck and a.value.is_number else []
        b = parse_answer(numbers[-1]) if numbers else b
    if a is None or b is None:
        folded = [_text(value).casefold().strip("()[]\"' ") for value in (gold, predicted)]
        return folded[0] == folded[1] != ""
    percent = isinstance(a, Quantity) and a.percent if percent is None else percent
    return _same(a, b, percent, tolerance)


def answer_match(gold: Any, predicted: Any) -> float:
    """Return 1.0 if the answers are the same by value, else 0.0: a score for a metric."""
    return float(same_answer(gold, predicted))


def final_answer(text: str) -> str:
    r"""Return what a text gives as its answer: in \boxed{}, after "####" or "answer is", else all of it.

    >>> final_answer("2 + 2 makes 4. The answer is 4."), final_answer(r"Thus \boxed{\frac{1}{2}}.")
    ('4', '\\frac{1}{2}')
    """
    start, depth = text.rfind("\\boxed{"), 0
    for at in range(start + 6, len(text) if start >= 0 else 0):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start + 7 : at].strip()
    found = list(_ANSWER_IS.finditer(text))
    if found:
        text = re.split(r"\.\s+(?=[A-Z])|\n", text[found[-1].end() :].strip(), maxsplit=1)[0]
    return text.strip().strip("*`").rstrip(".,;: ")


def parse_answer(value: Any) -> Answer | None:
    """Return what an answer stands for, None where it is only text.

    >>> parse_answer("Paris") is None, parse_answer("12,000").value
    (True, 12000)
    """
    if isinstance(value, (list, tuple, AbstractSet)):
        items = [parse_answer(item) for item in cast("Sequence[Any]", value)]
        known = tuple(item for item in items if item is not None)
        brackets = "{}" if isinstance(value, AbstractSet) else ""
        return Collection(brackets, known) if len(known) == len(items) else None
    if value is None or isinstance(value, bool):
        return None
    text = _text(value)
    try:
        return _read(text) if len(text) <= _MOST_CHARACTERS else None
    except (Unreadable, ArithmeticError):
        return None


# -- text ----------------------------------------------------------------------------------------------------

_ANSWER_IS = re.compile(r"####|\banswer\b\s*(?:is\b|:|=)\s*:?", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?[$€£₹]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?%)?")


def _text(value: Any) -> str:
    # Python refuses to write integers of thousands of digits in decimal.
    huge = isinstance(value, int) and value.bit_length() > MOST_BITS
    text = final_answer(hex(value) if huge else str(value))
    return plain_signs(text) if len(text) <= 2 * _MOST_CHARACTERS else text


# -- structure -----------------------------------------------------------------------------------------------

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_SIGN = re.compile(r"<=|>=|!=|=|<|>")
_RATIO = re.compile(r"\d+(?:\.\d+)?\s*:\s*\d+(?:\.\d+)?")
_CONJUNCTION = re.compile(r",?\s+(?:and|or)\s+")
_WORDS = re.compile(r"[A-Za-z' ]+|[A-Za-z']{2,}(?:[- ][A-Za-z']{2,})+")
_CLOSING = {"(": ")", "[": "]", "{": "}", "⟦": "⟧"}


def _read(text: str, depth: int = 0) -> Answer:
    wordy = len(text) > 1 and text not in CONSTANTS and _WORDS.fullmatch(text)
    if depth > 3 or not text or wordy:
        raise Unreadable(text)
    inner = _split(text[1:-1]) if text[0] in _CLOSING and text[-1] in _CLOSING.values() else None
    if inner is not None and (len(inner) > 1 or text[0] in "[{⟦"):
        brackets = "{}" if text[0] in "{⟦" and text[-1] in "}⟧" else text[0] + text[-1]
        return Collection(brackets, tuple(_read(item, depth + 1) for item in inner if item))
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    items = _split(_CONJUNCTION.sub(",", text))
    if items is not None and len(items) > 1:
        read = tuple(_read(item, depth + 1) for item in items)
        named = all(isinstance(item, Relation) and item.alone for item in read)
        return Collection("{}" if named or _CONJUNCTION.search(text) else "", read)
    signs = _SIGN.findall(text)
    if signs:
        return _relation(_SIGN.split(text), signs)
    return _quantity(text.replace(":", "/") if _RATIO.fullmatch(text) else text)


def _split(text: str) -> list[str] | None:
    """Return the parts between top-level commas, None where the brackets do not match."""
    parts, opened = [""], 0
    for c in text:
        opened += (c in _CLOSING) - (c in _CLOSING.values())
        if opened < 0:
            return None
        if c == "," and not opened:
            parts.append("")
        else:
            parts[-1] += c
    return None if opened else [part.strip() for part in parts]


def _relation(sides: Sequence[str], signs: Sequence[str]) -> Relation:
    if len(signs) > 1 and set(signs) != {"="}:
        raise Unreadable("a chain of inequalities")
    left, right = _quantity(sides[0]), _quantity(sides[-1])
    gap = right.value - left.value if signs[0].startswith(">") else left.value - right.value
    alone = right if (left.value.is_Symbol or left.value.is_number) and signs[0] == "=" else None
    return Relation(gap, signs[0].replace(">", "<"), alone)


# -- units ---------------------------------------------------------------------------------------------------

_TABLE = """
m: mm 1/1000 cm 1/100 m 1 meter 1 metre 1 km 1000 kilometer 1000 kilometre 1000 inch 127/5000 ft 381/1250
m: foot 381/1250 feet 381/1250 yd 1143/1250 yard 1143/1250 mile 201168/125
g: mg 1/1000 g 1 gm 1 gram 1 kg 1000 kilogram 1000 lb 45359237/100000 pound 45359237/100000
s: s 1 sec 1 second 1 min 60 minute 60 h 3600 hr 3600 hour 3600 day 86400 week 604800
l: ml 1/1000 l 1 liter 1 litre 1
$: $ 1 dollar 1 usd 1 cent 1/100
€: € 1 euro 1 eur 1
£: £ 1 gbp 1
₹: ₹ 1 rs 1 rupee 1 inr 1
degree: degree 1
"""
_UNITS = {
    name: (line.partition(":")[0], Fraction(factor))
    for line in _TABLE.strip().splitlines()
    for name, factor in re.findall(r"(\S+) (\d\S*)", line.partition(": ")[2])
}
_SPEEDS = {"mph": "mile/hour", "kmph": "km/hour", "kph": "km/hour"}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_MONEY = re.compile(r"^(-?)\s*(rs\b\.?|usd\b|eur\b|gbp\b|inr\b|[$€£₹])\s*", re.IGNORECASE)
_WITH_UNIT = re.compile(r"(.*?[\d)])\s*([A-Za-z$€£₹][A-Za-z$€£₹. /^()23]*)")
_UNIT_PART = re.compile(r"(?:(square|sq\.?|cubic|cu\.?) )?([A-Za-z$€£₹][A-Za-z. ]*?)\.?(?: ?\^? ?\(?([23])\)?)?")
_Unit: TypeAlias = tuple[tuple[tuple[str, int], ...], Fraction]


def _quantity(text: str) -> Quantity:
    text = re.sub(r"^(?:about|approximately|roughly|exactly) ", "", text.strip(), flags=re.IGNORECASE)
    money, scale, unit = _MONEY.match(text), 1, None
    if money:
        text, unit = money[1] + text[money.end() :], _unit(money[2])
    found = _WITH_UNIT.fullmatch(text)
    if found:
        first, _, rest = found[2].partition(" ")
        scale = _SCALES.get(first.casefold(), 1)
        behind = _unit(found[2] if scale == 1 else rest)
        if behind or scale > 1:
            text, unit = found[1], behind or unit
    percent, places = text.endswith("%"), [len(found) for found in re.findall(r"\.(\d*)", text)]
    step = Fraction(scale, 10 ** min(places) * (100 if percent else 1)) if places else Fraction(0)
    return Quantity(parse_expression(text) * scale, *(unit or ((), Fraction(1))), percent, step)


def _unit(text: str) -> _Unit | None:
    """Return what "km/h", "sq. ft" or "candy bars" stands for; None for what is rather a symbol."""
    factor, powers = Fraction(1), dict[str, int]()
    for at, part in enumerate(re.split(r" ?/ ?| per | an? ", _SPEEDS.get(text.casefold().rstrip("."), text))):
        found = _UNIT_PART.fullmatch(part.partition(" of ")[0].strip())
        known = _named(found[2]) if found else None
        if found is None or known is None:
            return None
        power = {"sq": 2, "cu": 3}.get((found[1] or "")[:2], int(found[3] or 1)) * (-1 if at else 1)
        factor *= known[1] ** power
        powers[known[0]] = powers.get(known[0], 0) + power
    return tuple(sorted(powers.items())), factor


def _named(text: str) -> tuple[str, Fraction] | None:
    words = [word if len(word) == 1 else word.casefold() for word in text.replace(".", " ").split()]
    last = words[-1] if words else ""
    for name in (last, last.removesuffix("s"), last.removesuffix("es")):
        if name in _UNITS and len(words) == 1:
            return _UNITS[name]
    # Other words name what is counted; up to three letters are rather a product of symbols.
    counted = all(len(word) > 3 and word not in NAMES for word in words)
    return (re.sub(r"(?<=x|s|h)es$|s$", "", last), Fraction(1)) if words and counted else None


# -- comparison ----------------------------------------------------------------------------------------------


def _values(a: Any, b: Any) -> list[tuple[complex, complex]]:
    """Return the values of two expressions at the points where both have one."""
    found: list[tuple[complex, complex]] = []
    for point in range(_POINTS):
        try:
            pair = value_at(a, point), value_at(b, point)
        except (ArithmeticError, ValueError):
            continue
        found += [pair] if all(map(cmath.isfinite, pair)) else []
    return found if len(found) >= _ENOUGH else []


def _equal(a: Any, b: Any, step: Fraction, tolerance: float) -> bool:
    """Compare two expressions; a `step` above 0 allows rounding by as much, within the relative tolerance."""
    if a.is_Rational and b.is_Rational:
        size, gap = max(abs(a), abs(b)), abs(a - b)
        return bool(gap == 0) or bool(step and gap <= min(size * tolerance, max(size * _FLOAT, step)))
    near, pairs = max(tolerance if step else 0.0, _EXACT), _values(a, b)
    close = [cmath.isclose(x, y, rel_tol=near, abs_tol=_NOTHING) for x, y in pairs]
    return bool(a == b) or (len(close) > 0 and all(close))


def _same(a: Answer, b: Answer, percent: bool, tolerance: float) -> bool:
    if isinstance(a, Collection) and isinstance(b, Collection):
        return _same_items(a, b, percent, tolerance)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _same_relation(a, b)
    bare = [_single(answer) for answer in (a, b)]
    if not (isinstance(bare[0], Quantity) and isinstance(bare[1], Quantity)):
        return False
    return _same_quantity(bare[0], bare[1], percent, tolerance)


def _single(answer: Answer) -> Answer | None:
    """Return what a set of one or "x = 3" holds."""
    if isinstance(answer, Collection):
        return _single(answer.items[0]) if answer.brackets == "{}" and len(answer.items) == 1 else None
    return answer.alone if isinstance(answer, Relation) else answer


def _same_items(a: Collection, b: Collection, percent: bool, tolerance: float) -> bool:
    if len(a.items) != len(b.items) or ("" not in (kinds := {a.brackets, b.brackets}) and len(kinds) > 1):
        return False
    if "{}" not in kinds:
        return all(_same(x, y, percent, tolerance) for x, y in zip(a.items, b.items, strict=True))
    rest = list(b.items)
    for item in a.items:
        match = next((at for at, other in enumerate(rest) if _same(item, other, percent, tolerance)), None)
        if match is None:
            return False
        rest.pop(match)
    return True


def _same_relation(a: Relation, b: Relation) -> bool:
    """Compare by the ratio of the gaps, which is the same everywhere; an inequality's is positive."""
    pairs = _values(a.gap, b.gap)
    if a.sign != b.sign or not pairs or any(abs(y) < _NOTHING for _, y in pairs):
        return False
    ratios = [x / y for x, y in pairs]
    turned = a.sign.startswith("<") and ratios[0].real <= 0
    return abs(ratios[0]) > _NOTHING and not turned and all(cmath.isclose(r, ratios[0]) for r in ratios)


def _same_quantity(a: Quantity, b: Quantity, percent: bool, tolerance: float) -> bool:
    x, y = a.value, b.value
    if all(value.is_Symbol or value == sympy.E for value in (x, y)):
        return str(x).casefold() == str(y).casefold()  # the letter of a choice
    step = max(a.step, b.step)
    if a.unit and b.unit:
        if a.unit != b.unit:
            return False
        x, y = (v.value * sympy.Rational(v.factor.numerator, v.factor.denominator) for v in (a, b))
        step = max(v.step * v.factor for v in (a, b))
    if percent and a.percent != b.percent:
        sign, other = (x, y) if a.percent else (y, x)
        if _equal(100 * sign, other, 100 * step, tolerance):
            return True
    return _equal(x, y, step, tolerance)
