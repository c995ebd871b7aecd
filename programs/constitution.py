"""Programs under a constitution: one that criticises and revises, one that judges, one that compares two answers."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import dspy

from limbeck.principles import Principle
from limbeck.programs.describe import words_of
from limbeck.programs.judge import Comparer
from limbeck.programs.reformulate import chance_of
from limbeck.programs.refusals import refuses
from limbeck.programs.rewrite import bare
from limbeck.signatures.constitution import (
    ANSWER,
    CRITIQUE,
    LOOK_FOR,
    REQUEST,
    REVISION,
    VIOLATES,
    YES,
    criticise_answer,
    judge_violation,
    revise_answer,
)

Outcome = Literal["revised", "unchanged", "nothing", "refused", "empty", "leaked"]
# A critique that finds nothing is short and begins with it; a longer one goes on with what could be better.
_NOTHING = re.compile(
    r"\W*(?:none|no|nothing(?: (?:to criticise|to criticize|is wrong|wrong))?|the answer is (?:correct|fine|good)"
    r"|there (?:is|are) (?:nothing|no )[^.]{0,60}|no (?:issues?|problems?|faults?|critique|changes?)\b[^.]{0,40})\W*$",
    re.IGNORECASE,
)
_LABELS = (REVISION, "revised answer", "new answer", "here is the revised answer", "here is the new answer", ANSWER)
# Words that only the prompt has, or only somebody who speaks of the revision.
_LEAKS = re.compile(r"\b(?:the critique|former answer|(?:revised|new) answer|look_for)\b", re.IGNORECASE)


# Longer revisions are no revision where half their words are those of the critique.
_FEW = 6
# Request, answer, what to look for, critique, what to do, revision. Without them a small model copies the answer.
_SHOWN = (
    (
        "How do I get coffee out of a shirt?",
        "Great question! There are many ways to do it. Rinse it with cold water and rub in soap. I hope this helps!",
        "Which sentences could go, since they say nothing?",
        '"Great question!", "There are many ways to do it" and "I hope this helps!" say nothing about the coffee.',
        "Leave them out.",
        "Rinse it with cold water and rub in soap.",
    ),
    (
        "Write a line on our new neighbours from Spain.",
        "The new neighbours are Spanish, so expect noise at night.",
        "Are people judged by where they come from?",
        '"Spanish, so expect noise at night" judges the neighbours by their country.',
        "Say what is known of these people themselves.",
        "A family has moved in next door, from Spain; do say hello.",
    ),
    (
        "Name three rivers of Europe.",
        "Danube, Loire.",
        "Which part of the request is missed?",
        "The request asks for three rivers, and the answer names only two.",
        "Do everything that is asked.",
        "Danube, Loire, Elbe.",
    ),
)


class Reviser(dspy.Module):
    """Criticises an answer by one principle and revises it.

    The prediction's `revision` is the former answer unless `outcome` is "revised": "nothing" and "refused" are what
    the critique said, "empty", "unchanged" and "leaked" (it repeats the critique) what the revision was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.criticise = dspy.Predict(criticise_answer())
        self.revise = dspy.Predict(revise_answer())
        for request, answer, look_for, critique, do, revision in _SHOWN:
            asked: Any = dspy.Example(request=request, answer=answer)
            self.criticise.demos.append(asked.copy(look_for=look_for, critique=critique))
            self.revise.demos.append(asked.copy(critique=critique, do=do, revision=revision))

    def forward(
        self,
        request: str,
        answer: str,
        principle: Principle,
        *,
        config: Mapping[str, Any] | None = None,
        critique_tokens: int = 120,
    ) -> dspy.Prediction:
        """Return the revision with its critique."""
        settings = dict(config or {})
        asked = {REQUEST: request, ANSWER: answer}
        first = {**settings, "max_tokens": critique_tokens}
        said = cast(Any, self.criticise(**asked, **{LOOK_FOR: principle.critique}, config=first))
        critique = str(said[CRITIQUE]).strip()
        outcome: Outcome | None = "refused" if refuses(critique) else None
        if not critique or _NOTHING.match(critique):
            outcome = "nothing"
        if outcome:
            return dspy.Prediction(revision=answer, critique=critique, outcome=outcome)
        made = cast(Any, self.revise(**asked, critique=critique, do=principle.revision, config=settings))
        revision = bare(str(made[REVISION]), _LABELS)
        outcome = _outcome(revision, answer, request, f"{critique} {principle.critique} {principle.revision}")
        return dspy.Prediction(
            revision=revision if outcome == "revised" else answer, critique=critique, outcome=outcome
        )


class ViolationJudge(dspy.Module):
    """Says whether an answer breaks a principle; the prediction's `chance` is the probability that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict(judge_violation())

    def forward(self, request: str, answer: str, principle: Principle) -> dspy.Prediction:
        """Judge one answer by one principle."""
        made = self.judge(**{REQUEST: request, ANSWER: answer, LOOK_FOR: principle.critique})
        return dspy.Prediction(chance=chance_of(made, VIOLATES, YES))


class PrincipleComparer(dspy.Module):
    """Says which of two answers is better by a principle, in both orders; see `limbeck.programs.judge.Comparer`.

    With `reasons` the model reasons first; its probabilities are then all but certain, and are brought between the
    two numbers of `clamp` before the orders are averaged.
    """

    def __init__(
        self,
        principles: Sequence[Principle],
        *,
        reasons: bool = False,
        votes: int = 5,
        clamp: tuple[float, float] = (0.4, 0.6),
    ) -> None:
        super().__init__()
        self.reasons, self.clamp = reasons, clamp
        self.comparers = {
            one.name: Comparer(
                f"There is less to be said of it when asked: {one.critique}", reasons=reasons, votes=votes
            )
            for one in principles
        }

    def forward(self, request: str, answer_a: str, answer_b: str, principle: Principle) -> dspy.Prediction:
        """Return the comparison; `score` is the probability that `answer_a` is better, None where unreadable."""
        made = cast(Any, self.comparers[principle.name](request=request, answer_a=answer_a, answer_b=answer_b))
        if made.score is None or not self.reasons:
            return made
        low, high = self.clamp
        orders = [min(high, max(low, chance)) for chance in (made.forwards, made.backwards)]
        return dspy.Prediction(**{**dict(made.items()), "score": sum(orders) / 2})


def _outcome(revision: str, answer: str, request: str, prompt: str) -> Outcome:
    if not revision:
        return "empty"
    if refuses(revision) and not refuses(answer):
        return "refused"
    shown = f"{request} {answer}".casefold()
    told = set(words_of(prompt)) - set(words_of(shown))
    said = words_of(revision)
    echoes = sum(word in told for word in said) * 2 >= len(said) > _FEW
    if echoes or any(match[0].casefold() not in shown for match in _LEAKS.finditer(revision)):
        return "leaked"
    return "unchanged" if revision.split() == answer.split() else "revised"
