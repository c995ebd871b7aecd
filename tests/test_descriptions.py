"""Label descriptions from the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.descriptions import read_descriptions
from limbeck.errors import InputError

LABELS = ("HUM", "LOC")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", '{"LOC": "a  place", "HUM": "a person"}'),
        ("d.json", '[{"label": "HUM", "text": "a person"}, {"label": "LOC", "text": "a place"}]'),
        ("d.csv", "label,description\nHUM,a person\n LOC ,a place\n"),
        ("d.jsonl", '{"l": "HUM", "d": "a person"}\n{"l": "LOC", "d": "a place"}\n'),
    ],
)
def test_every_form_of_file_is_read(tmp_path: Path, name: str, content: str):
    path = tmp_path / name
    path.write_text(content)
    assert read_descriptions(path, LABELS) == ({"HUM": "a person", "LOC": "a place"}, [])


def test_none_is_no_description():
    assert read_descriptions(None, LABELS) == ({}, [])


def test_missing_descriptions_are_named():
    found, warnings = read_descriptions({"LOC": "a place", "HUM": " "}, LABELS)
    assert found == {"LOC": "a place"}
    assert warnings == ["missing-descriptions: 1 of 2 labels: HUM"]


def test_an_unknown_label_is_refused():
    with pytest.raises(InputError, match="'HUMAN', which no labelled row has") as caught:
        read_descriptions({"HUMAN": "a person"}, LABELS)
    assert caught.value.hint == "write 'HUM'"
    with pytest.raises(InputError, match="which no labelled row has"):
        read_descriptions({"x": "y"}, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "{", "is not JSON"),
        ("d.csv", "label\nHUM\n", "has the one column 'label'"),
        ("d.txt", "x", ".txt"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_descriptions(path, LABELS)
    assert message in caught.value.message
