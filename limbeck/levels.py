"""Levels of human involvement: what each means, which of them a run may use, and the rule that keeps to them.

1 is a person's own label, 6 an environment without people; the number is on every record's provenance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from limbeck.errors import InputError
from limbeck.records import CHECKED, CLEANED, ENVIRONMENT, MANUAL, SELF_RATED, VERIFIED, Record

LEVELS: Mapping[int, str] = {
    MANUAL: "written by people",
    CLEANED: "written by people, then cleaned by a machine",
    VERIFIED: "generated, then verified by people",
    CHECKED: "generated and rated by a machine that is checked on people's labels",
    SELF_RATED: "rated by the model that wrote it",
    ENVIRONMENT: "from an environment without people",
}
# The reason on a record whose level a run may not use.
REASON = "level"
_PART = re.compile(r"(?P<low>[1-6])(?:\s*-\s*(?P<high>[1-6]))?|(?P<sign><=|>=|<|>)\s*(?P<bound>[1-6])")
_SHOWN = 40
_VALID = "1 to 6: one (3), a range (1-4), a bound (<=4, <4, >=3, >3), or several parted by commas (1,3-4)"


def parse_levels(text: str) -> frozenset[int]:
    """Return the levels that `--level` names; blank text means all of them.

    Raises InputError for what is no level, a range that runs backwards and a bound that leaves none.

    >>> sorted(parse_levels("<=2, 4")), len(parse_levels(""))
    ([1, 2, 4], 6)
    """
    plain = text.strip().replace("\u2264", "<=").replace("\u2265", ">=").replace("\u2013", "-")
    if not plain:
        return frozenset(LEVELS)
    return frozenset(level for part in plain.split(",") for level in _part(part.strip(), text))


def _part(part: str, text: str) -> frozenset[int]:
    match = _PART.fullmatch(part)
    if match is None:
        what = repr(part[:_SHOWN]) if part else "an empty part"
        raise _error(text, f"holds {what}, which names no level")
    if match["sign"]:
        bound = int(match["bound"])
        inside = {"<=": bound.__ge__, ">=": bound.__le__, "<": bound.__gt__, ">": bound.__lt__}[match["sign"]]
        found = frozenset(level for level in LEVELS if inside(level))
        if not found:
            raise _error(text, f"leaves no level: none is {part}")
        return found
    low, high = int(match["low"]), int(match["high"] or match["low"])
    if low > high:
        raise _error(text, f"holds a range that runs backwards: {part}")
    return frozenset(range(low, high + 1))


def _error(text: str, why: str) -> InputError:
    return InputError(f"--level {text[:_SHOWN]!r} {why}", valid=_VALID, hint='--level "1-4"')


def show_levels(levels: Collection[int]) -> str:
    """Return levels in the shortest form that `parse_levels` reads: equal sets, equal texts.

    >>> show_levels({1, 2, 3, 5}), show_levels(range(1, 7))
    ('1-3,5', '1-6')
    """
    runs: list[list[int]] = []
    for level in sorted(set(levels)):
        if runs and level == runs[-1][-1] + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def restrict(records: Iterable[Record], levels: Collection[int]) -> list[Record]:
    """Return the records in order, those of another level rejected with the reason "level".

    A record that is rejected already keeps its own reason.

    >>> from limbeck.records import Provenance
    >>> [r.reason for r in restrict([Record({"x": 1}, {"y": 2}, Provenance("pool", level=4))], {1, 2, 3})]
    ['level']
    """
    return [r.reject(REASON) if r.kept and r.provenance.level not in levels else r for r in records]


def count_levels(records: Iterable[Record]) -> dict[int, int]:
    """Return how many kept records there are of each level, the lowest level first."""
    return dict(sorted(Counter(r.provenance.level for r in records if r.kept).items()))
