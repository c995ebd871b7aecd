"""Answer inputs that have no label with the compiled program, block by block.

Block b's program never shows gold fold b: gold rows answered by their own fold's program are out of fold,
and a student judged on fold b can leave out what other blocks wrote. Open answers are sampled several times:
those a verifier refuses are dropped (rejection sampling), and of the rest the one that agrees most with the
others under the metric is taken (self-consistency, arXiv:2203.11171; with a soft metric, minimum Bayes risk).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import dspy
import numpy as np
from numpy.typing import NDArray

from limbeck.compile.concurrent import concurrently
from limbeck.compile.demos import draw_demos, with_demos
from limbeck.errors import BudgetExceeded, ModelError, StageEmpty
from limbeck.evaluate import LOST_SHARE
from limbeck.metrics import Metric, likeness
from limbeck.models import recorded_scores
from limbeck.models.labels import label_text
from limbeck.records import CHECKED, MANUAL, Provenance, Record, stable_hash
from limbeck.verifiers import Verifier, votes

Progress = Callable[[int, int], None]
FAILED = "failed"
_RATIONALES = ("reasoning", "rationale")
_SHOWN_ERROR = 300
_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Labeler:
    """A program under a model that answers inputs, and what its answers are judged by.

    `programs` maps a block to the program that never shows that fold (`block_programs`); `label_field` is
    the one closed output field whose distribution is kept, "" for open outputs.
    """

    programs: Mapping[int, dspy.Module]
    lm: dspy.LM
    adapter: Any
    output_fields: tuple[str, ...]
    label_field: str = ""
    verifiers: tuple[Verifier, ...] = ()
    metric: Metric | None = None

    def block_for(self, block: int) -> int:
        """Return the block of the program that answers a row of this block: the first one's where it has none."""
        return block if block in self.programs else min(self.programs)


@dataclass(frozen=True)
class LabelConfig:
    """How inputs are answered.

    `temperature` None is 0 for one sample and 0.8 for several (`samples`), whose seeds come from `seed`.
    The stage ends with StageEmpty when the first `patience` calls, or all of fewer, fail.
    """

    method: str = "pool"
    samples: int = 1
    temperature: float | None = None
    threads: int = 16
    seed: int = 0
    patience: int = 24


@dataclass(frozen=True)
class Answer:
    """What a program says to one input; `reason` is not empty where it gave nothing usable.

    `refused` are the other samples that a verifier refused, where the answer was chosen among several.
    """

    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    soft: Mapping[str, float] | None = None
    soft_source: str = ""
    rationale: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    reason: str = ""
    error: str = ""
    cause: Exception | None = None
    refused: tuple[Answer, ...] = ()


def block_programs(
    program: dspy.Module,
    gold: Sequence[dspy.Example],
    folds: Sequence[int],
    k: int,
    seed: int,
    *,
    labels: Sequence[str] = (),
    output: str = "",
) -> dict[int, dspy.Module]:
    """Return a program for every fold, with `k` demonstrations of the others; only -1 without folds."""
    if len(set(folds)) < 2:
        return {-1: with_demos(program, draw_demos(gold, k, seed, labels=labels, output=output))}
    blocks: dict[int, dspy.Module] = {}
    for fold in sorted(set(folds)):
        demos = draw_demos(gold, k, seed, exclude_fold=fold, folds=folds, labels=labels, output=output)
        blocks[fold] = with_demos(program, demos)
    return blocks


def gold_records(
    examples: Sequence[dspy.Example], *, folds: Sequence[int] | None = None, label_field: str = ""
) -> list[Record]:
    """Return the user's labelled rows as records of level 1, each with its fold as its block.

    The value of `label_field`, if given, becomes the text that stands for it in prompts.
    """
    records: list[Record] = []
    for i, example in enumerate(cast(Sequence[Any], examples)):
        origin = Provenance("gold", seed=i, level=MANUAL, block=folds[i] if folds else -1)
        outputs = dict(example.labels())
        if label_field:
            outputs[label_field] = label_text(outputs[label_field])
        records.append(Record(dict(example.inputs()), outputs, origin))
    return records


def label_pool(
    inputs: Sequence[Mapping[str, Any]],
    labeler: Labeler,
    *,
    blocks: Sequence[int] | None = None,
    config: LabelConfig | None = None,
    progress: Progress | None = None,
    seen: Callable[[Record, Answer], None] | None = None,
) -> list[Record]:
    """Return one record per input, in order; a row without an answer is a rejected record, no exception.

    `blocks` names the block that answers each input (the labeler's blocks in turn by default).
    BudgetExceeded and KeyboardInterrupt pass through, and so does StageEmpty when the first rows all fail.
    `progress` gets (rows done, rows), `seen` each record with the answer that it holds.
    """
    config = config or LabelConfig()
    names = sorted(labeler.programs)
    chosen = blocks if blocks is not None else [names[i % len(names)] for i in range(len(inputs))]
    answers = answer_all(inputs, labeler, blocks=chosen, config=config, progress=progress)
    origins = {
        block: Provenance(
            config.method,
            teacher=str(labeler.lm.model),
            prompt_hash=prompt_hash(program),
            seed=config.seed,
            level=CHECKED,
            block=block,
        )
        for block, program in labeler.programs.items()
    }
    rows = zip(inputs, chosen, answers, strict=True)
    records = [answered(Record(dict(row), {}, origins[block]), answer) for row, block, answer in rows]
    if seen is not None:
        for record, answer in zip(records, answers, strict=True):
            seen(record, answer)
    return records


def answered(record: Record, answer: Answer) -> Record:
    """Return the record with the answer's outputs, distribution and votes; rejected where there is none."""
    filled = Record(
        record.inputs,
        answer.outputs,
        record.provenance,
        soft=answer.soft,
        soft_source=answer.soft_source,
        rationale=answer.rationale,
        calls=answer.calls,
        scores={**record.scores, **answer.scores},
        weight=record.weight,
    )
    return filled.reject(answer.reason) if answer.reason else filled


def probability_matrix(records: Sequence[Record], labels: Sequence[str], label_field: str) -> NDArray[np.float64]:
    """Return the records' distributions P_N_K over the labels; NaN in the row of a failed record.

    A record without a distribution puts all mass on its own label.
    """
    p_N_K = np.full((len(records), len(labels)), np.nan)
    for i, record in enumerate(records):
        said = record.soft or {str(record.outputs.get(label_field)): 1.0}
        if any(label in said for label in labels):
            p_N_K[i] = [said.get(label, 0.0) for label in labels]
    return p_N_K


def prompt_hash(program: dspy.Module) -> str:
    """Return a hash of everything the program's prompts hold: instructions, fields and demonstrations."""
    parts: list[Any] = []
    for name, predictor in cast(Any, program).named_predictors():
        demos = [dict(demo.items()) for demo in predictor.demos]
        parts.append([name, predictor.signature.instructions, list(predictor.signature.fields), demos])
    return stable_hash(parts)


def answer_all(
    inputs: Sequence[Mapping[str, Any]],
    labeler: Labeler,
    *,
    blocks: Sequence[int],
    config: LabelConfig,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return one answer per input; blocks go one after another, so that each prompt's prefix stays cached."""
    answers: dict[int, Answer] = {}
    labeler = replace(labeler, programs={b: _bare(program) for b, program in labeler.programs.items()})
    samplers = _samplers(labeler.lm, config)
    errors: list[str] = []
    broken: list[ModelError] = []
    done: list[Answer] = []

    def ask(job: tuple[int, int]) -> tuple[int, Answer]:
        row, sample = job
        with dspy.context(lm=samplers[sample], adapter=labeler.adapter, trace=[]):
            return row, _ask(labeler, blocks[row], inputs[row])

    def count(result: tuple[int, Answer]) -> None:
        done.append(result[1])
        if isinstance(result[1].cause, ModelError):
            broken.append(result[1].cause)
        if result[1].reason == FAILED:
            errors.append(result[1].error)
        if len(errors) == len(done) == config.patience:
            raise give_up()
        if progress is not None:
            progress(len(done) // config.samples, len(inputs))

    def lost(error: ModelError) -> ModelError:
        return ModelError(
            f"{len(broken)} of {len(done)} calls got no answer from {labeler.lm.model}; the last: {error.message}",
            valid=f"at most {LOST_SHARE:.0%} of the calls lost",
            hint="see that the server answers and is paid for, then the same command again: answers are kept",
        )

    def give_up() -> StageEmpty:
        return StageEmpty(f"none of the first {len(done)} calls gave an answer; the first: {errors[0]}")

    for block in dict.fromkeys(blocks):
        rows = [i for i, b in enumerate(blocks) if b == block]
        jobs = [(row, sample) for row in rows for sample in range(config.samples)]
        samples: dict[int, list[Answer]] = {row: [] for row in rows}
        for row, answer in concurrently(ask, jobs, threads=config.threads, done=count):
            samples[row].append(answer)
        for row in rows:
            answers[row] = consensus(inputs[row], samples[row], labeler.metric, labeler.label_field)
    if errors and len(errors) == len(done):
        raise give_up()
    # A row without an answer is stored as rejected for good, so an outage must not look like one.
    if len(broken) > max(LOST_SHARE * len(done), 2):
        raise lost(broken[-1])
    return [answers[i] for i in range(len(inputs))]


def consensus(
    inputs: Mapping[str, Any], samples: Sequence[Answer], metric: Metric | None = None, label_field: str = ""
) -> Answer:
    """Return the usable sample most like the others, with that mean likeness in [0, 1] as its `agreement`.

    Likeness is the metric with one sample as gold, without a metric whether the outputs are equal. Samples
    that failed or were refused agree with nothing, so they lower it. A single sample has no agreement. A
    `label_field` without probabilities gets its vote shares as its distribution.
    """
    usable = [sample for sample in samples if not sample.reason]
    if not usable or len(samples) == 1:
        return (usable or list(samples))[0]

    def like(a: Answer, b: Answer) -> float:
        if metric is None:
            return float(stable_hash(a.outputs) == stable_hash(b.outputs))
        example = cast(Any, dspy.Example(**inputs, **a.outputs)).with_inputs(*inputs)
        return likeness(metric, example, dspy.Prediction(**b.outputs))

    means = [
        sum(like(other, one) for j, other in enumerate(usable) if j != i) / (len(samples) - 1)
        for i, one in enumerate(usable)
    ]
    best = max(range(len(usable)), key=lambda i: means[i])
    chosen = usable[best]
    scores = {**chosen.scores, "agreement": means[best], "usable": len(usable) / len(samples)}
    chosen = replace(chosen, refused=tuple(one for one in samples if one.reason not in ("", FAILED)))
    if label_field and chosen.soft is None:
        shares = Counter(label_text(sample.outputs[label_field]) for sample in usable)
        soft = {label: count / len(usable) for label, count in shares.items()}
        return replace(chosen, scores=scores, soft=soft, soft_source=f"votes:{len(usable)}")
    return replace(chosen, scores=scores)


def _bare(program: dspy.Module) -> dspy.Module:
    """Return a copy whose predictors have no model of their own, which would go before the sampler's."""
    copy = program.deepcopy()
    copy.set_lm(cast(Any, None))
    return copy


def _samplers(lm: dspy.LM, config: LabelConfig) -> list[Any]:
    temperature = config.temperature
    if temperature is None:
        temperature = 0.0 if config.samples == 1 else _TEMPERATURE
    if not temperature:
        return [cast(Any, lm).copy(temperature=0.0)] * config.samples
    first = config.seed * 1000
    return [cast(Any, lm).copy(temperature=temperature, rollout_id=first + sample) for sample in range(config.samples)]


def _ask(labeler: Labeler, block: int, inputs: Mapping[str, Any]) -> Answer:
    program = labeler.programs[block]
    with recorded_scores() as seen:
        try:
            prediction = cast(Any, program(**inputs))
            outputs = {name: prediction[name] for name in labeler.output_fields}
        except BudgetExceeded:
            raise
        except Exception as error:  # one unparsable answer never ends a stage
            return Answer(reason=FAILED, error=f"{type(error).__name__}: {error}"[:_SHOWN_ERROR], cause=error)
    scored = next((one for one in reversed(seen) if one.name == labeler.label_field), None)
    if labeler.label_field:
        outputs[labeler.label_field] = label_text(outputs[labeler.label_field])
    verdicts = votes(labeler.verifiers, inputs, outputs)
    scores = {f"verifier:{name}": float(verdict.ok) for name, verdict in verdicts.items()}
    return Answer(
        outputs,
        soft=dict(scored.probabilities) if scored else None,
        soft_source=scored.source if scored else "",
        rationale=next((str(prediction[name]) for name in _RATIONALES if name in prediction), ""),
        calls=_traced(program),
        scores=scores,
        reason=next((name for name, ok in scores.items() if not ok), ""),
    )


def _traced(program: dspy.Module) -> tuple[Mapping[str, Any], ...]:
    """Return the calls of the row that this thread has just answered, for a program of several predictors."""
    names = {id(predictor): name for name, predictor in program.named_predictors()}
    if len(names) < 2:
        return ()
    return tuple(
        {
            "predictor": names[id(predictor)],
            "inputs": dict(inputs),
            "outputs": {name: made[name] for name in predictor.signature.output_fields if name in made},
        }
        for predictor, inputs, made in dspy.settings.trace or ()
        if id(predictor) in names
    )
