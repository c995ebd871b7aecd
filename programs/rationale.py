"""Programs that answer with a rationale, and their copies that are told the answer (STaR, arXiv:2203.14465).

A task's own program is taken where it reasons already; for one that does not, a chain of thought over the same
fields. A copy that is told has one more input in each predictor, so it works for any `dspy.Module`, and the traces
of its calls are those of the program once that input is taken out.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dspy

from limbeck.signatures.rationale import answer_text, known_name, with_known_answer

# Field names under which programs write their rationale.
RATIONALES = ("reasoning", "rationale")
# Ways of saying that the answer was told, or of reasoning back from it.
_TELLS = re.compile(
    r"known[ _]answer|\bhints?\b"
    r"|\b(?:given|provided|known|stated|expected|target|supplied)\b[^.\n]{0,20}\banswer\b"
    r"|\banswer\b[^.\n]{0,24}\b(?:(?:is|was|been|are) (?:already |also )?(?:given|provided|known|told|stated)|must be"
    r"|should be|has to be)\b"
    r"|\bwe (?:already )?know (?:that )?the answer\b|\b(?:since|because|as|if) the (?:correct |right )?answer is\b"
    r"|\bto (?:get|reach|arrive at|match) the (?:correct|right|final|desired|given) answer\b"
    r"|\bas (?:given|told|provided)\b[^.\n]{0,20}\banswer\b|\bwe (?:are|were) told (?:that )?the answer\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Attempt:
    """One run of a program: its outputs by field, its rationale, and its calls by predictor in order."""

    outputs: Mapping[str, Any]
    rationale: str
    calls: tuple[Mapping[str, Any], ...]


class Reasoner(dspy.Module):
    """A chain of thought over a task's own fields."""

    def __init__(self, signature: type[dspy.Signature]) -> None:
        super().__init__()
        self.reason = dspy.ChainOfThought(signature)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the outputs and the `reasoning` that led to them."""
        return self.reason(**inputs)


def reasons(program: dspy.Module, outputs: Sequence[str]) -> bool:
    """Return whether a program writes more than its outputs: a rationale, or several predictors' fields.

    >>> reasons(dspy.Predict("q -> a"), ["a"]), reasons(dspy.ChainOfThought("q -> a"), ["a"])
    (False, True)
    """
    predictors = cast(list[Any], program.predictors())
    return len(predictors) > 1 or any(set(p.signature.output_fields) - set(outputs) for p in predictors)


def fitted(
    program: dspy.Module,
    row: Mapping[str, Any],
    demos: Mapping[str, Sequence[dspy.Example]],
    outputs: Mapping[str, Any] | None = None,
) -> dspy.Module:
    """Return a copy of the program to answer one row with: without model, and without the row among its demos.

    `demos` by predictor come before the program's own, of which only whole ones stay: one without a rationale would
    teach the model to leave it out. Where `outputs` are given the copy is told them, and so are its demos theirs.
    """
    copy = program.deepcopy()
    copy.set_lm(cast(Any, None))
    for name, predictor in copy.named_predictors():
        signature: Any = predictor.signature
        shown = [*demos.get(name, ()), *(demo for demo in predictor.demos if _whole(demo, signature))]
        shown = [demo for demo in shown if not _is_of(demo, row)]
        if outputs is not None:
            field = known_name(signature)
            predictor.signature = with_known_answer(signature, answer_text(outputs))
            shown = [_told(demo, field, outputs) for demo in shown]
        predictor.demos = shown
    return copy


def attempt(program: dspy.Module, inputs: Mapping[str, Any], outputs: Sequence[str], *, untold: dspy.Module) -> Attempt:
    """Return what a fitted copy says to a row under the model of this context.

    Its calls hold the fields of `untold`, the program it is a copy of: an answer that it was told is no part of them.
    Raises what the program raises, and KeyError where it gives no such output.
    """
    names = {id(predictor): name for name, predictor in program.named_predictors()}
    fields: dict[str, Any] = {name: predictor.signature for name, predictor in untold.named_predictors()}
    with dspy.context(trace=[]):
        made = cast(Any, program(**inputs))
        trace: list[Any] = list(dspy.settings.trace or [])
    calls = tuple(
        {
            "predictor": name,
            "inputs": {key: value for key, value in given.items() if key in fields[name].input_fields},
            "outputs": {key: said[key] for key in fields[name].output_fields if key in said},
        }
        for predictor, given, said in trace
        if (name := names.get(id(predictor)))
    )
    return Attempt({name: made[name] for name in outputs}, _rationale(made, calls, outputs), calls)


def mentions_answer(rationale: str, inputs: Mapping[str, Any]) -> bool:
    """Return whether a rationale says that it was told the answer, or reasons back from it.

    What the inputs themselves say does not count.

    >>> mentions_answer("Since the answer is 4, he has 4.", {"question": "How many?"})
    True
    >>> mentions_answer("The clue gives a hint.", {"question": "Which hint helps?"})
    False
    """
    said = " ".join(str(value) for value in inputs.values()).casefold()
    return any(match[0].casefold() not in said for match in _TELLS.finditer(rationale))


def _rationale(made: Any, calls: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> str:
    """Return the rationale by its usual names, else the texts that are no outputs of the task, in order."""
    found = next((str(made[name]) for name in RATIONALES if made.get(name)), "")
    if found:
        return found
    between = [str(value) for call in calls for name, value in call["outputs"].items() if name not in outputs]
    return "\n".join(text for text in between if text.strip())


def _whole(demo: Any, signature: Any) -> bool:
    return all(demo.get(name) not in (None, "") for name in signature.output_fields)


def _is_of(demo: Any, row: Mapping[str, Any]) -> bool:
    """Return whether a demonstration was made of the row: it has its values wherever both name a field."""
    shared = [name for name in row if demo.get(name) is not None]
    return bool(shared) and all(demo[name] == row[name] for name in shared)


def _told(demo: Any, field: str, outputs: Mapping[str, Any]) -> Any:
    said = {name: demo[name] for name in outputs if demo.get(name) is not None}
    return dspy.Example(**dict(demo.items()), **{field: answer_text(said)}) if said else demo
