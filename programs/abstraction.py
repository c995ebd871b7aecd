"""Programs that write chains of abstraction, and one that answers by a chain whose calls tools then run."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from limbeck.chains import ChainError, Tool, as_number, parse_chain, run_chain, shown
from limbeck.signatures.abstraction import (
    CHAIN,
    PROBLEM,
    REASONING,
    SOLUTION,
    reason_abstractly,
    rewrite_solution,
    write_chain,
)

# Without these a small model writes results out; they calculate with one, two and three placeholders.
SHOWN = (
    (
        "A baker makes 14 loaves in the morning and 9 at noon. Each loaf sells for 3 dollars. What does he take?",
        "He makes 14 + 9 = 23 loaves. They bring 23 * 3 = 69 dollars. The answer is 69.",
        "He makes [14 + 9 = y1] loaves. They bring [y1 * 3 = y2] dollars. The answer is y2.",
    ),
    (
        "Lena reads 40 pages a day. How many days does she need for a book of 320 pages?",
        "She needs 320 / 40 = 8 days. The answer is 8.",
        "She needs [320 / 40 = y1] days. The answer is y1.",
    ),
    (
        "A tank holds 200 litres. 15% run out, then 12 buckets of 5 litres are poured in. How much is in it now?",
        "200 * 15 / 100 = 30 litres run out, so 200 - 30 = 170 are left. The buckets hold 12 * 5 = 60 litres, which "
        "makes 170 + 60 = 230. The answer is 230.",
        "[200 * 15 / 100 = y1] litres run out, so [200 - y1 = y2] are left. The buckets hold [12 * 5 = y3] litres, "
        "which makes [y2 + y3 = y4]. The answer is y4.",
    ),
)
_FENCE = re.compile(r"^```\w*\n|\n?```$")


class ChainRewriter(dspy.Module):
    """Rewrites a worked solution as a chain of abstraction."""

    def __init__(self, tools: Sequence[str] = ()) -> None:
        super().__init__()
        self.rewrite = dspy.Predict(rewrite_solution(tools))
        self.rewrite.demos = [_demo({PROBLEM: p, SOLUTION: s}, chain) for p, s, chain in SHOWN]

    def forward(
        self,
        problem: str,
        solution: str,
        *,
        demos: Sequence[dspy.Example] = (),
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `chain` is the rewritten solution; `demos` stand behind its own."""
        shown = [*self.rewrite.demos, *demos]
        made = self.rewrite(problem=problem, solution=solution, demos=shown, config=dict(config or {}))
        return dspy.Prediction(chain=_bare(str(made[CHAIN])))


class ChainWriter(dspy.Module):
    """Writes a chain of abstraction for a problem."""

    def __init__(self, tools: Sequence[str] = ()) -> None:
        super().__init__()
        self.write = dspy.Predict(write_chain(tools))
        self.write.demos = [_demo({PROBLEM: p}, chain) for p, _, chain in SHOWN]

    def forward(
        self, problem: str, *, demos: Sequence[dspy.Example] = (), config: Mapping[str, Any] | None = None
    ) -> dspy.Prediction:
        """Return a prediction whose `chain` solves the problem; `demos` stand behind its own."""
        shown = [*self.write.demos, *demos]
        made = self.write(problem=problem, demos=shown, config=dict(config or {}))
        return dspy.Prediction(chain=_bare(str(made[CHAIN])))


class ChainProgram(dspy.Module):
    """Answers by a chain of abstraction: decodes it whole, then runs its calls, independent ones at once.

    Its one predictor writes `reasoning`, so it learns from records whose rationale is a chain. `tools` are run beside
    the calculator, by the name that a chain calls them by: any `dspy.Tool` of one argument, or a search over documents
    (`limbeck.compile.retrieve.search_tool`). With `text` a number is given as text. A chain that cannot be read or run
    is an answer that cannot be read: AdapterParseError, with the `limbeck.chains.ChainError` that names the rule as its
    cause.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        answer: str,
        task: str,
        *,
        tools: Mapping[str, Tool] | None = None,
        text: bool = False,
        threads: int = 8,
    ) -> None:
        super().__init__()
        self.answer, self.text, self.threads = answer, text, threads
        self.tools = dict(tools or {})
        self.reason = dspy.Predict(reason_abstractly(fields, task, list(self.tools)))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the answer, the chain as `reasoning`, and the chain with its results as `filled`."""
        chain = str(self.reason(**inputs)[REASONING])
        try:
            done = run_chain(parse_chain(chain), self.tools, threads=self.threads)
            answer = shown(done.answer) if self.text else as_number(done.answer)
        except ChainError as error:
            signature: Any = self.reason.signature
            raise AdapterParseError(
                adapter_name=type(self).__name__, signature=signature, lm_response=chain, message=str(error)
            ) from error
        return dspy.Prediction(**{self.answer: answer}, reasoning=chain, filled=done.text)


def demo_of(problem: str, chain: str, solution: str = "") -> dspy.Example:
    """Return a demonstration for a writer, or with a solution for a rewriter."""
    return _demo({PROBLEM: problem, **({SOLUTION: solution} if solution else {})}, chain)


def _demo(given: Mapping[str, str], chain: str) -> dspy.Example:
    return dspy.Example(**given, **{CHAIN: chain}).with_inputs(*given)


def _bare(text: str) -> str:
    return _FENCE.sub("", text.strip()).strip()
