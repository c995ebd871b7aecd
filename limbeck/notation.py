"""Answers as people and models write them, brought to plain signs: no LaTeX, no typographic characters."""

from __future__ import annotations

import re
import unicodedata

_MOST_ROUNDS = 24
_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_LOWERED = str.maketrans(_SUPERSCRIPTS, "-0123456789")
_SIGNS = str.maketrans("\u2212×·⋅∙÷⁄∕⟨⟩", "-****///()", "≈\u202f") | {
    ord(sign): name for sign, name in zip("π√°∞≤≥≠", ["pi", "sqrt", "degree", "oo", "<=", ">=", "!="], strict=True)
}
# Applied again and again, so that what is nested is rewritten from the inside. A set's braces become ⟦ ⟧.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\left|\\right|\\[,;:! ]|\\q?quad|\\displaystyle|^\\[(\[]|\\[)\]]$", ""),
        (r"\{,\}", ","),
        (r"\^\s*\{?\s*\\circ\s*\}?", " degree "),
        (r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\\{", "⟦"),
        (r"\\\}", "⟧"),
        (r"\\([$%])", r"\1"),
        (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\infty(?![A-Za-z])", " oo "),
        (r"\\leq?(?![A-Za-z])", "<="),
        (r"\\geq?(?![A-Za-z])", ">="),
        (r"\\(pi|sqrt|sin|cos|tan|ln|log|exp|theta|alpha|beta|lambda)(?![A-Za-z])", r" \1 "),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"(\d+)\s*\\[dtc]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)"),
        (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
        (r"\^\s*\{([^{}]*)\}", r"^(\1)"),
        (r"sqrt\s*\{([^{}]*)\}", r"sqrt(\1)"),
        (r"(?<![\d.^/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"(\1+\2/\3)"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"),
        (r"\s*\b(?:percent|per cent)$", "%"),
    )
]


def plain_signs(text: str) -> str:
    """Return a text in plain signs: no LaTeX, no typographic characters, one blank between words."""
    text = re.sub(f"[{_SUPERSCRIPTS}]+", lambda found: f"^({found[0].translate(_LOWERED)})", text)
    text = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS).strip()
    text = text.strip("$") if len(text) > 2 and text[0] == text[-1] == "$" else text
    for _ in range(_MOST_ROUNDS):
        before = text
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
        if text == before:
            break
    return " ".join(text.split()).rstrip(".,;: ")
