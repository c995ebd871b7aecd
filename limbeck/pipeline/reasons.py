"""Rationales for the rows that a student learns step by step from (Hsieh et al. 2023, arXiv:2305.02301).

Rows that have one keep it. Where the task's own program does not reason, the teacher is asked once for each of the
others: it is told the row's answer and reasons to it. A row whose rationale is refused goes on without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy

from limbeck.compile.rationales import explained, with_rationales
from limbeck.errors import StageEmpty
from limbeck.pipeline.context import Context
from limbeck.pipeline.curation import Learnable
from limbeck.pipeline.data import FIRST, labeler_of, materials_of, writing_key
from limbeck.records import Record, stable_hash


def with_reasons(context: Context, program: dspy.Module, rows: Learnable, number: int) -> Learnable:
    """Return the rows with rationales; `program` is the compiled teacher, `number` the round.

    A rationale belongs to an answer: a row that is labelled otherwise without sight of its fold has none there. Calls
    go through the ledger; BudgetExceeded and KeyboardInterrupt pass through.
    """
    gold = with_rationales(rows.gold, rows.kept)
    left = [row for row in (*gold, *rows.kept) if not row.rationale]
    if not left or context.plan.writes_more:
        return replace(rows, gold=gold)
    key = context.key("rationales", [_name(row) for row in left], *writing_key(context))
    name = "rationales" if number == 1 else f"rationales-{number}"
    payload = context.run.stage(name, key, lambda: _asked(context, program, left))
    found: dict[str, str] = payload["rationales"]

    def filled(part: Sequence[Record]) -> list[Record]:
        return [row if row.rationale else replace(row, rationale=found.get(_name(row), "")) for row in part]

    return replace(rows, gold=filled(gold), kept=filled(rows.kept), blind=filled(rows.blind))


def _name(row: Record) -> str:
    """Return what names a row with its answer."""
    return stable_hash([dict(row.inputs), dict(row.outputs)])


def _asked(context: Context, program: dspy.Module, rows: Sequence[Record]) -> dict[str, Any]:
    """Ask for the rows' rationales; the payload maps each row with its answer to the one that was kept."""
    materials = materials_of(context, labeler_of(context, 0, program), FIRST)
    try:
        made = explained(rows, materials).records
    except StageEmpty as error:
        context.run.warn(f"no-rationales: the student learns answers alone: {error.message}")
        made = ()
    found = {_name(row): one.rationale for row, one in zip(rows, made, strict=bool(made)) if one.kept}
    rejected = dict(Counter(one.reason for one in made if not one.kept))
    return {"rationales": found, "log": {"records_in": len(rows), "kept": len(found), "rejected": rejected}}
