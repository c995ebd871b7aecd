"""Instruction backtranslation (Li et al. 2023): do curated pairs beat as many uncurated ones, and more of them?

Documents are worked sums among texts that are cut off, mixed up or about something else. A teacher tuned on the seeds
writes the problem that each document would answer and rates the pair, by the product's method. Students learn the seeds
alone, or with the pairs that are rated well, as many drawn from all pairs, or all of them; they answer new sums.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import dspy

from limbeck.compile.backtranslate import (
    SEED_TAG,
    TAGS,
    BacktranslationConfig,
    InstructionBacktranslation,
    tag_of,
)
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import GOLD, Materials, Synthesized
from limbeck.engine.loading import load_model
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.rows import PlainRow, tokenize_rows
from limbeck.models import CompactAdapter, render
from limbeck.programs.backtranslate import PairRater, RequestWriter
from limbeck.records import MANUAL, Provenance, Record
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.passages import Document, Kind, make_document, make_documents
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import GREEDY, INSTRUCTIONS, LARGEST, LEARNING, fit, is_right, lines, write
from limbeck.reproduce.teacher import THREADS, teaching
from limbeck.signatures.tasks import FieldSpec, build_signature
from limbeck.sums import Sum, make_sums

if TYPE_CHECKING:
    from limbeck.engine.requests import Message
    from limbeck.finetune.rows import RenderedRow
    from limbeck.models import LM

SEEDS, UNCURATED, CURATED, ALL = "seeds alone", "seeds, uncurated pairs", "seeds, curated pairs", "seeds, all pairs"
CLAIMS = (
    Claim(CURATED, UNCURATED, "curated pairs beat as many uncurated ones"),
    Claim(CURATED, SEEDS, "curated pairs add to the seeds"),
)
MORE = Claim(CURATED, ALL, "more pairs without curation do not make up for it")
PROBLEM, SOLUTION = "problem", "solution"
# A tuned teacher needs no demonstrations, and rates once: pairs of its first rating are what a prompted one is shown.
# Problems of sums are alike but for their numbers: only the same one again counts as similar.
_CONFIG = BacktranslationConfig(rounds=1, demos=0, rouge=0.99, review_tokens=48)
_BAD: Mapping[str, str] = {
    "cut": "It breaks off before the answer.",
    "mixed": "A step does not go on from the one before.",
    "other": "It is about something else.",
    "swapped": "The numbers are not those of the problem.",
}
_GOOD = "Each step goes on from the one before, and the answer is there."
# Bad pairs that the teacher is shown for each good one.
_SPOILED = 2


@dataclass(frozen=True)
class Sizes:
    """How many seeds, documents and tested sums there are, and whether a student learns all pairs as well.

    Two operations a sum: of three the students answer too few rightly to tell arms apart by.
    """

    seeds: int
    documents: int
    tested: int
    everything: bool = True
    operations: int = 2


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Tune the teacher on the seeds, write and rate the pairs, and compare the students on new sums."""
    sizes = sizes or setting.pick(Sizes(40, 100, 80, everything=False), Sizes(60, 500, 250))
    total = sizes.seeds + sizes.documents + sizes.tested
    sums = make_sums(total, operations=sizes.operations, largest=LARGEST, seed=setting.seed)
    seeds, rest = sums[: sizes.seeds], sums[sizes.seeds :]
    documents = make_documents(rest[: sizes.documents], seed=setting.seed)
    source = source_of_sums(seeds)
    loaded = load_model(setting.model)
    learned = tokenize_rows(loaded.tokenizer, teacher_rows(source, seeds, random.Random(setting.seed)))
    teacher = fit(setting, "teacher", loaded, learned, LEARNING)
    setting.say(f"the teacher writes problems for {len(documents)} documents and rates the pairs")
    with teaching(teacher) as lm:
        made = augmented(lm, source, documents, setting.seed)
    return compared(setting, sizes, source, documents, made, rest[sizes.documents :])


def source_of_sums(seeds: Sequence[Sum]) -> Source:
    """Return the task with the seeds as its gold rows."""
    gold = [
        Record({PROBLEM: one.problem}, {SOLUTION: "\n".join(one.steps)}, Provenance(GOLD, seed=place, level=MANUAL))
        for place, one in enumerate(seeds)
    ]
    return Source({PROBLEM: str}, INSTRUCTIONS, tuple(gold))


def teacher_rows(source: Source, seeds: Sequence[Sum], rng: random.Random) -> list[RenderedRow]:
    """Return what the teacher learns from the seeds: each turned round, and rated beside spoiled ones.

    They are asked for as the product's programs ask. Every kind of spoiled pair is shown as often.
    """
    programs = InstructionBacktranslation(_CONFIG).programs(source)
    writer, rater = cast(RequestWriter, programs["write"]), cast(PairRater, programs["rate"])
    adapter = CompactAdapter()
    kinds = list(_BAD)
    rows: list[RenderedRow] = []
    for place, one in enumerate(seeds):
        text = "\n".join(one.steps)
        rows.append(render(writer.write, adapter=adapter, inputs={SOLUTION: text}, outputs={PROBLEM: one.problem}))
        rated = [(text, f"{_GOOD}\nScore: 5")]
        for number in range(_SPOILED):
            kind = kinds[(_SPOILED * place + number) % len(kinds)]
            rated.append((_spoiled(kind, seeds, place, rng), f"{_BAD[kind]}\nScore: 1"))
        rows += [
            render(
                rater.rate,
                adapter=adapter,
                inputs={PROBLEM: one.problem, SOLUTION: solution},
                outputs={rater.review: review},
            )
            for solution, review in rated
        ]
    return rows


def _spoiled(kind: str, seeds: Sequence[Sum], place: int, rng: random.Random) -> str:
    if kind == "swapped":
        return "\n".join(seeds[place - 1].steps)
    return make_document(cast(Kind, kind), seeds, place, rng).text


def augmented(lm: LM, source: Source, documents: Sequence[Document], seed: int) -> Synthesized:
    """Return what the product's method makes of the documents: pairs, those that are not kept with the reason."""
    program = dspy.Predict(build_signature([FieldSpec(PROBLEM)], [FieldSpec(SOLUTION)], INSTRUCTIONS))
    adapter = CompactAdapter()
    labeler = Labeler({-1: program}, lm, adapter, (SOLUTION,))
    with TemporaryDirectory() as folder:
        for place, one in enumerate(documents):
            (Path(folder) / f"{place:05}.txt").write_text(one.text, encoding="utf-8")
        materials = Materials(source, lm, adapter, labeler, threads=THREADS, seed=seed, options={"documents": folder})
        # As many as there are: the method then tries them all.
        return InstructionBacktranslation(_CONFIG)((), materials, len(documents))


def compared(
    setting: Setting,
    sizes: Sizes,
    source: Source,
    documents: Sequence[Document],
    made: Synthesized,
    tested: Sequence[Sum],
) -> Outcome:
    """Train a student an arm and compare them on new sums; all but the one of all pairs take the same steps."""
    seeds, pairs = list(source.gold), list(made.records)
    kept = [record for record in pairs if record.kept]
    drawn = random.Random(setting.seed).sample(pairs, len(kept))
    arms = {SEEDS: seeds, UNCURATED: seeds + drawn, CURATED: seeds + kept}
    if sizes.everything:
        arms[ALL] = seeds + pairs
    same = replace(LEARNING, max_steps=LEARNING.steps(len(seeds) + len(kept)))
    scores: list[Arm] = []
    for name, records in arms.items():
        student = load_model(setting.model)
        rows = tokenize_rows(student.tokenizer, [_row(record) for record in records])
        student = fit(setting, name, student, rows, LEARNING if name == ALL else same)
        prompts = [_messages(one.problem, TAGS[SEED_TAG]) for one in tested]
        written = write(student, prompts, ["\n".join(one.steps) for one in tested], temperature=0.0)
        detach_lora(student.model)
        scores.append(
            Arm(name, tuple(float(is_right(one, lines(text))) for one, text in zip(tested, written, strict=True)))
        )
    return setting.conclude(
        "backtranslation",
        (*CLAIMS, MORE) if sizes.everything else CLAIMS,
        scores,
        unit=GREEDY,
        settings={
            "seeds": len(seeds),
            "operations": sizes.operations,
            "documents": len(documents),
            "pairs": len(pairs),
            "curated": len(kept),
        },
        notes=_notes(documents, pairs, kept, drawn, made.log),
    )


def _messages(problem: str, tag: str) -> tuple[Message, ...]:
    """Return a problem's prompt, under the sentence that says where a row comes from, as the product's students do."""
    return (("system", f"{INSTRUCTIONS}\n{tag}"), ("user", problem))


def _row(record: Record) -> PlainRow:
    return PlainRow(_messages(str(record.inputs[PROBLEM]), tag_of(record)), ((str(record.outputs[SOLUTION]), 1.0),))


def _notes(
    documents: Sequence[Document],
    pairs: Sequence[Record],
    kept: Sequence[Record],
    drawn: Sequence[Record],
    log: Mapping[str, Any],
) -> list[str]:
    known = {one.text: one for one in documents}

    def good(records: Sequence[Record]) -> str:
        found = [known[str(record.outputs[SOLUTION])].solved for record in records]
        exact = sum(
            one is not None and str(record.inputs[PROBLEM]) == one.problem
            for one, record in zip(found, records, strict=True)
        )
        return f"{sum(one is not None for one in found)} of {len(records)} are worked sums, {exact} with their problem"

    told = log["rater_1"]["told_apart"]
    return [
        f"All pairs: {good(pairs)}; curated: {good(kept)}; uncurated, drawn from all: {good(drawn)}.",
        f"Points that the rater gives seeds more than the same problems with other solutions: {told}.",
        "The teacher is the same base, tuned on the seeds: to write problems, and to rate the seeds 5 points and "
        "spoiled ones 1, since untuned it cannot rate. It rates once, where the paper rates twice.",
        "The student of all pairs makes as many passes over more rows, the other students the same number of steps."
        if len(pairs) > len(kept)
        else "Every pair was kept: curation had nothing to sort out.",
    ]
