"""Texts that stand apart from the real inputs in language or in length.

Language: naive Bayes over byte n-grams (langid, Lui and Baldwin 2012; py3langid), only for texts long enough to
tell and only where it is sure. Length: the modified z-score of the logarithm (median and median absolute
deviation; Iglewicz and Hoaglin 1993), which a few odd rows among the real ones do not move, with a spread of its
own on either side of the median, since lengths are skewed.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

# Bytes of letters below which a language is a guess: five or six words of a European language.
_LEAST_BYTES = 30
# A language that has this share of the real texts is one of the task's languages.
_LEAST_SHARE = 0.02
# Taken for each other on short texts: they count as one language.
_ALIKE = (
    frozenset({"en", "pcm"}),
    frozenset({"bs", "hr", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"da", "no", "nb", "nn"}),
    frozenset({"es", "gl"}),
    frozenset({"cs", "sk"}),
    frozenset({"ar", "ary", "arz"}),
    frozenset({"zh", "wuu", "yue"}),
)
# 1 / the 0.75 quantile of the normal distribution: makes the MAD an estimate of the standard deviation.
_MAD_SCALE = 1.4826
# Of few rows the spread is known roughly: its upper 95% bound counts. The standard error of a normal MAD is
# 1.166 / sqrt(rows) of it, and a side has half the rows.
_BOUND = 1.645 * 1.166 * 2**0.5
# Rows from which median and MAD say anything.
_LEAST_ROWS = 8
# Real texts that all have one length would make any other an outlier: a fifth longer or shorter is one step.
_LEAST_SPREAD = 0.2


@dataclass(frozen=True)
class Guess:
    """The most likely language (ISO 639-1 where there is one) and its probability with those taken for it."""

    language: str
    probability: float


def guess_language(text: str) -> Guess | None:
    """Return the text's language, or None where it has too few letters to tell.

    >>> guess_language("Wo ist meine Karte? Ich warte seit zwei Wochen.").language
    'de'
    >>> guess_language("ok 123") is None
    True
    """
    letters = "".join(c if c.isalpha() else " " for c in text)
    if len("".join(letters.split()).encode("utf-8", "surrogatepass")) < _LEAST_BYTES:
        return None
    # Digits and signs are no language: without them a text full of numbers is judged by its words.
    chances: dict[str, float] = dict(_identifier().rank(" ".join(letters.split())))
    language = next(iter(chances))
    return Guess(language, sum(chances.get(name, 0.0) for name in _alike(language)))


def _alike(language: str) -> frozenset[str]:
    return next((group for group in _ALIKE if language in group), frozenset({language}))


@cache
def _identifier() -> Any:
    # An instance of its own: the library's module-level one can be restricted by anybody.
    from py3langid.langid import LanguageIdentifier

    return cast(Any, LanguageIdentifier).from_model_file("data/model.npz.xz", norm_probs=True)


class LanguageOutliers:
    """Finds rows with a field in a language that the real rows' same field is not in.

    `confidence` is the probability from which the guess counts: at 0.9 none of 16,800 English queries to banks and
    assistants is taken for another language. `languages` by field are the real rows' own; a field whose real texts
    are too few and short to tell is not judged.

    >>> rule = LanguageOutliers([{"text": "where is the card that I ordered from you last week"}])
    >>> rule.languages, rule.odd({"text": "wo ist denn die Karte, die ich letzte Woche bestellt habe"})
    ({'text': ('en',)}, True)
    """

    def __init__(self, real: Sequence[Mapping[str, Any]], *, confidence: float = 0.9) -> None:
        self.confidence = confidence
        fields = dict.fromkeys(name for row in real for name, value in row.items() if isinstance(value, str))
        spoken = {name: _languages([str(row.get(name, "")) for row in real]) for name in fields}
        self.languages = {name: found for name, found in spoken.items() if found}
        self._fine = {name: frozenset[str]().union(*map(_alike, found)) for name, found in self.languages.items()}

    def odd(self, row: Mapping[str, Any]) -> bool:
        """Return whether a field's text is surely in another language."""
        for name, fine in self._fine.items():
            guess = guess_language(str(row.get(name, "")))
            if guess and guess.probability >= self.confidence and guess.language not in fine:
                return True
        return False


def _languages(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the languages with a share of the texts, in order of their names."""
    guesses = [guess for text in texts if (guess := guess_language(text))]
    if not guesses and (whole := guess_language(" ".join(texts))):
        guesses = [whole]  # short texts tell a language together
    shares: dict[str, float] = {}
    for guess in guesses:
        shares[guess.language] = shares.get(guess.language, 0.0) + guess.probability / len(guesses)
    return tuple(sorted(name for name, share in shares.items() if share >= _LEAST_SHARE))


class LengthOutliers:
    """Finds rows with an input field far longer or shorter than the real rows', in characters.

    `limit` is in robust standard deviations of the logarithm: 3.5 is Iglewicz and Hoaglin's, which one normal
    value in 2,000 passes. Fields with fewer than eight different real texts are not judged.

    >>> rule = LengthOutliers([{"text": "x" * n} for n in range(20, 40)])
    >>> rule.odd({"text": "x" * 30}), rule.odd({"text": "x" * 400})
    (False, True)
    """

    def __init__(self, real: Sequence[Mapping[str, Any]], *, limit: float = 3.5) -> None:
        self.limit = limit
        texts: dict[str, set[str]] = {}
        for row in real:
            for name, value in row.items():
                texts.setdefault(name, set()).add(str(value))
        # A passage that many rows ask about counts once.
        lengths = {name: [_log_length(text) for text in sorted(found)] for name, found in texts.items()}
        self._scales = {name: _scale(values) for name, values in lengths.items() if len(values) >= _LEAST_ROWS}

    def score(self, row: Mapping[str, Any]) -> float:
        """Return the largest distance of a field from the real rows' median, in robust standard deviations."""
        fields = [name for name in row if name in self._scales]
        return max((self._scales[name].distance(_log_length(row[name])) for name in fields), default=0.0)

    def odd(self, row: Mapping[str, Any]) -> bool:
        """Return whether a field's length is an outlier."""
        return self.score(row) > self.limit


def _log_length(value: Any) -> float:
    return float(np.log1p(len(" ".join(str(value).split()))))


@dataclass(frozen=True)
class _Scale:
    middle: float
    below: float
    above: float

    def distance(self, length: float) -> float:
        return abs(length - self.middle) / (self.above if length > self.middle else self.below)


def _scale(lengths: Sequence[float]) -> _Scale:
    values = np.asarray(lengths)
    middle = float(np.median(values))
    wider = _MAD_SCALE * (1 + _BOUND / np.sqrt(len(values)))

    def spread(side: NDArray[np.float64]) -> float:
        return max(float(wider * np.median(np.abs(side - middle))), _LEAST_SPREAD)

    return _Scale(middle, spread(values[values <= middle]), spread(values[values >= middle]))
