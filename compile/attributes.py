"""What generated inputs vary in, so that they differ by construction: length, tone, writer, topic, wording.

Lengths come from the real inputs and topics from the teacher, who is asked once for each label; the rest is
a fixed grid. Every attribute is dealt from a shuffled deck of its own, so that all values appear equally
often and their combinations hardly ever repeat.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from limbeck.compile.concurrent import concurrently
from limbeck.errors import BudgetExceeded
from limbeck.programs.generate import Condition, TopicProposer

TONES = ("neutral", "casual", "polite", "direct", "worried")
WRITERS = ("a student", "a parent", "an older person", "an expert", "a busy worker", "a traveller")
DIFFICULTIES = ("plain wording", "unusual wording", "with a detail such as a name, place or number")
# Labels beyond this many share the fixed grid: a call for every label would cost more than it gives.
MAX_TOPIC_CALLS = 24
_MIN_TOPICS = 3


@dataclass(frozen=True)
class Attributes:
    """The values each attribute may take; `topics` are those of a label, "" for a task without labels."""

    lengths: tuple[int, ...]
    topics: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    tones: tuple[str, ...] = TONES
    writers: tuple[str, ...] = WRITERS
    difficulties: tuple[str, ...] = DIFFICULTIES

    def styles(self, label: str, count: int, seed: int) -> list[str]:
        """Return `count` styles to write a label's inputs in, as short texts; the same for the same seed.

        A topic takes the writer's place in two of three styles where the label has topics: small models
        follow two or three wishes, not five.

        >>> Attributes(lengths=(7,), tones=("casual",)).styles("", 1, seed=0)[0].startswith("about 7 words")
        True
        """
        rng = random.Random(f"{seed}:{label}")
        topics = self.topics.get(label, ())
        decks = [_dealt(values, count, rng) for values in (self.lengths, self.tones, self.difficulties)]
        writers, about = _dealt(self.writers, count, rng), _dealt(topics, count, rng)
        styles: list[str] = []
        for i, (length, tone, difficulty) in enumerate(zip(*decks, strict=True)):
            third = f"about {about[i]}" if topics and i % 3 else f"written by {writers[i]}"
            second = difficulty if i % 2 else f"tone: {tone}"
            styles.append(f"about {length} words; {second}; {third}")
        return styles


def lengths_of(texts: Sequence[str]) -> tuple[int, ...]:
    """Return the 10th, 50th and 90th percentile of the texts' lengths in words, without repeats.

    >>> lengths_of(["a", "a b c", "a b c d e"])
    (1, 3, 5)
    """
    words = sorted(len(text.split()) for text in texts) or [10]
    picked = [words[round(share * (len(words) - 1))] for share in (0.1, 0.5, 0.9)]
    return tuple(dict.fromkeys(max(1, n) for n in picked))


def propose(
    proposer: TopicProposer,
    examples: Mapping[str, Sequence[str]],
    meanings: Mapping[str, str],
    lm: dspy.LM,
    *,
    adapter: Any,
    lengths: tuple[int, ...],
    seed: int,
) -> Attributes:
    """Return the attributes with the topics the model proposes for each label from its example texts.

    One call a label, for `MAX_TOPIC_CALLS` labels at most. An answer with fewer than three usable topics, or
    none at all, leaves that label with the fixed grid. BudgetExceeded passes through.
    """

    def ask(label: str) -> tuple[str, ...]:
        condition = Condition(label, meanings.get(label, ""))
        config = {"temperature": 0.7, "max_tokens": 120, "rollout_id": seed}
        with dspy.context(lm=lm, adapter=adapter, trace=None):
            try:
                made: Any = proposer(condition, examples=list(examples[label])[:5], config=config)
            except BudgetExceeded:
                raise
            except Exception:  # an unreadable answer costs variety, not the stage
                return ()
        return made.topics

    labels = list(examples) if len(examples) <= MAX_TOPIC_CALLS else []
    found = dict(zip(labels, concurrently(ask, labels), strict=True))
    return Attributes(lengths, {label: t for label, t in found.items() if len(t) >= _MIN_TOPICS})


def _dealt(values: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
    """Return `count` values from shuffled decks: every value appears before any does again."""
    dealt: list[Any] = []
    while values and len(dealt) < count:
        dealt += rng.sample(list(values), len(values))
    return dealt[:count]
