"""Arithmetic read into SymPy by a grammar of its own: no text is evaluated as code.

What is too long, too deep or too large is not read: SymPy would try for ever.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import cmath
import math
import re
import zlib
from fractions import Fraction
from typing import Any

import sympy

MOST_BITS = 4000
_MOST_TOKENS, _MOST_DEPTH, _MOST_FACTORIAL = 120, 24, 150
_TOKEN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?|[A-Za-z]+|\*\*|[-+*/^!%()|]")
_RANKS = {"+": 10, "-": 10, "*": 20, "/": 20, "^": 30, "**": 30, "!": 40, "%": 40}
_FUNCTIONS = {"sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "ln": sympy.log, "log": sympy.log, "exp": sympy.exp}
_CALLS = frozenset({"sqrt", "abs", *_FUNCTIONS})
CONSTANTS = frozenset(["pi", "oo", "theta", "alpha", "beta", "lambda"])
NAMES = _CALLS | CONSTANTS


class Unreadable(ValueError):
    """Text that is no expression, or one that is not worth its time."""


def parse_expression(text: str) -> Any:
    """Return the SymPy expression that a text in plain signs stands for; raises Unreadable or ArithmeticError.

    >>> parse_expression("2x + 1/2"), parse_expression("3^2!")
    (2*x + 1/2, 9)
    """
    return _Parser(text).whole()


class _Parser:
    """Precedence climbing; products without a sign rank like those with one, "xy" is one of two symbols."""

    def __init__(self, text: str) -> None:
        found, self.depth = _TOKEN.findall(text), 0
        words = any(token.isalpha() and len(token) > 3 and token not in NAMES for token in found)
        if words or not 0 < len(found) <= _MOST_TOKENS or "".join(found) != text.replace(" ", ""):
            raise Unreadable(text)
        parts = [part for token in found for part in (token if token.isalpha() and token not in NAMES else [token])]
        self.left = parts[::-1]

    def whole(self) -> Any:
        """Return the expression of all tokens."""
        value = self.expression(0)
        if self.left:
            raise Unreadable(self.left[-1])
        return value

    def expression(self, floor: int) -> Any:
        """Return the expression that begins here, as far as its operators rank above `floor`."""
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise Unreadable("nested too deep")
        value = self.operand()
        while self.left:
            token = self.left[-1]
            implicit = token == "(" or token.isalpha()
            rank = _RANKS["*"] if implicit else _RANKS.get(token, 0)
            if rank <= floor:
                break
            operator = "*" if implicit else self.left.pop()
            if operator in "!%":
                value = _factorial(value) if operator == "!" else value / 100
            else:
                value = _combined(value, operator, self.expression(rank - (rank == _RANKS["^"])))
        self.depth -= 1
        return value

    def operand(self) -> Any:
        """Return the number, symbol, bracket or function value that begins here."""
        token = self.left.pop() if self.left else ""
        if token in ("-", "+"):
            value = self.expression(_RANKS["*"] + 1)
            return -value if token == "-" else value
        if token in ("(", "|"):
            value = self.expression(0)
            if not self.left or self.left.pop() != {"(": ")", "|": "|"}[token]:
                raise Unreadable("an open bracket")
            return value if token == "(" else _called("abs", value)
        if token in _CALLS:
            bare = self.left[-1:] != ["("]
            value = self.operand()
            if bare and (not value.is_Atom or (self.left and self.left[-1] not in "+-*/)|")):
                raise Unreadable("a function without brackets")  # "sqrt 2" is clear, "sin 2x" is not
            return _called(token, value)
        if token.isalpha():
            return {"pi": sympy.pi, "e": sympy.E}.get(token) or sympy.Symbol(token)
        if not token[:1].isdigit() and token[:1] != ".":
            raise Unreadable(token)
        exact = Fraction(token)
        return sympy.Rational(exact.numerator, exact.denominator)


def _factorial(value: Any) -> Any:
    if not value.is_Integer or not 0 <= value <= _MOST_FACTORIAL:
        raise Unreadable("a factorial that is not written out")
    return sympy.factorial(value)


def _combined(a: Any, operator: str, b: Any) -> Any:
    if operator in ("^", "**"):
        return _power(a, b)
    if operator == "/" and b == 0:
        raise Unreadable("division by zero")
    return _finite(a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b)


def _power(base: Any, exponent: Any) -> Any:
    bits = max((int(abs(n.p)).bit_length() + n.q.bit_length() for n in base.atoms(sympy.Rational)), default=1)
    if (exponent.is_Rational and abs(exponent) * bits > MOST_BITS) or (base.is_zero and not exponent.is_positive):
        raise Unreadable("a power that is too large")
    if not exponent.is_Rational and not (base.free_symbols or exponent.free_symbols):
        _ = value_at(base, 0) ** value_at(exponent, 0)  # SymPy would try for ever what overflows here
    return _finite(sympy.Pow(base, exponent))


def _called(name: str, value: Any) -> Any:
    if name in ("sqrt", "abs"):
        return _power(value if name == "sqrt" else _power(value, sympy.Integer(2)), sympy.Rational(1, 2))
    return _finite(_FUNCTIONS[name](value, evaluate=False))


def _finite(value: Any) -> Any:
    """Return the value; raises where it has none, or where SymPy's own checks could not bear its size."""
    if value.has(sympy.zoo, sympy.nan, sympy.oo):
        raise Unreadable("no finite value")
    if not value.is_Rational and not value.free_symbols:
        value_at(value, 0)
    return value


def value_at(value: Any, point: int) -> complex:
    """Return the value of an expression where every symbol is a real number drawn from its name and the point.

    Raises OverflowError beyond the size of a float: the bound of all that is computed here.
    """
    if value.is_Rational:
        return complex(value.p / value.q)
    if value.is_Symbol:
        noise = zlib.crc32(f"{point} {value.name}".encode())
        return complex((-1) ** (noise & 1) * (0.4 + (noise >> 8) / 2**23))
    if not value.args:
        return complex(value)
    parts = [value_at(part, point) for part in value.args]
    if value.is_Pow:
        return parts[0] ** parts[1]
    if value.is_Add or value.is_Mul:
        return sum(parts) if value.is_Add else math.prod(parts)
    return getattr(cmath, value.func.__name__)(*parts)
