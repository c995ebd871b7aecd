"""What the methods that rewrite rows share: counted calls, the program's answers, and limits on what is written."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.compile.dedup import record_text
from limbeck.compile.label import FAILED, Answer, LabelConfig, answer_all
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.programs.rewrite import changed_fields
from limbeck.records import Record

J = TypeVar("J")
R = TypeVar("R")
_SHOWN = 160
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Calls:
    """The calls that one method makes under its model: counted, and given up when the first ones all fail."""

    def __init__(self, materials: Materials, what: str, patience: int) -> None:
        self.materials, self.what, self.patience = materials, what, patience
        self.made = self.failed = 0
        self.first_error = ""

    def run(self, call: Callable[[J], R], jobs: Sequence[J]) -> list[R | None]:
        """Return what each call gives, in order, None where it fails: one unparsable answer never ends a stage.

        Raises StageEmpty when the first `patience` calls of all all fail; BudgetExceeded passes through.
        """

        def attempt(job: J) -> tuple[R | None, str]:
            with dspy.context(lm=self.materials.lm, adapter=self.materials.adapter, trace=None):
                try:
                    return call(job), ""
                except BudgetExceeded:
                    raise
                except Exception as error:
                    return None, f"{type(error).__name__}: {error}"[:_SHOWN]

        def count(result: tuple[R | None, str]) -> None:
            self.made += 1
            self.failed += bool(result[1])
            self.first_error = self.first_error or result[1]
            if self.failed == self.made >= self.patience:
                raise self.empty()

        return [value for value, _ in concurrently(attempt, jobs, threads=self.materials.threads, done=count)]

    def empty(self, records: Sequence[Record] = ()) -> StageEmpty:
        """Return the error that says why nothing was kept."""
        counted = Counter(record.reason for record in records if record.reason)
        why = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
        return StageEmpty(
            f"{self.what} kept nothing in {self.made} calls ({why or self.first_error or 'no row to begin with'})",
            hint="a larger --teacher, or another --method",
        )

    @property
    def counts(self) -> dict[str, int]:
        """The calls that never became a record, for `Synthesized.counts`."""
        return {"failed_calls": self.failed} if self.failed else {}


def answers_of(
    inputs: Sequence[Mapping[str, Any]], blocks: Sequence[int], materials: Materials, *, method: str, samples: int = 1
) -> list[Answer]:
    """Return the compiled program's answers; where all fail, each says so instead of the stage's end.

    A block without a program of its own is answered by the first one.
    """
    chosen = [materials.labeler.block_for(block) for block in blocks]
    config = LabelConfig(method, samples=samples, threads=materials.threads, seed=materials.seed)
    try:
        return answer_all(inputs, materials.labeler, blocks=chosen, config=config)
    except StageEmpty as error:
        return [Answer(reason=FAILED, error=error.message)] * len(inputs)


def is_closed(source: Source) -> bool:
    """Return whether a row's whole answer is its label."""
    return bool(source.labels) and all(set(row.outputs) == {source.label_field} for row in source.gold)


def require_text(source: Source, method: str) -> None:
    """Raise InputError for a task whose inputs hold no text that could be rewritten."""
    if not changed_fields(source.fields, [row.inputs for row in source.gold]):
        names = ", ".join(source.fields)
        raise InputError(
            f"--method {method} rewrites texts, and none of the inputs is one: {names}",
            valid="a task with a text among its inputs",
            hint="limbeck run --help",
        )


def tokens_for(row: Mapping[str, Any], changed: Sequence[str], more_words: int = 0) -> int:
    """Return a generous number of tokens for a rewriting of these fields that adds `more_words`."""
    words = sum(len(str(row[name]).split()) for name in changed) + more_words
    return 2 * words + 32 + 16 * len(changed)


def text_of(row: Mapping[str, Any], changed: Sequence[str]) -> str:
    """Return the rewritten fields of a row as one text."""
    return record_text({name: row[name] for name in changed})


def numbers_in(text: str) -> Counter[str]:
    """Return the numbers that a text writes in digits, without separators.

    >>> sorted(numbers_in("1,200 of 7 days, at 7.5"))
    ['1200', '7', '7.5']
    """
    return Counter(found.replace(",", "") for found in _NUMBER.findall(text))
