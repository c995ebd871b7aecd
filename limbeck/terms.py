"""Whether the terms of a teacher let its outputs train another model, by a list that names its sources.

The list is `terms.toml` beside this file: what providers' terms and models' licences say, where and when that was
read, and whether the text itself was. A name resolves to the entries that bear on it: the model's own, then that of
what serves it; the strictest decides, and what the list does not know is conditional. A list is no legal advice.
"""

from __future__ import annotations

import ipaddress
import re
import struct
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.errors import InputError

Verdict = Literal["allowed", "conditional", "forbidden"]
_SEVERITY: tuple[Verdict, ...] = get_args(Verdict)
_STYLES: Mapping[Verdict, str] = {"allowed": "green", "conditional": "yellow", "forbidden": "bold red"}
_KINDS = {"weights": "open weights", "api": "providers", "host": "hosts", "licence": "licences that a file states"}
# Folders above a file in which a model's name is looked for: the hub's cache puts it three above.
_PARENTS = 4
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_LONGEST = 1 << 20


@dataclass(frozen=True)
class Terms:
    """One entry of the list; the head of `terms.toml` says what the fields mean. Dates are ISO."""

    id: str
    title: str
    kind: str
    verdict: Verdict
    summary: str
    read_on: str
    checked: bool
    condition: str = ""
    address: str = ""
    dated: str = ""
    source: str = ""
    providers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    match: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()

    def public(self) -> dict[str, Any]:
        """Return what people are shown of an entry: all but what resolves names."""
        hidden = ("providers", "domains", "match", "licences")
        return {name: value for name, value in asdict(self).items() if name not in hidden}


@dataclass(frozen=True)
class Ruling:
    """What a model's name resolves to; `entries` are the model's own terms and those of what serves it."""

    model: str
    entries: tuple[Terms, ...]

    @property
    def verdict(self) -> Verdict:
        """The strictest verdict of the entries."""
        return self.decided_by.verdict

    @property
    def decided_by(self) -> Terms:
        """The first of the strictest entries."""
        return max(self.entries, key=lambda e: _SEVERITY.index(e.verdict))

    @property
    def family(self) -> str:
        """The id of the model's own entry."""
        return self.entries[0].id

    @property
    def condition(self) -> str:
        """What has to hold for the outputs to be used; "" where all is allowed."""
        return "; ".join(e.condition for e in self.entries if e.verdict != "allowed" and e.condition)

    @property
    def licence(self) -> str:
        """A word for records' provenance: the family and the verdict."""
        return f"{self.family}: {self.verdict}"

    def head(self) -> dict[str, str]:
        """Return what the ruling is, without the entries it rests on."""
        return {"model": self.model, "family": self.family, "verdict": self.verdict, "condition": self.condition}

    def public(self) -> dict[str, Any]:
        """Return the ruling as JSON holds it."""
        return {**self.head(), "terms": [entry.public() for entry in self.entries]}

    def told(self, reason: str = "") -> str:
        """Return one line for whoever starts a run: the condition, or that and why it goes on against the terms."""
        rule = self.decided_by
        where = f"{rule.title}, read on {rule.read_on}; limbeck terms {self.model}"
        if self.verdict == "forbidden":
            told = f"because: {reason}" if reason else "a run is refused without --accept-terms"
            return f"terms of {self.model}: training on its outputs is forbidden ({where}); {told}"
        return f"terms of {self.model}: its outputs may train a model if {self.condition} ({where})"


@cache
def catalogue() -> tuple[Terms, ...]:
    """Return the list's entries, in order.

    >>> {entry.verdict for entry in catalogue()} == {"allowed", "conditional", "forbidden"}
    True
    """
    raw = tomllib.loads((files("limbeck") / "terms.toml").read_text(encoding="utf-8"))
    return tuple(_entry(values) for values in raw["entry"])


def _entry(values: Mapping[str, Any]) -> Terms:
    plain: dict[str, Any] = {k: v.isoformat() if isinstance(v, date) else v for k, v in values.items()}
    plain |= {k: tuple(cast(list[str], v)) for k, v in plain.items() if isinstance(v, list)}
    return Terms(**plain)


def _by_id(name: str) -> Terms:
    return next(entry for entry in catalogue() if entry.id == name)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Terms], ...]:
    return tuple((re.compile("|".join(e.match)), e) for e in catalogue() if e.match)


def resolve(model: str, api_base: str = "") -> Ruling:
    """Return whose terms bear on a model of this name; `api_base` is the server's address where one is given.

    Never raises: a name, a file or a server that the list does not know is conditional.

    >>> resolve("fireworks_ai/accounts/fireworks/models/llama-v3-8b-instruct").verdict
    'forbidden'
    >>> resolve("openai/mine", "http://localhost:8000/v1").family
    'unknown'
    """
    name = model.strip()
    kind, _, path = name.partition(":")
    if kind.lower() in ("hf", "gguf") and path:
        return Ruling(model, (*_of_weights(kind.lower(), path), _by_id("local")))
    provider, slash, rest = name.partition("/")
    if api_base and name.lower() != "embedded":
        server = _by_address(api_base)
    else:  # HOST/VENDOR/MODEL names a host, VENDOR/MODEL alone need not
        server = _by_provider(provider) or (_by_id("other-server") if "/" in rest else None)
    if server is not None and (server.kind == "api" or (server.kind == "weights" and not slash)):
        return Ruling(model, (server,))  # its own service, or the embedded weights
    rest = rest if slash and server is not None else name
    return Ruling(model, (_by_name(rest) or _by_id("unknown"), *([server] if server else [])))


def _by_provider(provider: str) -> Terms | None:
    return next((entry for entry in catalogue() if provider.lower() in entry.providers), None)


def _by_address(address: str) -> Terms:
    try:
        host = (urlsplit(address if "//" in address else f"//{address}").hostname or "").lower()
    except ValueError:
        return _by_id("other-server")
    for entry in catalogue():
        if any(host == domain or host.endswith(f".{domain}") for domain in entry.domains):
            return entry
    return _by_id("local" if _is_near(host) else "other-server")


def _is_near(host: str) -> bool:
    """Return whether a host is this machine or one of its own network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return re.fullmatch(r"[\w-]+|[\w.-]+\.(local|localhost|lan|internal)", host) is not None


def _by_name(name: str) -> Terms | None:
    plain = re.sub(r"[_\s]+", "-", name.strip().lower())
    plain = re.sub(r"(?<=\d)p(?=\d)", ".", plain)  # hosts write v3p1 for v3.1
    return next((entry for pattern, entry in _patterns() if pattern.search(plain)), None)


def _strictest(entries: Iterable[Terms | None]) -> Terms | None:
    return max((e for e in entries if e), key=lambda e: _SEVERITY.index(e.verdict), default=None)


def _of_weights(kind: str, given: str) -> tuple[Terms, ...]:
    """Return the terms of weights by their name and by what their file or folder states.

    The strictest counts: a quantized file is often renamed, and a card often names the last licence alone.
    """
    path, names, licences = _stated(given)
    there = path is not None
    path = path or Path(given)
    hub = kind == "hf" and not there and path.suffix.lower() != ".gguf"
    family = _strictest(_by_name(name) for name in (*names, given if hub else path.name))
    if family is None and not hub:
        above = (_by_name(folder.name) for folder in list(path.parents)[:_PARENTS])
        family = next((entry for entry in above if entry), None)
    licence = _strictest(e for e in catalogue() if set(licences) & set(e.licences))
    if family is None:
        return (licence or _by_id("unknown"),)
    return (family, licence) if licence and _strictest((family, licence)) is not family else (family,)


def _stated(given: str) -> tuple[Path | None, list[str], list[str]]:
    """Return the path where it exists, and the names and licences that a GGUF file or a model's folder states."""
    try:
        path = Path(given).expanduser()
        if path.is_file():
            found = gguf_strings(path)
            names = [
                v for k, v in found.items() if re.fullmatch(r"general\.(name|base_model\.\d+\.(name|repo_url))", k)
            ]
            return path, names, [found[k].lower() for k in ("general.license", "general.license.name") if k in found]
        if path.is_dir():
            return path, *_card(path / "README.md")
    except (OSError, ValueError, RuntimeError):  # no such user, a name too long, a NUL
        pass
    return None, [], []


def gguf_strings(path: Path) -> dict[str, str]:
    """Return the strings that stand before the tokenizer in a GGUF file's head; what can be read, {} for no GGUF file.

    The gguf package's reader takes six to thirteen seconds for a file with its tokenizer's tables, this milliseconds.
    """
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
            for _ in range(count if magic == b"GGUF" else 0):
                key = _string(file)
                if key.startswith("tokenizer."):
                    break
                (kind,) = struct.unpack("<I", file.read(4))
                if kind == _GGUF_STRING:
                    found[key] = _string(file)
                else:
                    _skip(file, kind)
    except (OSError, OverflowError, struct.error, ValueError, KeyError):
        pass
    return found


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _GGUF_LONGEST:
        raise ValueError("no GGUF string is this long")
    return file.read(length).decode("utf-8", errors="replace")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind != _GGUF_ARRAY:
        file.seek(_GGUF_BYTES[kind], 1)
        return
    inner, length = struct.unpack("<IQ", file.read(12))
    if inner != _GGUF_STRING:
        file.seek(_GGUF_BYTES[inner] * length, 1)
        return
    for _ in range(length):
        _string(file)


def _card(path: Path) -> tuple[list[str], list[str]]:
    """Return the base models and licences of a model card's head."""
    if not path.is_file():
        return [], []
    head = path.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
    licences = re.findall(r"^license(?:_name)?:[ \t]*([^\s#]+)", head, re.MULTILINE)
    bases = re.search(r"^base_model:((?:[ \t]*\S+)?(?:\n[ \t]*-[ \t]*\S+)*)", head, re.MULTILINE)
    return re.findall(r"[\w.-]+/[\w.-]+", bases[1]) if bases else [], [text.strip("\"'").lower() for text in licences]


def check_reason(reason: str) -> None:
    """Raise InputError for a reason that says nothing."""
    if not reason.strip():
        raise InputError("--accept-terms gives no reason", valid='a reason in words: --accept-terms "we have consent"')


def rulings(models: Mapping[str, str], api_base: str, reason: str) -> dict[str, Ruling]:
    """Return the ruling of each model that a run asks, by its role ("teacher"); names that are empty are left out.

    Raises InputError where one's terms forbid what a run does and no reason for going on is given.
    """
    found = {role: resolve(name, api_base) for role, name in models.items() if name}
    for role, ruling in found.items():
        rule = ruling.decided_by
        if rule.verdict == "forbidden" and not reason.strip():
            dated = f", dated {rule.dated}" if rule.dated else ""
            raise InputError(
                f"the terms of the {role} {ruling.model} forbid training on its outputs. {rule.title}: {rule.summary} "
                f"({rule.address}{dated}, read on {rule.read_on})",
                valid=f"another {role} (limbeck terms lists them), or where {ruling.condition}",
                hint='the same command with --accept-terms "REASON", which the report keeps',
            )
    return found


def reported(found: Mapping[str, Ruling], reason: str) -> dict[str, Any]:
    """Return the field "terms" of report.json: the strictest ruling, the reason, and the ruling of each role."""
    worst = max(found.values(), key=lambda r: _SEVERITY.index(r.verdict))
    return {**worst.head(), "reason": reason.strip(), "by_role": {role: one.public() for role, one in found.items()}}


def show_all(console: Console | None = None) -> None:
    """Print the list as a table that fits 80 columns."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("whose", width=22, overflow="fold")
    table.add_column("verdict", width=13, no_wrap=True)
    table.add_column("what the terms say of training on outputs", overflow="fold")
    for kind, heading in _KINDS.items():
        table.add_row(Text(heading, style="bold dim"), "", "")
        for entry in (e for e in catalogue() if e.kind == kind):
            mark = "" if entry.checked else " *"
            table.add_row(
                Text(entry.title), Text(entry.verdict + mark, style=_STYLES[entry.verdict]), Text(entry.summary)
            )
    days = sorted({entry.read_on for entry in catalogue()})
    screen = console or Console()
    screen.print(table)
    screen.print(
        f"\nread on {' to '.join(dict.fromkeys((days[0], days[-1])))}; * from others' quotes, not the text itself\n"
        "limbeck terms MODEL tells the condition, the address and the dates. No legal advice.",
        style="dim",
        highlight=False,
        markup=False,
    )


def show(ruling: Ruling, console: Console | None = None) -> None:
    """Print a ruling: the verdict and, of each entry that bears on it, the rule, the condition, address and dates."""
    screen = console or Console()
    screen.print(Text.assemble(ruling.model, ": ", (ruling.verdict, _STYLES[ruling.verdict])), soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for entry in ruling.entries:
        for name, text in _told(entry):
            table.add_row(name, Text(text))
    screen.print(table)


def _told(entry: Terms) -> Sequence[tuple[str, str]]:
    read = f"read on {entry.read_on}" + (f", dated {entry.dated}" if entry.dated else "")
    lines = [
        ("whose", f"{entry.title} ({entry.verdict})"),
        ("rule", entry.summary),
        ("unless" if entry.verdict == "forbidden" else "if", entry.condition),
        ("text", entry.address),
        ("when", read if entry.address else ""),
        ("source" if entry.checked else "unchecked", entry.source),
    ]
    return [line for line in lines if line[1]]
