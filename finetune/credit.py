"""Credit of steps from a log of trajectories: values by Bellman backup, advantages, weighted training rows.

Values are those of Q-Transformer (Chebotar et al. 2023, arXiv:2309.10150) in a table instead of a network: a try's
target is its reward plus the best value of the next state, at least the return that followed (the Monte Carlo bound),
and actions that the log does not hold are pulled to the least return there is. Rows are weighted by exp(advantage /
temperature), clipped (Peng et al. 2019, arXiv:1910.00177).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limbeck.environments.rollouts import Trajectory, ask
from limbeck.errors import InputError
from limbeck.finetune.rows import PlainRow

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_SWEEPS, _SETTLED = 10_000, 1e-12
_SIGNAL = 1e-9


@dataclass(frozen=True)
class CreditConfig:
    """How steps are credited.

    `discount` a step. `conservatism` is alpha, the weight of the pull to the least return: an action's pull grows with
    the share of a state's tries that took another one, so that with 1 an action rarely tried is worth
    little even where it won; the default hardly moves what was tried, since in an environment that answers the same
    every time one win is proof. An action never tried is worth the least return whatever alpha is. `monte_carlo` takes
    the return that followed as the lower bound of a target. `merge` "state" makes one state of equal texts with equal
    actions, "history" only of the same actions from the same seed (a tree): right where the text does not hold all that
    decides what follows. `temperature` divides advantages and `most` clips their weights.
    """

    discount: float = 1.0
    conservatism: float = 0.01
    monte_carlo: bool = True
    merge: Literal["state", "history"] = "state"
    temperature: float = 0.25
    most: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or self.conservatism < 0 or self.temperature <= 0 or self.most <= 0:
            raise InputError(
                f"discount={self.discount:g}, conservatism={self.conservatism:g}, temperature={self.temperature:g}, "
                f"most={self.most:g}",
                valid="discount above 0 to 1, conservatism 0 or more, temperature and most above 0",
            )


@dataclass(frozen=True)
class StateCredit:
    """What the log says of one state; the tuples hold one number an action, in the actions' order.

    `tries` count how often an action was taken; `values` are Q. `value` is the mean of Q under the policy that played
    last: advantages (Q - value) say what choosing better would win. `weights` are 0 for what was never tried, and for
    all where no action tried differs from the state's value: nothing is to be learnt there.
    """

    state: str
    actions: tuple[str, ...]
    tries: tuple[int, ...]
    values: tuple[float, ...]
    value: float
    weights: tuple[float, ...]

    @property
    def advantages(self) -> tuple[float, ...]:
        """Every action's value above the state's."""
        return tuple(value - self.value for value in self.values)


def least_return(rewards: tuple[float, float], steps: int, discount: float = 1.0) -> float:
    """Return the least an episode of 1 to `steps` steps can win where a step wins at least the first of `rewards`.

    >>> least_return((0.0, 1.0), 9), least_return((-1.0, 1.0), 3, 0.5)
    (0.0, -1.75)
    """
    low = rewards[0]
    return low if low >= 0 else low * sum(discount**step for step in range(steps))


@dataclass
class _Log:
    """Tries as arrays: each is of a pair (state, action) and leads to a state, -1 past the end of an episode."""

    keys: list[tuple[str, tuple[str, ...]]]
    starts: Ints
    pair: Ints
    reward: Floats
    after: Ints
    won: Floats
    policy: Floats

    @property
    def tries(self) -> Ints:
        """How often each pair was tried."""
        return np.bincount(self.pair, minlength=len(self.policy))


def assign_credit(
    trajectories: Sequence[Trajectory], config: CreditConfig | None = None, *, floor: float = 0.0
) -> list[StateCredit]:
    """Return the credit of every state of the log, in the order first seen.

    `floor` is the least return (`least_return`). Nothing is won past an episode's end, however it ended. Raises
    InputError where values never settle, as with a cycle of positive rewards and no discount.
    """
    config = config or CreditConfig()
    if not any(one.decisions for one in trajectories):
        return []
    log = _read(trajectories, config)
    values = _values(log, config, floor)
    tries = log.tries
    found: list[StateCredit] = []
    for (state, actions), start in zip(log.keys, log.starts, strict=True):
        here = slice(int(start), int(start) + len(actions))
        q, n = values[here], tries[here]
        value = float(log.policy[here] @ q)
        weights = _weights(q - value, n > 0, config)
        found.append(StateCredit(state, actions, tuple(n.tolist()), tuple(q.tolist()), value, tuple(weights.tolist())))
    return found


def _read(trajectories: Sequence[Trajectory], config: CreditConfig) -> _Log:
    keys: list[tuple[str, tuple[str, ...]]] = []
    starts: list[int] = []
    policy: list[float] = []
    places: dict[object, int] = {}
    tries: list[tuple[int, float, int, float]] = []
    for trajectory in trajectories:
        path: tuple[str, ...] = ()
        seen: list[int] = []
        for decision in trajectory.decisions:
            tree = config.merge == "history"
            key = (decision.state, decision.actions, *([trajectory.seed, path] if tree else []))
            if key not in places:
                places[key] = len(keys)
                keys.append((decision.state, decision.actions))
                starts.append(len(policy))
                policy += decision.probabilities
            at = places[key]
            policy[starts[at] : starts[at] + len(decision.actions)] = decision.probabilities
            seen.append(at)
            path = (*path, decision.action)
        won = trajectory.returns(config.discount)
        for step, decision in enumerate(trajectory.decisions):
            pair = starts[seen[step]] + decision.actions.index(decision.action)
            tries.append((pair, decision.reward, seen[step + 1] if step + 1 < len(seen) else -1, won[step]))
    pairs, rewards, afters, wons = zip(*tries, strict=True)
    return _Log(
        keys,
        np.array(starts),
        np.array(pairs),
        np.array(rewards, dtype=np.float64),
        np.array(afters),
        np.array(wons, dtype=np.float64),
        np.array(policy, dtype=np.float64),
    )


def _values(log: _Log, config: CreditConfig, floor: float) -> Floats:
    """Return Q of every pair: the fixed point of backup and pull, from below."""
    tries, sizes = log.tries, np.diff([*log.starts, len(log.policy)])
    total = np.add.reduceat(tries, log.starts)
    share = tries / np.repeat(total, sizes)
    # The paper's distribution over what was not taken: 1 - share, normalised over the state's actions.
    pull = config.conservatism * (1 - share) / np.maximum(np.repeat(sizes, sizes) - 1, 1)
    tried = tries > 0
    values = np.full(len(tries), floor)
    moved = 0.0
    for _ in range(_MOST_SWEEPS):
        best = np.append(np.maximum.reduceat(values, log.starts), 0.0)  # the last: past the end
        target = log.reward + config.discount * best[log.after]
        if config.monte_carlo:
            target = np.maximum(target, log.won)
        mean = np.bincount(log.pair, weights=target, minlength=len(tries)) / np.maximum(tries, 1)
        new = np.where(tried, (share * mean + pull * floor) / np.where(tried, share + pull, 1.0), floor)
        moved = float(np.abs(new - values).max())
        values = new
        if moved <= _SETTLED * max(1.0, float(np.abs(values).max())):
            return values
    raise InputError(
        f"values do not settle in {_MOST_SWEEPS} sweeps: last change {moved:.3g}",
        valid="a discount below 1 where episodes come back to a state",
        hint="CreditConfig(discount=0.99)",
    )


def _weights(advantages: Floats, tried: NDArray[np.bool_], config: CreditConfig) -> Floats:
    if not np.any(np.abs(advantages[tried]) > _SIGNAL):
        return np.zeros(len(advantages))
    # Clipped before the exponential, which would overflow.
    powers = np.minimum(advantages / config.temperature, np.log(config.most))
    return np.where(tried, np.exp(powers), 0.0)


def advantage_rows(credits_: Sequence[StateCredit], instructions: str = "") -> list[PlainRow]:
    """Return one row a state with a signal: masses are tries times weights, the rows' weights have mean 1.

    Every legal action is a completion, those without mass too, for the loss that normalises over them
    (`normalize="labels"`). `instructions` are those the policy was asked with.
    """
    masses = [tuple(n * w for n, w in zip(one.tries, one.weights, strict=True)) for one in credits_]
    sums = [sum(mass) for mass in masses]
    mean = sum(sums) / max(1, sum(total > 0 for total in sums))
    return [
        PlainRow(ask(instructions, one.state), tuple(zip(one.actions, mass, strict=True)), total / mean)
        for one, mass, total in zip(credits_, masses, sums, strict=True)
        if total > 0
    ]
