"""Written rows that could hurt somebody, by the judgement of a model under the constitution's principles.

The judge of Constitutional AI (Bai et al. 2022, arXiv:2212.08073) is asked once a row for all principles that are
marked `toxicity = true`. A 1.5B model called 10 of 24 harmless rows toxic, so a row counts only where its probability
is also higher than that of all but a twentieth of the labelled rows, which are taken to be harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import numpy as np

from limbeck.compile.aifeedback import breaking_chances
from limbeck.compile.dedup import record_text
from limbeck.compile.origins import is_written
from limbeck.errors import InputError, ModelError, StageEmpty
from limbeck.evaluate import LOST_SHARE
from limbeck.principles import Principle
from limbeck.records import Record

SCORE = "toxic"
_MOST_ALARMS = 0.05
_REQUEST = {"request": "Write a text of this kind."}


@dataclass(frozen=True)
class ToxicityJudge:
    """A model that says of a text whether it breaks the principle (`joined`), from the probability `threshold` on.

    `label_field` is an output that is no text, "" where there is none.
    """

    principle: Principle
    lm: dspy.LM
    adapter: Any
    threshold: float
    label_field: str = ""
    threads: int = 16
    progress: Callable[[int, int], None] | None = None

    def scored(self, records: Sequence[Record], gold: Sequence[Record]) -> tuple[list[Record], dict[str, Any]]:
        """Return the records, written ones with the probability as their score "toxic", and a log for the report.

        The log's "threshold" is that of the rule. Where no verdict on gold rows can be read, or the judge is as sure of
        gold rows as one can be, records come back without scores and "refused" says why. Raises ModelError where many
        verdicts on written rows are missing; BudgetExceeded and KeyboardInterrupt pass through.
        """
        known = self._chances(gold)
        readable = sorted((chance for chance in known if chance is not None), reverse=True)
        log: dict[str, Any] = {"labelled": len(readable), "unreadable": len(known) - len(readable)}
        if not readable:
            return list(records), {**log, "refused": "none of its verdicts on labelled rows could be read"}
        highest = readable[int(_MOST_ALARMS * len(readable))]
        threshold = max(self.threshold, float(np.nextafter(highest, 2.0)))
        log |= {"threshold": threshold, "highest_of_labelled": readable[0]}
        if threshold > 1.0:
            sure = sum(chance >= highest for chance in readable)
            return list(records), {**log, "refused": f"it calls {sure} of {len(readable)} labelled rows toxic"}
        asked = [row for row in records if row.kept and is_written(row)]
        chances = dict(zip((row.id for row in asked), self._chances(asked), strict=True))
        unread = sum(chance is None for chance in chances.values())
        if unread > max(LOST_SHARE * len(asked), 2):
            # A row without a verdict would pass for good, so an outage must not look like harmless rows.
            raise ModelError(
                f"{unread} of {len(asked)} verdicts on written rows could not be had",
                valid=f"at most {LOST_SHARE:.0%} of them",
                hint="see that the model answers, then the same command again; or leave --rule toxic out",
            )
        log["unreadable"] += unread
        return [_scored(row, chances.get(row.id)) for row in records], log

    def _chances(self, rows: Sequence[Record]) -> list[float | None]:
        jobs = [(_REQUEST, record_text(self._texts(row)), self.principle) for row in rows]
        try:
            return breaking_chances(jobs, self.lm, adapter=self.adapter, threads=self.threads, progress=self.progress)
        except StageEmpty:
            return [None] * len(rows)

    def _texts(self, row: Record) -> Mapping[str, Any]:
        return {**row.inputs, **{name: value for name, value in row.outputs.items() if name != self.label_field}}


def joined(principles: Sequence[Principle]) -> Principle:
    """Return the principles marked for toxicity as one; InputError where none is.

    >>> joined([Principle("kind", "Is it unkind?", "Be kind.", toxicity=True), Principle("short", "?", ".")]).critique
    'Is it unkind?'
    """
    marked = [one for one in principles if one.toxicity]
    if not marked:
        raise InputError(
            "--rule toxic: no principle of the constitution is marked for it",
            valid="toxicity = true in one [[principle]] at least",
            hint="leave --constitution out for the own principles",
        )
    return Principle(SCORE, " ".join(one.critique for one in marked), " ".join(one.revision for one in marked))


def _scored(record: Record, chance: float | None) -> Record:
    return record if chance is None else replace(record, scores={**record.scores, SCORE: chance})
