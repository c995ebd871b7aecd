"""Made documents for backtranslation: worked sums among texts that are cut off, mixed up or about something else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.sums import Sum

Kind = Literal["good", "cut", "mixed", "other"]
# Of five documents two are good; the paper keeps 39% of its pairs at four points.
KINDS: tuple[Kind, ...] = ("good", "cut", "good", "mixed", "other")
_WHO = ("fox", "baker", "teacher", "river", "old dog", "gardener", "sailor", "small boat", "neighbour", "blackbird")
_DOES = ("waits", "sings", "sleeps", "turns round", "looks up", "stays", "walks slowly", "rests")
_WHERE = ("by the mill", "under the bridge", "in the yard", "near the church", "at the lake", "on the hill", "in town")
_WHEN = ("in spring", "all day", "after the rain", "before noon", "at night", "on Sundays", "once a year")
_SAYS = (
    "Nobody knows why.",
    "People like to watch it.",
    "My aunt told me so.",
    "It has always been that way.",
    "The paper wrote about it.",
    "That is how the story ends.",
)


@dataclass(frozen=True)
class Document:
    """A text, what it is, and the sum that it works out, None where it works out none."""

    text: str
    kind: Kind
    solved: Sum | None = None


def make_documents(sums: Sequence[Sum], *, seed: int = 0) -> list[Document]:
    """Return a document a sum, the kinds in turn; those that are not good work out none of the sums."""
    rng = random.Random(seed)
    return [make_document(KINDS[place % len(KINDS)], sums, place, rng) for place in range(len(sums))]


def make_document(kind: Kind, sums: Sequence[Sum], place: int, rng: random.Random) -> Document:
    """Return a document of a kind from the sum at that place; one mixed up takes each step from another sum.

    >>> one, two, three = Sum(1, (("+", 2),)), Sum(9, (("-", 4),)), Sum(5, (("*", 2),))
    >>> make_document("cut", [one, two], 0, random.Random(0)).text
    '1 + 2 ='
    >>> make_document("mixed", [one, two, three], 0, random.Random(0)).text
    '1 + 2 = 3\\nThe answer is 5.'
    """
    steps = sums[place].steps
    if kind == "good":
        return Document("\n".join(steps), kind, sums[place])
    if kind == "cut":
        return Document("\n".join(steps[:-1]).rsplit(" ", 1)[0], kind)
    if kind == "mixed":
        mixed = [sums[(place + step) % len(sums)].steps[step] for step in range(len(steps))]
        return Document("\n".join(mixed), kind)
    who, other = rng.sample(_WHO, 2)
    story = f"The {who} {rng.choice(_DOES)} {rng.choice(_WHERE)} {rng.choice(_WHEN)}."
    return Document(f"{story} The {other} {rng.choice(_DOES)} {rng.choice(_WHERE)}. {rng.choice(_SAYS)}", kind)
