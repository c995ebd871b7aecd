"""Solutions in steps: a module that goes on from given first steps, and samples of how a solution ends.

A sample is a call of its own with a `rollout_id` of its own. Several completions asked for in one call are not
independent: some servers give the same one again, others leave some out.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import dspy

from limbeck.answers import final_answer
from limbeck.models import LM
from limbeck.records import stable_hash
from limbeck.signatures.solve import ANSWER, FIRST, NEXT, PROBLEM, continue_solution
from limbeck.steps import numbered_steps

_NUMBER = re.compile(r"^(?:step\s*\d{1,2}\s*[.):]|\d{1,2}(?:[.)]|:(?=\s+[^\W\d])))\s+", re.IGNORECASE)


def read_steps(text: str) -> tuple[str, ...]:
    """Return a text's lines as steps, without blank lines and numbers before them.

    >>> read_steps("1. 2 + 3 = 5\\n\\nStep 2: 5 - 1 = 4\\n3.5 - 1 = 2.5")
    ('2 + 3 = 5', '5 - 1 = 4', '3.5 - 1 = 2.5')
    """
    lines = (_NUMBER.sub("", line.strip()) for line in text.splitlines())
    return tuple(line for line in lines if line)


class StepSolver(dspy.Module):
    """Solves a problem in steps, from given first ones on; the prediction has all `steps`, and the `answer`."""

    def __init__(self) -> None:
        super().__init__()
        self.solve = dspy.Predict(continue_solution())

    def forward(self, problem: str, first_steps: Sequence[str] = ()) -> dspy.Prediction:
        """Return the whole solution."""
        made = cast(Any, self.solve(**{PROBLEM: problem, FIRST: numbered_steps(first_steps)}))
        return dspy.Prediction(steps=(*first_steps, *read_steps(str(made[NEXT] or ""))), answer=str(made[ANSWER] or ""))


class Completer(Protocol):
    """Draws one way in which a solution that has begun may end."""

    @property
    def teacher(self) -> str:
        """The name of the model that completes."""
        ...

    def __call__(self, problem: str, steps: Sequence[str], sample: int) -> Mapping[str, Any]:
        """Return the outputs that a sample ends with, such as its answer; another sample is another draw."""
        ...


def _rollout(seed: int, problem: str, steps: Sequence[str], sample: int) -> int:
    return int(stable_hash([seed, problem, *steps, sample])[:7], 16)


@dataclass(frozen=True)
class ProgramCompleter:
    """Completes by a program of `problem` and `first_steps`, such as `StepSolver`; `answer` is its output."""

    program: dspy.Module
    lm: Any
    adapter: Any = None
    temperature: float = 0.7
    seed: int = 0

    @property
    def teacher(self) -> str:
        """The model's name."""
        return str(self.lm.model)

    def __call__(self, problem: str, steps: Sequence[str], sample: int) -> Mapping[str, Any]:
        """Return {"answer": ...}; raises what the program raises."""
        lm = self.lm.copy(rollout_id=_rollout(self.seed, problem, steps, sample), temperature=self.temperature)
        settings = {"lm": lm, **({"adapter": self.adapter} if self.adapter is not None else {})}
        with dspy.context(**settings):
            made = cast(Any, self.program(problem=problem, first_steps=tuple(steps)))
        return {ANSWER: made[ANSWER]}


def stated_answer(text: str) -> str:
    r"""Return the answer that a text states ("the answer is", "####", \boxed{}), "" where it states none.

    The last number of a text that breaks off is no answer.

    >>> stated_answer("2 + 3 = 5\nThe answer is 5."), stated_answer("2 + 3 = 5")
    ('5', '')
    """
    said = final_answer(text)
    # Without such words all of the text is taken for the answer, and what stands before it as well.
    return said if said == final_answer(f"? {text}") else ""


@dataclass(frozen=True)
class PrefixCompleter:
    """Completes by a model alone, which goes on from the steps as the beginning of its own answer.

    `messages` makes a problem's prompt; the steps stand one a line after it. `read` finds the answer in the whole text.
    """

    lm: LM
    messages: Callable[[str], Sequence[tuple[str, str]]]
    read: Callable[[str], str] = stated_answer
    temperature: float = 0.7
    max_tokens: int = 256
    seed: int = 0

    @property
    def teacher(self) -> str:
        """The model's name."""
        return str(self.lm.model)

    def __call__(self, problem: str, steps: Sequence[str], sample: int) -> Mapping[str, Any]:
        """Return {"answer": ...}; raises what the model raises."""
        begun = "".join(f"{step.strip()}\n" for step in steps)
        more = self.lm.complete(
            self.messages(problem),
            assistant_prefix=begun,
            rollout_id=_rollout(self.seed, problem, steps, sample),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
        )
        return {ANSWER: self.read(begun + more)}
