"""Verifiers of values, structure, grounding and consistency; each one a check that is easier than the answer.

Equations and answers are checked by value, structured answers by a JSON schema, quotations, numbers and names by
the passages they come from, an answer as a whole by a program that gives it back (round trip) or by other
samples of it (self-consistency, Wang et al. 2022, arXiv:2203.11171).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias, cast

from limbeck.answers import answer_match, same_answer
from limbeck.errors import BudgetExceeded, InputError
from limbeck.metrics import RELATIVE_TOLERANCE, Score, get_field, same_label, score_of
from limbeck.verifiers import Verdict, leaves

Inputs: TypeAlias = Mapping[str, Any]
_SHOWN = 60  # characters of an answer in a reason


@dataclass(frozen=True)
class _OfField:
    field: str
    says: ClassVar[str]

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} {self.says}"


@dataclass(frozen=True)
class SameAnswer(_OfField):
    """Passes if the field has the expected value: that of another field, or what a function of the inputs gives.

    Where an input speaks of percent, "50%" may be written "50" or "0.5".

    >>> SameAnswer("answer", lambda inputs: inputs["a"] / 2)({"a": 3}, {"answer": "It is 3/2."}).ok
    True
    """

    says: ClassVar[str] = "has the expected value"
    expected: str | Callable[[Inputs], Any]
    tolerance: float = RELATIVE_TOLERANCE

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        found = outputs.get(self.field)
        wanted = self.expected(inputs) if callable(self.expected) else {**inputs, **outputs}[self.expected]
        percent = any(_PERCENT.search(text) for _, text in leaves(inputs)) or None
        ok = same_answer(wanted, found, percent=percent, tolerance=self.tolerance)
        return Verdict(ok, "" if ok else f"{self.field} is {_shown(found)}, not {_shown(wanted)}")


_PERCENT = re.compile(r"%|\bper\s?cent", re.IGNORECASE)
_NUMBER = r"-?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
# Bounded repeats: a text of operators alone must not cost more than its length.
_SIDE = rf"\(*{_NUMBER}\)*(?: ?[-+*/×÷] ?\(*{_NUMBER}\)*){{0,30}}"
_EQUATION = re.compile(rf"(?<![\w.)]){_SIDE}(?: ?= ?{_SIDE})+(?![\w(*/^+-]|[.,]\d| ?[-+*/×÷^] ?[\w(]| ?\d)")
# What stands before belongs to the left side: "480 dollars * 10/100 = 48", "2 1/2 = 5/2", "half of 3 + 5 = 4".
_GOES_ON = re.compile(r"(?:[-–+*/×÷^=()] ?|\d (?:and )?|[.,:\d]|\b(?:x|of|by|times|minus|plus) )$", re.IGNORECASE)
_CALCULATES = re.compile(r"[\d)%] ?[-+*/×÷]")
# "500 / 2/5" means a fraction to its writer and two divisions to a parser.
_UNCLEAR = re.compile(r"[/÷][^-+*×=()]*[/÷]")
_ROUNDED = 0.01


def wrong_equations(text: str, *, tolerance: float = _ROUNDED) -> tuple[list[str], int]:
    """Return the equations between numbers that do not hold, and how many there are in the text.

    Decimals may be rounded at their last place, by 1% at the most. Equations with symbols are passed over.

    >>> wrong_equations("5 + 3 = 8 apples and 8 * 2 = 18 pears")
    (['8 * 2 = 18'], 2)
    """
    text = " ".join(text.split())
    found = [m[0] for m in _EQUATION.finditer(text) if not _GOES_ON.search(text[max(0, m.start() - 8) : m.start()])]
    equations = [one for one in found if _CALCULATES.search(one) and not _UNCLEAR.search(one) and _balanced(one)]
    wrong: list[str] = []
    for equation in equations:
        first, *rest = (re.sub(r"[$€£]", "", side) for side in equation.split("="))
        if not all(same_answer(first, side, tolerance=tolerance) for side in rest):
            wrong.append(equation)
    return wrong, len(equations)


def _balanced(equation: str) -> bool:
    return all(side.count("(") == side.count(")") for side in equation.split("="))


@dataclass(frozen=True)
class EquationsHold(_OfField):
    """Passes if every equation between numbers in a text is right, such as those of a rationale.

    `least` is how many there have to be; by default none has to.

    >>> EquationsHold("reasoning")({}, {"reasoning": "3 * 4 = 12, and 12 - 5 = 8."}).reason
    'reasoning: 12 - 5 = 8 does not hold'
    """

    says: ClassVar[str] = "calculates right"
    least: int = 0
    tolerance: float = _ROUNDED

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        wrong, count = wrong_equations(str(outputs.get(self.field, "")), tolerance=self.tolerance)
        few = f"{self.field} has {count} equations, fewer than {self.least}" if count < self.least else ""
        return Verdict(not (wrong or few), f"{self.field}: {wrong[0]} does not hold" if wrong else few)


@dataclass(frozen=True)
class MatchesSchema(_OfField):
    """Passes if the field, or the JSON text it holds, fits a JSON schema; raises InputError for a bad schema.

    References outside the schema are not fetched: a row that needs one raises.

    >>> MatchesSchema("call", {"type": "object", "required": ["city"]})({}, {"call": '{"town": "Rome"}'}).reason
    "call: 'city' is a required property"
    """

    says: ClassVar[str] = "matches its schema"
    schema: Mapping[str, Any]

    def __post_init__(self) -> None:
        kind = cast(Any, type(self._validator))
        for error in kind(kind.META_SCHEMA).iter_errors(self.schema):
            raise InputError(f"the schema of {self.field} is none: {error.message}", valid="a JSON schema")

    @cached_property
    def _validator(self) -> Any:
        import referencing
        from jsonschema import validators

        # An empty registry: nothing is fetched.
        kind: Any = cast(Any, validators).validator_for(self.schema, default=validators.Draft202012Validator)
        return kind(self.schema, registry=referencing.Registry[Any]())

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        value = outputs.get(self.field)
        # Text may be the value itself: only where the schema refuses it is it taken for JSON.
        if isinstance(value, str) and not self._validator.is_valid(value):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                return Verdict(False, f"{self.field} is no JSON: {error}")
        error: Any = next(self._validator.iter_errors(value), None)
        if error is None:
            return Verdict(True)
        return Verdict(False, f"{'.'.join([self.field, *map(str, error.absolute_path)])}: {error.message[:200]}")


# -- grounding -----------------------------------------------------------------------------------------------

_QUOTATION = re.compile(r"(?:\"([^\"\n]+)\"|“([^”\n]+)”|«([^»\n]+)»)[.,;]?(?:\s?\[(\d{1,3})\])?")
_MARKER = re.compile(r"\[(\d{1,3})\]")
_ELLIPSIS = re.compile(r"\.\.\.|…|\[…\]")
_TYPOGRAPHY = str.maketrans("‘’“”–—\u2212", "''\"\"---")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)\]]*\s+(?=[\"“(\[]?[A-ZÀ-Þ0-9])|\n+")
_ANY_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+")
_LIST_NUMBER = re.compile(r"^\s*\(?\d{1,2}[.)]\s", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all also an and any are as at be because been before but by can could did do does each for
        from had has have he her his how i if in into is it its may more most no not of on one only or other our
        out over she should so some such than that the their them then there these they this those to up was we
        were what when where which while who whom why will with would you your""",
    )
)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY).split()).casefold()


def _passages(inputs: Inputs, sources: Sequence[str]) -> list[str]:
    """Return the texts of the named inputs, () for all; a list gives one passage an element."""
    return [text for name in sources or inputs for text in [t for _, t in leaves(inputs[name])] or [str(inputs[name])]]


@dataclass(frozen=True)
class Cited(_OfField):
    """Passes if every quotation of at least `words` words occurs in the sources and every mark [n] has a passage.

    A quotation with a mark behind it has to occur in that passage, counted from 1 over the sources; parts around
    an ellipsis count one by one. `sources` are input fields, () for all; `least` is how many quotations and marks
    there have to be.

    >>> check = Cited("answer", sources=("passages",))
    >>> check({"passages": ["The cat sat down."]}, {"answer": 'It says "the cat sat up".'}).reason
    "answer quotes what is not in the sources: 'the cat sat up'"
    """

    says: ClassVar[str] = "quotes its sources"
    sources: tuple[str, ...] = ()
    words: int = 3
    least: int = 0

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        text = str(outputs.get(self.field, ""))
        passages = [_folded(passage) for passage in _passages(inputs, self.sources)]
        marks = [int(mark) for mark in _MARKER.findall(text)]
        quotations = [found for found in _QUOTATION.finditer(text) if len(_quoted(found).split()) >= self.words]
        for mark in marks:
            if not 1 <= mark <= len(passages):
                return Verdict(False, f"{self.field} cites [{mark}] of {len(passages)} passages")
        for found in quotations:
            where = [passages[int(found[4]) - 1]] if found[4] else passages
            parts = [_folded(part).strip(" .,;:!?") for part in _ELLIPSIS.split(_quoted(found))]
            if not any(all(part in passage for part in parts) for passage in where):
                place = f"passage {found[4]}" if found[4] else "the sources"
                return Verdict(False, f"{self.field} quotes what is not in {place}: {_shown(_quoted(found))}")
        ok = len(marks) + len(quotations) >= self.least
        return Verdict(ok, "" if ok else f"{self.field} cites too little: {len(marks) + len(quotations)}")


def _quoted(found: re.Match[str]) -> str:
    return found[1] or found[2] or found[3]


@dataclass(frozen=True)
class FactsOccur(_OfField):
    """Passes if the numbers and names of an answer occur in the sources: numbers by value, names word by word.

    A name is a word with a capital that does not begin a sentence. `sources` are input fields, () for all.

    >>> check = FactsOccur("answer")
    >>> check({"text": "Ada Lovelace met 1,200 people."}, {"answer": "It was Ada who met 1300."}).reason
    'answer: 1300 is not in the sources'
    """

    says: ClassVar[str] = "states facts of its sources"
    sources: tuple[str, ...] = ()

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        missing = missing_facts(str(outputs.get(self.field, "")), "\n".join(_passages(inputs, self.sources)))
        return Verdict(not missing, f"{self.field}: {missing[0]} is not in the sources" if missing else "")


def missing_facts(answer: str, source: str) -> list[str]:
    """Return the numbers and names of an answer that its source does not have."""
    answer = _LIST_NUMBER.sub("", _MARKER.sub("", answer))
    known = {_number(found) for found in _ANY_NUMBER.findall(source)}
    missing = [found for found in _ANY_NUMBER.findall(answer) if _number(found) not in known]
    words = {_bare(word) for word in _WORD.findall(source)}
    for sentence in _SENTENCE_END.split(answer):
        for name in _WORD.findall(sentence)[1:]:
            if name[0].isupper() and name != "I" and _bare(name) not in words:
                missing.append(name)
    return missing


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "")[:1000])  # Python reads no integers of many thousand digits


def _bare(word: str) -> str:
    return re.sub(r"['’]s$", "", word).casefold()


@dataclass(frozen=True)
class Supported(_OfField):
    """Passes if the sources support at least a share of an answer's sentences.

    A sentence is supported where two neighbouring sentences of the sources have the share `overlap` of its words
    (stop words and endings apart), and the sources all its numbers. `sources` are input fields, () for all.

    >>> check = Supported("answer", least=1.0)
    >>> check({"text": "The old bridge opened in 1932."}, {"answer": "The bridge opened in 1932. It is red."}).reason
    "answer: sources support 1 of 2 sentences, not 'It is red.'"
    """

    says: ClassVar[str] = "is supported by its sources"
    sources: tuple[str, ...] = ()
    least: float = 0.8
    overlap: float = 0.6

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        passages = _passages(inputs, self.sources)
        windows = [window for passage in passages for window in _windows(passage)]
        numbers = {_number(found) for passage in passages for found in _ANY_NUMBER.findall(passage)}
        sentences = [s for s in _SENTENCE_END.split(str(outputs.get(self.field, ""))) if _stems(s)]
        poor = [s for s in sentences if not self._supported(s, windows, numbers)]
        good = len(sentences) - len(poor)
        if not poor or good / len(sentences) >= self.least:
            return Verdict(True)
        return Verdict(
            False, f"{self.field}: sources support {good} of {len(sentences)} sentences, not {_shown(poor[0])}"
        )

    def _supported(self, sentence: str, windows: Sequence[frozenset[str]], numbers: set[Fraction]) -> bool:
        stems = _stems(sentence)
        shared = max((len(stems & window) for window in windows), default=0)
        text = _LIST_NUMBER.sub("", _MARKER.sub("", sentence))
        return shared >= self.overlap * len(stems) and {_number(n) for n in _ANY_NUMBER.findall(text)} <= numbers


def _windows(passage: str) -> list[frozenset[str]]:
    stems = [_stems(sentence) for sentence in _SENTENCE_END.split(passage)]
    return [a | b for a, b in pairwise(stems)] or stems


def _stems(text: str) -> frozenset[str]:
    words = [_bare(word) for word in _WORD.findall(text)]
    return frozenset(re.sub(r"(?<=\w{3})(?:ings?|ed|es|s|ly)$", "", word) for word in words if word not in _STOP_WORDS)


# -- consistency ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundTrip(_OfField):
    """Passes if another program gives the field back: a classifier the label a text was written for.

    `predict` gets the inputs and returns the value, or a prediction or mapping that has the field; `same` scores it
    against the field, and `least` is the score that passes.

    >>> RoundTrip("label", lambda inputs: "spam" if "win" in inputs["text"] else "ham")(
    ...     {"text": "You win!"}, {"label": "ham"}
    ... ).reason
    "label is given back as 'spam', not 'ham'"
    """

    says: ClassVar[str] = "comes back"
    predict: Callable[[Inputs], Any]
    same: Score = same_label
    least: float = 1.0

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict; what `predict` raises passes through."""
        back, value = _value(self.predict(inputs), self.field), outputs.get(self.field)
        ok = back is not None and score_of(self.same(value, back)) >= self.least
        return Verdict(ok, "" if ok else f"{self.field} is given back as {_shown(back)}, not {_shown(value)}")


@dataclass(frozen=True)
class Agreement(_OfField):
    """Passes if at least a share of `k` samples agree with the field under a score.

    `sample(inputs, i)` gives the i-th sample (the value, or what has the field); one that raises agrees with
    nothing, and BudgetExceeded passes through. Sampling ends as soon as the rest cannot change the verdict.

    >>> Agreement("answer", lambda inputs, i: ["4", "four", "4.0"][i], k=3)({}, {"answer": "4"}).ok
    True
    """

    says: ClassVar[str] = "agrees with its samples"
    sample: Callable[[Inputs, int], Any]
    k: int = 5
    least: float = 0.5
    same: Score = answer_match
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.least <= 1:
            raise InputError(f"agreement of {self.least} among {self.k} samples", valid="k >= 1 and 0 < least <= 1")

    def __call__(self, inputs: Inputs, outputs: Inputs) -> Verdict:
        """Return the verdict."""
        value, agreed, asked = outputs.get(self.field), 0, 0
        needed = math.ceil(self.least * self.k - 1e-9)
        while agreed < needed <= agreed + self.k - asked:
            agreed, asked = agreed + self._agrees(inputs, asked, value), asked + 1
        told = f"{self.field}: {agreed} of {asked} samples agree with {_shown(value)}"
        return Verdict(agreed >= needed, "" if agreed >= needed else told)

    def _agrees(self, inputs: Inputs, i: int, value: Any) -> bool:
        try:
            found = _value(self.sample(inputs, i), self.field)
        except BudgetExceeded:
            raise
        except Exception:  # one answer that cannot be read is one that does not agree
            return False
        return found is not None and score_of(self.same(value, found)) >= self.threshold


def _value(made: Any, field: str) -> Any:
    """Return the field of a prediction or mapping, anything else as it is."""
    plain = made is None or isinstance(made, (str, int, float, list, tuple))
    return cast(Any, made) if plain else get_field(made, field)


def _shown(value: Any) -> str:
    return repr(value if len(str(value)) <= _SHOWN else f"{str(value)[:_SHOWN]}…")
