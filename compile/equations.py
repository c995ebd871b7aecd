"""Worked solutions rewritten by rules: their equations, marked <<5+3=8>> or plain, become placeholders.

The marks are those of GSM8K (Cobbe et al. 2021, arXiv:2110.14168). Nothing is invented: a number becomes the name of a
result only where it has its value.
"""

from __future__ import annotations

import re
from fractions import Fraction

from limbeck.answers import same_answer
from limbeck.chains import ChainError, calculate, shown

_NUMBER = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)%?"
# "5 minutes per page * 3 pages" calculates as well. Bounded, so that no text costs more than its length.
_UNITS = r"(?: [A-Za-z]+(?:/[A-Za-z]+)?){0,3}"
_OPERAND = rf"\(*[$€£]?{_NUMBER}\)*{_UNITS}"
_SIDE = rf"(?<![\w.)]){_OPERAND}(?: ?[-+*/xX×÷·–−] ?{_OPERAND}){{1,20}}"
_EQUATION = re.compile(rf"({_SIDE}) ?= ?([$€£]?{_NUMBER})(?![.,]?\w| ?[-+*/×÷=])")
_LEFT = re.compile(rf"({_SIDE})\s*=\s*[$€£]?\s*$")
_MARK = re.compile(r"<<([^<>=\n]+)=([^<>=\n]+)>>")
_CALCULATION = re.compile(r"[\d)%]\s*[-+*/xX×÷·–−]\s*[\d(.$]")
_WORD = re.compile(r"[A-Za-z]+(?:/[A-Za-z]+)*")
_TOKEN = re.compile(rf"{_NUMBER}|[-+*/^()]")
_SIGNS = str.maketrans({"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", "–": "-", "−": "-"})
_STANDING = re.compile(rf"(?<![\w.,/]){_NUMBER}(?![\w/]|[.,]\d)")
_LISTED = re.compile(r"(?:^|\n)\s*\(?$")
_ROUNDED = 0.01


def calculates(text: str) -> bool:
    """Return whether a text holds an equation between numbers.

    >>> calculates("So 3 x 4 = 12."), calculates("The answer is 12.")
    (True, False)
    """
    return bool(_MARK.search(text) or _EQUATION.search(text))


def abstract(solution: str, problem: str = "") -> str:
    """Return a solution whose equations are placeholders; one without an equation stays as it is.

    An operand becomes an earlier result's name where it has its value and is no number of the problem, or where no
    step has taken that result yet; a number in words does where it can only be that result. Equations that do not
    hold stay words.

    >>> abstract("He has 5+3 = <<5+3=8>>8 apples. Both have 8 + 4 = 12.", "Ann has 4 apples, Bo 5 and then 3 more.")
    'He has [5 + 3 = y1] apples. Both have [y1 + 4 = y2].'
    """
    return _Abstracting(problem).text(solution)


class _Abstracting:
    """What has been written so far: results by the value that they were written as, and which no step has taken."""

    def __init__(self, problem: str) -> None:
        found = _STANDING.findall(problem)
        self.known = {_value(text) for number in found for text in (number, number.rstrip("%"))}
        self.parts: list[str] = []
        self.results: dict[str, Fraction | None] = {}
        self.unused: set[str] = set()

    def text(self, solution: str) -> str:
        at = 0
        for mark in _MARK.finditer(solution):
            before, at = solution[at : mark.start()], mark.end()
            if not _CALCULATION.search(mark[1]):
                self.prose(before)
                continue
            self.prose(_without_left(before, mark[1]))
            self.placeholder(mark[1], mark[2])
            # The mark stands before the result that people read.
            again = re.match(rf"\s*[$€£]?({_NUMBER})", solution[at:])
            at += again.end() if again and _value(again[1]) == _value(mark[2]) else 0
        self.prose(solution[at:])
        return "".join(self.parts)

    def prose(self, text: str) -> None:
        """Write words whose plain equations become placeholders and whose numbers become names."""
        at = 0
        for match in _EQUATION.finditer(text):
            if _holds(match[1], match[2]):
                self.parts.append(self.named(text[at : match.start()], self.results))
                self.placeholder(match[1], match[2])
                at = match.end()
        self.parts.append(self.named(text[at:], self.results))

    def placeholder(self, expression: str, value: str) -> None:
        call = " ".join(self.operand(token) for token in _TOKEN.findall(_bare(expression)))
        call = re.sub(r"\( | \)", lambda match: match[0].strip(), call)
        name = f"y{len(self.results) + 1}"
        self.results[name] = _value(value)
        self.unused.add(name)
        if self.parts:  # "He earns 80 because 8 * 10 = 80": the sentence began with the result
            above, line, rest = self.parts[-1].rpartition("\n")
            self.parts[-1] = above + line + self.named(rest, {name: self.results[name]})
        self.parts.append(f"[{call} = {name}]")

    def operand(self, token: str) -> str:
        if token in "-+*/^()":
            return token
        value = _value(token)
        found = [name for name, result in self.results.items() if result == value]
        fresh = [name for name in found if name in self.unused]
        if not found or (value in self.known and not fresh):
            return token.replace(",", "")
        name = (fresh or found)[-1]
        self.unused.discard(name)
        return name

    def named(self, text: str, results: dict[str, Fraction | None]) -> str:
        """Return words in which numbers that can only be one of these results are its name, the latest of several."""

        def name(match: re.Match[str]) -> str:
            value = _value(match[0])
            listed = _LISTED.search(text[: match.start()]) and text[match.end() : match.end() + 1] in (".", ")")
            found = [] if listed or value in self.known else [one for one, result in results.items() if result == value]
            return found[-1] if found else match[0]

        return _STANDING.sub(name, text)


def _value(text: str) -> Fraction | None:
    try:
        return calculate(text)
    except ChainError:
        return None


def _holds(expression: str, value: str) -> bool:
    exact, written = _value(_bare(expression)), _value(value)
    return exact is not None and written is not None and same_answer(shown(exact), shown(written), tolerance=_ROUNDED)


def _bare(expression: str) -> str:
    """Return an expression in plain signs, without currency and units."""
    words = _WORD.sub(lambda match: match[0] if match[0] in "xX" else "", expression)
    return re.sub(r"[$€£]", "", words.translate(_SIGNS))


def _without_left(text: str, expression: str) -> str:
    """Return the words before a mark without the equation's left side, where they end with it: "5 + 3 = "."""
    found = _LEFT.search(text)
    same = found and re.sub(r"[\s,]", "", _bare(found[1])) == re.sub(r"[\s,]", "", _bare(expression))
    return text[: found.start()] if found and same else text
