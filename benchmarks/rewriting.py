"""What a teacher's rewriting is worth: evolved requests, inputs for documents, answers revised under a constitution.

    python benchmarks/rewriting.py evolve --data DATASETS --teacher gguf:teacher.gguf --rows 60 --ledger evolve.sqlite
    python benchmarks/rewriting.py documents --data DATASETS --teacher gguf:teacher.gguf --rows 60 --ledger docs.sqlite
    python benchmarks/rewriting.py constitution --data DATASETS --teacher embedded --rows 30 --ledger revised.sqlite

`evolve` compares the rows that Evol-Instruct keeps with the hand-written seeds they came from: words, and which of the
two a judge calls harder and which clearer, asked in both orders. `documents` has Instruction Backtranslation write a
question for each of SQuAD's paragraphs and looks, for every rating, how near it is to what people asked of the same
paragraph and whether BM25 finds the paragraph by it. `constitution` counts, for each principle, the answers that break
it before and after revision, by the teacher's own judgement. Interrupted, the same command goes on.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from verification import asked, read, told

from limbeck.compile.backtranslate import BacktranslationConfig, InstructionBacktranslation
from limbeck.compile.constitution import Constitutional, ConstitutionConfig
from limbeck.compile.evolve import EvolInstruct
from limbeck.compile.label import Labeler
from limbeck.compile.retrieve import BM25
from limbeck.compile.source import source_of
from limbeck.compile.synthesizers import Materials, Synthesized, Synthesizer
from limbeck.documents import read_documents
from limbeck.errors import StageEmpty
from limbeck.ledger import Ledger
from limbeck.metrics import token_f1
from limbeck.models import CompactAdapter, connect
from limbeck.pipeline.students import callers
from limbeck.programs.judge import Comparer
from limbeck.records import Record
from limbeck.stats import mean_ci, paired_bootstrap
from limbeck.task import Task, task_from_labels

HARDER = "that it asks for more knowledge, more conditions or more steps of thought"
CLEARER = "that it is a clear and complete request, which a person could answer as it stands"


def materials(task: Task, args: argparse.Namespace, **options: str) -> Materials:
    """Return what a method may use: the task's plain program under the teacher."""
    lm = connect(args.teacher, ledger=Ledger(args.ledger), in_bulk=True)
    labeler = Labeler({-1: task.program}, lm, CompactAdapter(), task.output_fields, metric=task.metric)
    return Materials(
        source_of(task, task.examples),
        lm,
        CompactAdapter(),
        labeler,
        threads=callers(args.teacher),
        seed=args.seed,
        options=options,
        progress=lambda what, done, total: print(f"\r{what}: {done}/{total} ", end="", file=sys.stderr),
    )


def written(method: Synthesizer, given: Materials, wanted: int) -> Synthesized:
    """Return what a method wrote from the gold rows, and tell what became of it."""
    try:
        made = method(given.source.gold, given, wanted)
    except StageEmpty as error:
        print(f"{method.name} kept nothing: {error.message}")
        raise SystemExit(1) from error
    reasons = Counter(record.reason or "kept" for record in made.records)
    print(f"\n{method.name}, {given.lm.model}: {dict(reasons.most_common())}, not written {dict(made.counts)}")
    return made


def requests(data: Path) -> list[Mapping[str, str]]:
    """Return the hand-written seeds as requests with answers."""
    rows = [(row["instruction"], row["instances"][0]) for row in read(data / "self_instruct_seeds" / "train.jsonl")]
    return [{"request": f"{text}\n{one['input']}".strip(), "answer": one["output"]} for text, one in rows]


def request_task(args: argparse.Namespace, seeds: int) -> Task:
    """Return a task of short hand-written requests."""
    short = [row for row in requests(args.data) if len(row["request"].split()) <= 60]
    drawn = random.Random(args.seed).sample(short, seeds)
    return task_from_labels([dict(row) for row in drawn], output="answer", instructions="Answer the request.")


def evolve(args: argparse.Namespace) -> None:
    """Evolved requests against the seeds that they came from."""
    given = materials(request_task(args, 48), args)
    made = written(EvolInstruct(), given, args.rows)
    print(f"  log: {json.dumps(made.log)}")
    known = {record.id: record for record in (*given.source.gold, *made.records)}
    pairs = [(root_of(record, known), record) for record in made.records if record.kept]
    texts = [(root.inputs["request"], record.inputs["request"]) for root, record in pairs]
    before, after = ([float(len(text.split())) for text in side] for side in zip(*texts, strict=True))
    change = paired_bootstrap(after, before, args.seed)
    print(f"  words: {mean_ci(before).mean:.1f} before, {mean_ci(after).mean:.1f} after, {interval(change, 1)}")
    for what, criteria in (("harder", HARDER), ("clearer", CLEARER)):
        compare(args, what, criteria, texts)


def root_of(record: Record, known: Mapping[str, Record]) -> Record:
    """Return the gold row that a lineage began with."""
    while record.provenance.method != "gold":
        record = known[record.provenance.parents[0]]
    return record


def compare(args: argparse.Namespace, what: str, criteria: str, texts: Sequence[tuple[str, str]]) -> None:
    """Print how often the judge prefers the second text of each pair, and what place alone is worth to it."""
    judge, question = Comparer(criteria), "Which of these two requests is better by the criteria?"

    def ask(pair: tuple[str, str]) -> dspy.Prediction:
        return judge(question, pair[1], pair[0])

    found = [one for one in asked(args.judge or args.teacher, args.ledger, texts, ask, what) if one and one.better]
    scores = [float(one.score) for one in found]
    chosen = [one.better == "A" for one in found if one.better != "tie"]
    mean, place = mean_ci(scores), mean_ci([float(one.first) for one in found])
    print(f"  {what}: evolved one preferred in {told(chosen)} of pairs decided")
    print(f"    mean {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]; the first place alone gets {place.mean:.3f}")


def interval(found: Any, digits: int = 3) -> str:
    """Return a paired difference with its interval."""
    return f"{found.difference:+.{digits}f} [{found.ci95[0]:+.{digits}f}, {found.ci95[1]:+.{digits}f}]"


def documents(args: argparse.Namespace) -> None:
    """Questions written for paragraphs, by rating: likeness to people's questions, and whether they are found."""
    by_article: dict[int, dict[str, list[str]]] = {}
    for row in read(args.data / "squad" / "train.jsonl"):
        by_article.setdefault(row["article"], {}).setdefault(row["context"], []).append(row["question"])
    articles = random.Random(args.seed).sample(sorted(by_article), len(by_article))
    gold, rest = articles[: len(articles) // 3], articles[len(articles) // 3 :]
    rows = [{"question": found[0], "text": text} for at in gold for text, found in by_article[at].items()]
    people = {text.strip(): found for at in rest for text, found in by_article[at].items()}
    task = task_from_labels(rows, output="text", instructions="Write the paragraph that answers the question.")
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(people):
            (Path(folder) / f"{number}.txt").write_text(text, encoding="utf-8")
        given = materials(task, args, documents=folder)
        config = BacktranslationConfig(keep=args.keep, max_words=400)
        made = written(InstructionBacktranslation(config), given, args.rows)
        passages = read_documents(Path(folder), max_words=400).passages
    print(f"  log: {json.dumps(made.log)}")
    index = BM25(passages)
    for score in ("rating_1", "rating_2"):
        for value in range(1, 6):
            if rated := [r for r in made.records if r.scores.get(score) == value]:
                print(f"  {score} = {value}: {worth(rated, index, people)}")
    every = [r for r in made.records if r.scores]
    for what, chosen in (("all that were rated", every), ("kept", [r for r in made.records if r.kept])):
        print(f"  {what}: {worth(chosen, index, people)}")


def worth(records: Sequence[Record], index: BM25, people: Mapping[str, Sequence[str]]) -> str:
    """Return the mean token F1 with the nearest question of people, and how often BM25 finds the paragraph first."""
    near = [max(token_f1(r.inputs["question"], one) for one in people[str(r.outputs["text"]).strip()]) for r in records]
    hits = [[page.body for page in index(r.inputs["question"], 1)] == [str(r.outputs["text"]).strip()] for r in records]
    mean = mean_ci(near)
    return f"{len(records)} pairs, F1 {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}], found {told(hits)}"


def constitution(args: argparse.Namespace) -> None:
    """Violations of every principle before and after revision."""
    given = materials(request_task(args, args.rows), args)
    made = written(Constitutional(ConstitutionConfig(measure=True)), given, args.rows)
    (log,) = made.log.values()
    print(f"  changed {log['changed']}, unchanged {log['unchanged']}, rounds {log['rounds']}")
    for change in log["violations"]:
        print(f"  {json.dumps(change)}")
    words = [len(str(record.outputs["answer"]).split()) for record in made.records if record.kept]
    print(f"  words of an answer in the middle: {statistics.median(words):.0f}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("evolve", evolve), ("documents", documents), ("constitution", constitution)):
        sub = commands.add_parser(name, help=what.__doc__)
        sub.add_argument("--data", type=Path, required=True)
        sub.add_argument("--teacher", required=True)
        sub.add_argument("--ledger", type=Path, required=True)
        sub.add_argument("--rows", type=int, default=40)
        sub.add_argument("--seed", type=int, default=0)
        if name == "evolve":
            sub.add_argument("--judge", default="", help="the teacher, where nothing is given")
        if name == "documents":
            sub.add_argument("--keep", type=int, default=4, help="points from which a pair is kept")
        sub.set_defaults(run=what)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
