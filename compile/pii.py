"""Personal data in rows: found by checksums and strict formats, then masked, dropped or only counted.

Precision comes first, since a wrong mask spoils a row: a number counts where its check digits hold (Luhn, ISO
7064 for IBAN, each country's own: python-stdnum), where its format is strict (US social security, UK national
insurance, HMRC NIM39110), where the numbering plan has it (phonenumbers), or where a word beside it says what it
is. Names of people need a model: spaCy, where it is installed and asked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal, cast

from limbeck.errors import InputError
from limbeck.records import Provenance, Record

KINDS = ("email", "iban", "card", "national_id", "ip", "phone")
NAME = "name"
# What a mask looks like, so that other rules know it from a placeholder that a model left.
MASK = re.compile(rf"<({'|'.join(kind.upper() for kind in (*KINDS, NAME))})_(\d+)>")

Span = tuple[int, int]


@dataclass(frozen=True)
class PiiConfig:
    """What is looked for and what happens to it.

    `action`: "mask" writes <EMAIL_1> for it, "drop" rejects the row as pii_email, "keep" only counts. `regions`
    are the countries whose phone numbers are read without a + in front; every one costs precision.
    `task_kinds`: act also on a kind that gold outputs hold, which is then what the task is about.
    """

    action: Literal["mask", "drop", "keep"] = "mask"
    kinds: tuple[str, ...] = KINDS
    regions: tuple[str, ...] = ("US", "GB", "DE", "FR", "ES", "IT", "NL")
    task_kinds: bool = False

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in (*KINDS, NAME)]
        if unknown:
            raise InputError(f"no kind of personal data is called {unknown[0]!r}", valid=", ".join((*KINDS, NAME)))
        if self.action not in ("mask", "drop", "keep"):
            raise InputError(f"no action on personal data is called {self.action!r}", valid="mask, drop, keep")


@dataclass(frozen=True)
class Found:
    """One piece of personal data: its kind, its place in the text, and `key`, equal for all ways to write it."""

    kind: str
    start: int
    end: int
    key: str


def find_pii(text: str, config: PiiConfig | None = None, *, context: str = "") -> tuple[Found, ...]:
    """Return the personal data in a text, in order, none overlapping; `context` is words it stands under.

    >>> [(f.kind, f.key) for f in find_pii("Mail bob@example.org or ring +44 20 7946 0958.")]
    [('email', 'bob@example.org'), ('phone', '+442079460958')]
    """
    config = config or PiiConfig()
    taken: list[Found] = []
    for kind in (*KINDS, NAME):  # an IBAN holds digits that look like a phone number: stricter kinds come first
        if kind in config.kinds:
            for start, end, key in _finders(config)[kind](text, context):
                if not any(start < other.end and other.start < end for other in taken):
                    taken.append(Found(kind, start, end, key))
    return tuple(sorted(taken, key=lambda found: found.start))


class PiiFilter:
    """Finds personal data in records and masks it, leaving alone the kinds that the task itself is about.

    `acted` are the kinds it acts on; `notes` say in a sentence each what it leaves alone and why.

    >>> from limbeck.records import Provenance
    >>> row = Record({"text": "I am at a@b.org"}, {"mail": "A@b.org"}, Provenance("pool"))
    >>> masked = PiiFilter([]).apply(row)
    >>> masked.inputs, masked.outputs
    ({'text': 'I am at <EMAIL_1>'}, {'mail': '<EMAIL_1>'})
    """

    def __init__(self, gold: Sequence[Record], config: PiiConfig | None = None) -> None:
        self.config = config or PiiConfig()
        answers = [answer for row in gold for answer in _texts(row.outputs)]
        found = {f.kind for key, text in answers for f in find_pii(text, self.config, context=key)}
        self.task = tuple(kind for kind in self.config.kinds if kind in found and not self.config.task_kinds)
        missing = NAME in self.config.kinds and _name_model() is None
        left = {*self.task, *([NAME] if missing else [])}
        self.acted = tuple(kind for kind in self.config.kinds if kind not in left)
        self._acting = replace(self.config, kinds=self.acted)
        self.notes = tuple(_notes(self.task, self.config, missing))

    def apply(self, record: Record) -> Record:
        """Return the record with its number of values of each kind in its scores (pii:email), masked if so asked.

        Numbers that become a mask become text; character offsets among the outputs are not moved.
        """
        found = list(self._all(record))
        counts = Counter(kind for kind, _ in {(f.kind, f.key) for _, f in found})
        scores = {**record.scores, **{f"pii:{kind}": float(counts[kind]) for kind in sorted(counts)}}
        return replace(_masked(record, found) if self.config.action == "mask" else record, scores=scores)

    def apply_text(self, text: str) -> str:
        """Return the text as `apply` leaves it, for comparing it with records."""
        return str(self.apply(Record({"": text}, {}, Provenance(""))).inputs[""])

    def _all(self, record: Record) -> Iterator[tuple[str, Found]]:
        """Yield what is found in the record, as it is written there and as what it is."""
        for key, text in _record_texts(record):
            for found in find_pii(text, self._acting, context=key):
                yield text[found.start : found.end], found


def _notes(task: Sequence[str], config: PiiConfig, missing: bool) -> Iterator[str]:
    if task:
        yield f"personal data the gold outputs hold is what the task is about and stays: {', '.join(task)}"
    if missing:
        yield "names of people are not looked for: no spaCy model is installed (pip install spacy, spacy download)"
    elif NAME not in config.kinds:
        yield "names of people are not looked for (kind 'name', needs spaCy)"


def _record_texts(record: Record) -> Iterator[tuple[str, str]]:
    for part in (record.inputs, record.outputs, record.rationale, record.calls):
        yield from _texts(part)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text and whole number in nested values with the words of its nearest key."""
    if isinstance(value, Mapping):
        for name, item in cast("Mapping[Any, Any]", value).items():
            yield from _texts(item, str(name).replace("_", " "))
    elif isinstance(value, (list, tuple)):
        for item in cast("Sequence[Any]", value):
            yield from _texts(item, key)
    elif isinstance(value, (str, int)) and not isinstance(value, bool):
        yield key, str(value)


def _masked(record: Record, everything: Sequence[tuple[str, Found]]) -> Record:
    if not everything:
        return record
    numbers = Counter[str]()
    for _, text in _record_texts(record):  # masks that stand there already keep their numbers
        for kind, number in MASK.findall(text):
            numbers[kind] = max(numbers[kind], int(number))
    masks: dict[tuple[str, str], str] = {}
    surfaces: dict[str, str] = {}
    for surface, found in everything:
        name = found.kind.upper()
        if (found.kind, found.key) not in masks:
            numbers[name] += 1
            masks[found.kind, found.key] = f"<{name}_{numbers[name]}>"
        surfaces[surface] = masks[found.kind, found.key]
    return _replaced(record, surfaces, {key: mask for (_, key), mask in masks.items()})


def _replaced(record: Record, surfaces: Mapping[str, str], by_key: Mapping[str, str]) -> Record:
    longest = sorted(surfaces, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(s) for s in longest)})(?!\w)")

    def text(value: str) -> str:
        # An extracted number may be written another way than in the input, which told what it is.
        whole = next((mask for key, mask in by_key.items() if _same(value, key)), "")
        return whole or pattern.sub(lambda match: surfaces[match[0]], value)

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: walk(v) for k, v in cast("Mapping[Any, Any]", value).items()}
        if isinstance(value, (list, tuple)):
            return [walk(v) for v in cast("Sequence[Any]", value)]
        if isinstance(value, str):
            return text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            masked = text(str(value))
            return value if masked == str(value) else masked
        return value

    return replace(
        record,
        inputs=walk(record.inputs),
        outputs=walk(record.outputs),
        rationale=text(record.rationale),
        calls=tuple(walk(record.calls)),
    )


def _same(value: str, key: str) -> bool:
    """Return whether a whole value is the key in other punctuation, or its number without the country code."""
    plain, known = _compact(value), _compact(key)
    local = plain.lstrip("0")
    return plain == known or (local.isdigit() and len(local) >= _SHORTEST and known.endswith(local))


Finder = Callable[[str, str], Iterable[tuple[int, int, str]]]


@cache
def _finders(config: PiiConfig) -> Mapping[str, Finder]:
    return {
        "email": _emails,
        "iban": _ibans,
        "card": _cards,
        "national_id": _national_ids,
        "ip": _addresses,
        "phone": lambda text, context: _phones(text, context, config.regions),
        NAME: _names,
    }


def _compact(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _digits(text: str) -> int:
    return sum(c.isdigit() for c in text)


def _said(text: str, span: Span, context: str, words: str) -> bool:
    """Return whether one of the words stands near the span or in its field's name."""
    near = f"{context} {text[max(0, span[0] - 40) : span[0]]} {text[span[1] : span[1] + 25]}"
    return re.search(rf"(?i)\b(?:{words})\b", near) is not None


_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(rf"(?<![\w.+%-])[^\W_][\w.+%'-]{{0,63}}@(?:{_LABEL}\.)+[^\W\d_]{{2,24}}(?![\w-])")
_SPELLED = re.compile(r"(?i)(?<![\w.+-])[\w.+-]+ ?[\[({] ?at ?[\])}] ?[\w-]+(?: ?[\[({] ?dot ?[\])}] ?\w+)+")


def _emails(text: str, _: str) -> Iterator[tuple[int, int, str]]:
    for match in _EMAIL.finditer(text) if "@" in text else ():
        yield match.start(), match.end(), match[0].casefold()
    for match in _SPELLED.finditer(text):
        plain = re.sub(r"(?i) ?[\[({] ?(at|dot) ?[\])}] ?", lambda m: "@" if m[1].lower() == "at" else ".", match[0])
        yield match.start(), match.end(), plain.casefold()


_IBAN = re.compile(r"(?i)(?<![\w])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}")


def _ibans(text: str, _: str) -> Iterator[tuple[int, int, str]]:
    valid = _validator("iban")
    for match in _IBAN.finditer(text):
        # Words may follow: a country's length and its check digits say where the number ends.
        for end in range(match.end(), match.start() + 14, -1):
            if end == len(text) or not text[end].isalnum():
                found = text[match.start() : end]
                if found[-1].isalnum() and valid(found):
                    yield match.start(), end, _compact(found)
                    break


# Issuers by their first digits, with the lengths they use (ISO/IEC 7812): Luhn alone lets one number in ten pass.
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3(?:0[0-5]|[68])"), (14,)),
    (re.compile(r"6(?:011|5|4[4-9]|2)|35(?:2[89]|[3-8])"), (16, 17, 18, 19)),
    (re.compile(r"50|5[6-8]|6[37]"), (16, 18, 19)),
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])(?!\.\d)")


def _cards(text: str, _: str) -> Iterator[tuple[int, int, str]]:
    valid = _validator("luhn")
    for match in _CARD.finditer(text):
        number = _compact(match[0])
        issued = any(start.match(number) and len(number) in lengths for start, lengths in _ISSUERS)
        if issued and valid(number):
            yield match.start(), match.end(), number


# HMRC's manual NIM39110: letters and prefixes that are never given out.
_NINO = r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"
# Number, python-stdnum's module ("" for a strict format alone), and the words that must stand near, "" for none:
# weak check digits (one random number in ten or eleven passes) need them.
_IDS = tuple(
    (re.compile(rf"(?i)(?<![\w.+-])(?:{pattern})(?![\w-])(?!\.\d)"), module, words)
    for pattern, module, words in (
        (r"\d{3}-\d{2}-\d{4}", "us.ssn", ""),
        (r"\d{3} ?\d{2} ?\d{4}", "us.ssn", r"ssn|social security|social"),
        (_NINO, "", ""),
        (r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", r"nhs"),
        (r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", ""),
        (r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", "fr.nir", ""),
        (r"\d{8}-?[A-Z]", "es.dni", ""),
        (r"[XYZ]-?\d{7}-?[A-Z]", "es.nie", ""),
        (r"[A-Z]{6} ?\w{2}[A-EHLMPR-T]\w{2} ?[A-Z]\w{3} ?[A-Z]", "it.codicefiscale", ""),
        (r"\d{4}[. ]?\d{2}[. ]?\d{3}", "nl.bsn", r"bsn|burgerservicenummer|sofinummer|citizen service number"),
        (r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn", ""),
        (r"\d{6}(?:\d{2})?[-+]\d{4}", "se.personnummer", ""),
        (r"\d{6}[-+A]\d{3}[0-9A-Y]", "fi.hetu", ""),
        (r"\d{6} ?\d{5}", "no.fodselsnummer", ""),
        (r"756\.?\d{4}\.?\d{4}\.?\d{2}", "ch.ssn", ""),
        (r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf", ""),
        (r"\d{7}[A-W][A-IW]?", "ie.pps", ""),
        (r"\d{11}", "pl.pesel", r"pesel"),
        (r"\d{6}-?\d{4}", "dk.cpr", r"cpr|cpr-nummer"),
        (r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", r"sin|social insurance"),
        (r"\d{4}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar", r"aadhaar|aadhar"),
    )
)


def _national_ids(text: str, context: str) -> Iterator[tuple[int, int, str]]:
    if _digits(text) < 5:
        return
    for pattern, module, words in _IDS:
        for match in pattern.finditer(text):
            if words and not _said(text, match.span(), context, words):
                continue
            if not module or _validator(module)(match[0]):
                yield match.start(), match.end(), _compact(match[0])


@cache
def _validator(module: str) -> Callable[[str], bool]:
    return cast(Any, import_module(f"stdnum.{module}")).is_valid


_IPV4 = re.compile(r"(?<![\w.+-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)")
_IPV6 = re.compile(r"(?i)(?<![\w:.])[0-9a-f:]{7,39}(?![\w:])")


def _addresses(text: str, context: str) -> Iterator[tuple[int, int, str]]:
    """Yield addresses that may be somebody's: no loopback, no netmask, no version number."""
    for match in (*_IPV4.finditer(text), *(_IPV6.finditer(text) if text.count(":") > 1 else ())):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        nobody = address.is_loopback or address.is_unspecified or address.is_multicast or match[0].startswith("255.")
        before = text[max(0, match.start() - 12) : match.start()]
        if not nobody and not re.search(r"(?i)\b(?:v|ver|version|section|chapter|release)[. ]*$", before):
            yield match.start(), match.end(), str(address)


_TELEPHONE = r"phone|telephone|tel|mobile|cell|whatsapp|fax|sms|telefon|handy|portable"
_TO_DIAL = r"call|text|ring|dial|contact|reach"  # said of a number; a field called text says nothing
# Shorter numbers are years and prices far more often than somebody's line.
_SHORTEST = 8


def _phones(text: str, context: str, regions: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    if _digits(text) < _SHORTEST:
        return
    import phonenumbers

    for region in regions or (None,):
        for match in phonenumbers.PhoneNumberMatcher(text, region, phonenumbers.Leniency.STRICT_GROUPING):
            raw, span = match.raw_string, (match.start, match.end)
            if _digits(raw) < _SHORTEST or _computed(text, span):
                continue
            if raw.isdigit() and not _dialled(text, span, context):
                continue
            key = phonenumbers.format_number(match.number, phonenumbers.PhoneNumberFormat.E164)
            yield match.start, match.end, key


def _computed(text: str, span: Span) -> bool:
    """Return whether the digits are part of a sum: 400-200-100=100 has the grouping of a phone number."""
    before, after = text[max(0, span[0] - 4) : span[0]], text[span[1] : span[1] + 4]
    return bool(re.search(r"[=*<$€£]\s*$", before) or re.match(r"\s*[=*/+<]", after))


def _dialled(text: str, span: Span, context: str) -> bool:
    """Return whether bare digits are a phone number and no order number: they begin like one, or are said to be."""
    said = _said(text, span, context, _TELEPHONE) or _said(text, span, "", _TO_DIAL)
    return said or text[span[0]] == "0"


def _names(text: str, _: str) -> Iterator[tuple[int, int, str]]:
    model = _name_model()
    for entity in model(text).ents if model is not None and text.strip() else ():
        if entity.label_ in ("PERSON", "PER"):
            yield entity.start_char, entity.end_char, entity.text.casefold()


@cache
def _name_model() -> Any:
    """Return the first installed spaCy model that finds entities, or None."""
    try:
        spacy: Any = import_module("spacy")
    except ImportError:
        return None
    for name in sorted(spacy.util.get_installed_models()):
        model = spacy.load(name)
        if "ner" in model.pipe_names:
            return model
    return None
