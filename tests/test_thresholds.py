"""Rules of curation turned on by name."""

from __future__ import annotations

import pytest

from limbeck.compile.pii import PiiConfig
from limbeck.compile.thresholds import OPTIONAL, CurateConfig, parse_rules
from limbeck.errors import InputError


def test_all_is_every_rule_that_can_be_turned_on() -> None:
    assert parse_rules(["all"], CurateConfig(pii=PiiConfig())) == CurateConfig.thorough()
    assert parse_rules([]) == CurateConfig()
    one_by_one = parse_rules([n for n, rule in OPTIONAL.items() if not rule.asks], CurateConfig(pii=PiiConfig()))
    assert one_by_one == CurateConfig.thorough()


def test_a_later_threshold_stands() -> None:
    found = parse_rules(["all", "semantic-duplicate=0.8", "length_outlier=5"])
    assert (found.semantic, found.length_limit, found.language) == (0.8, 5.0, 0.9)


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ("semantic", "semantic_duplicate"),
        ("language=high", "a number above 0, 1 at most"),
        ("semantic_duplicate=0", "a number above 0, 1 at most"),
        ("semantic_duplicate=1.5", "a number above 0, 1 at most"),
        ("length_outlier=nan", "a number above 0, 100 at most"),
        ("label_error=0.5", "no threshold"),
        ("all=0.5", "all, language"),
        ("", "all, language"),
    ],
)
def test_what_is_no_rule_is_refused(given: str, valid: str) -> None:
    with pytest.raises(InputError) as error:
        parse_rules([given])
    assert valid in str(error.value)
    assert repr(given) in str(error.value)
