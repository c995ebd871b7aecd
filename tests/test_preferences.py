"""Preferences survive their files, and what is no preference is named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.preferences import Preference, read_preferences, write_preferences
from limbeck.records import Provenance

ORIGIN = Provenance("constitutional", parents=("a", "b"), teacher="t", prompt_hash="h", seed=3, level=5, block=1)
PAIR = Preference({"request": "Why?"}, {"answer": "So."}, {"answer": "No."}, 0.75, "short", ORIGIN)
values = st.one_of(st.text(max_size=8), st.integers(-9, 9), st.lists(st.text(max_size=3), max_size=2), st.none())
fields = st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=3)


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl"])
@settings(max_examples=30)
@given(st.lists(st.tuples(fields, fields, fields, st.floats(0.5, 1)), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, name: str, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("p") / "folder" / name
    pairs = [Preference(given, chosen, rejected, p, "fair", ORIGIN) for given, chosen, rejected, p in rows]
    write_preferences(pairs, path)
    assert read_preferences(path) == pairs
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_text_of_several_lines_stays_on_one(tmp_path: Path) -> None:
    odd = Preference({"q": "a\u2028b\nc"}, {"x": "\u0085"}, {"x": "é"}, 0.6, "", Provenance("m"))
    write_preferences([odd, PAIR], tmp_path / "p.jsonl")
    assert read_preferences(tmp_path / "p.jsonl") == [odd, PAIR]


def test_the_id_is_that_of_the_question_and_not_of_the_choice() -> None:
    turned = Preference(PAIR.inputs, PAIR.rejected, PAIR.chosen, 0.6, "short", ORIGIN)
    assert turned.id == PAIR.id
    assert Preference(PAIR.inputs, PAIR.chosen, PAIR.rejected, 0.75, "true", ORIGIN).id != PAIR.id


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"inputs": {}}', "3", '{"inputs": {}, "chosen": {}, "rejected": {}, "p": 1}']
)
def test_a_line_that_is_no_preference_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    write_preferences([PAIR], path)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"p\.jsonl, line 2 is no preference"):
        read_preferences(path)
