"""What the report says of the rows themselves: rules turned on, personal data, likeness to real rows, odd labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.compile.curate import Curated
from limbeck.compile.dedup import record_text
from limbeck.compile.distribution import Distribution, describe
from limbeck.compile.labelerrors import record_label_errors
from limbeck.compile.origins import is_written
from limbeck.compile.pii import PiiConfig, PiiFilter
from limbeck.compile.thresholds import CurateConfig, parse_rules
from limbeck.compile.toxicity import joined
from limbeck.documents import read_documents
from limbeck.errors import InputError
from limbeck.pipeline.config import RunConfig
from limbeck.pipeline.context import Context
from limbeck.pipeline.students import Matrix
from limbeck.principles import read_principles
from limbeck.records import Record

# Below this many texts on either side a comparison says nothing.
_FEWEST = 10
_SHOWN, _TOLD = 120, 3


def rules_of(config: RunConfig) -> CurateConfig:
    """Return the rules of a run: the defaults, those that `--rule` turned on, and what happens to personal data."""
    if config.pii not in ("mask", "drop", "keep"):
        raise InputError(f"--pii {config.pii!r} is nothing to do with personal data", valid="mask, drop or keep")
    rules = parse_rules(config.rule, CurateConfig(pii=PiiConfig(action=config.pii)))
    if rules.toxic is not None:
        joined(read_principles(config.constitution))  # a constitution without such principles is found now
    return rules


def rules_key(config: RunConfig) -> list[Any]:
    """Return what the rules turned on add to the key of the stage: nothing where none is."""
    return [config.pii, *config.rule] if config.rule or config.pii != "keep" else []


def as_curated(records: Sequence[Record], gold: Sequence[Record], rules: CurateConfig) -> list[Record]:
    """Return the records as verifiers see them: masked where the rules mask."""
    if rules.pii is None:
        return list(records)
    privacy = PiiFilter(gold, rules.pii)
    return [privacy.apply(record) for record in records]


def given_documents(config: RunConfig) -> dict[str, str]:
    """Return the given documents by name: no row may copy long runs of them."""
    if not config.documents:
        return {}
    texts: dict[str, list[str]] = {}
    for passage in read_documents(config.documents).passages:
        texts.setdefault(passage.document, []).append(passage.text)
    return {name: "\n".join(parts) for name, parts in texts.items()}


def curation_log(context: Context, records: Sequence[Record], done: Curated) -> dict[str, Any]:
    """Return the report's examples, personal data, notes and likeness to real rows; tell a person of the last two."""
    by_id = {record.id: record for record in done.rejected}
    examples = {
        reason: [_example(by_id[id_], reason) for id_ in ids if id_ in by_id] for reason, ids in done.examples.items()
    }
    log: dict[str, Any] = {"examples": examples}
    if done.pii:
        log["pii"] = dict(done.pii)
        if context.config.pii == "keep":
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(done.pii.items()))
            context.run.warn(
                f"personal data: new rows hold it ({kinds}); --pii mask hides it from training, --pii drop leaves "
                "such rows out"
            )
    if done.notes:
        log["notes"] = list(done.notes)
    likeness = _likeness(context, records, done)
    if likeness:
        log["distribution"] = likeness
    return log


def _example(record: Record, reason: str) -> dict[str, str]:
    """Return a rejected row's id with the beginning of its text; what is personal is not repeated."""
    text = " ".join(record_text(record.inputs).split())
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return {"id": record.id} if reason.startswith("pii_") else {"id": record.id, "text": text}


def _likeness(context: Context, records: Sequence[Record], done: Curated) -> dict[str, Any]:
    """Return how like the real inputs the written rows are, before and after curation; {} where there are too few."""
    rows = [*context.gold_inputs(), *map(context.task_inputs, context.task.unlabeled)]
    real = [record_text(row) for row in rows]
    before = _written(records)
    if min(len(before), len(real)) < _FEWEST:
        return {}
    found = {"written": describe(before, real, seed=context.config.seed)}
    after = _written(done.kept)
    if len(after) >= _FEWEST:
        found["kept"] = describe(after, real, seed=context.config.seed)
    context.run.reporter.note(_told(found["kept" if "kept" in found else "written"]))
    return {name: one.report() for name, one in found.items()}


def _written(records: Sequence[Record]) -> list[str]:
    return [record_text(r.inputs) for r in records if is_written(r)]


def _told(found: Distribution) -> str:
    auc, ours, theirs = found.auc, found.diversity, found.real_diversity
    return (
        f"written rows beside real ones: a classifier tells them apart with AUC {auc.mean:.2f} [{auc.low:.2f}, "
        f"{auc.high:.2f}] (0.5: not at all); different word pairs {ours.distinct[1]:.2f}, real {theirs.distinct[1]:.2f}"
    )


def odd_labels(context: Context, gold: Sequence[Record], probabilities: Matrix) -> dict[str, Any]:
    """Return the user's labels that all labelers together, blind to the row, take for errors; tell the first.

    Nothing is dropped or changed: labels are people's.
    """
    found = record_label_errors(gold, probabilities, context.task.labels, context.output)
    texts = {record.id: _example(record, "")["text"] for record in gold}
    if found.errors:
        first = "; ".join(
            f"{texts[found.ids[e.row]]!r} is {e.given}, perhaps {e.suggested}" for e in found.errors[:_TOLD]
        )
        more = f", and {len(found.errors) - _TOLD} more in report.json" if len(found.errors) > _TOLD else ""
        context.run.reporter.note(f"{len(found.errors)} of {found.rows} labels look odd: {first}{more}")
    report = found.report()
    return {**report, "errors": [{**error, "text": texts[error["id"]]} for error in report["errors"]]}
