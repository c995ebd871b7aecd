"""What labels say of each part's answers: good ones are worth more than bad ones, some parts have no metric at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile.evolve_code import EvolCode, EvolveCodeConfig
from limbeck.compile.label import Labeler
from limbeck.compile.parts import TRIALS, WITHOUT, refusal
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import BUILT_IN, Materials, WithPrograms, load_method
from limbeck.compile.trials import Ground
from limbeck.compile.trials_write import misspelt
from limbeck.engine.requests import GenerateRequest
from limbeck.metrics import default_metric
from limbeck.models import CompactAdapter
from limbeck.records import Provenance, Record
from limbeck.sandbox import Limits
from limbeck.signatures.tasks import FieldSpec, build_signature, literal
from limbeck.task import task_from_labels

Say = Callable[[GenerateRequest], str]


def records(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[Record, ...]:
    return tuple(
        Record(inputs, outputs, Provenance("gold", seed=i, level=1, block=i % 2))
        for i, (inputs, outputs) in enumerate(rows)
    )


WEATHER = [
    "The rain fell without a break on Monday",
    "Bus 14 stopped before the old market hall",
    "More rain than in any other April",
    "Nobody knows when the next bus leaves",
    "Heavy rain has flooded our cellar again",
    "My bus to work was twenty minutes late",
]
SORTED = Source(
    {"text": str},
    "Sort the message.",
    records([({"text": t}, {"label": "rain" if "rain" in t.lower() else "bus"}) for t in WEATHER]),
    (0, 1, 0, 1, 0, 1),
    "label",
    ("bus", "rain"),
)
OPEN = Source(
    {"request": str},
    "Answer the request.",
    records(
        [
            (
                {"request": "Why do cats purr at night?"},
                {"answer": "Cats purr since small muscles in the throat move."},
            ),
            ({"request": "How is bread baked at home?"}, {"answer": "Bread is kneaded, left to rise and then baked."}),
            ({"request": "Name a river of Poland."}, {"answer": "The longest river of that country is the Vistula."}),
        ]
    ),
)
SUMS = Source(
    {"problem": str},
    "Solve the problem.",
    records(
        [
            (
                {"problem": f"Ina has {n} stamps and gets {n + 3} more. How many?"},
                {"answer": 2 * n + 3, "how": "By sums."},
            )
            for n in (4, 6, 9)
        ]
    ),
)
ANSWERS = replace(SUMS, gold=tuple(replace(r, outputs={"answer": r.outputs["answer"]}) for r in SUMS.gold))
WORKED = replace(
    SUMS,
    gold=tuple(
        replace(r, outputs={"how": f"She has {s} stamps. The answer is {s.split()[-1]}."})
        for r, s in zip(SUMS.gold, ("4 + 7 = 11", "6 + 9 = 15", "9 + 12 = 21"), strict=True)
    ),
)
SLOTS = Source(
    {"text": str},
    "Find them.",
    records([({"text": f"Table at {n} pm for {n} people"}, {"found": {"time": f"{n} pm"}}) for n in (5, 6, 7)]),
)
SHORT = Source(
    {"question": str},
    "Answer.",
    records(
        [
            ({"question": f"Who composed opera {n}?"}, {"answer": name})
            for n, name in enumerate(("Verdi", "Orff", "Weill"))
        ]
    ),
)
CODE = Source(
    {"prompt": str, "tests": list[str]},
    "Write the Python function.",
    records(
        [
            (
                {"prompt": f"Write a function to add {n} to a number.", "tests": [f"assert plus(1) == {1 + n}"]},
                {"code": f"def plus(a):\n    return a + {n}"},
            )
            for n in (2, 3, 5)
        ]
    ),
)
ONE_MORE = "[[ ## new_problem ## ]]\n{} Then double the result of it.\n\n[[ ## new_function ## ]]\ndef plus(a):"
DOUBLED = "assert plus(1) == 6\nassert plus(2) == 8\nassert plus(3) == 10"


def shown(name: str, request: GenerateRequest) -> str:
    return re.findall(rf"^{name}: (.*)$", request.messages[-1][1], re.M)[-1]


def label_in(request: GenerateRequest) -> str:
    return "rain" if "rain" in request.messages[-1][1].lower().rsplit("text:", 1)[-1] else "bus"


def reads(request: GenerateRequest) -> str:
    """Everything that is not the part itself: comparing, answering, solving, judging."""
    system = request.messages[0][1]
    if system.startswith("Compare two"):
        return "several new details"
    if system.startswith("Solve the "):
        return "def plus(a):\n    return 2 * (a + 2)"
    if system.startswith("Write test"):
        return DOUBLED
    if "look_for" in request.messages[-1][1]:
        return "yes" if "Great question" in shown("answer", request) else "no"
    return label_in(request) if "Sort" in system else "Certainly, since small muscles move."


@dataclass(frozen=True)
class Case:
    """A part, what it says when it does well and when it does badly, and what that is worth."""

    name: str
    source: Source
    good: Say
    bad: Say
    worth: tuple[float, float] = (1.0, 0.0)
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def lines(*texts: str) -> Say:
    return lambda request: "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))


def always(text: str) -> Say:
    return lambda request: text


def in_turn(*texts: str) -> Say:
    left = list(texts)
    return lambda request: left.pop(0)


def passage_then(rows: Say) -> Say:
    return lambda request: (
        "A passage of more than a dozen words on it." if "audience" in request.messages[-1][1] else rows(request)
    )


def entails(label: str) -> Say:
    """Finds one label's statement true, and that label the better option."""

    def say(request: GenerateRequest) -> str:
        if "option_a" in request.messages[-1][1]:
            return "A" if f'"{label}"' in shown("option_a", request) else "B"
        return "yes" if f'"{label}"' in shown("statement", request) else "no"

    return say


NEW = ("Old chairs, how do I mend them?", "Who wrote the first opera?", "Is glass a liquid?", "Plan a picnic for six.")
RAINS = tuple(f"Rain on {day} filled the ditch" for day in ("Monday", "Friday", "Sunday", "Easter", "Christmas"))
BUSES = tuple(text.replace("Rain", "Bus") for text in RAINS)
CASES = [
    Case("simple.write", SORTED, lines(*RAINS), lines(*BUSES)),
    Case("label_conditioned.write", SORTED, lines(*RAINS), lines(*BUSES)),
    Case("label_conditioned.write", SORTED, lines(*RAINS[:2], *BUSES[:3]), lines(*WEATHER[:1] * 5), (0.4, 0.0)),
    Case("self_instruct.write", OPEN, lines(*NEW), lines(*["Why do cats purr at night?"] * 4)),
    Case(
        "evol_instruct.evolve",
        SORTED,
        always("The rain fell without a break on Monday, and twelve hours later the whole cellar was full"),
        always("The bus came without a break on Monday, and twelve hours later the whole cellar was full"),
    ),
    Case(
        "evol_instruct.evolve",
        OPEN,
        always("Why do cats purr at night, and is it the same when they are in great pain?"),
        always("Why do cats purr at night?"),
    ),
    Case("evol_instruct.compare", OPEN, in_turn("nothing", "bread"), always("nothing")),
    Case("evol_code.compare", CODE, in_turn("nothing", "another number"), always("another number")),
    Case(
        "evol_code.evolve",
        CODE,
        always(ONE_MORE.format("Write a function to add 2 to a number.")),
        always(ONE_MORE.format("x")),
    ),
    Case(
        "evol_code.solve",
        CODE,
        always("```python\ndef plus(a):\n    return a + 2\n```"),
        always("def plus(a): return a"),
    ),
    Case(
        "evol_code.test",
        CODE,
        always("\n".join(f"assert plus({i}) == {i + 2}" for i in range(1, 7))),
        always("\n".join(f"assert plus({i}) == {i + 9}" for i in range(1, 7))),
    ),
    Case(
        "evol_code.test",
        CODE,
        always("assert plus(1) == 3\nassert plus(2) == 4\nassert plus(1)"),
        always("assert plus(1)\nassert plus(2)"),
        (2 / 6, 0.0),
    ),
    Case("instruction_backtranslation.write", OPEN, always("Why do cats purr at night?"), always("Name some fish.")),
    Case("instruction_backtranslation.rate", OPEN, in_turn("Fits. Score: 5", "Does not. Score: 2"), always("Score: 4")),
    Case("textbook.exercise", SORTED, passage_then(lines(*RAINS[:4])), passage_then(lines(*BUSES[:4]))),
    Case(
        "textbook.open_exercise",
        OPEN,
        passage_then(lines(*NEW)),
        passage_then(lines(*["Why do cats purr at night?"] * 4)),
    ),
    Case("cleaning.repair", SORTED, always(WEATHER[0]), lambda request: shown("text", request)),
    Case(
        "cleaning.rephrase",
        SORTED,
        always("On Monday it never stopped to rain at all"),
        always("On Monday the bus never stopped at all"),
    ),
    Case(
        "adaptation.adapt",
        SORTED,
        lambda request: f"Well, {shown('text', request)}",
        lambda request: f"Well, {shown('text', request).replace('Rain', 'Bus')}",
    ),
    Case(
        "star.reason",
        ANSWERS,
        always("[[ ## reasoning ## ]]\n4 + 7 = 11, so 11.\n\n[[ ## answer ## ]]\n11"),
        always("[[ ## reasoning ## ]]\n4 + 7 = 12, so 11.\n\n[[ ## answer ## ]]\n11"),
    ),
    Case(
        "chain_of_abstraction.write", ANSWERS, always("[4 + 7 = y1] stamps. The answer is y1."), always("She has 11.")
    ),
    Case(
        "chain_of_abstraction.rewrite",
        WORKED,
        always("[4 + 7 = y1] stamps. The answer is y1."),
        always("[4 + 4 = y1] stamps. The answer is y1."),
    ),
    Case("reformulation.equation", ANSWERS, in_turn("4 + 7", "x + 7 = 11"), in_turn("4 * 7", "x * 7 = 28")),
    Case("reformulation.entailment", SORTED, entails("rain"), entails("bus")),
    Case("reformulation.questions", SLOTS, always("5 pm"), always("9 pm")),
    Case(
        "reformulation.cloze",
        SHORT,
        in_turn("It was composed by ____.", "Verdi", "yes"),
        in_turn("It was composed by ____.", "Orff", "yes"),
    ),
]


def ground(case: Case, folder: Path, say: Say) -> tuple[Ground, Any]:
    lm, backend = scripted(say)
    source, outputs = case.source, tuple(case.source.gold[0].outputs)
    out = literal(source.labels) if source.labels else str
    signature = build_signature(
        [FieldSpec(name, annotation) for name, annotation in source.fields.items()],
        [FieldSpec(name, out) for name in outputs],
        source.instructions,
    )
    programs = {block: dspy.Predict(signature) for block in {-1, *source.blocks}}
    kind: Any = {"answer": "number" if "Solve" in source.instructions else "short_answer", "found": "extraction"}
    metric = None if source.labels else default_metric({name: kind.get(name, "text") for name in outputs})
    labeler = Labeler(programs, lm, CompactAdapter(), outputs, source.label_field, metric=metric)
    (folder / "related.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{t} in the year {i}", "label": t[:4].strip().lower()}) + "\n"
            for i, t in enumerate((*RAINS, *RAINS[::-1]))
        ),
        encoding="utf-8",
    )
    options = {"related": str(folder / "related.jsonl"), **case.options}
    materials = Materials(source, lm, CompactAdapter(), labeler, samples=1, threads=2, options=options)
    method: Any = load_method(case.name.partition(".")[0])
    if isinstance(method, EvolCode):
        method = EvolCode(EvolveCodeConfig(limits=Limits(seconds=20.0, cpu_seconds=1), allow_weak=True))
    return Ground(cast(WithPrograms, method), materials, 1), backend


def worth(case: Case, folder: Path, say: Say) -> float:
    found, backend = ground(case, folder, say)
    trial = TRIALS[case.name](found)
    row = (trial.rows or found.source.gold)[0]
    with dspy.context(lm=found.materials.lm, adapter=CompactAdapter(), trace=None):
        made = trial.run(found.programs[case.name.partition(".")[2]], row)
        backend.answer = reads
        return trial.score(row, made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_good_answer_is_worth_more_than_a_bad_one(case: Case, tmp_path: Path) -> None:
    found = worth(case, tmp_path, case.good), worth(case, tmp_path, case.bad)
    assert found == pytest.approx(case.worth, abs=1e-6)


def test_a_revision_is_worth_what_it_keeps_of_the_principle_and_of_the_gold_answer(tmp_path: Path) -> None:
    case = Case("constitutional.revise", OPEN, always(""), always(""))
    gold = str(OPEN.gold[0].outputs["answer"])

    def revised(text: str, judged: str) -> float:
        # The answer, its critique, its revision, and the judge.
        said = in_turn(f"Great question! {gold}", "It flatters.", text, judged)
        return worth(case, tmp_path, said)

    assert revised(gold, "no") == 1.0
    assert revised(gold, "yes") == 0.0
    assert 0.0 < revised(f"{gold} Also fish swim in the sea and birds fly high above it.", "no") < 1.0


def test_every_case_is_tried_and_every_part_has_a_metric_or_a_reason(tmp_path: Path) -> None:
    assert {case.name for case in CASES} | {"constitutional.revise"} == set(TRIALS)
    fitting = {
        "evol_code": CODE,
        "reformulation": ANSWERS,
        "chain_of_abstraction": ANSWERS,
        "constitutional": OPEN,
        "instruction_backtranslation": OPEN,
    }
    for method in BUILT_IN:
        programs = cast(WithPrograms, load_method(method)).programs(fitting.get(method, SORTED))
        names = {f"{method}.{part}" for part in programs}
        assert names, method
        assert names <= {*TRIALS, *WITHOUT}
    assert not set(TRIALS) & set(WITHOUT)


def test_a_part_is_refused_where_this_tasks_labels_say_nothing() -> None:
    task = task_from_labels([{"text": t, "label": t[:3]} for t in ("a b", "c d") * 3], output="label")
    plain = task_from_labels([{"text": f"{i} and {i}", "sum": 2 * i} for i in range(4)], output="sum")
    without = replace(CODE, fields={"prompt": str}, gold=tuple(replace(r, inputs={"prompt": "x"}) for r in CODE.gold))
    assert "no row is a passage" in refusal("textbook.passage", task, SORTED, {})
    assert "names none" in refusal("other.part", task, SORTED, {})
    assert "own program reasons" in refusal("star.reason", plain, SORTED, {})
    assert refusal("star.reason", task, SORTED, {}) == ""
    assert "no labels to write for" in refusal("textbook.exercise", task, OPEN, {})
    assert "no tests" in refusal("evol_code.solve", task, without, {})
    assert "worked solution" in refusal("chain_of_abstraction.rewrite", task, ANSWERS, {})
    assert refusal("chain_of_abstraction.rewrite", task, WORKED, {}) == ""


def test_related_rows_without_outputs_give_no_metric(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "It rained and rained all night"}\n{"text": "The bus did not come at all"}\n')
    task = task_from_labels([{"text": t, "label": t[:3]} for t in ("a b", "c d") * 3], output="label")
    assert "no outputs of this task" in refusal("adaptation.adapt", task, SORTED, {"related": str(path)})


def test_a_prompt_shows_training_rows_alone_and_never_its_own(tmp_path: Path) -> None:
    found, backend = ground(CASES[0], tmp_path, lines(*RAINS))
    found = replace(found, dev=2)
    trial = TRIALS["label_conditioned.write"](found)
    with dspy.context(lm=found.materials.lm, adapter=CompactAdapter(), trace=None):
        for row in found.source.gold:
            trial.run(found.programs["write"], row)
            prompt = str(backend.requests[-1].messages)
            assert row.inputs["text"] not in prompt
            for dev in found.source.gold[-2:]:
                assert dev.inputs["text"] not in prompt
            seen = [one.inputs["text"] for one in trial.shown(row)]
            assert {text for text in WEATHER if text in prompt} == set(seen)
            assert all(one.provenance.block != row.provenance.block for one in trial.shown(row))


@given(st.text(alphabet="abcdefgh ijk.", max_size=60), st.integers(0, 99))
def test_a_typing_error_keeps_every_letter_and_word(text: str, seed: int) -> None:
    found = misspelt(text, seed)
    assert sorted(found) == sorted(text)
    assert [sorted(word) for word in found.split()] == [sorted(word) for word in text.split()]
