"""What the rules of curation are set to, and the rules that a run turns on by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.compile.overlap import OverlapConfig
from limbeck.compile.pii import PiiConfig
from limbeck.errors import InputError


@dataclass(frozen=True)
class CurateConfig:
    """Thresholds of the rules.

    `min_intended` is the probability below which a generated row whose label model says another class is
    rejected; `min_confidence` (None: 1.5 times chance, 0.6 at most) and `min_reliability` (None: the class's
    share of gold) hold for every labelled row, `min_agreement` for the samples of an open answer.
    `intended_share` is the part of the soft target that goes to the label a row was written for.
    `length_factor` is how many times longer or shorter than any real input a generated one may be.

    The rest is off by default, `thorough` turns it on: `pii` is what happens to personal data, `language` the
    confidence from which a generated text in another language than gold is rejected, `length_limit` the distance
    of its length from gold's in robust standard deviations, `semantic` the cosine from which it says the same as
    an earlier row, and `label_errors` whether confident learning may reject it. With `by_field` two rows are near
    duplicates only where every input field is: two questions about one passage are not. `overlap` limits what is
    copied from the documents, where `curate` is given some. `toxic` is the probability from which a record's score of
    that name (`limbeck.compile.toxicity`) rejects it.
    """

    near_duplicate: float = 0.7
    ngram: int = 8
    length_factor: float = 2.0
    min_intended: float = 0.3
    min_confidence: float | None = None
    min_reliability: float | None = None
    min_agreement: float = 0.5
    intended_share: float = 0.2
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    pii: PiiConfig | None = None
    language: float | None = None
    length_limit: float | None = None
    semantic: float | None = None
    label_errors: bool = False
    by_field: bool = False
    toxic: float | None = None

    @classmethod
    def thorough(cls) -> CurateConfig:
        """Return the configuration with every rule on, at the thresholds whose reasons their modules give."""
        return cls(
            pii=PiiConfig(),
            language=OPTIONAL["language"].default,
            length_limit=OPTIONAL["length_outlier"].default,
            semantic=OPTIONAL["semantic_duplicate"].default,
            label_errors=True,
            by_field=True,
        )


@dataclass(frozen=True)
class OptionalRule:
    """A rule that is off unless asked for: the setting it stands for, and its threshold (None: it has none).

    One that `asks` a model is turned on by its own name alone.
    """

    setting: str
    default: float | None
    low: float = 0.0
    high: float = 1.0
    asks: bool = False


# By the name that its rejections have in the report.
OPTIONAL = {
    "language": OptionalRule("language", 0.9),
    "length_outlier": OptionalRule("length_limit", 3.5, high=100.0),
    "semantic_duplicate": OptionalRule("semantic", 0.95),
    "label_error": OptionalRule("label_errors", None),
    "by_field": OptionalRule("by_field", None),
    "toxic": OptionalRule("toxic", 0.5, asks=True),
}
ALL = "all"


def parse_rules(given: Sequence[str], config: CurateConfig | None = None) -> CurateConfig:
    """Return the configuration with the rules on that `--rule NAME[=THRESHOLD]`, given several times, asks for.

    "all" turns on every rule of `OPTIONAL` that asks no model. Raises InputError for what is no rule or no threshold.

    >>> found = parse_rules(["semantic_duplicate=0.9", "label_error"])
    >>> found.semantic, found.label_errors, found.language
    (0.9, True, None)
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, _, threshold = text.partition("=")
        names = (
            [n for n, rule in OPTIONAL.items() if not rule.asks]
            if name.strip() == ALL and not threshold
            else [name.strip().replace("-", "_")]
        )
        for one in names:
            rule = OPTIONAL.get(one)
            if rule is None:
                raise InputError(
                    f"--rule {text!r}: no such rule can be turned on",
                    valid=", ".join((ALL, *OPTIONAL)),
                    hint="limbeck run --help",
                )
            settings[rule.setting] = _threshold(text, threshold, rule)
    return replace(config or CurateConfig(), **settings)


def _threshold(text: str, given: str, rule: OptionalRule) -> float | bool:
    if not given:
        return True if rule.default is None else rule.default
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if rule.default is None or not rule.low < value <= rule.high:
        raise InputError(
            f"--rule {text!r}: {given!r} is no threshold of it",
            valid="no threshold" if rule.default is None else f"a number above {rule.low:g}, {rule.high:g} at most",
        )
    return value
