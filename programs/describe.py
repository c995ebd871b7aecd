"""Ask what a label means, and read a small model's answer with suspicion.

A model of a billion parameters quotes its examples, repeats the label or goes on talking; what cannot be used
comes back empty, and the label is then shown without a description.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedBaseClass=false

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import dspy

from limbeck.signatures.describe import DescribeLabel

MAX_WORDS = 20
# Words that say nothing about one label in particular.
_EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a all an and any answer are as asks asking at be by category class classified common contain
        contains describe description everyday example examples for has have in is it its kind label labels
        labeled meaning means message messages name of or other question questions readable related same
        sentence sentences sort such task text texts that the their them these they this those to topic type
        with""",
    )
)
_LEAKED = ("[[", "]]", "other texts", "other_texts", "never quote", "i'm sorry", "as an ai")
# A run of this many words from a shown text is a quotation, whatever the rest says.
_QUOTED_RUN = 5
_QUOTES = "\"'`“”‘’*_ "
_MOST_TOKENS = 40
# Without these a 1.5B model answers with one of the texts; the first label misleads on purpose.
_SHOWN = (
    (
        "Sort the note by subject.",
        "CAR",
        ("My mother cannot dress alone.", "Who sits with him at night?", "The nurse comes twice a week."),
        ("The shop opens at nine.", "Our fence fell in the storm.", "I lost my umbrella."),
        "care: the note is about somebody who needs looking after",
    ),
    (
        "Classify the sentence.",
        "c2",
        ("Close the window, please.", "Could you pass the salt?", "Send me the file by noon."),
        ("The train left at nine.", "She likes old films.", "It rained all week."),
        "request: the speaker wants somebody to do something",
    ),
    (
        "Say which course the recipe step belongs to.",
        "SWE",
        ("Fold the sugar into the egg whites.", "Melt the chocolate.", "Dust the cake with cinnamon."),
        ("Grill the fish for ten minutes.", "Salt the aubergines.", "Skim the broth."),
        "sweet: the step makes a dessert or a cake",
    ),
)


class Meaning(NamedTuple):
    """A label's readable name and description; either is "" where the answer held none that can be used."""

    name: str
    description: str


class LabelDescriber(dspy.Module):
    """One call per label; the prediction holds `name` and `description`, "" where not usable."""

    def __init__(self) -> None:
        super().__init__()
        self.describe = dspy.Predict(DescribeLabel, temperature=0.0, max_tokens=_MOST_TOKENS)
        self.describe.demos = [
            dspy.Example(task=task, label=label, texts=_listed(texts), other_texts=_listed(others), meaning=meaning)
            for task, label, texts, others, meaning in _SHOWN
        ]

    def forward(self, task: str, label: str, texts: Sequence[str], others: Sequence[str]) -> dspy.Prediction:
        """Ask for the meaning of `label`, given texts with it and texts with other labels."""
        answer = cast(
            Any,
            self.describe(task=task, label=label, texts=_listed(texts), other_texts=_listed(others)),
        )
        return dspy.Prediction(**read_meaning(str(answer.meaning), label, [*texts, *others])._asdict())


def read_meaning(answer: str, label: str, shown: Sequence[str]) -> Meaning:
    """Return the usable parts of an answer to `DescribeLabel`; `shown` are the texts it must not quote.

    >>> read_meaning('"Person: asks who did something." More', "HUM", ["Who was it?"])
    Meaning(name='person', description='asks who did something')
    >>> read_meaning("HUM: HUM", "HUM", ["Who was it?"])
    Meaning(name='', description='')
    """
    if any(mark in answer.lower() for mark in _LEAKED):
        return Meaning("", "")
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    line = re.sub(r"^\W*(meaning|answer|name|label)\W*:\W*", "", lines[0] if lines else "", flags=re.I)
    head, colon, rest = line.strip(_QUOTES).partition(":")
    if colon and same_words(head, label):  # "HUM: person: asks ..." and "HUM: asks ..."
        again, colon_again, tail = rest.partition(":")
        head, rest = (again, tail) if colon_again and len(words_of(again)) <= 3 else ("", rest)
    elif not colon or len(words_of(head)) > 4:
        head, rest = "", line
    return Meaning(_name(head, label), _description(rest, label, shown))


def words_of(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text.

    >>> words_of("Card_arrival: where?")
    ['card', 'arrival', 'where']
    """
    return re.findall(r"[^\W_]+", text.lower())


def same_words(a: str, b: str) -> bool:
    """Return whether two texts differ in case, blanks and punctuation at most."""
    return words_of(a) == words_of(b)


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts) or "(none)"


def _name(head: str, label: str) -> str:
    words = words_of(head)
    fits = 1 <= len(words) <= 3 and len(" ".join(words)) <= 24 and all(word.isalpha() for word in words)
    told = [word for word in words if word not in _EMPTY_WORDS]
    return " ".join(words) if fits and told and not same_words(head, label) else ""


def _description(text: str, label: str, shown: Sequence[str]) -> str:
    sentence = re.split(r"(?<=[.!?;])[\"'”’*]*\s", text.strip(_QUOTES))[0].strip(_QUOTES).rstrip(".;,: ")
    sentence = _shortened(sentence)
    told = {word for word in words_of(sentence) if word not in _EMPTY_WORDS} - set(words_of(label))
    if not told or sentence.endswith("?") or any(_quotes(sentence, one) for one in shown):
        return ""
    return sentence


def _shortened(sentence: str) -> str:
    words = sentence.split()
    if len(words) <= MAX_WORDS:
        return sentence
    cut = [i for i, word in enumerate(words[:MAX_WORDS], 1) if word.endswith(",") and i > MAX_WORDS // 3]
    return " ".join(words[: cut[-1] if cut else MAX_WORDS]).rstrip(",")


def _quotes(sentence: str, text: str) -> bool:
    said, given = words_of(sentence), words_of(text)
    # A short description that is a text's own wording from end to end quotes it as well.
    run = max(3, min(_QUOTED_RUN, len(said)))
    runs = {tuple(given[i : i + run]) for i in range(len(given) - run + 1)}
    return any(tuple(said[i : i + run]) in runs for i in range(len(said) - run + 1))
