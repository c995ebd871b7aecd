"""A constitution as a file: what is read, and the line of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck.principles import Principle, parse_principles, read_principles

GOOD = """# ours
[[principle]]
name = "short"
critique = "What could be left out?"
revision = "Leave it out."

[[principle]]
name = "kind"
critique = '''
What would
hurt?'''
revision = "Be kind."
weight = 3
"""


def test_principles_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert read_principles(path) == (
        Principle("short", "What could be left out?", "Leave it out."),
        Principle("kind", "What would hurt?", "Be kind.", 3.0),
    )
    inline = 'principle = [{name = "short", critique = "What?", revision = "Cut."}]'
    assert parse_principles(inline, "x.toml") == (Principle("short", "What?", "Cut."),)


def test_the_principles_that_ship_are_whole() -> None:
    found = read_principles()
    assert len({one.name for one in found}) == len(found) >= 8
    for one in found:
        assert one.critique.endswith((".", "?"))
        assert one.revision.endswith(".")
        assert len(one.name.split()) <= 6
    assert any(one.weight != 1.0 for one in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "short"', 'nmae = "short"', "x.toml, line 3: unknown key 'nmae'"),
        ("weight = 3", "wieght = 3", "x.toml, line 13: unknown key 'wieght'"),
        ("weight = 3", "weight = 0", "x.toml, line 13: weight is 0"),
        ("weight = 3", "weight = true", "x.toml, line 13: weight is True"),
        ("weight = 3", 'weight = "3"', "x.toml, line 13: weight is '3'"),
        ("weight = 3", "weight = inf", "x.toml, line 13: weight is inf"),
        ('revision = "Be kind."', 'revision = "  "', "x.toml, line 12: revision is '  '"),
        ('revision = "Leave it out."', "revision = 5", "x.toml, line 5: revision is 5"),
        ('revision = "Leave it out."\n', "", "x.toml, line 2: revision is missing"),
        ('name = "kind"', 'name = "short"', "x.toml, line 8: two principles are named 'short'"),
        ("# ours", "title = 1", "x.toml, line 1: unknown key 'title'"),
        ('[[principle]]\nname = "short"', '[[principles]]\nname = "short"', "x.toml, line 2: unknown key 'principles'"),
        ('name = "short"', "name = short", "x.toml, line 3 is not TOML"),
        ('name = "short"', 'name = "short"\nname = "again"', "x.toml, line 4 is not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        parse_principles(GOOD.replace(old, new, 1), "x.toml")
    assert caught.value.message.startswith(said)
    assert caught.value.valid


def test_a_name_that_is_almost_right_is_offered() -> None:
    with pytest.raises(InputError) as caught:
        parse_principles(GOOD.replace("critique =", "critic =", 1), "x.toml")
    assert caught.value.hint == "write critique"


@pytest.mark.parametrize("text", ["", "# nothing", "principle = []", "principle = 3", 'principle = ["be good"]'])
def test_a_constitution_without_principles_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"x\.toml holds no principles"):
        parse_principles(text, "x.toml")


def test_inline_principles_are_counted_where_they_have_no_line() -> None:
    text = 'principle = [{name = "a", critique = "b", revision = "c"}, {name = "d", critique = "", revision = "e"}]'
    with pytest.raises(InputError, match="principle 2: critique is ''"):
        parse_principles(text, "x.toml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml cannot be read: No such file"):
        read_principles(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(InputError, match="not UTF-8"):
        read_principles(tmp_path / "latin.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_principles(tmp_path)
