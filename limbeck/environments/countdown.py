"""Countdown: combine two of the numbers until one of them is the target."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations

from limbeck.environments.protocol import Observation, Outcome
from limbeck.errors import InputError


@dataclass
class Countdown:
    """Numbers and a target that they can reach; reward 1 for reaching it, else 0.

    An action such as "8 - 3" replaces two numbers by their result, which stays a positive whole number; products with
    and quotients by 1 are left out, since they reach nothing that leaving the 1 alone does not. The target is where a
    random game ended, so there is always a way. `numbers` 2 to 6 are drawn from 1 to `largest`.

    >>> Countdown(numbers=2, largest=9).reset(0).text
    'Numbers: 3, 8. Target: 24.'
    """

    numbers: int = 3
    largest: int = 10
    _left: list[int] = field(default_factory=list[int], init=False, repr=False)
    _target: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.numbers <= 6 or self.largest < 2:
            raise InputError(
                f"countdown of {self.numbers} numbers up to {self.largest}",
                valid="2 to 6 numbers, the largest 2 or more",
            )

    @property
    def name(self) -> str:
        """The environment's name."""
        return f"countdown of {self.numbers}"

    @property
    def rewards(self) -> tuple[float, float]:
        """The lowest and the highest reward of one step."""
        return (0.0, 1.0)

    @property
    def most_steps(self) -> int:
        """The steps after which an episode is over at the latest."""
        return self.numbers - 1

    def reset(self, seed: int) -> Observation:
        """Begin the episode of a seed."""
        draws = random.Random(f"countdown {self.numbers} {self.largest} {seed}")
        while True:  # any two numbers reach their sum, which is neither: an end that is no beginning comes soon
            self._left = sorted(draws.randint(1, self.largest) for _ in range(self.numbers))
            self._target = _random_end(self._left, draws)
            if self._target not in self._left:
                return self._observation()

    def step(self, action: str) -> Outcome:
        """Combine two numbers; raises InputError for what is no legal action."""
        moves = legal_moves(self._left)
        if action not in moves:
            raise InputError(f"{action!r} is no legal action", valid=", ".join(moves))
        self._left = moves[action]
        won = self._target in self._left
        return Outcome(self._observation(), float(won), won or len(self._left) == 1)

    def _observation(self) -> Observation:
        numbers = ", ".join(map(str, self._left))
        return Observation(f"Numbers: {numbers}. Target: {self._target}.", tuple(legal_moves(self._left)))


def legal_moves(numbers: list[int]) -> dict[str, list[int]]:
    """Return every action on the numbers with the sorted numbers it leaves; there is one for any two numbers.

    >>> legal_moves([2, 6])
    {'6 + 2': [8], '6 - 2': [4], '6 * 2': [12], '6 / 2': [3]}
    """
    found: dict[str, list[int]] = {}
    for i, j in combinations(range(len(numbers)), 2):
        low, high = sorted((numbers[i], numbers[j]))
        rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
        results = {"+": high + low}
        if high > low:
            results["-"] = high - low
        if low > 1:
            results["*"] = high * low
            if high % low == 0:
                results["/"] = high // low
        for sign, result in results.items():
            found[f"{high} {sign} {low}"] = sorted([*rest, result])
    return found


def _random_end(numbers: list[int], draws: random.Random) -> int:
    while len(numbers) > 1:
        numbers = draws.choice(list(legal_moves(numbers).values()))
    return numbers[0]
