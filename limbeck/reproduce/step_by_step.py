"""Distilling step-by-step (Hsieh et al. 2023): does a rationale help as a second task that is never decoded?

Students learn the same sums: the answers alone; the answers and, as a task of its own, the worked steps; and, for
comparison, steps and answer in one text. The first two answer at once. A step of the second has as many answers as one
of the first, and as many rationales beside them, as in the paper; since that is twice the rows, one more student of
answers alone goes through its rows twice as often.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from limbeck.engine.loading import load_model
from limbeck.engine.requests import GenerateRequest
from limbeck.engine.torch_engine import TorchEngine
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.rows import TrainRow, tokenize_rows
from limbeck.finetune.step_by_step import second_task
from limbeck.models import CompactAdapter, Rendered, render
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, fit
from limbeck.signatures.rationale import explain
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.sums import Sum, make_sums

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel

LABELS, TWICE = "answers alone", "answers alone, twice the passes"
SECOND, DECODED = "rationale as a second task", "worked steps, decoded"
CLAIMS = (Claim(SECOND, LABELS, "rationales as a second task beat answers alone on the same rows"),)

_SHARE = 1.0
_ROOM = 8
_ADAPTER = CompactAdapter()


@dataclass(frozen=True)
class Sizes:
    """How many sums are learned from and tested, and how they are made.

    With 120 sums of two operations up to 10 the embedded model answers 0.31 of new ones rightly at once, where the
    most frequent answer is right for 0.16; up to 20 it stays at chance. `twice` says whether there is the student of
    answers alone that goes through them twice as often.
    """

    rows: int
    tested: int
    operations: int = 2
    largest: int = 10
    epochs: float = 4.0
    twice: bool = True


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Train the students and compare their answers to new sums."""
    sizes = sizes or setting.pick(Sizes(100, 120, twice=False), Sizes(240, 300))
    sums = make_sums(sizes.rows + sizes.tested, operations=sizes.operations, largest=sizes.largest, seed=setting.seed)
    shown, tested = sums[: sizes.rows], sums[sizes.rows :]
    answer = build_signature([FieldSpec("problem")], [FieldSpec("answer")], "Work out the result of the problem.")
    # Long outputs count by the token, as those of a run's students do.
    plain = TrainConfig(lr=1e-3, epochs=sizes.epochs, batch_size=8, loss_per="token")
    both = replace(plain, batch_size=2 * plain.batch_size)
    reasoned: Any = dspy.ChainOfThought(answer).predict.signature  # pyright: ignore[reportAttributeAccessIssue]
    ways = {
        LABELS: (answer, plain),
        SECOND: (answer, both),
        TWICE: (answer, replace(plain, epochs=2 * plain.epochs)),
        DECODED: (reasoned, plain),
    }
    if not sizes.twice:
        del ways[TWICE]
    arms: list[Arm] = []
    for name, (signature, config) in ways.items():
        student = load_model(setting.model)
        rows = tokenize_rows(student.tokenizer, [rendered(signature, one) for one in shown])
        if name == SECOND:
            rows += rationale_rows(student, signature, shown, config)
        student = fit(setting, name, student, rows, config)
        arms.append(Arm(name, answered(student, signature, tested)))
        detach_lora(student.model)
    often, times = Counter(one.answer for one in tested).most_common(1)[0]
    return setting.conclude(
        "step-by-step",
        CLAIMS,
        arms,
        unit=GREEDY,
        chance=times / len(tested),
        settings={
            "sums": sizes.rows,
            "operations": sizes.operations,
            "largest value": sizes.largest,
            "a rationale counts": _SHARE,
        },
        notes=[
            f"The most frequent answer, {often}, is right for {times / len(tested):.3f} of the sums: chance.",
            f"'{DECODED}' writes its steps before it answers, the others answer at once.",
            "Rationales are exact steps, where the paper's come from a large model.",
        ],
    )


def rendered(signature: Any, one: Sum) -> Rendered:
    """Return a sum as a student's program asks for it and answers it, with its steps where the program writes some.

    >>> rendered(dspy.Signature("problem -> answer"), Sum(2, (("+", 3),))).completions
    (('5', 1.0),)
    """
    steps = "\n".join(one.steps[:-1])
    values = {name: str(one.answer) if name == "answer" else steps for name in signature.output_fields}
    return render(signature, adapter=_ADAPTER, inputs={"problem": one.problem}, outputs=values)


def rationale_rows(student: LoadedModel, signature: Any, sums: Sequence[Sum], config: TrainConfig) -> list[TrainRow]:
    """Return the rows that ask for the sums' steps alone, with the weight of a second task."""
    asked = explain(signature)
    return second_task(tokenize_rows(student.tokenizer, [rendered(asked, one) for one in sums]), _SHARE, config)


def answered(student: LoadedModel, signature: Any, sums: Sequence[Sum]) -> tuple[float, ...]:
    """Return for every sum whether the student's greedy answer is right, 1 or 0."""
    rows = [rendered(signature, one) for one in sums]
    engine = TorchEngine(student)
    try:
        longest = max(len(engine.chat.ids(row.completions[0][0])) for row in rows)
        made = engine.generate_many([GenerateRequest(row.messages, max_tokens=longest + _ROOM) for row in rows])
    finally:
        engine.close()
    return tuple(is_answer(signature, one, text.text) for one, text in zip(sums, made, strict=True))


def is_answer(signature: Any, one: Sum, text: str) -> float:
    """Return 1 where the answer in a text is the sum's, 0 for any other and for a text without one.

    >>> is_answer(dspy.Signature("problem -> answer"), Sum(2, (("+", 3),)), " 5")
    1.0
    """
    try:
        return float(_ADAPTER.parse(signature, text)["answer"].strip() == str(one.answer))
    except AdapterParseError:
        return 0.0
