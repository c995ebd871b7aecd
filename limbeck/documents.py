"""A folder of text and Markdown files, cut into passages.

Markdown is cut where its own structure ends (headings, paragraphs, lists, tables, fenced code; CommonMark by
markdown-it-py) and keeps its marks; front matter is left out. What cannot be used is left out and named in a
warning; a folder that gives nothing is an `InputError`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import InputError

SUFFIXES = (".txt", ".md")
MAX_WORDS = 200
MAX_BYTES = 5_000_000

# Scripts without blanks have no words to count: so many characters count as one word.
_LONG_WORD = 12
# Of a document that is longer, the beginning says which language it is in.
_LANGUAGE_CHARACTERS = 10_000
_MAX_CONTROL_SHARE = 0.01
_SHOWN = 5
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?P<body>.*?\n)\1[ \t]*(?:\n|\Z)", re.DOTALL)
_SETTING = re.compile(r"(#.*|\[[^\]]+\]|[\w.\"'-]+\s*[:=].*)$")
_HEADING = re.compile(r"(?:#{1,6}[ \t][^\n]*|[^\n]+\n(?:=+|-+)[ \t]*)(?:\n\s*|\Z)")
_SENTENCES = re.compile(r".+?(?:[.!?…。！？]+[\"'”’)\]]*(?:\s+|\Z)|\Z)", re.DOTALL)
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_WORDS = re.compile(r"\s*\S+")
_PARTS_OF_WORDS = re.compile(rf"\s*\S{{1,{_LONG_WORD}}}")
_BY_SENTENCE = (_SENTENCES, _LINES, _WORDS, _PARTS_OF_WORDS)
_BY_LINE = (_LINES, _SENTENCES, _WORDS, _PARTS_OF_WORDS)


@dataclass(frozen=True)
class Passage:
    """A piece of a document: its text, the file within the folder, and which of the file's passages it is, from 0."""

    text: str
    document: str
    position: int

    @property
    def body(self) -> str:
        """The text without the headings it begins with.

        >>> Passage("# Returns\\n\\n## Books\\n\\nWithin a week.", "shop.md", 0).body
        'Within a week.'
        """
        body = self.text
        while self.document.lower().endswith(".md") and (heading := _HEADING.match(body)):
            body = body[heading.end() :]
        return body

    @property
    def place(self) -> str:
        """Where it is from, for people and provenance, as "shop.md#0"."""
        return f"{self.document}#{self.position}"


@dataclass(frozen=True)
class Documents:
    """The passages of a folder, in the order of its files, and warnings about what was left out."""

    passages: tuple[Passage, ...]
    warnings: tuple[str, ...] = ()


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without the space around them.

    >>> sentences("Feed the cat. Is it fed?  It is!")
    ['Feed the cat.', 'Is it fed?', 'It is!']
    """
    return [found.strip() for found in _SENTENCES.findall(text) if found.strip()]


def read_documents(
    folder: str | Path,
    *,
    max_words: int = MAX_WORDS,
    max_bytes: int = MAX_BYTES,
    foreign: Callable[[str], bool] | None = None,
) -> Documents:
    """Return the passages of every .txt and .md file in a folder and the folders in it, hidden ones aside.

    A passage has `max_words` words at most (12 characters without a blank count as one); 200 are a page's section
    and leave room for several in a small model's prompt. Left out with a warning: files that are empty, binary,
    not UTF-8, over `max_bytes` bytes or whose text `foreign` says is in another language, files of other kinds,
    and passages that repeat an earlier one. Raises InputError for a folder that is missing or yields no passage.
    """
    root = Path(folder)
    files, others = _found(root)
    if not files:
        raise InputError(
            f"{root} holds no document" + (f"; it has {others[0]}" if others else ""),
            valid="a folder with files that end in " + " or ".join(SUFFIXES),
            hint=f"ls -R {root}",
        )
    passages: list[Passage] = []
    faults: dict[str, list[str]] = {}
    for path in files:
        name = path.relative_to(root).as_posix()
        text, fault = _read(path, max_bytes, foreign)
        pieces = [] if fault else cut(text, max_words, markdown=path.suffix.lower() == ".md")
        if not pieces:
            faults.setdefault(fault or "empty", []).append(name)
        passages += [Passage(piece, name, i) for i, piece in enumerate(pieces)]
    kept, repeated = _distinct(passages)
    warnings = _warnings(faults, len(files), others, repeated, max_bytes)
    if not kept:
        raise InputError(
            f"{root} yields no passage: " + "; ".join(warning.partition(": ")[2] for warning in warnings),
            valid="UTF-8 text in the language of the labelled rows",
            hint=f"file {root}/*",
        )
    return Documents(tuple(kept), tuple(warnings))


def cut(text: str, max_words: int = MAX_WORDS, *, markdown: bool = False) -> list[str]:
    """Return the text in passages of `max_words` words at most, whole blocks together as long as they fit.

    With `markdown` a heading begins a passage, front matter and headings without text are left out, and code that
    is cut keeps its fences. Raises ValueError below 8 words.

    >>> cut("# Tea\\n\\nBoil water.\\n\\nWait.\\n\\n# Milk\\n\\nLast.", markdown=True)
    ['# Tea\\n\\nBoil water.\\n\\nWait.', '# Milk\\n\\nLast.']
    """
    if max_words < 8:
        raise ValueError(f"a passage of {max_words} words says nothing")
    blocks = _markdown_blocks(text, max_words) if markdown else _text_blocks(text)
    found: list[str] = []
    current: list[_Block] = []

    def close() -> None:
        if any(not block.heading for block in current):
            found.append("\n\n".join(block.text for block in current))
        current.clear()

    for block in blocks:
        if block.heading and any(not b.heading for b in current):
            close()
        while block.heading and current and _size(current) + _words(block.text) > max_words // 2:
            current.pop(0)  # headings alone would leave no room for the text below them
        room = max_words - _size(current)
        if _words(block.text) <= room:
            current.append(block)
            continue
        if any(not b.heading for b in current):
            close()
            room = max_words
        for piece in _split(block, room, max_words):
            if _size(current) + _words(piece.text) > max_words:
                close()
            current.append(piece)
    close()
    return found


@dataclass(frozen=True)
class _Block:
    text: str
    heading: bool = False
    fence: bool = False
    ways: Sequence[re.Pattern[str]] = _BY_SENTENCE


def _text_blocks(text: str) -> list[_Block]:
    return [_Block(part.strip("\n").rstrip()) for part in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text) if part.strip()]


def _markdown_blocks(text: str, max_words: int) -> list[_Block]:
    from markdown_it import MarkdownIt

    text = _without_front_matter(text)
    lines = text.split("\n")
    blocks: list[_Block] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.level or token.map is None or token.type == "hr":
            continue
        part = "\n".join(lines[token.map[0] : token.map[1]]).strip("\n").rstrip()
        # A "heading" as long as a passage is a paragraph that happens to stand above a line.
        heading = token.type == "heading_open" and _words(part) <= max_words // 2
        ways = _BY_SENTENCE if token.type == "paragraph_open" else _BY_LINE
        if part.strip():
            blocks.append(_Block(part, heading, token.type == "fence", ways))
    return blocks


def _without_front_matter(text: str) -> str:
    """Return the text without YAML or TOML settings at its top; a rule above prose is none."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return text
    first = next((line for line in match["body"].splitlines() if line.strip()), "")
    return text[match.end() :] if not first or _SETTING.match(first.strip()) else text


def _split(block: _Block, room: int, max_words: int) -> Iterator[_Block]:
    """Yield a block too long for one passage in pieces, the first of them fit for `room` words."""
    opening, closing, text = "", "", block.text
    if block.fence:
        lines = text.split("\n")
        opening, marker = lines[0] + "\n", (re.match(r"\s*(`+|~+)", lines[0]) or [""])[0]
        closed = len(lines) > 1 and lines[-1].strip().startswith(marker.strip())
        text, closing = "\n".join(lines[1 : len(lines) - closed]), "\n" + marker
    around = _words(opening) + _words(closing)
    room, limit = max(room - around, 1), max(max_words - around, 1)
    # Pieces of about one length: a last one of a few words would say nothing.
    even = -(-_words(text) // -(-_words(text) // limit))
    current = ""
    for unit in _units(text, min(room, limit), block.ways):
        size = _words(current)
        if size and (size + _words(unit) > room or size + _words(unit) // 2 > even):
            yield _Block(opening + current.strip("\n").rstrip() + closing)
            current, room = "", limit
        current += unit
    if current.strip():
        yield _Block(opening + current.strip("\n").rstrip() + closing)


def _units(text: str, limit: int, ways: Sequence[re.Pattern[str]]) -> list[str]:
    """Return the parts the first of the ways cuts a text into, those over the limit cut by the next ways."""
    if _words(text) <= limit or not ways:
        return [text]
    return [part for unit in ways[0].findall(text) for part in _units(unit, limit, ways[1:])]


def _words(text: str) -> int:
    return sum(-(-len(word) // _LONG_WORD) for word in text.split())


def _size(blocks: Sequence[_Block]) -> int:
    return sum(_words(block.text) for block in blocks)


def _found(root: Path) -> tuple[list[Path], list[str]]:
    """Return the documents in a folder, sorted, and the names of its other files; hidden ones are neither."""
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root}" if not root.exists() else f"{root} is a file, not a folder",
            valid="a folder of .txt and .md files",
            hint=f"ls {root.parent}",
        )
    files: list[Path] = []
    others: list[str] = []
    for base, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(base) / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                files.append(path)
            elif not name.startswith("."):
                others.append(path.relative_to(root).as_posix())
    return sorted(files, key=lambda path: path.relative_to(root).as_posix()), sorted(others)


def _read(path: Path, max_bytes: int, foreign: Callable[[str], bool] | None) -> tuple[str, str]:
    """Return a file's text, or the name of what is wrong with it."""
    try:
        if path.stat().st_size > max_bytes:
            return "", "large"
        data = path.read_bytes()
    except OSError:
        return "", "unreadable"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "", "encoding"  # UTF-16, whose every second byte is often zero
    if b"\0" in data:
        return "", "binary"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "encoding"
    control = sum(ord(c) < 32 and c not in "\n\r\t\f" for c in text)
    if control > _MAX_CONTROL_SHARE * len(text):
        return "", "binary"
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
    if not text.strip():
        return "", "empty"
    if foreign is not None and foreign(text[:_LANGUAGE_CHARACTERS]):
        return "", "language"
    return text, ""


def _distinct(passages: Sequence[Passage]) -> tuple[list[Passage], list[Passage]]:
    """Return the passages, each text once, and those that repeat an earlier one but for case and blanks."""
    seen: set[str] = set()
    kept: list[Passage] = []
    repeated: list[Passage] = []
    for passage in passages:
        key = " ".join(passage.text.split()).casefold()
        (repeated if key in seen else kept).append(passage)
        seen.add(key)
    return kept, repeated


def _warnings(
    faults: dict[str, list[str]], total: int, others: Sequence[str], repeated: Sequence[Passage], max_bytes: int
) -> list[str]:
    told = {
        "unreadable": "cannot be read",
        "large": f"are larger than {max_bytes:,} bytes",
        "binary": "are binary",
        "encoding": "are not UTF-8",
        "empty": "hold no text",
        "language": "are in another language than the labelled rows",
    }
    warnings = [
        f"{fault}-documents: left out {len(faults[fault])} of {total} documents that {what}: {_listed(faults[fault])}"
        for fault, what in told.items()
        if fault in faults
    ]
    if others:
        warnings.append(f"other-files: left out {len(others)} that are neither .txt nor .md: {_listed(others)}")
    if repeated:
        places = [passage.place for passage in repeated]
        warnings.append(f"repeated-passages: left out {len(places)} that repeat an earlier one: {_listed(places)}")
    return warnings


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
