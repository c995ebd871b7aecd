"""Keep what can be trusted: named rules in a fixed order, each with a count and examples.

Cheap rules about the text come first, then copies (duplicates, protected rows), then what the label model and
the verifiers say. The first rule that a record breaks is its reason and stays on the record.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.compile.dedup import Contamination, NearDuplicates, normalize, record_text
from limbeck.compile.labelmodel import LabelModel
from limbeck.records import Record
from limbeck.verifiers import Grounded, Verifier, grounded_keys, votes

# Methods whose inputs a model wrote; the user's own rows are not held to the rules about writing.
GENERATED = frozenset({"label_conditioned", "self_instruct"})
_EXAMPLES = 5

# Wording of prompts that small models copy into what they write; phrases that gold rows use are left out.
_LEAKS = (
    "as an ai",
    "labelled as",
    "labeled as",
    "belongs to the label",
    "belong to the label",
    "here are",
    "here is",
    "example 1",
    "different texts",
    "sure,",
    "style:",
    "label:",
    "meaning:",
)
_PLACEHOLDER = re.compile(r"\[[^\]\n]{2,40}\]|\{[^}\n]{2,40}\}|<[a-zA-Z][^>\n]{1,40}>")


@dataclass(frozen=True)
class CurateConfig:
    """Thresholds of the rules.

    `min_intended` is the probability below which a generated row whose label model says another class is
    rejected; `min_confidence` (None: 1.5 times chance, 0.6 at most) and `min_reliability` (None: the class's
    share of gold) hold for every labelled row, `min_agreement` for the samples of an open answer.
    `intended_share` is the part of the soft target that goes to the label a row was written for.
    `length_factor` is how many times longer or shorter than any real input a generated one may be.
    """

    near_duplicate: float = 0.7
    ngram: int = 8
    length_factor: float = 2.0
    min_intended: float = 0.3
    min_confidence: float | None = None
    min_reliability: float | None = None
    min_agreement: float = 0.5
    intended_share: float = 0.2


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
    """What a stage kept and rejected, with a count and the first record ids of every reason."""

    kept: tuple[Record, ...]
    rejected: tuple[Record, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def curate(
    records: Sequence[Record],
    *,
    gold: Sequence[Record],
    protected: Iterable[str],
    judgement: Judgement | None = None,
    verifiers: Sequence[Verifier] = (),
    config: CurateConfig | None = None,
) -> Curated:
    """Return the records split into kept and rejected, in their order.

    `gold` are the real rows (wording, lengths and duplicates are compared with them), `protected` the texts
    (`record_text`) of rows that nothing may repeat. With a judgement, kept rows carry its calibrated
    distribution as their soft target and their class's reliability as their weight. Records that come
    in rejected keep their reason. Of two near duplicates the earlier one stays: put real rows first.
    """
    config = config or CurateConfig()
    if judgement is not None:
        records = [_judged(r, p, judgement, config) for r, p in _with_rows(records, judgement)]
    copies = NearDuplicates(threshold=config.near_duplicate)
    for row in gold:
        copies.add(row.id, record_text(row.inputs))
    rules = (
        *text_rules(gold, _labels(judgement), config),
        *copy_rules(copies, gold, protected, config),
        *trust_rules(gold, judgement, config),
    )
    done: list[Record] = []
    for record in records:
        reason = record.reason or next((rule.name for rule in rules if rule.broken(record)), "")
        record = record.reject(reason) if reason else _verified(record, verifiers)
        if record.kept:
            copies.add(record.id, record_text(record.inputs))
        done.append(record)
    return _summary(done)


def text_rules(gold: Sequence[Record], labels: Sequence[str], config: CurateConfig) -> tuple[Rule, ...]:
    """Return the rules about the text itself: empty, too_short, too_long, leaked_prompt, leaked_label."""
    texts = [record_text(row.inputs) for row in gold]
    lengths = [len(text.split()) for text in texts] or [1]
    low = min(lengths) / config.length_factor
    high = max(lengths) * config.length_factor + 1
    leaks = [phrase for phrase in _LEAKS if not any(phrase in text.casefold() for text in texts)]
    fill_in = not any(_PLACEHOLDER.search(text) for text in texts)
    names = _telltale_names(gold, labels)

    def words(record: Record) -> int:
        return len(record_text(record.inputs).split())

    def leaked(record: Record) -> bool:
        text = record_text(record.inputs)
        return any(p in text.casefold() for p in leaks) or (fill_in and bool(_PLACEHOLDER.search(text)))

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
    copies: NearDuplicates, gold: Sequence[Record], protected: Iterable[str], config: CurateConfig
) -> tuple[Rule, ...]:
    """Return the rules duplicate and near_duplicate (against `copies`, which may grow) and contaminated."""
    guard = Contamination(
        {str(i): text for i, text in enumerate(protected)},
        common=[record_text(row.inputs) for row in gold],
        threshold=config.near_duplicate,
        ngram=config.ngram,
    )

    def copy_kind(record: Record) -> str:
        match = copies.find(record_text(record.inputs))
        return match.kind if match else ""

    return (
        Rule("duplicate", lambda r: copy_kind(r) == "exact"),
        Rule("near_duplicate", lambda r: copy_kind(r) == "near"),
        Rule("contaminated", lambda r: guard.find(record_text(r.inputs)) is not None),
    )


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
        Rule(
            "disagrees",
            lambda r: r.scores.get("agrees", 1.0) == 0.0 and r.scores["p_intended"] < config.min_intended,
        ),
        Rule("low_confidence", lambda r: r.scores.get("confidence", 0.0) < least),
        Rule("unreliable_class", lambda r: str(r.outputs.get(output)) in unreliable),
    )


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


def _with_rows(records: Sequence[Record], judgement: Judgement) -> Iterable[tuple[Record, NDArray[np.float64]]]:
    return zip(records, judgement.probabilities, strict=True)


def _judged(record: Record, p_K: NDArray[np.float64], judgement: Judgement, config: CurateConfig) -> Record:
    """Return the record with its soft target, its hard label and what the rules need to know about both."""
    if record.reason or np.isnan(p_K).any():
        return record
    labels, reliability = judgement.model.labels, judgement.model.reliability or {}
    soft = {label: float(p) for label, p in zip(labels, p_K, strict=True)}
    said = labels[int(p_K.argmax())]
    scores = {**record.scores, "confidence": soft[said]}
    intended = str(record.outputs.get(judgement.output, ""))
    if record.provenance.method == "label_conditioned" and intended in soft:
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
    return lambda record: record.provenance.method in GENERATED and broken(record)


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
    return Curated(tuple(r for r in records if r.kept), rejected, dict(counts), examples)
