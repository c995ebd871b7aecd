"""Keep what can be trusted: named rules in a fixed order, each with a count and examples.

Personal data is masked first. Cheap rules about the text come next, then outliers, then copies (of documents,
of protected rows, of each other), then what the label model and the verifiers say. The first rule that a record
breaks is its reason and stays on the record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.dedup import Contamination, NearDuplicates, jaccard, normalize, record_text, shingles
from limbeck.compile.labelerrors import suspect_rows
from limbeck.compile.labelmodel import LabelModel
from limbeck.compile.origins import has_intended_label, is_written, may_repeat, own_words
from limbeck.compile.outliers import LanguageOutliers, LengthOutliers
from limbeck.compile.overlap import Verbatim
from limbeck.compile.pii import MASK, PiiFilter
from limbeck.compile.semantic import SemanticDuplicates
from limbeck.compile.thresholds import CurateConfig
from limbeck.compile.toxicity import SCORE as TOXIC
from limbeck.records import Record
from limbeck.verifiers import Grounded, Verifier, grounded_keys, votes

_EXAMPLES = 5

# Wording of prompts and answers that small models copy into what they write; what gold rows use is left out.
_LEAKS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\bas an ai\b|\blanguage model\b",
        r"\blabell?ed as\b|\bbelongs? to the (?:label|category|class)\b",
        r"\bhere (?:is|are)\b",
        r"\bhere's (?:an?|the|your|some|one|\w+ing)\b.{0,40}:",
        r"\bexample \d|\bdifferent (?:texts|examples)\b",
        r"^\W*(?:sure|certainly|of course|absolutely)\s*[,!]",
        r"\b(?:style|label|meaning|category):",
        r"^\W*(?:text|input|output|query|sentence|user|assistant)s?\s*\d*:",
        r"<\|\w+\|>|\[/?INST\]|^```|^#{2,}\s",
    )
)
_PLACEHOLDER = re.compile(r"\[[^\]\n]{2,40}\]|\{[^}\n]{2,40}\}|<[a-zA-Z][^>\n]{1,40}>")


@dataclass(frozen=True)
class Judgement:
    """What the label model says about the records, row by row: P_N_K over its labels for one output field."""

    output: str
    model: LabelModel
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """One reason to reject: its name, and whether a record breaks it."""

    name: str
    broken: Callable[[Record], bool]


@dataclass(frozen=True)
class Curated:
    """What a stage kept and rejected, with a count and the first record ids of every reason.

    `pii` counts the records with personal data of each kind; `notes` say which rules could not look, and why.
    """

    kept: tuple[Record, ...]
    rejected: tuple[Record, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    pii: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()


def curate(
    records: Sequence[Record],
    *,
    gold: Sequence[Record],
    protected: Iterable[str],
    judgement: Judgement | None = None,
    verifiers: Sequence[Verifier] = (),
    config: CurateConfig | None = None,
    documents: Mapping[str, str] | None = None,
) -> Curated:
    """Return the records split into kept and rejected, in their order.

    `gold` are the real rows (wording, lengths and duplicates are compared with them), `protected` the texts
    (`record_text`) of rows that nothing may repeat, `documents` given texts by name that nothing may copy. With a
    judgement, kept rows carry its calibrated distribution as their soft target and their class's reliability as
    their weight. Records that come in rejected keep their reason. Of two near duplicates the earlier one stays: put
    real rows first. Masked records have another id than before.
    """
    config = config or CurateConfig()
    privacy = PiiFilter(gold, config.pii) if config.pii else None
    # By what a row is known to those made from it, which masking changes.
    names: dict[str, str] = {}
    if privacy:
        given = (*gold, *records)
        records = [privacy.apply(record) for record in records]
        # What is compared with masked rows must be masked as they are.
        gold, protected = [privacy.apply(row) for row in gold], [privacy.apply_text(text) for text in protected]
        names = {masked.id: row.id for row, masked in zip(given, (*gold, *records), strict=True)}
    if judgement is not None:
        records = _all_judged(records, judgement, config)
    copies = NearDuplicates(threshold=config.near_duplicate)
    known: dict[str, Mapping[str, Any]] = {}
    said = [row.inputs for row in (*gold, *records) if not row.reason]
    meanings = SemanticDuplicates(said, threshold=config.semantic) if config.semantic is not None else None
    output = judgement.output if judgement else ""
    rules = (
        *pii_rules(config),
        *text_rules(gold, _labels(judgement), config),
        *outlier_rules(gold, output, config),
        *verbatim_rules(documents or {}, gold, config),
        *copy_rules(copies, gold, protected, config, known),
        *meaning_rules(meanings, output),
        *toxic_rules(config),
        *trust_rules(gold, judgement, config),
    )

    def remember(row: Record) -> None:
        name = names.get(row.id, row.id)
        copies.add(name, record_text(row.inputs))
        known[name] = row.inputs
        if meanings:
            meanings.add(name, row.inputs, _group(row, output))

    for row in gold:
        remember(row)
    done: list[Record] = []
    for record in records:
        reason = record.reason or next((rule.name for rule in rules if rule.broken(record)), "")
        record = record.reject(reason) if reason else _verified(record, verifiers)
        if record.kept:
            remember(record)
        done.append(record)
    return replace(_summary(done), notes=tuple(note for part in (privacy, meanings) if part for note in part.notes))


def pii_rules(config: CurateConfig) -> tuple[Rule, ...]:
    """Return a rule pii_email, pii_phone, ... for each kind of personal data that is to be dropped."""
    if config.pii is None or config.pii.action != "drop":
        return ()

    keys = {f"pii_{kind}": f"pii:{kind}" for kind in config.pii.kinds}
    return tuple(Rule(name, lambda r, key=key: r.scores.get(key, 0.0) > 0) for name, key in keys.items())


def outlier_rules(gold: Sequence[Record], output: str, config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rules language and length_outlier, those of them that are on; the label in `output` is no text."""
    rules: list[Rule] = []

    def written(row: Record) -> dict[str, Any]:
        return {**row.inputs, **{name: value for name, value in row.outputs.items() if name != output}}

    if config.language is not None:
        spoken = LanguageOutliers([written(row) for row in gold], confidence=config.language)
        rules.append(Rule("language", _generated(lambda r: spoken.odd(written(r)))))
    if config.length_limit is not None:
        lengths = LengthOutliers([row.inputs for row in gold], limit=config.length_limit)
        rules.append(Rule("length_outlier", _generated(lambda r: lengths.odd(r.inputs))))
    return tuple(rules)


def verbatim_rules(documents: Mapping[str, str], gold: Sequence[Record], config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rule verbatim, where there are documents."""
    if not documents:
        return ()
    index = Verbatim(documents, gold, config.overlap)
    return (Rule("verbatim", _generated(lambda r: index.find(own_words(r)) is not None)),)


def meaning_rules(meanings: SemanticDuplicates | None, output: str) -> tuple[Rule, ...]:
    """Return the rule semantic_duplicate against `meanings`, which may grow; a row of another label is none."""
    if meanings is None:
        return ()
    said = _generated(lambda r: meanings.find(r.inputs, _group(r, output)) is not None)
    return (Rule("semantic_duplicate", said),)


def text_rules(gold: Sequence[Record], labels: Sequence[str], config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rules about the text itself: empty, too_short, too_long, leaked_prompt, leaked_label."""
    texts = [record_text(row.inputs) for row in gold]
    lengths = [len(text.split()) for text in texts] or [1]
    low = min(lengths) / config.length_factor
    high = max(lengths) * config.length_factor + 1
    leaks = [leak for leak in _LEAKS if not any(leak.search(text) for text in texts)]
    fill_in = not any(_PLACEHOLDER.search(MASK.sub("", text)) for text in texts)
    names = _telltale_names(gold, labels)

    def words(record: Record) -> int:
        return len(record_text(record.inputs).split())

    def leaked(record: Record) -> bool:
        text = MASK.sub("", record_text(record.inputs))
        return any(leak.search(text) for leak in leaks) or (fill_in and bool(_PLACEHOLDER.search(text)))

    def named(record: Record) -> bool:
        text = f" {normalize(record_text(record.inputs).replace('_', ' '))} "
        return any(f" {name} " in text for name in names)

    return (
        Rule("empty", lambda r: any(not str(v).strip() for v in r.inputs.values()) or not r.inputs),
        Rule("too_short", _generated(lambda r: words(r) < low)),
        Rule("too_long", _generated(lambda r: words(r) > high)),
        Rule("leaked_prompt", _generated(leaked)),
        Rule("leaked_label", _generated(named)),
    )


def copy_rules(
    copies: NearDuplicates,
    gold: Sequence[Record],
    protected: Iterable[str],
    config: CurateConfig,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Rule, ...]:
    """Return the rules duplicate and near_duplicate (against `copies`, which may grow) and contaminated.

    `known` are the inputs of the rows in `copies` by their key, which `by_field` needs.
    """
    guard = Contamination(
        {str(i): text for i, text in enumerate(protected)},
        common=[record_text(row.inputs) for row in gold],
        threshold=config.near_duplicate,
        ngram=config.ngram,
    )

    def copy_kind(record: Record) -> str:
        match = copies.find(record_text(record.inputs))
        if match and may_repeat(record, match.key, match.kind):
            return ""
        if match and match.kind == "near" and config.by_field and known:
            return "near" * (_least_similar(record.inputs, known[match.key]) >= config.near_duplicate)
        return match.kind if match else ""

    return (
        Rule("duplicate", lambda r: copy_kind(r) == "exact"),
        Rule("near_duplicate", lambda r: copy_kind(r) == "near"),
        Rule("contaminated", lambda r: guard.find(record_text(r.inputs)) is not None),
    )


def _least_similar(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    names = {*a, *b} if len(a) > 1 else ()
    return min((jaccard(shingles(str(a.get(n, ""))), shingles(str(b.get(n, "")))) for n in names), default=1.0)


def toxic_rules(config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rule toxic, where it is on: about records that a model has judged."""
    least = config.toxic
    return () if least is None else (Rule(TOXIC, lambda r: r.scores.get(TOXIC, 0.0) >= least),)


def trust_rules(gold: Sequence[Record], judgement: Judgement | None, config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rules about the answer, those for a judged label or those for an open answer."""
    if judgement is None:
        grounded = _grounded(gold)
        return (
            Rule("ungrounded", lambda r: not all(check(r.inputs, r.outputs).ok for check in grounded)),
            Rule("low_agreement", lambda r: r.scores.get("agreement", 1.0) < config.min_agreement),
        )
    output, least = judgement.output, _min_confidence(judgement.model, config)
    unreliable = _unreliable(judgement.model, config)
    return (
        Rule("disagrees", lambda r: not r.scores.get("agrees", 1.0) and r.scores["p_intended"] < config.min_intended),
        Rule("label_error", lambda r: r.scores.get("label_error", 0.0) == 1.0),
        Rule("low_confidence", lambda r: r.scores.get("confidence", 0.0) < least),
        Rule("unreliable_class", lambda r: str(r.outputs.get(output)) in unreliable),
    )


def _group(record: Record, output: str) -> str:
    return str(record.outputs.get(output, "")) if output else ""


def _grounded(gold: Sequence[Record]) -> tuple[Grounded, ...]:
    """Return a check for each output whose gold texts stand in the input, wherever they always do."""
    fields = dict.fromkeys(name for row in gold for name in row.outputs)
    keys = {name: grounded_keys((row.inputs, row.outputs.get(name)) for row in gold) for name in fields}
    return tuple(Grounded(name, found) for name, found in keys.items() if found)


def _verified(record: Record, verifiers: Sequence[Verifier]) -> Record:
    """Return the record with every verifier's vote in its scores, rejected by the first that says no."""
    if not verifiers:
        return record
    verdicts = votes(verifiers, record.inputs, record.outputs)
    cast = {f"verifier:{name}": float(verdict.ok) for name, verdict in verdicts.items()}
    record = replace(record, scores={**record.scores, **cast})
    failed = next((name for name, ok in cast.items() if not ok), "")
    return record.reject(failed) if failed else record


def _all_judged(records: Sequence[Record], judgement: Judgement, config: CurateConfig) -> list[Record]:
    judged = [_judged(r, p, judgement, config) for r, p in zip(records, judgement.probabilities, strict=True)]
    if not config.label_errors:
        return judged
    suspects = suspect_rows(records, judgement.probabilities, judgement.model.labels, judgement.output)
    return [replace(r, scores={**r.scores, "label_error": 1.0}) if i in suspects else r for i, r in enumerate(judged)]


def _judged(record: Record, p_K: NDArray[np.float64], judgement: Judgement, config: CurateConfig) -> Record:
    """Return the record with its soft target, its hard label and what the rules need to know about both."""
    if record.reason or np.isnan(p_K).any():
        return record
    labels, reliability = judgement.model.labels, judgement.model.reliability or {}
    soft = {label: float(p) for label, p in zip(labels, p_K, strict=True)}
    said = labels[int(p_K.argmax())]
    scores = {**record.scores, "confidence": soft[said]}
    intended = str(record.outputs.get(judgement.output, ""))
    if has_intended_label(record) and intended in soft:
        scores |= {"agrees": float(intended == said), "p_intended": soft[intended]}
        share = config.intended_share
        soft = {label: (1 - share) * p + share * (label == intended) for label, p in soft.items()}
        said = max(soft, key=lambda label: soft[label])
    weight = record.weight * reliability.get(said, 1.0)
    outputs = {**record.outputs, judgement.output: said}
    return replace(record, outputs=outputs, soft=soft, soft_source="calibrated", scores=scores, weight=weight)


def _labels(judgement: Judgement | None) -> tuple[str, ...]:
    return judgement.model.labels if judgement else ()


def _generated(broken: Callable[[Record], bool]) -> Callable[[Record], bool]:
    return lambda record: is_written(record) and broken(record)


def _telltale_names(gold: Sequence[Record], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label names whose occurrence in a text shows that the prompt was copied.

    Where even one gold row holds its own label's name, names are ordinary words of this task.
    """
    names = {label: normalize(label.replace("_", " ")) for label in labels}
    for row in gold:
        text = f" {normalize(record_text(row.inputs))} "
        if any(f" {names.get(str(value), chr(0))} " in text for value in row.outputs.values()):
            return ()
    return tuple(name for name in names.values() if len(name) > 1)


def _min_confidence(model: LabelModel, config: CurateConfig) -> float:
    if config.min_confidence is not None:
        return config.min_confidence
    return min(0.6, 1.5 / len(model.labels))


def _unreliable(model: LabelModel, config: CurateConfig) -> frozenset[str]:
    """Return the classes that are right no more often than a guess by the gold shares would be."""
    reliability = model.reliability or {}
    floors: dict[str, float] = dict(zip(model.labels, model.base_rates, strict=False))
    if config.min_reliability is not None:
        floors = dict.fromkeys(model.labels, config.min_reliability)
    return frozenset(label for label, value in reliability.items() if value < floors.get(label, 0.0))


def _summary(records: Sequence[Record]) -> Curated:
    rejected = tuple(r for r in records if not r.kept)
    examples: dict[str, tuple[str, ...]] = {}
    for record in rejected:
        examples[record.reason] = (*examples.get(record.reason, ()), record.id)[:_EXAMPLES]
    counts: Any = Counter(r.reason for r in rejected)
    pii = Counter(name.removeprefix("pii:") for r in records for name in r.scores if name.startswith("pii:"))
    return Curated(tuple(r for r in records if r.kept), rejected, dict(counts), examples, dict(pii))
