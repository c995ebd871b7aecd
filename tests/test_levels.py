"""Levels of human involvement: what `--level` may say, and which records it lets through."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.levels import LEVELS, count_levels, parse_levels, restrict, show_levels
from limbeck.pipeline.config import RunConfig, check, read_config, write_config
from limbeck.records import Provenance, Record

ALL = frozenset(LEVELS)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("", ALL),
        ("  ", ALL),
        ("3", {3}),
        ("1-4", {1, 2, 3, 4}),
        ("3,4", {3, 4}),
        (" 3 , 4 ", {3, 4}),
        ("<=4", {1, 2, 3, 4}),
        ("\u22644", {1, 2, 3, 4}),
        ("< 4", {1, 2, 3}),
        (">=5", {5, 6}),
        (">1", {2, 3, 4, 5, 6}),
        ("1\u20133", {1, 2, 3}),
        ("1,3-4,>5", {1, 3, 4, 6}),
        ("2,2,1-2", {1, 2}),
    ],
)
def test_what_names_levels(text: str, levels: set[int]) -> None:
    assert parse_levels(text) == levels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "'0'"),
        ("7", "'7'"),
        ("1-7", "'1-7'"),
        ("4-1", "runs backwards"),
        ("1,,2", "an empty part"),
        ("1,", "an empty part"),
        ("<1", "leaves no level"),
        (">6", "leaves no level"),
        ("manual", "'manual'"),
        ("1 2", "'1 2'"),
        ("-1", "'-1'"),
        ("3.5", "'3.5'"),
        ("\u0663", "which names no level"),
        ("9" * 6000, "which names no level"),
    ],
)
def test_what_names_none_is_refused_with_what_would(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_levels(text)
    assert "1-4" in caught.value.valid
    assert caught.value.hint.startswith("--level")
    assert len(str(caught.value)) < 400


@given(st.sets(st.sampled_from(sorted(LEVELS)), min_size=1))
def test_what_is_shown_is_read_back(levels: set[int]) -> None:
    assert parse_levels(show_levels(levels)) == levels


@given(st.text(alphabet="0123456789-,<>= ", max_size=12) | st.text(max_size=12))
def test_any_text_names_levels_or_is_refused(text: str) -> None:
    with suppress(InputError):
        found = parse_levels(text)
        assert found
        assert found <= ALL
        assert parse_levels(show_levels(found)) == found


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12),
    st.sets(st.sampled_from(sorted(LEVELS)), min_size=1),
)
def test_only_kept_records_of_other_levels_are_rejected(rows: list[tuple[int, bool]], levels: set[int]) -> None:
    records = [
        record if kept else record.reject("duplicate")
        for i, (level, kept) in enumerate(rows)
        for record in (Record({"x": i}, {"y": 1}, Provenance("pool", level=level)),)
    ]
    done = restrict(records, levels)
    assert [r.id for r in done] == [r.id for r in records]
    for before, after in zip(records, done, strict=True):
        if before.kept and before.provenance.level not in levels:
            assert (after.kept, after.reason) == (False, "level")
        else:
            assert after == before
    assert sum(count_levels(done).values()) == sum(r.kept for r in done)
    assert list(count_levels(done)) == sorted(count_levels(done))


def test_the_level_is_an_option_of_the_run_and_a_part_of_what_it_is(tmp_path: Path) -> None:
    config = RunConfig(out=str(tmp_path), labels="rows.csv", output=("label",))
    check(replace(config, level="1-4"))
    with pytest.raises(InputError, match="runs backwards"):
        check(replace(config, level="4-1"))
    assert replace(config, level="1-4").identity() == config.identity(), "levels are in the keys of the student's rows"
    # A run of all levels has the key that it had before there was the option.
    assert "level" not in config.identity()
    write_config(replace(config, level="3,4"), tmp_path / "run.toml")
    assert read_config(tmp_path).level == "3,4"
