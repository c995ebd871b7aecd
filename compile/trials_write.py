"""Trials of the programs that write and rewrite inputs.

Whatever a part writes goes through the rest of its method: the method's own rules, then the compiled program. In a task
of labels that must read the label back for which the text was written; otherwise it must be able to answer, which shows
in the agreement of its answers.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any, cast

import dspy

from limbeck.compile.adapt import Adaptation, Adapting
from limbeck.compile.clean_rows import REPAIR, REPHRASE, Cleaning, Rewriting
from limbeck.compile.dedup import normalize, record_text
from limbeck.compile.evolve import EvolInstruct, Job, Steps
from limbeck.compile.evolve_code import CodeSteps, EvolCode
from limbeck.compile.related import RELATED, Choice, Related, read_related, usable_rows
from limbeck.compile.rewriting import Calls, is_closed, text_of, tokens_for
from limbeck.compile.selfinstruct import InputFilter, SelfInstructConfig, within_words
from limbeck.compile.source import Source
from limbeck.compile.synthesize import SynthesisConfig, prompt_of
from limbeck.compile.textbook import Textbook
from limbeck.compile.trials import Ground, Trial
from limbeck.compile.writers import sampled
from limbeck.programs.generate import Condition, InputWriter
from limbeck.programs.rewrite import changed_fields
from limbeck.programs.textbook import Lesson
from limbeck.records import Provenance, Record
from limbeck.signatures.evolve import OPERATIONS
from limbeck.signatures.evolve_code import CODE_OPERATIONS

# Related rows that a trial is made of, at most.
_RELATED_ROWS = 60
# One word in so many gets a typing error.
_TYPO_EVERY = 5


class Said(dspy.Module):
    """A program that has answered already: it stands in a method's place for a part whose answer is judged."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer."""
        return self.made


def share_of_new(
    rows: Sequence[Mapping[str, Any]], row: Record, source: Source, count: int, worth: Callable[..., list[float]]
) -> float:
    """Return what written rows are worth, as a mean over the `count` that were asked for; copies are worth nothing."""
    seen = {normalize(record_text(one.inputs)) for one in source.gold}
    new: list[Mapping[str, Any]] = []
    for made in rows:
        text = normalize(record_text(made))
        if text and text not in seen:
            seen.add(text)
            new.append(made)
    return sum(worth(new, row)) / count if new else 0.0


def label_conditioned_write(ground: Ground) -> Trial:
    """Of the texts asked for: how many are new and read back as their label."""
    source, materials = ground.source, ground.materials
    config = sampled(SynthesisConfig(seed=materials.seed), materials)
    plain: InputWriter = ground.programs["write"]
    count = config.per_call if plain.several else 1

    def prompt(row: Record) -> Any:
        known, label = ground.without(row), ground.label_of(row)
        return prompt_of(known, plain, label, row.provenance.block, config=config)

    def run(part: Any, row: Record) -> Any:
        label = ground.label_of(row)
        settings = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": source.tokens * count,
            "rollout_id": ground.seed(row),
        }
        condition = Condition(label, source.meanings.get(label, ""))
        return part(condition, count=count, demos=prompt(row).demos, config=settings)

    def score(row: Record, made: Any) -> float:
        return share_of_new(made.rows, row, source, count, ground.read_back)

    return Trial(run, score, lambda row: prompt(row).shown)


def self_instruct_write(ground: Ground) -> Trial:
    """Of the texts asked for: how many pass the method's rules and can be answered."""
    source, config = ground.source, SelfInstructConfig(seed=ground.materials.seed)
    plain: InputWriter = ground.programs["write"]
    count = config.per_call if plain.several else 1

    def shown(row: Record) -> list[Record]:
        rows = ground.without(row).shown(row.provenance.block)
        return within_words(random.Random(ground.seed(row)).sample(rows, min(config.demos, len(rows))))

    def run(part: Any, row: Record) -> Any:
        settings = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": source.tokens * count,
            "rollout_id": ground.seed(row),
        }
        demos = plain.demos([one.inputs for one in shown(row)], Condition())
        return part(Condition(), count=count, demos=demos, config=settings)

    def score(row: Record, made: Any) -> float:
        rules = InputFilter([record_text(one.inputs) for one in source.gold], config)
        new = [one for one in made.rows if not rules.reason(record_text(one))]
        return share_of_new(new, row, source, count, ground.answerable)

    return Trial(run, score, shown)


def evolve(ground: Ground) -> Trial:
    """A row that passes the method's rules, and whose label is read back or whose answers agree."""
    method = cast(EvolInstruct, ground.method)
    steps = _steps(ground, method, ground.programs)

    def job(row: Record) -> Job:
        seed = ground.seed(row)
        return Job(row, OPERATIONS[seed % len(OPERATIONS)], 1, seed)

    def run(part: Any, row: Record) -> Any:
        return dspy.Prediction(row=steps.evolve(job(row), part))

    def score(row: Record, made: Any) -> float:
        (record,) = _steps(ground, method, {**ground.programs, "evolve": Said(made)})([job(row)])
        if record is None or not record.kept:
            return 0.0
        return ground.read_back([record.inputs], row)[0] if steps.closed else record.scores.get("agreement", 1.0)

    return Trial(run, score)


def _steps(ground: Ground, method: EvolInstruct, programs: Mapping[str, dspy.Module]) -> Steps:
    return Steps(
        ground.materials, Calls(ground.materials, method.name, method.config.patience), method.config, programs
    )


def evolve_code(ground: Ground) -> Trial:
    """A problem that passes the method's rules, and whose solution and tests agree in the sandbox."""
    steps = code_steps(ground, ground.programs)

    def job(row: Record) -> Job:
        seed, operations = ground.seed(row), tuple(CODE_OPERATIONS)
        return Job(row, operations[seed % len(operations)], 1, seed)

    def run(part: Any, row: Record) -> Any:
        problem, function = steps.evolve(job(row), part)
        return dspy.Prediction(problem=problem, function=function)

    def score(row: Record, made: Any) -> float:
        (record,) = code_steps(ground, {**ground.programs, "evolve": Said(made)})([job(row)])
        return record.scores.get("tests_passed", 0.0) if record is not None and record.kept else 0.0

    return Trial(run, score)


def code_steps(ground: Ground, programs: Mapping[str, dspy.Module]) -> CodeSteps:
    """Return the steps of evol_code with these programs."""
    config = cast(EvolCode, ground.method).config_for(ground.materials.options)
    return CodeSteps(ground.materials, Calls(ground.materials, "evol_code", config.evolve.patience), config, programs)


def repair(ground: Ground) -> Trial:
    """A gold row with typing errors planted: how far the repair leads back to it."""
    source, config = ground.source, cast(Cleaning, ground.method).config
    changed = changed_fields(source.fields, [row.inputs for row in source.gold])

    def run(part: Any, row: Record) -> Any:
        given = {name: row.inputs[name] for name in source.fields}
        given |= {name: misspelt(str(row.inputs[name]), ground.seed(row)) for name in changed}
        # As the method asks; the seed also draws the passages of a grounded run.
        settings = {"temperature": 0.0, "max_tokens": tokens_for(row.inputs, changed), "rollout_id": ground.seed(row)}
        return part(given, config={**settings, "top_p": config.top_p})

    def score(row: Record, made: Any) -> float:
        right = text_of(row.inputs, changed)
        wrong = " ".join(misspelt(str(row.inputs[name]), ground.seed(row)) for name in changed)
        return _way_back(right, wrong, text_of(made.row, changed))

    return Trial(run, score)


def _way_back(right: str, wrong: str, found: str) -> float:
    """Return the share of the planted differences that is gone; what was changed beside them counts against it."""
    planted, left = (1 - SequenceMatcher(None, right, text, False).ratio() for text in (wrong, found))
    if right.split() == found.split():
        return 1.0
    return max(0.0, 1 - left / planted) if planted else 0.0


def misspelt(text: str, seed: int) -> str:
    """Return the text with two letters exchanged in one word of five that are long enough, and in one at least.

    >>> misspelt("Where is my parcel now", 1)
    'Wheer is my parcel now'
    """
    rng, words = random.Random(seed), text.split(" ")
    usable = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in rng.sample(usable, min(len(usable), max(1, len(words) // _TYPO_EVERY))):
        word = words[i]
        pairs = [at for at in range(1, len(word) - 1) if word[at] != word[at + 1]]
        if pairs:
            at = rng.choice(pairs)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def rephrase(ground: Ground) -> Trial:
    """A rephrasing that the method keeps, and how surely the program reads the row's own answer in it."""
    source = ground.source
    config = cast(Cleaning, ground.method).config
    changed = changed_fields(source.fields, [row.inputs for row in source.gold])

    def run(part: Any, row: Record) -> Any:
        settings = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": tokens_for(row.inputs, changed),
            "rollout_id": ground.seed(row),
        }
        return part({name: row.inputs[name] for name in source.fields}, config=settings)

    def score(row: Record, made: Any) -> float:
        said = Said(made)
        rewriting = Rewriting([row], ground.materials, config, {REPAIR: said, REPHRASE: said})
        rewriting.next = 1  # of each row the first turn is a repair, the second a rephrasing
        rewriting.wave(1)
        record = rewriting.done[0]
        if not record.kept:
            return 0.0
        if is_closed(source):
            return (record.soft or {}).get(ground.label_of(row), record.scores["round_trip"])
        # Kept, but with an answer that was not right before either.
        return 1.0 if record.scores["round_trip"] else 0.5

    return Trial(run, score)


def adapt(ground: Ground) -> Trial:
    """A related row with an output of its own: adapted by the method's rules, and its output is read back."""
    source, materials = ground.source, ground.materials
    config = cast(Adaptation, ground.method).config
    given = [row for row in read_related(str(materials.options.get(RELATED) or ""), source) if row.outputs]
    usable, _ = usable_rows(given, source, max_rows=_RELATED_ROWS, most_words=config.most_words, seed=materials.seed)
    rows, choice, blocks = (
        [_as_record(row) for row in usable],
        Choice([], source, nearest=config.nearest),
        source.blocks,
    )
    related = {row.id: (one, blocks[i % len(blocks)]) for i, (row, one) in enumerate(zip(rows, usable, strict=True))}

    def adapting(part: dspy.Module, known: Source) -> Adapting:
        return Adapting(replace(materials, source=known), config, part, choice, 10 * _RELATED_ROWS)

    def run(part: Any, row: Record) -> Any:
        one, block = related[row.id]
        asking = adapting(part, ground.without(row))
        return part(row.inputs, **asking.settings(asking.job(1.0, one, block)))

    def score(row: Record, made: Any) -> float:
        one, block = related[row.id]
        judged = adapting(Said(made), source)
        judged.adapt([judged.job(1.0, one, block)])
        if not judged.done or not judged.done[0].kept:
            return 0.0
        soft = judged.done[0].soft
        return soft.get(ground.label_of(row), 1.0) if soft else 1.0

    def shown(row: Record) -> Sequence[Record]:
        return [row, *ground.without(row).shown(related[row.id][1])]

    return Trial(run, score, shown, rows)


def _as_record(related: Related) -> Record:
    return Record(dict(related.inputs), dict(related.outputs), Provenance(RELATED, attributes=related.where))


def exercise(ground: Ground) -> Trial:
    """Of the texts asked for from a passage on the row's label: how many are new and read back as it."""
    return _exercises(ground, ground.label_of, ground.read_back)


def open_exercise(ground: Ground) -> Trial:
    """Of the texts asked for from a passage: how many are new and can be answered."""
    return _exercises(ground, lambda row: "", ground.answerable)


def _exercises(ground: Ground, label_of: Callable[[Record], str], worth: Callable[..., list[float]]) -> Trial:
    source, config = ground.source, cast(Textbook, ground.method).config
    count = config.per_passage if source.one_line else 1

    def settings(row: Record, tokens: int) -> dict[str, Any]:
        sampling = {"temperature": config.temperature, "top_p": config.top_p}
        return {**sampling, "max_tokens": tokens, "rollout_id": ground.seed(row)}

    def shown(row: Record) -> list[Record]:
        rows = ground.without(row).shown(row.provenance.block, label_of(row) or None)
        return random.Random(ground.seed(row)).sample(rows, min(config.examples, len(rows)))

    def passage(row: Record) -> str:
        label = ground.label_of(row) if source.labels else ""
        lesson = Lesson(label, source.meanings.get(label, ""), label.replace("_", " ") or record_text(row.inputs))
        with dspy.context(trace=None):  # the passage is no part of what is tried
            return str(ground.programs["passage"](lesson, config=settings(row, config.passage_tokens)).passage)

    def run(part: Any, row: Record) -> Any:
        label = label_of(row)
        return part(
            passage(row),
            examples=[one.inputs for one in shown(row)],
            count=count,
            label=label,
            meaning=source.meanings.get(label, ""),
            config=settings(row, source.tokens * count),
        )

    def score(row: Record, made: Any) -> float:
        return share_of_new(made.rows, row, source, count, worth)

    # Without labels the passage is on the row's own subject.
    return Trial(run, score, shown if source.labels else lambda row: (row, *shown(row)))
