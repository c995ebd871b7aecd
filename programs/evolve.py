"""DSPy modules of Evol-Instruct: one that makes rows harder or writes rarer ones, one that compares two rows."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from limbeck.programs.rewrite import bare
from limbeck.signatures.evolve import ADDED, BREADTH, HOW, IN_DEPTH, NOTHING, breadth_row, compare_rows, evolve_row
from limbeck.signatures.rewrite import free_name, new_names, noun_of

# Without these a 1.5B model answers the row, or copies it and writes down how to change it.
_DEEPENED = (
    (
        "Name some uses for old newspapers.",
        "add constraints",
        "Name some uses for old newspapers that need neither glue nor scissors and that a child can manage alone.",
    ),
    (
        "How many hours are there in a week?",
        "reasoning steps",
        "A machine runs from 6 am to 10 pm on weekdays and half as long on Saturdays. How many hours a week does it "
        "stand still?",
    ),
    (
        "Plan a meal for guests.",
        "concretize",
        "Plan a Sunday lunch of three courses for two vegetarian cousins and a grandfather who must not eat salt.",
    ),
    (
        "Write a summary of our sales.",
        "complicate input",
        "Write a summary of our sales from this list, and say which month fell behind and by how much: January 120, "
        "February 95, March 140.",
    ),
    (
        "Why do cats purr?",
        "deepen",
        "Why do cats purr, how do they make the sound, and does it mean the same when they are hurt or frightened?",
    ),
)
_BROADENED = (
    ("How do I clean a bicycle chain?", "How do I put new cork under the keys of an old clarinet?"),
    ("Write a short poem about the sea.", "Write a short poem about lichen on a gravestone."),
)
# Asked whether two versions are equal, a 1.5B model says yes to nearly all; asked what was added, it finds it.
_COMPARED = (
    ("Name three rivers in Europe.", "Name three European rivers.", NOTHING),
    ("How do I bake bread?", "How do I bake bread without yeast in less than an hour?", "no yeast, less than an hour"),
    ("How do I clean a bicycle chain?", "How do I put new cork under the keys of a clarinet?", "cork, clarinet keys"),
    ("Why is the sky blue?", "What is the reason for the sky being blue?", NOTHING),
    ("Plan a trip to Rome.", "Plan a trip to Rome for three days and two people.", "three days, two people"),
)
_NO_GAIN = re.compile(rf"\W*(?:{NOTHING}|none|no|n/a)\b(?:\W+(?:new|more|else|added|additional)\b)?\W*", re.IGNORECASE)


class Evolver(dspy.Module):
    """Evolves the `changed` fields of a row by one of the six operations; the others are shown and stay as they are.

    `labelled` rows keep their label, which the prompt shows, `described` ones with its meaning.
    """

    def __init__(
        self, fields: Mapping[str, Any], changed: Sequence[str], task: str, *, labelled: bool, described: bool
    ) -> None:
        super().__init__()
        self.fields, self.names = dict(fields), new_names(fields, changed)
        self.labelled, self.described = labelled, described
        self.deepen = dspy.Predict(evolve_row(fields, changed, task, labelled=labelled, described=described))
        self.broaden = dspy.Predict(breadth_row(fields, changed, task, labelled=labelled, described=described))
        field, how = changed[0], free_name(HOW, fields)
        self.deepen.demos = [
            dspy.Example(**{field: old, how: IN_DEPTH[operation], self.names[field]: new})
            for old, operation, new in _DEEPENED
        ]
        self.broaden.demos = [dspy.Example(**{field: old, self.names[field]: new}) for old, new in _BROADENED]

    def forward(
        self,
        row: Mapping[str, Any],
        operation: str,
        *,
        label: str = "",
        meaning: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> dspy.Prediction:
        """Return a prediction whose `row` is the evolved row."""
        given = {"label": label} if self.labelled else {}
        given |= {"meaning": meaning} if self.labelled and self.described else {}
        given |= {} if operation == BREADTH else {HOW: IN_DEPTH[operation]}
        named = {free_name(name, self.fields): text for name, text in given.items()}
        predictor = self.broaden if operation == BREADTH else self.deepen
        made: Any = predictor(**row, **named, config=dict(config or {}))
        new = {name: bare(str(made[output]), [output, name]) for name, output in self.names.items()}
        return dspy.Prediction(row={**row, **new})


class Comparer(dspy.Module):
    """Says whether a text asks for anything that another does not."""

    def __init__(self, changed: Sequence[str]) -> None:
        super().__init__()
        self.compare = dspy.Predict(compare_rows(noun_of(changed)))
        self.compare.demos = [dspy.Example(first=a, second=b, **{ADDED: added}) for a, b, added in _COMPARED]

    def forward(self, first: str, second: str, *, config: Mapping[str, Any] | None = None) -> dspy.Prediction:
        """Return a prediction with what was `added`; `equal` is True where that is nothing."""
        settings = {"max_tokens": 32, "stop": ["\n"], **(config or {})}
        made: Any = self.compare(first=first, second=second, config=settings)
        added = str(made[ADDED]).strip().partition("\n")[0].strip()
        return dspy.Prediction(added=added, equal=not added or _NO_GAIN.fullmatch(added) is not None)
