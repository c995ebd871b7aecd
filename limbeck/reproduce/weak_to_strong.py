"""Weak-to-strong generalization (Burns et al. 2023): does a stronger student pass the weak teacher that labels for it?

The weak model, logistic regression on words, learns one half's labels and labels the other half. The student learns
that half with the weak labels, without and with the auxiliary confidence loss, and with the true ones: the ceiling. The
share of the gap from weak to ceiling that the weakly labelled student covers is the performance gap recovered (PGR).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.engine.linear import fit_linear, word_features
from limbeck.engine.loading import load_model
from limbeck.engine.requests import ScoreRequest
from limbeck.engine.torch_engine import TorchEngine
from limbeck.errors import InputError
from limbeck.finetune.adapters import detach_lora
from limbeck.finetune.loop import TrainConfig, train
from limbeck.finetune.rows import PlainRow, tokenize_rows
from limbeck.finetune.weak import Confidence, recovered
from limbeck.reproduce.outcome import Arm, Claim, Outcome
from limbeck.reproduce.setting import Setting
from limbeck.task import task_from_labels

if TYPE_CHECKING:
    from limbeck.engine.loading import LoadedModel
    from limbeck.engine.requests import Message
    from limbeck.task import Task

WEAK, PLAIN, CONFIDENT, CEILING = "weak labeller", "student of weak labels", "with the confidence loss", "ceiling"
CLAIMS = (
    Claim(PLAIN, WEAK, "a student of weak labels passes its weak teacher (PGR above 0)"),
    Claim(CONFIDENT, PLAIN, "the confidence loss recovers more"),
)
# In a checkout; a wheel has no examples.
_SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
_DRAWS = 2000


@dataclass(frozen=True)
class Sizes:
    """Rows of each half and of the test, and the passes over a half."""

    half: int
    tested: int
    epochs: float = 3.0


@dataclass(frozen=True)
class Texts:
    """Labelled texts of one closed set."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def part(self, start: int, stop: int) -> Texts:
        """Return the rows of a range."""
        return replace(self, texts=self.texts[start:stop], labels=self.labels[start:stop])


def read_labelled(setting: Setting, name: str) -> Task:
    """Return the task of the user's labelled rows, of the quickstart's without any, for the reproduction `name`.

    Raises InputError for no file and for a column that is no closed set of labels.
    """
    from limbeck.inputs import read_rows

    files = [Path(setting.data)] if setting.data else [_SAMPLE / "labels.jsonl", _SAMPLE / "test.jsonl"]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"no file {missing[0]}",
            valid="labelled texts",
            hint=f"limbeck reproduce {name} --data rows.jsonl --output label",
        )
    rows = [row for file in files for row in read_rows(file)]
    output = setting.output or "label"
    task = task_from_labels(rows, output=output)
    if not task.labels:
        raise InputError(f"{output!r} is no closed set of labels", valid="a column of few distinct values")
    return task


def read_texts(setting: Setting) -> Texts:
    """Return the user's labelled texts in a seeded order, each once, the quickstart's without any.

    Raises InputError for too few.
    """
    task = read_labelled(setting, "weak-to-strong")
    by_text: dict[str, str] = {_text(one): task.label_of(one) for one in task.examples}
    rows = list(by_text.items())
    if len(rows) < max(30, 3 * len(task.labels)):
        raise InputError(f"{len(rows)} labelled rows", valid="30 or more, and three a label")
    random.Random(setting.seed).shuffle(rows)
    return Texts(tuple(text for text, _ in rows), tuple(label for _, label in rows), tuple(task.labels))


def _text(row: Any) -> str:
    return " ".join(map(str, row.inputs().values()))


def run(setting: Setting, sizes: Sizes | None = None) -> Outcome:
    """Fit the weak model, label with it, train the students and compare them on the test rows."""
    sizes = sizes or setting.pick(Sizes(60, 120), Sizes(250, 300))
    everything = read_texts(setting)
    half = min(sizes.half, len(everything.texts) // 3)
    seen, given = everything.part(0, half), everything.part(half, 2 * half)
    if len(set(seen.labels)) < 2:
        raise InputError(f"the first {half} rows have one label, {seen.labels[0]!r}", valid="rows of several labels")
    tested = everything.part(2 * half, 2 * half + sizes.tested)
    weak_given, weak_tested = _weak(seen, [given.texts, tested.texts])
    right = tuple(
        float(tested.names[int(row.argmax())] == label) for row, label in zip(weak_tested, tested.labels, strict=True)
    )
    true = np.array([[float(name == label) for name in given.names] for label in given.labels])
    arms = [Arm(WEAK, right)]
    ways = ((PLAIN, weak_given, None), (CONFIDENT, weak_given, Confidence()), (CEILING, true, None))
    for name, masses, confidence in ways:
        setting.say(f"{name}: {half} rows")
        arms.append(Arm(name, _student(setting, sizes, given, masses, tested, confidence)))
    return setting.conclude(
        "weak-to-strong",
        CLAIMS,
        arms,
        unit="accuracy",
        chance=1 / len(given.names),
        settings={
            "data": Path(setting.data).name or "the quickstart's rows",
            "labels": len(given.names),
            "rows a half": half,
        },
        notes=[_gap(arms, name) for name in (PLAIN, CONFIDENT)],
    )


def _weak(seen: Texts, asked: Sequence[Sequence[str]]) -> list[Any]:
    """Return the weak model's probabilities [rows, labels] of each list of texts."""
    words = word_features(seen.texts)
    model = fit_linear(words(seen.texts), [seen.names.index(label) for label in seen.labels], len(seen.names))
    return [model.predict(words(texts)) for texts in asked]


def _messages(names: Sequence[str], text: str) -> tuple[Message, ...]:
    return (("system", f"Give the label of the text. Labels: {', '.join(names)}."), ("user", text))


def _student(
    setting: Setting, sizes: Sizes, given: Texts, masses: Any, tested: Texts, confidence: Confidence | None
) -> tuple[float, ...]:
    """Train the student on these masses and return whether each test row is right."""
    student = load_model(setting.model)
    rows = tokenize_rows(
        student.tokenizer,
        [
            PlainRow(_messages(given.names, text), tuple(zip(given.names, map(float, row), strict=True)))
            for text, row in zip(given.texts, masses, strict=True)
        ],
        closed=True,
    )
    config = TrainConfig(lr=5e-4, epochs=sizes.epochs, batch_size=16, normalize="labels", seed=setting.seed)
    done = train(student, rows, config, refresh=confidence)
    scores = _scores(done.loaded, tested)
    detach_lora(student.model)
    return scores


def _scores(student: LoadedModel, tested: Texts) -> tuple[float, ...]:
    engine = TorchEngine(student)
    try:
        asked = [ScoreRequest(_messages(tested.names, text), "", tested.names) for text in tested.texts]
        said = [tested.names[one.best] for one in engine.score_many(asked)]
    finally:
        engine.close()
    return tuple(float(a == b) for a, b in zip(said, tested.labels, strict=True))


def _gap(arms: Sequence[Arm], name: str) -> str:
    """Return the performance gap recovered with its 95% interval over test rows (NaN where there is no gap)."""
    by_name = {arm.name: np.array(arm.scores) for arm in arms}
    weak, student, ceiling = by_name[WEAK], by_name[name], by_name[CEILING]
    draws = np.random.default_rng(0).integers(0, len(weak), (_DRAWS, len(weak)))
    found = [recovered(*(float(part[draw].mean()) for part in (weak, student, ceiling))) for draw in draws]
    gaps = np.array([one for one in found if not np.isnan(one)])
    whole = recovered(*(float(part.mean()) for part in (weak, student, ceiling)))
    if not len(gaps):
        return f"{name}: no gap to recover, the ceiling is no better than the weak labeller."
    low, high = np.quantile(gaps, [0.025, 0.975])
    share = len(gaps) / _DRAWS
    more = "" if share == 1 else f" in the {share:.0%} of draws that have a gap"
    return f"{name}: PGR {whole:.2f} [{low:.2f}, {high:.2f}]{more}."
