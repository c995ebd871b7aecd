"""Countdown: every target can be reached, every action is arithmetic, the same seed is the same game."""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.environments.countdown import Countdown, legal_moves
from limbeck.environments.protocol import Guarded
from limbeck.errors import InputError

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def read(text: str) -> tuple[list[int], int]:
    """The numbers and the target of an observation."""
    numbers, target = text.removeprefix("Numbers: ").removesuffix(".").split(". Target: ")
    return [int(number) for number in numbers.split(", ")], int(target)


def reachable(numbers: list[Fraction], target: int) -> bool:
    """Whether any game of pairs reaches the target: an own search over fractions, with every operation."""
    if target in numbers:
        return True
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
                results = [a + b, a - b, a * b, *([a / b] if b else [])]
                if any(reachable([*rest, result], target) for result in results):
                    return True
    return False


@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(2, 12))
def test_every_game_can_be_won_and_is_not_won_yet(seed: int, numbers: int, largest: int) -> None:
    given_, target = read(Countdown(numbers, largest).reset(seed).text)
    assert len(given_) == numbers
    assert all(1 <= number <= largest for number in given_)
    assert target not in given_
    assert reachable([Fraction(number) for number in given_], target)


def wins(world: Countdown, seed: int, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every way to win a game, by playing all of it."""
    observation, done, reward = world.reset(seed), False, 0.0
    for action in path:
        outcome = world.step(action)
        observation, done, reward = outcome.observation, outcome.done, outcome.reward
    if done:
        return [path] if reward == 1.0 else []
    return [way for action in observation.actions for way in wins(world, seed, (*path, action))]


@pytest.mark.parametrize("seed", range(5))
def test_a_win_is_reward_one_at_the_target_and_nothing_before(seed: int) -> None:
    found = wins(Countdown(3), seed)
    assert found
    world = Guarded(Countdown(3))
    world.reset(seed)
    outcomes = [world.step(action) for action in found[0]]
    assert [one.reward for one in outcomes] == [0.0] * (len(found[0]) - 1) + [1.0]
    numbers, target = read(outcomes[-1].observation.text)
    assert target in numbers
    assert outcomes[-1].stop == "done"


def test_a_game_without_the_target_ends_with_nothing() -> None:
    world = Countdown(2)
    _, target = read(world.reset(0).text)
    moves = legal_moves(read(world.reset(0).text)[0])
    losing = next(action for action, left in moves.items() if target not in left)
    outcome = world.step(losing)
    assert (outcome.reward, outcome.done) == (0.0, True)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_actions_are_right_arithmetic_on_two_of_the_numbers(numbers: list[int]) -> None:
    moves = legal_moves(numbers)
    assert moves
    for action, left in moves.items():
        a, sign, b = action.split()
        rest = sorted(numbers)
        rest.remove(int(a))
        rest.remove(int(b))
        result = SIGNS[sign](int(a), int(b))
        assert result > 0
        assert left == sorted([*rest, result])


def test_a_seed_is_a_game() -> None:
    assert Countdown(4).reset(3) == Countdown(4).reset(3)
    assert len({Countdown(4).reset(seed).text for seed in range(50)}) > 45


def test_an_illegal_action_and_impossible_games_are_refused() -> None:
    world = Countdown(2)
    legal = world.reset(0).actions
    with pytest.raises(InputError, match="no legal action") as caught:
        world.step("1 + 100")
    assert caught.value.valid == ", ".join(legal)
    with pytest.raises(InputError, match="countdown of 1 numbers"):
        Countdown(1)
    with pytest.raises(InputError, match="up to 1"):
        Countdown(2, largest=1)
