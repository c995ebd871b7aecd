"""DSPy modules that write textbook passages, grade texts, and turn a passage into inputs of a task."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from limbeck.programs.backtranslate import parse_score
from limbeck.programs.generate import numbered, parse_lines
from limbeck.signatures.textbook import PASSAGE, REVIEW, TEXTS, grade_passage, write_exercises, write_passage

# Without a passage to look at, a 1.5B model answers the wishes in a sentence, or refuses.
_SHOWN: Mapping[str, str] = {
    "label": "late_parcel",
    "meaning": "a parcel that comes later than promised",
    "topic": "late parcels",
    "audience": "a pupil of twelve",
    "form": "a short case from everyday life",
    PASSAGE: "Mara ordered a board game for her brother's birthday. The shop promised it for Tuesday, but on Thursday "
    "the parcel still lay in a depot 300 kilometres away. A parcel is late when the promised day has passed and it "
    "is on its way all the same. So Mara wrote to the shop: where is it now, when will it come, and do I get my 4 "
    "euros of express postage back? Had the game come on Tuesday with a torn box, she would have asked about damage: "
    "that parcel was not late.",
}


@dataclass(frozen=True)
class Lesson:
    """What a passage is to be about: a label with its meaning ("" where there is none), and for whom, in which form."""

    label: str = ""
    meaning: str = ""
    topic: str = "any"
    audience: str = "a beginner"
    form: str = "an explanation with one example"

    @property
    def style(self) -> str:
        """The wishes as one text, for provenance."""
        return f"about {self.topic}; for {self.audience}; {self.form}"


class PassageWriter(dspy.Module):
    """Writes one textbook passage a call; shows one of another subject until it is compiled."""

    def __init__(self, task: str, *, labelled: bool, described: bool) -> None:
        super().__init__()
        self.labelled, self.described = labelled, described
        self.write = dspy.Predict(write_passage(task, labelled=labelled, described=described))
        signature: Any = self.write.signature
        shown = {name: _SHOWN[name] for name in signature.fields}
        self.write.demos = [dspy.Example(**shown).with_inputs(*signature.input_fields)]

    def forward(self, lesson: Lesson, *, config: Mapping[str, Any] | None = None) -> dspy.Prediction:
        """Return a prediction with the `passage`."""
        given = _label_inputs(self.labelled, self.described, lesson.label, lesson.meaning)
        given |= {"topic": lesson.topic, "audience": lesson.audience, "form": lesson.form}
        made: Any = self.write(**given, config=dict(config or {}))
        return dspy.Prediction(passage=str(made[PASSAGE]).strip())


class ValueGrader(dspy.Module):
    """Grades a text's educational value for a task from 1 to 5."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.grade = dspy.Predict(grade_passage(task))

    def forward(self, passage: str, *, config: Mapping[str, Any] | None = None) -> dspy.Prediction:
        """Return a prediction with `score`, None where the answer names none, and the whole `review`."""
        made: Any = self.grade(passage=passage, config=dict(config or {}))
        review = str(made[REVIEW]).strip()
        return dspy.Prediction(score=parse_score(review), review=review)


class ExerciseWriter(dspy.Module):
    """Writes a task's inputs from a passage: several where one short text is the input, else one row a call."""

    def __init__(self, fields: Mapping[str, Any], task: str, *, labelled: bool, described: bool, several: bool) -> None:
        super().__init__()
        self.fields, self.several = dict(fields), several
        self.labelled, self.described = labelled, described
        self.write = dspy.Predict(
            write_exercises(fields, task, labelled=labelled, described=described, several=several)
        )

    def forward(
        self,
        passage: str,
        *,
        examples: Sequence[Mapping[str, Any]],
        count: int = 1,
        label: str = "",
        meaning: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `rows` are at most `count` inputs, as mappings of the fields."""
        settings, name = dict(config or {}), next(iter(self.fields))
        shown = numbered([str(row[name]) for row in examples]) if self.several else _listed(examples)
        values = [*_label_inputs(self.labelled, self.described, label, meaning).values(), shown, passage]
        signature: Any = self.write.signature
        given = dict(zip(signature.input_fields, [*values, str(count)], strict=False))
        if not self.several:
            made: Any = self.write(**given, config=settings)
            return dspy.Prediction(rows=[{field: made[field] for field in self.fields}])
        settings["stop"] = [f"\n{count + 1}."]
        made = self.write(**given, config=settings)
        return dspy.Prediction(rows=[{name: t} for t in parse_lines(str(made[TEXTS]), limit=count, field=name)])


def _label_inputs(labelled: bool, described: bool, label: str, meaning: str) -> dict[str, str]:
    given = {"label": label} if labelled else {}
    return {**given, "meaning": meaning} if labelled and described else given


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join("\n".join(f"{name}: {value}" for name, value in row.items()) for row in rows)
