"""What an environment is, and a guard that holds any of them to it.

An environment is a world in texts: `reset` shows a first state with its legal actions, `step` takes one of them. No
person and no model rates anything; the reward is the environment's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol

from limbeck.errors import InputError

# Why an episode ended: the environment said so, too many steps, nothing to do, actions or a reward that cannot be.
Stop = Literal["done", "too long", "no action", "bad actions", "bad reward"]
_SHOWN = 80


@dataclass(frozen=True)
class Observation:
    """A state as text and the texts of the actions that are legal in it.

    The text holds all that decides what can follow: values are learnt by text.
    """

    text: str
    actions: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What an action led to: the next state, its reward, whether the episode is over.

    An episode that is over may have no actions left. `stop` and `fault` are the guard's: why the episode ended, and in
    words what was wrong where the environment did not end it.
    """

    observation: Observation
    reward: float
    done: bool
    stop: Stop | None = None
    fault: str = ""


class Environment(Protocol):
    """A seeded world of one episode at a time; `reset` begins it anew, the same for the same seed."""

    @property
    def name(self) -> str:
        """The environment's name in records and reports."""
        ...

    @property
    def rewards(self) -> tuple[float, float]:
        """The lowest and the highest reward of one step."""
        ...

    @property
    def most_steps(self) -> int:
        """The steps after which an episode is over at the latest."""
        ...

    def reset(self, seed: int) -> Observation:
        """Begin the episode of a seed and return its first state."""
        ...

    def step(self, action: str) -> Outcome:
        """Take a legal action and return what it led to."""
        ...


class Guarded:
    """An environment held to its word.

    A step that breaks it ends the episode with a named stop, reward 0 for that step, and what was won before stays:
    "bad reward" (no finite number, or outside the declared range), "no action" (none legal though the episode is not
    over), "bad actions" (blank or repeated ones then), "too long" (not over after `most_steps` steps). The caller's own
    faults raise InputError: an action that is not legal, a step before `reset` or after the end.

    >>> from limbeck.environments.countdown import Countdown
    >>> world = Guarded(Countdown(numbers=2))
    >>> "+" in world.reset(0).actions[0]
    True
    """

    def __init__(self, inner: Environment) -> None:
        low, high = inner.rewards
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(
                f"{inner.name} declares rewards of {low} to {high}", valid="finite numbers, low below high"
            )
        if inner.most_steps < 1:
            raise InputError(f"{inner.name} declares episodes of {inner.most_steps} steps", valid="1 or more")
        self._inner = inner
        self._legal: tuple[str, ...] | None = None
        self._taken = 0

    @property
    def name(self) -> str:
        """The environment's name."""
        return self._inner.name

    @property
    def rewards(self) -> tuple[float, float]:
        """The lowest and the highest reward of one step."""
        return self._inner.rewards

    @property
    def most_steps(self) -> int:
        """The steps after which an episode is over at the latest."""
        return self._inner.most_steps

    def reset(self, seed: int) -> Observation:
        """Begin the episode of a seed; raises InputError where nothing can be done in it."""
        observation = self._inner.reset(seed)
        if not observation.actions:
            raise InputError(f"{self.name} has no legal action at the start of seed {seed}", valid="one or more")
        if fault := self._fault(observation):
            raise InputError(fault, valid="distinct texts")
        self._legal, self._taken = observation.actions, 0
        return observation

    def step(self, action: str) -> Outcome:
        """Take a legal action; see the class for what ends the episode."""
        if self._legal is None:
            raise InputError(
                f"{self.name} has no episode under way", valid="reset(seed) first, and again after its end"
            )
        if action not in self._legal:
            raise InputError(f"{action[:_SHOWN]!r} is not legal in {self.name}", valid=_listed(self._legal))
        outcome = self._inner.step(action)
        self._taken += 1
        stop, fault = self._verdict(outcome)
        self._legal = outcome.observation.actions if stop is None else None
        reward = 0.0 if stop == "bad reward" else outcome.reward
        return Outcome(outcome.observation, reward, stop is not None, stop, fault)

    def _verdict(self, outcome: Outcome) -> tuple[Stop | None, str]:
        low, high = self.rewards
        reward: object = outcome.reward
        if not (isinstance(reward, Real) and low <= reward <= high):  # NaN is never inside
            return "bad reward", f"a reward of {reward!r} in {self.name}, which declares {low:g} to {high:g}"
        if outcome.done:
            return "done", ""
        if not outcome.observation.actions:
            return "no action", f"no legal action in {self.name} though the episode is not over"
        if fault := self._fault(outcome.observation):
            return "bad actions", fault
        if self._taken >= self.most_steps:
            return "too long", f"not over after {self._taken} steps in {self.name}"
        return None, ""

    def _fault(self, observation: Observation) -> str:
        """Return what is wrong with actions that a policy could not tell apart, "" for nothing."""
        actions = observation.actions
        fine = len(set(actions)) == len(actions) and all(action.strip() for action in actions)
        return "" if fine else f"{self.name} has blank or repeated actions: {_listed(actions)}"


def _listed(actions: tuple[str, ...]) -> str:
    shown = ", ".join(actions[:8])
    return f"{shown} and {len(actions) - 8} more" if len(actions) > 8 else shown
