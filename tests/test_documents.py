"""Documents: real folders, Markdown's structure kept, limits held for any text, and everything left out named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.documents import Passage, cut, read_documents
from limbeck.errors import InputError

MARKDOWN = """---
title: Returns
tags: [a, b]
---
# Returns

Send it back within a week.

## Books

- unread
- in their wrapper

```sh
# this is no heading

limbeck --help
```

Old style
---------

Bring the receipt.

---

## Nothing below
"""


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_markdown_is_cut_at_headings_and_code_stays_whole() -> None:
    assert cut(MARKDOWN, markdown=True) == [
        "# Returns\n\nSend it back within a week.",
        "## Books\n\n- unread\n- in their wrapper\n\n```sh\n# this is no heading\n\nlimbeck --help\n```",
        "Old style\n---------\n\nBring the receipt.",
    ]


def test_headings_one_below_another_stay_together_and_are_not_the_body() -> None:
    (text,) = cut("# Shop\n\n## Books\n\nWithin a week.", markdown=True)
    assert text == "# Shop\n\n## Books\n\nWithin a week."
    assert Passage(text, "a.md", 0).body == "Within a week."
    assert Passage("Old\n===\n\nText.", "a.MD", 0).body == "Text."
    assert Passage("# of rows\n\nThree.", "a.txt", 0).body == "# of rows\n\nThree."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("+++\ntitle = 'x'\n+++\nBody.", ["Body."]),
        ("---\n\n---\nBody.", ["Body."]),
        (
            "---\nA rule above prose, and one below it.\n\n---\nBody.",
            ["A rule above prose, and one below it.\n\nBody."],
        ),
        ("---\ntitle: never closed\n\nBody.", ["title: never closed\n\nBody."]),
        ("Body.\n\n---\nkey: value\n---\n\nMore.", ["Body.", "key: value\n---\n\nMore."]),
        ("# Only\n\n## headings", []),
    ],
)
def test_front_matter_is_left_out_and_prose_between_rules_is_not(text: str, kept: list[str]) -> None:
    assert cut(text, markdown=True) == kept


def test_paragraphs_fill_a_passage_and_long_ones_break_between_sentences() -> None:
    assert cut("one two three\n\nfour five\n\nsix seven eight nine ten", 8) == [
        "one two three\n\nfour five",
        "six seven eight nine ten",
    ]
    assert cut("One two three four. " * 6, 20) == ["One two three four. " * 2 + "One two three four."] * 2
    long = "The cat sat down. It saw a dog there. Then it ran away at once."
    assert cut(long, 9) == ["The cat sat down. It saw a dog there.", "Then it ran away at once."]


def test_lists_break_between_lines_and_cut_code_keeps_its_fences() -> None:
    items = "\n".join(f"- item number {i}. With more." for i in range(4))
    assert cut(items, 14, markdown=True) == [
        "- item number 0. With more.\n- item number 1. With more.",
        "- item number 2. With more.\n- item number 3. With more.",
    ]
    code = "```py\n" + "\n".join(f"x = {i}" for i in range(6)) + "\n```"
    assert cut(code, 11, markdown=True) == [
        "```py\nx = 0\nx = 1\nx = 2\n```",
        "```py\nx = 3\nx = 4\nx = 5\n```",
    ]
    assert cut("~~~\nnever closed\n\nstill code", 30, markdown=True) == ["~~~\nnever closed\n\nstill code"]


def test_a_heading_stays_with_the_beginning_of_a_long_paragraph() -> None:
    first, *_ = cut("# A heading of five words\n\n" + "Word after word. " * 10, 12, markdown=True)
    assert first.startswith("# A heading of five words\n\nWord after word.")


def test_text_without_blanks_is_limited_too() -> None:
    assert [len(text) for text in cut("字" * 250, 8)] == [96, 96, 58]


def test_a_limit_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="7 words"):
        cut("a b c", 7)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(["a", "bc", " ", "\n", ". ", "# ", "- ", "\n\n", "|", "```", "> "]), max_size=90).map(
        "".join
    ),
    st.integers(8, 30),
    st.booleans(),
)
def test_no_passage_is_too_long_or_blank_and_no_text_gets_lost(text: str, limit: int, markdown: bool) -> None:
    passages = cut(text, limit, markdown=markdown)
    assert all(passage.strip() and len(passage.split()) <= limit for passage in passages)
    if not markdown:
        assert "".join("".join(passages).split()) == "".join(text.split())


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=60), st.integers(8, 20))
def test_markdown_paragraphs_lose_no_word(words: list[str], limit: int) -> None:
    passages = cut(" ".join(words), limit, markdown=True)
    assert " ".join(passages).split() == words


def test_a_folder_is_read_recursively_in_the_order_of_its_names(tmp_path: Path) -> None:
    write(tmp_path, b_md="# B\n\nSecond.", a__z_txt="First.\n\nStill first.", C_TXT="\ufeffThird.", _hidden_txt="No.")
    write(tmp_path, **{"_git__x_md": "No."})
    found = read_documents(tmp_path)
    assert [(p.document, p.position, p.text) for p in found.passages] == [
        ("C.TXT", 0, "Third."),
        ("a/z.txt", 0, "First.\n\nStill first."),
        ("b.md", 0, "# B\n\nSecond."),
    ]
    assert found.warnings == ()
    assert found.passages[1].place == "a/z.txt#0"


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    write(
        tmp_path,
        good_txt="A whole sentence.",
        again_txt="a  whole SENTENCE.",
        empty_md="---\na: b\n---\n\n",
        blank_txt=" \n",
        image_txt=b"\x89PNG\0\0",
        bell_txt="\x07\x07abc",
        latin_txt="Caf\xe9 au lait".encode("latin-1"),
        wide_txt="Hello".encode("utf-16"),
        big_txt="word " * 2000,
        german_txt="Ein ganzer Satz auf Deutsch.",
        table_csv="a,b",
    )
    os.symlink(tmp_path / "nowhere.txt", tmp_path / "broken.txt")
    found = read_documents(tmp_path, max_bytes=9000, foreign=lambda text: "Deutsch" in text)
    assert [p.document for p in found.passages] == ["again.txt"]
    assert found.warnings == (
        "unreadable-documents: left out 1 of 11 documents that cannot be read: broken.txt",
        "large-documents: left out 1 of 11 documents that are larger than 9,000 bytes: big.txt",
        "binary-documents: left out 2 of 11 documents that are binary: bell.txt, image.txt",
        "encoding-documents: left out 2 of 11 documents that are not UTF-8: latin.txt, wide.txt",
        "empty-documents: left out 2 of 11 documents that hold no text: blank.txt, empty.md",
        "language-documents: left out 1 of 11 documents that are in another language than the labelled rows: "
        "german.txt",
        "other-files: left out 1 that are neither .txt nor .md: table.csv",
        "repeated-passages: left out 1 that repeat an earlier one: good.txt#0",
    )


def test_line_ends_of_other_systems_are_read_alike(tmp_path: Path) -> None:
    write(tmp_path, dos_txt="one\r\n\r\ntwo", mac_txt="three\r\rfour", page_txt="five\fsix")
    assert [p.text for p in read_documents(tmp_path, max_words=8).passages] == [
        "one\n\ntwo",
        "three\n\nfour",
        "five\n\nsix",
    ]


def test_a_folder_that_is_missing_or_yields_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_documents(tmp_path / "missing")
    write(tmp_path, a_pdf="x")
    with pytest.raises(InputError, match=r"is a file, not a folder"):
        read_documents(tmp_path / "a.pdf")
    with pytest.raises(InputError, match=r"holds no document; it has a\.pdf"):
        read_documents(tmp_path)
    write(tmp_path, b_txt=" ")
    with pytest.raises(InputError, match=r"yields no passage: left out 1 of 1 documents that hold no text: b\.txt"):
        read_documents(tmp_path)
