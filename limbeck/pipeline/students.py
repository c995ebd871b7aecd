"""The student of a run: how it is trained, what it is asked, and records as its training rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import dspy
import numpy as np
import numpy.typing as npt

from limbeck.evaluate import SystemResult, run_system
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.rows import TrainRow, tokenize_rows
from limbeck.finetune.step_by_step import second_task
from limbeck.models import LM
from limbeck.models.adapter import Rendered, render
from limbeck.models.kinds import is_encoder, is_local
from limbeck.models.labels import label_text
from limbeck.pipeline.ways import OWN, Way, explained, student_program, teaches
from limbeck.records import Record, stable_hash

if TYPE_CHECKING:
    from limbeck.pipeline.config import RunConfig
    from limbeck.task import Task

Matrix = npt.NDArray[np.float64]
_LEAST_MASS = 0.02
# Tokens of an answer beyond twice the longest label, for a rationale or further predictors, and at most.
_ROOM, _RATIONALE_TOKENS, _MOST_TOKENS = 16, 200, 2048
# Calls that wait at once for weights in this process: enough to refill batches of 64 as rows end. Servers limit rates.
CALLERS, _SERVER_CALLERS = 96, 16
# Optimizer steps that a class should have at least, the rows of a step where 16 would leave too few of them, and
# the passes over the rows that are enough for any.
_STEPS_A_CLASS, _SMALL_BATCH, _MOST_PASSES = 2, 8, 16
# Parts of a recipe that recipes of earlier versions did not have.
_LATER = ("head_only", "way", "rationales", "beta", "confidence")
# What the student's own answers weigh in the end where it learns a weak model's labels: Burns et al.'s for small ones.
_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Recipe:
    """How a student is trained: learning rate, passes over the rows, what a gold row counts, demos or not.

    `batch_size` is rows a step: tens of labels need small ones, or there are too few steps to learn in. `stop` is
    the share of the steps after which the weights are kept; the learning rate falls as if all were taken. `head_only`
    leaves an encoder's own weights as they are. `way` is how the student answers, `rationales` what a rationale counts
    as a second task against its answer (0: it is none), `beta` that of DPO on preference pairs afterwards (0: none),
    `confidence` what its own answers weigh against weak labels (0: nothing).
    """

    lr: float
    epochs: float
    gold_weight: float = 1.0
    demos: bool = False
    normalize: str = "vocabulary"
    batch_size: int = 16
    stop: float = 1.0
    seed: int = 0
    head_only: bool = False
    way: Way = OWN
    rationales: float = 0.0
    beta: float = 0.0
    confidence: float = 0.0

    def train_config(self, closed: bool) -> TrainConfig:
        """Return the training loop's configuration; long outputs are averaged over their tokens."""
        return TrainConfig(
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            normalize=self.normalize if closed else "vocabulary",
            loss_per="row" if closed else "token",
        )

    def summary(self) -> str:
        """Return the recipe in a few words.

        >>> Recipe(1e-3, 6.0, gold_weight=2.0).summary()
        'lr 0.001, 6 epochs, gold x2'
        """
        gold = f", gold x{self.gold_weight:g}" if self.gold_weight != 1 else ""
        more = ", demonstrations" * self.demos + ", head only" * self.head_only
        more += f", rationales x{self.rationales:g}" if self.rationales else ""
        more += f", then DPO {self.beta:g}" if self.beta else ""
        more += f", confidence {self.confidence:g}" if self.confidence else ""
        return f"lr {self.lr:g}, {self.epochs * self.stop:g} epochs{gold}{more}"

    def values(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values; what came later only where it is used, so that keys stay."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}


def gold_recipes(config: RunConfig, plan: StudentPlan) -> list[Recipe]:
    """Return the recipes that are tried on the labels alone: learning rates, and what of an encoder is trained."""
    epochs, _ = config.spend.passes(plan.closed, plan.writes_more)
    rates = config.spend.rates(plan.closed)
    recipes = [Recipe(lr, epochs, batch_size=8, seed=config.seed) for lr in rates]
    if not is_encoder(config.student):
        return recipes
    heads = {"lora": (False,), "head": (True,)}.get(config.tune, (False, True))
    return [replace(recipe, normalize="labels", head_only=head) for head in heads for recipe in recipes]


def prompts_tried(config: RunConfig) -> tuple[bool, ...]:
    """Return whether the student is tried with demonstrations in its prompt: an encoder reads none."""
    return (False,) if is_encoder(config.student) else config.spend.demos


def confidences(config: RunConfig) -> tuple[float, ...]:
    """Return the weights of the confidence loss that are tried: with and without it where a weak model labels."""
    return (_CONFIDENCE, 0.0) if config.weak else (0.0,)


def steps_of(recipe: Recipe, rows: int) -> float:
    """Return how many steps a fit of so many rows takes.

    >>> steps_of(Recipe(1e-3, 6.0, batch_size=8), 48)
    36.0
    """
    return rows * recipe.epochs / recipe.batch_size


def with_steps(recipe: Recipe, rows: int, classes: int, least: float = 0.0) -> Recipe:
    """Return the recipe with steps enough for many classes, and `least` at any rate: smaller ones, then more passes.

    Three passes in steps of 16 rows left a student of 77 classes far from its own training labels (loss 2.0 nats,
    their entropy 0.7), while for 10 classes the two were equal. Few written rows beside the labels gave fewer steps
    than the labels alone take, and a worse student.

    >>> [with_steps(Recipe(1e-3, 3.0), 400, classes).batch_size for classes in (10, 77)]
    [16, 8]
    >>> with_steps(Recipe(1e-3, 3.0), 400, 200).epochs, with_steps(Recipe(1e-3, 3.0), 77, 200).epochs
    (8.0, 16)
    >>> with_steps(Recipe(1e-3, 3.0), 129, 10, least=36.0).batch_size
    8
    """
    wanted = max(least, _STEPS_A_CLASS * classes)
    if steps_of(recipe, rows) >= wanted:
        return recipe
    size = min(recipe.batch_size, _SMALL_BATCH)
    passes = min(_MOST_PASSES, round(wanted * size / rows, 1))
    return replace(recipe, batch_size=size, epochs=max(recipe.epochs, passes))


@dataclass(frozen=True)
class StudentPlan:
    """What every fit of a run shares: the base model, the adapter and the program with its prompt.

    `max_tokens` bounds an answer of local weights: a model that rambles would hold up its whole batch. Where `chains`,
    the distilled student answers by chains of abstraction, if there are enough to learn from. Where `tagged`,
    rows from documents and all others carry different sentences in the student's prompt, and it is asked under the
    latter's.
    """

    base: str
    adapter: Any
    task: Task
    demos: tuple[dspy.Example, ...] = ()
    max_tokens: int = 512
    tagged: bool = False
    chains: bool = False

    def program(self, recipe: Recipe, tag: str = "") -> dspy.Module:
        """Return the student's program: the recipe's way, with the demonstrations where the recipe keeps them.

        `tag` is the sentence that says where a training row comes from ("": the one of the user's own rows).
        """
        from limbeck.compile.backtranslate import SEED_TAG, TAGS
        from limbeck.compile.demos import with_demos

        program = student_program(self.task, recipe.way)
        if self.tagged:
            for predictor in cast(list[Any], program.predictors()):
                told = f"{predictor.signature.instructions}\n{tag or TAGS[SEED_TAG]}"
                predictor.signature = predictor.signature.with_instructions(told)
        return with_demos(program, self.demos) if recipe.demos else program

    @property
    def writes_more(self) -> bool:
        """Whether the labels do not hold all that the program writes: a rationale, or several predictors."""
        return self.reasons or len(cast(list[Any], self.task.program.predictors())) != 1

    @property
    def closed(self) -> bool:
        """Whether the task's one output is a closed set of labels."""
        return bool(self.task.labels) and len(self.task.output_fields) == 1 and not self.writes_more

    @property
    def reasons(self) -> bool:
        """Whether a predictor writes fields that are no outputs of the task, such as a rationale."""
        known = set(self.task.output_fields)
        return any(set(p.signature.output_fields) - known for p in cast(list[Any], self.task.program.predictors()))


def training_rows(plan: StudentPlan, recipe: Recipe, records: Sequence[Record], tokenizer: Any) -> list[TrainRow]:
    """Return the records as token rows under the student's own prompt, and their rationales where it learns them."""
    # A softmax over the labels is trained on the tokens that it is scored by.
    closed = plan.closed and recipe.normalize == "labels"
    rows = tokenize_rows(tokenizer, rendered_rows(plan, recipe, records), closed=closed)
    if not recipe.rationales:
        return rows
    reasons = [
        row
        for record, program in _learned(plan, recipe, records)
        for row in explained(plan.task, program, record, plan.adapter, _weight(recipe, record))
    ]
    return rows + second_task(tokenize_rows(tokenizer, reasons), recipe.rationales, recipe.train_config(plan.closed))


def rendered_rows(plan: StudentPlan, recipe: Recipe, records: Sequence[Record]) -> list[Rendered]:
    """Return the records as the student's program would ask for them and answer them.

    A program that reasons is trained on records that hold its whole answer: gold rows without a rationale or a
    trace are left out, since a blank rationale would teach the student to skip it. So are rows that the prompt
    itself shows as demonstrations: from them it could only learn to copy.
    """
    learned = _learned(plan, recipe, records)
    return [row for record, program in learned for row in _rendered(plan, program, recipe, record)]


def _learned(plan: StudentPlan, recipe: Recipe, records: Sequence[Record]) -> list[tuple[Record, dspy.Module]]:
    """Return the records that a student so trained can learn from, each with the program that is asked for it."""
    from limbeck.compile.backtranslate import tag_of

    tags = {record.id: tag_of(record) if plan.tagged else "" for record in records}
    programs = {tag: plan.program(recipe, tag) for tag in set(tags.values())}
    shown = {stable_hash(dict(demo.inputs())) for demo in plan.demos} if recipe.demos else set[str]()
    return [
        (record, programs[tags[record.id]])
        for record in records
        if stable_hash(dict(record.inputs)) not in shown and teaches(recipe.way, record)
    ]


def _weight(recipe: Recipe, record: Record) -> float:
    return record.weight * (recipe.gold_weight if record.provenance.method == "gold" else 1.0)


def _rendered(plan: StudentPlan, program: dspy.Module, recipe: Recipe, record: Record) -> list[Rendered]:
    predictors = dict(cast(list[tuple[str, Any]], program.named_predictors()))
    weight = _weight(recipe, record)
    if record.calls:
        return [
            render(
                predictors[call["predictor"]],
                adapter=plan.adapter,
                demos=predictors[call["predictor"]].demos,
                inputs=call["inputs"],
                outputs=call["outputs"],
                weight=weight,
            )
            for call in record.calls
            if call["predictor"] in predictors
        ]
    if len(predictors) != 1:
        return []
    predictor = next(iter(predictors.values()))
    outputs = dict(record.outputs)
    if record.rationale:
        outputs.setdefault("reasoning", record.rationale)
    if any(name not in outputs for name in predictor.signature.output_fields):
        return []
    soft = record.soft
    if plan.closed and soft is None and recipe.normalize == "labels":
        soft = {str(outputs[plan.task.output_fields[0]]): 1.0}
    if soft is not None and recipe.normalize == "labels":
        soft = {label: soft.get(label, 0.0) for label in plan.task.labels}
    elif soft is not None:
        # Each label with mass costs its tokens; what is all but impossible teaches nothing.
        soft = {label: p for label, p in soft.items() if p >= _LEAST_MASS}
    return [
        render(
            predictor,
            adapter=plan.adapter,
            demos=predictor.demos,
            inputs=record.inputs,
            outputs=outputs,
            soft=soft if plan.closed else None,
            weight=weight,
        )
    ]


def answer_tokens(plan: StudentPlan, examples: Sequence[dspy.Example], count: Callable[[str], int]) -> int:
    """Return a generous limit of tokens for one answer: twice the longest label and some, more with a rationale."""
    longest = max(count(json.dumps(dict(e.labels()), ensure_ascii=False, default=str)) for e in examples)
    return min(_MOST_TOKENS, 2 * longest + _ROOM + (_RATIONALE_TOKENS if plan.writes_more or plan.chains else 0))


def prompt_text(plan: StudentPlan) -> str:
    """Return the longest prompt of the program's predictors without inputs and demonstrations, as one text."""
    found = [
        render(
            predictor,
            adapter=plan.adapter,
            demos=(),
            inputs=dict.fromkeys(predictor.signature.input_fields, ""),
            outputs=dict.fromkeys(predictor.signature.output_fields, ""),
        )
        for predictor in cast(list[Any], plan.task.program.predictors())
    ]
    return max(("\n".join(text for _, text in one.messages) for one in found), key=len)


def callers(model: str) -> int:
    """Return how many calls of a model wait at once."""
    return CALLERS if is_local(model) else _SERVER_CALLERS


def predict(
    plan: StudentPlan, program: dspy.Module, lm: LM, examples: Sequence[dspy.Example], name: str = "student"
) -> SystemResult:
    """Run a program on examples without looking at latency; closes the LM's own threads afterwards."""
    try:
        return run_system(
            name, program, lm, examples, plan.task.metric, adapter=plan.adapter, threads=CALLERS, latency_rows=0
        )
    finally:
        engine = getattr(lm.backend, "engine", None)
        if engine is not None and lm.ledger is None:
            engine.close()


def label_matrix(result: SystemResult, field: str, labels: Sequence[str]) -> Matrix:
    """Return the label probabilities of a result, shape [rows, labels]; NaN where a row has no answer.

    An answer without probabilities, as of a server that gives none, puts all mass on its label.
    """
    out = np.full((len(result.predictions), len(labels)), np.nan)
    for row, given in enumerate(result.probabilities):
        found = (given or {}).get(field)
        said = label_text(result.predictions[row].get(field, ""))
        if not found and said in labels:
            found = {said: 1.0}
        if found:
            out[row] = [max(float(found.get(label, 0.0)), 1e-9) for label in labels]
    return out / out.sum(axis=1, keepdims=True)


def usefulness(result: SystemResult, field: str, labels: Sequence[str], gold: Sequence[str]) -> list[float]:
    """Return each row's value for choosing recipes: for labels the mean of hit and probability of gold.

    With tens of rows the hit rate alone moves in steps of two points; the probability of the right label is
    bounded, smooth and cannot be bought by overconfidence. Other outputs keep their metric.
    """
    if not labels:
        return list(result.scores)
    matrix = np.nan_to_num(label_matrix(result, field, labels))
    index = {label: i for i, label in enumerate(labels)}
    return [(score + float(matrix[row, index[gold[row]]])) / 2 for row, score in enumerate(result.scores)]
