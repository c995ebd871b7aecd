"""A task.py is run as the code it is; what is wrong with it is named with its line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck.taskfile import load_task

FILE = """
from __future__ import annotations
import dspy
from typing import Literal
from neighbour import rows
from limbeck.task import Task

class Sort(dspy.Signature):
    '''Sort the text.'''
    text: str = dspy.InputField()
    label: Literal["a", "b"] = dspy.OutputField()

def build():
    return Task.from_program(dspy.Predict(Sort), rows())
"""


def test_a_task_file_is_loaded_with_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    (tmp_path / "neighbour.py").write_text(
        "import dspy\ndef rows():\n    return [dspy.Example(text=t, label=t).with_inputs('text') for t in 'ab']\n"
    )
    path = tmp_path / "my_task.py"
    path.write_text(FILE)
    assert load_task(path).labels == ("a", "b")
    path.write_text(FILE + "\ntask = build()\n")
    before = list(sys.path)
    assert load_task(str(path)).instructions == "Sort the text."
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "neighbour")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "defines neither `task` nor `build()`"),
        ("task = 3\n", "defines a int for a task"),
        ("\n\nraise KeyError('k')\n", "bad.py, line 3 failed: KeyError: 'k'"),
        ("def build(:\n", "failed: SyntaxError"),
        (
            "def build():\n    from limbeck.errors import InputError\n    raise InputError('no rows')\n",
            "no rows",
        ),
    ],
)
def test_a_broken_task_file_is_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_task(path)
    assert message in caught.value.message


def test_a_missing_task_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="no task file"):
        load_task(tmp_path / "task.py")
