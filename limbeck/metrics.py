"""Metrics in [0, 1], one fitting each kind of output.

Exact match after normalisation and token F1 follow SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250); chrF is
Popovic 2015 (W15-3049) in sacreBLEU's form: character n-grams of 1 to 6 without blanks, beta 2. A prediction
that is missing or cannot be read scores 0 and never raises.
"""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

Kind: TypeAlias = Literal["classification", "extraction", "short_answer", "number", "text", "program"]
Score: TypeAlias = Callable[[Any, Any], float]

_NUMBER = re.compile(
    r"(?<![\w.])([-+\u2212]?)\s?[$\u20ac\u00a3]?\s?"
    r"((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)(?:\s?/\s?(\d+))?(?!\d)"
)
_STRICT = re.compile(r"[-+\u2212]?\s?[$\u20ac\u00a3]?\s?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?([eE][-+]?\d+)?\s?%?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
RELATIVE_TOLERANCE = 1e-4


class Metric(Protocol):
    """What DSPy calls a metric; ours always return a float in [0, 1], with or without a trace."""

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """Return the score of one prediction."""
        ...


def score_of(found: Any) -> float:
    """Return the number a metric gave; one that explains itself returns a Prediction with a `score`.

    Raises ValueError where that is no finite number.

    >>> score_of(True)
    1.0
    """
    score = float(getattr(found, "score", found))
    if not math.isfinite(score):
        raise ValueError(f"the metric gave {score}, which is no finite number")
    return score


def likeness(metric: Metric, gold: Any, prediction: Any) -> float:
    """Return the metric's score of what a model wrote; 0 where a user's metric stumbles over it."""
    try:
        return score_of(metric(gold, prediction))
    except Exception:
        return 0.0


@dataclass(frozen=True)
class FieldMetric:
    """The mean of one score for every output field.

    >>> metric = default_metric({"label": "classification"})
    >>> metric({"label": "spam"}, {"label": "Spam"}), metric({"label": "spam"}, None)
    (1.0, 0.0)
    """

    name: str
    scores: Mapping[str, Score]

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> float:
        """Return the mean score over the fields; a field the prediction lacks counts 0."""
        total = 0.0
        for field, score in self.scores.items():
            predicted = get_field(prediction, field)
            total += 0.0 if predicted is None else score(get_field(example, field), predicted)
        return total / len(self.scores)


def get_field(row: Any, field: str) -> Any:
    """Return one field of a `dspy.Example`, `dspy.Prediction` or mapping; None if it has no such field."""
    try:
        return row[field]
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def default_metric(kinds: Mapping[str, Kind]) -> FieldMetric:
    """Return the metric that fits the kind of every output field.

    >>> default_metric({"label": "classification", "price": "number"}).name
    'mean of label accuracy, price number match'
    """
    scores = {field: _SCORES[kind][1] for field, kind in kinds.items()}
    names = [f"{field} {_SCORES[kind][0]}" for field, kind in kinds.items()]
    name = _SCORES[next(iter(kinds.values()))][0] if len(kinds) == 1 else "mean of " + ", ".join(names)
    return FieldMetric(name, scores)


def normalize(text: str) -> str:
    """Return the text in lower case without punctuation, English articles and extra blanks.

    >>> normalize("The  Eiffel Tower!")
    'eiffel tower'
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    words = text.split()
    kept = [w for w in words if w not in ("a", "an", "the")]
    return " ".join(kept or words)


def same_label(gold: Any, predicted: Any) -> float:
    """Return 1.0 if the labels are equal but for case and outer blanks, else 0.0."""
    return float(_label(gold) == _label(predicted))


def _label(value: Any) -> str:
    value = getattr(value, "value", value)  # an Enum member
    return " ".join(str(value).split()).casefold()


def exact_match(gold: Any, predicted: Any) -> float:
    """Return 1.0 if the normalised texts are equal, else 0.0."""
    return float(_answer(gold) == _answer(predicted))


def _answer(value: Any) -> str:
    text = str(value)
    return normalize(text) or " ".join(text.split())  # an answer of punctuation alone is still an answer


def token_f1(gold: Any, predicted: Any) -> float:
    """Return the F1 of the normalised words, as SQuAD scores short answers.

    >>> round(token_f1("Eiffel Tower", "the Eiffel Tower in Paris"), 2)
    0.67
    """
    return _f1(Counter(_answer(gold).split()), Counter(_answer(predicted).split()))


def _f1(gold: Counter[Any], predicted: Counter[Any]) -> float:
    """Return the F1 of two multisets; two empty ones are equal."""
    if not gold or not predicted:
        return float(not gold and not predicted)
    return 2 * (gold & predicted).total() / (gold.total() + predicted.total())


def parse_number(value: Any) -> float | None:
    """Return the number a value holds, of several the last (an answer ends its derivation); None without one.

    Accepts thousands separators, currency signs, percent signs, simple fractions and words around it.

    >>> parse_number("1,234.5"), parse_number("$3"), parse_number("12 - 5 = 7 apples"), parse_number("none")
    (1234.5, 3.0, 7.0, None)
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return _finite(value)
    found = list(_NUMBER.finditer(str(value)))
    if not found:
        return None
    sign, digits, denominator = found[-1].groups()
    number = float(digits.replace(",", ""))
    if denominator is not None:
        number = number / float(denominator) if float(denominator) else math.inf
    return _finite(-number if sign in ("-", "\u2212") else number)


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_number(value: Any) -> bool:
    """Return whether the value is a number and nothing else: "$1,200" is, "2 cups" is not."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    if not isinstance(value, str) or not any(c.isdigit() for c in value):
        return False
    return _STRICT.fullmatch(value.strip()) is not None and parse_number(value) is not None


def same_number(gold: Any, predicted: Any) -> float:
    """Return 1.0 if both hold the same number within a relative tolerance of 1e-4 (rounding), else 0.0."""
    a, b = parse_number(gold), parse_number(predicted)
    if a is None or b is None:
        return float(a is None and exact_match(gold, predicted) == 1.0)
    return float(math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-9))


def slot_f1(gold: Any, predicted: Any) -> float:
    """Return the F1 of the extracted (key, value) pairs or list items, compared as a multiset.

    An object gives a pair for every key (one an element where the value is a list); a list gives one item an
    element, an object counting as a whole. Empty values count as absent; nothing to find and nothing found
    is 1.0. Computed a row at a time, so a mean over rows is a macro average.

    >>> slot_f1({"time": "7 pm", "people": "2"}, {"time": "7 PM", "date": "Monday"})
    0.5
    """
    found = _structured(predicted)
    return 0.0 if found is None else _f1(_items(_structured(gold)), _items(found))


def _structured(value: Any) -> Any:
    """Return pydantic models as mappings and JSON text parsed (None for garbage), the rest as it is."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _items(value: Any) -> Counter[Hashable]:
    if isinstance(value, Mapping):
        pairs: list[Hashable] = []
        for key, entry in cast("Mapping[Any, Any]", value).items():
            entries = cast("list[Any]", entry) if isinstance(entry, list) else [entry]
            pairs += [(str(key), _canonical(e)) for e in entries if not _blank(e)]
        return Counter(pairs)
    entries = cast("list[Any]", value) if isinstance(value, (list, tuple)) else [value]
    return Counter(_canonical(e) for e in entries if not _blank(e))


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def _canonical(value: Any) -> Hashable:
    value = _structured(value) if hasattr(value, "model_dump") else value
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value).items()
        return frozenset((str(k), _canonical(v)) for k, v in entries if not _blank(v))
    if isinstance(value, (list, tuple)):
        return tuple(_canonical(v) for v in cast("list[Any]", value))
    if is_number(value):
        return parse_number(value)
    return str(value).casefold() if isinstance(value, bool) else _answer(value)


def chrf(gold: Any, predicted: Any, *, order: int = 6, beta: float = 2.0) -> float:
    """Return chrF: the F-beta of character n-gram precision and recall, averaged over n = 1 to `order`.

    >>> chrf("a cat sat", "a cat sat"), chrf("abc", "xyz")
    (1.0, 0.0)
    """
    reference, hypothesis = ("".join(str(t).split()) for t in (gold, predicted))
    pairs: list[tuple[float, float]] = []
    for n in range(1, order + 1):
        a, b = _ngrams(reference, n), _ngrams(hypothesis, n)
        if a and b:
            overlap = (a & b).total()
            pairs.append((overlap / b.total(), overlap / a.total()))
    if not pairs:
        return float(not reference and not hypothesis)
    precision, recall = (sum(p) / len(pairs) for p in zip(*pairs, strict=True))
    factor = beta * beta
    return (1 + factor) * precision * recall / (factor * precision + recall) if precision + recall else 0.0


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


_SCORES: Mapping[Kind, tuple[str, Score]] = {
    "classification": ("accuracy", same_label),
    "number": ("number match", same_number),
    "short_answer": ("token F1", token_f1),
    "extraction": ("slot F1", slot_f1),
    "text": ("chrF", chrf),
    "program": ("exact match", exact_match),
}
