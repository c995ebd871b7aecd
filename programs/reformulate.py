"""Programs that solve a problem in another form and check the solution by the way back.

A prediction has the `answer`, the problem's new `form` with its solution in it, the `confidence` in [0, 1], and
`returned`: whether the way back led to the problem again. `fault` names what kept it from being solved, "" for none;
then there is no answer.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import dspy

from limbeck.chains import ChainError, as_number, calculate, shown
from limbeck.models import label_probabilities
from limbeck.signatures.reformulate import (
    ANSWER,
    EQUATION,
    EXPRESSION,
    FILLING,
    FIRST,
    FITS,
    GAP,
    HOLDS,
    PROBLEM,
    QUESTION,
    SECOND,
    SLOT,
    STATEMENT,
    TEXT,
    VALUE,
    YES,
    A,
    answer_question,
    choose_option,
    fill_gap,
    judge_statement,
    name_slot,
    state_gap,
    write_equation,
    write_expression,
)

Config = Mapping[str, Any] | None
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")
_PRODUCT = re.compile(r"(?<=[\d)])\s*[xX×]\s*(?=[\d(])")
_UNKNOWN = re.compile(r"(?<![A-Za-z_])x(?![A-Za-z_])")
_OPERATOR = re.compile(r"[\d)%]\s*[-+*/^xX×÷]")
_NOTHING = re.compile(r"\W*(?:none|nothing|no|n/?a|null|not (?:mentioned|given|stated|specified)|unknown)\W*", re.I)
_GAP = re.compile(r"_{2,}|\[(?:gap|blank)\]", re.IGNORECASE)
_SHOWN_EXPRESSIONS = (
    ("Ina had 12 stamps, gave 5 away and got 9 new ones. How many stamps has she now?", "12 - 5 + 9"),
    ("Each of 4 shelves holds 15 books. 6 books are lent out. How many books are there?", "4 * 15 - 6"),
    ("A rope of 84 m is cut into pieces of 7 m. How many pieces are there?", "84 / 7"),
)
_SHOWN_EQUATIONS = (
    ("Ina had x stamps, gave 5 away and got 9 new ones. How many stamps has she now?", "16", "x - 5 + 9 = 16"),
    ("Each of 4 shelves holds x books. 6 books are lent out. How many books are there?", "54", "4 * x - 6 = 54"),
    ("Olga found 20 shells and Tim found x. How many more shells did Olga find?", "8", "20 - x = 8"),
    ("A man had some coins. He spent x of them and 12 are left. How many coins had he?", "20", "12 + x = 20"),
)


class Equation(dspy.Module):
    """Solves a word problem by an arithmetic expression that is then calculated, not by the model.

    The way back is that of self-verification (Weng et al. 2022, arXiv:2212.09561): one number of the problem becomes
    x, the answer is told, and the equation that the model writes must hold for that number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict(write_expression())
        self.write.demos = [dspy.Example(problem=p, expression=e).with_inputs(PROBLEM) for p, e in _SHOWN_EXPRESSIONS]
        self.back = dspy.Predict(write_equation())
        self.back.demos = [
            dspy.Example(problem=p, answer=a, equation=e).with_inputs(PROBLEM, ANSWER) for p, a, e in _SHOWN_EQUATIONS
        ]

    def forward(self, problem: str, *, seed: int = 0, config: Config = None) -> dspy.Prediction:
        """Return the solution; `seed` chooses the number that becomes x."""
        settings = dict(config or {})
        said = _calculation(str(cast(Any, self.write(problem=problem, config=settings))[EXPRESSION]))
        # "x = 20 - 8", "20 - 8 = 12": the calculation is the side with an operator.
        sides = [side.strip() for side in said.split("=")]
        expression = next((side for side in sides if _OPERATOR.search(side)), sides[0])
        try:
            value = calculate(expression)
        except ChainError:
            return _unsolved("unparsable", expression)
        if not _OPERATOR.search(expression):
            return _unsolved("not_reformulated", expression)
        returned, hidden = None, masked(problem, expression, seed)
        if hidden is not None:
            made = cast(Any, self.back(problem=hidden[0], answer=shown(value), config=settings))
            returned = holds_for(_calculation(str(made[EQUATION])), hidden[1])
        return _solved(as_number(value), f"{expression} = {shown(value)}", 1.0, returned)


def masked(problem: str, expression: str, seed: int) -> tuple[str, str] | None:
    """Return the problem with one of the expression's numbers as x, and that number.

    None where no number of the expression stands in the problem exactly once.

    >>> masked("He had 5 eggs and ate 2. How many are left?", "5 - 2", seed=0)
    ('He had x eggs and ate 2. How many are left?', '5')
    """
    said = [match[0] for match in _NUMBER.finditer(problem)]
    once = [number for number in dict.fromkeys(_NUMBER.findall(expression)) if said.count(number) == 1]
    if not once:
        return None
    number = random.Random(f"{seed}:{problem}").choice(once)
    return _NUMBER.sub(lambda match: "x" if match[0] == number else match[0], problem), number


def holds_for(equation: str, number: str) -> bool:
    """Return whether an equation in x holds for a number; False where it has no x or cannot be read.

    >>> holds_for("5 - x = 3", "2"), holds_for("5 - 2 = 3", "2"), holds_for("x = 3", "2")
    (True, False, False)
    """
    plain = _PRODUCT.sub("*", equation)
    sides = [_UNKNOWN.sub(f"({number})", side) for side in plain.split("=")]
    if len(sides) != 2 or not _UNKNOWN.search(plain):
        return False
    try:
        return calculate(sides[0]) == calculate(sides[1])
    except ChainError:
        return False


def _calculation(text: str) -> str:
    """Return the line of an answer that calculates, without marks around it."""
    lines = [line.strip().strip("`$").strip() for line in text.splitlines()]
    return next((line for line in lines if re.search(r"\d", line)), "")


class Entailment(dspy.Module):
    """Classifies by one yes-or-no question a label: does the statement that the text has it follow from the text?

    The way back: of the best label and the next one, the original task, asked in both orders, must choose the best.
    """

    def __init__(self, task: str) -> None:
        super().__init__()
        self.judge = dspy.Predict(judge_statement())
        self.choose = dspy.Predict(choose_option(task))

    def forward(self, text: str, statements: Mapping[str, str], *, config: Config = None) -> dspy.Prediction:
        """Return the label whose statement is the likeliest; `statements` maps labels to what they say of a text."""
        settings = dict(config or {})
        chances = {
            label: chance_of(self.judge(text=text, statement=statement, config=settings), HOLDS, YES)
            for label, statement in statements.items()
        }
        ranked = sorted(chances, key=lambda label: -chances[label])
        best, chance = ranked[0], chances[ranked[0]]
        form = "; ".join(f"{label}: {p:.2f}" for label, p in chances.items())
        if chance < 0.5:
            return _unsolved("no_statement_holds", form)
        if len(ranked) == 1:
            return _solved(best, form, chance, None)
        options = [statements[best], statements[ranked[1]]]
        forth = chance_of(self._choose(text, options, settings), FITS, A)
        back = 1 - chance_of(self._choose(text, options[::-1], settings), FITS, A)
        return _solved(best, form, chance, (forth + back) / 2 > 0.5)

    def _choose(self, text: str, options: Sequence[str], settings: Mapping[str, Any]) -> Any:
        return self.choose(**{TEXT: text, FIRST: options[0], SECOND: options[1]}, config=dict(settings))


class Questions(dspy.Module):
    """Extracts by one question a slot, each answered with words of the text.

    The way back: asked what a value stands for, the model must name the slot that it was found for.
    """

    def __init__(self, slots: Sequence[str]) -> None:
        super().__init__()
        self.slots = tuple(slots)
        self.ask = dspy.Predict(answer_question())
        self.name = dspy.Predict(name_slot(slots))

    def forward(self, text: str, *, config: Config = None) -> dspy.Prediction:
        """Return the values found as `answer`, a mapping of slots to lists; a value that is not there is a fault."""
        settings = dict(config or {})
        found: dict[str, list[str]] = {}
        for slot in self.slots:
            question = f"What is the {slot.replace('_', ' ')}?"
            said = cast(Any, self.ask(**{TEXT: text, QUESTION: question}, config=settings))
            values = listed_values(str(said[VALUE]))
            if any(value.casefold() not in text.casefold() for value in values):
                return _unsolved("ungrounded", f"{slot}: {values}")
            found |= {slot: values} if values else {}
        form = "; ".join(f"{slot}: {', '.join(values)}" for slot, values in found.items()) or "nothing"
        if not found or len(self.slots) == 1:
            return _solved(found, form, 1.0, None)
        back = [
            (slot, cast(Any, self.name(**{TEXT: text, VALUE: value}, config=settings)))
            for slot, values in found.items()
            for value in values
        ]
        confidence = min(chance_of(made, SLOT, slot) for slot, made in back)
        return _solved(found, form, confidence, all(str(made[SLOT]) == slot for slot, made in back))


class Cloze(dspy.Module):
    """Answers a question by filling the gap of a statement.

    The way back: the filled statement must hold for the problem.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = dspy.Predict(state_gap())
        self.state.demos = [
            dspy.Example(problem="Which sea lies between Sweden and Finland?", statement=f"Between them lies {GAP}."),
            dspy.Example(problem="Who composed the opera Fidelio?", statement=f"Fidelio was composed by {GAP}."),
        ]
        self.fill = dspy.Predict(fill_gap())
        self.judge = dspy.Predict(judge_statement())

    def forward(self, problem: str, *, config: Config = None) -> dspy.Prediction:
        """Return the words for the gap."""
        settings = dict(config or {})
        statement = str(cast(Any, self.state(problem=problem, config=settings))[STATEMENT]).strip()
        if len(_GAP.findall(statement)) != 1:
            return _unsolved("no_gap", statement)
        filled = str(cast(Any, self.fill(problem=problem, statement=statement, config=settings))[FILLING])
        answer = filled.strip().splitlines()[0].strip(" .\"'`_") if filled.strip() else ""
        if not answer or len(answer.split()) > 20:
            return _unsolved("unparsable", filled)
        form = _GAP.sub(lambda _: answer, statement)
        chance = chance_of(self.judge(text=problem, statement=form, config=settings), HOLDS, YES)
        return _solved(answer, form, chance, chance >= 0.5)


def listed_values(text: str) -> list[str]:
    """Return the values that a model lists on lines or between semicolons; "none" and the like is no value.

    >>> listed_values('"7 pm"\\n- ten people'), listed_values("None.")
    (['7 pm', 'ten people'], [])
    """
    parts = [re.sub(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+", "", part) for part in re.split(r"[\n;]", text)]
    bare = [part.strip().strip("\"'`“”").strip() for part in parts]
    return [value for value in dict.fromkeys(bare) if value and not _NOTHING.fullmatch(value)]


def chance_of(prediction: Any, field: str, value: str) -> float:
    """Return the probability of a value of a closed field; 1 or 0 where the model gave no probabilities."""
    known = label_probabilities(prediction).get(field)
    return known.get(value, 0.0) if known else float(str(prediction[field]) == value)


def _solved(answer: Any, form: str, confidence: float, returned: bool | None) -> dspy.Prediction:
    return dspy.Prediction(answer=answer, form=form, confidence=confidence, returned=returned, fault="")


def _unsolved(fault: str, form: str) -> dspy.Prediction:
    return dspy.Prediction(answer=None, form=form, confidence=0.0, returned=None, fault=fault)
