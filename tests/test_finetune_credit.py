"""Credit: values against value iteration of a small world, pull and bound against their definitions, weights, rows."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import Graph, Table

from limbeck.environments.rollouts import Decision, Trajectory, play
from limbeck.errors import InputError
from limbeck.finetune.credit import (
    CreditConfig,
    StateCredit,
    advantage_rows,
    assign_credit,
    least_return,
)
from limbeck.finetune.rows import tokenize_rows

# Two ways to the goal, a trap, and a state that both ways share.
WORLD = {
    "start": {"left": (0.0, "ledge"), "right": (0.1, "hall"), "wait": (0.0, "start")},
    "ledge": {"jump": (1.0, ""), "climb": (0.0, "hall")},
    "hall": {"door": (0.6, ""), "back": (0.0, "start"), "hole": (0.0, "")},
}
EXACT = CreditConfig(discount=0.9, conservatism=0.0)


def step(state: str, action: str, reward: float = 0.0, actions: str = "ab", policy: Sequence[float] = ()) -> Decision:
    """A decision among one-letter actions, by default of a uniform policy."""
    return Decision(state, tuple(actions), tuple(policy) or (1 / len(actions),) * len(actions), action, reward)


def episode(*decisions: Decision, seed: int = 0) -> Trajectory:
    return Trajectory("test", seed, 0, 0, decisions, "done")


def by_action(credited: Iterable[StateCredit]) -> dict[tuple[str, str], float]:
    return {(c.state, a): q for c in credited for a, q in zip(c.actions, c.values, strict=True)}


def value_iteration(discount: float) -> dict[tuple[str, str], float]:
    """Q* of the world, from its table alone."""
    values = dict.fromkeys(WORLD, 0.0)
    for _ in range(2000):
        values = {s: max(r + discount * values.get(to, 0.0) for r, to in WORLD[s].values()) for s in WORLD}
    return {(s, a): r + discount * values.get(to, 0.0) for s in WORLD for a, (r, to) in WORLD[s].items()}


def test_a_log_that_holds_every_action_has_the_optimal_values() -> None:
    log = play(lambda: Graph(WORLD, tuple(WORLD), most_steps=6), Table(), range(300))
    wanted = value_iteration(0.9)
    # Episodes cut off would put an end where the world has none. In the others the bound changes nothing: the world
    # answers the same every time, so what followed is never more than what is best.
    done = [one for one in log if one.stop == "done"]
    assert {(d.state, d.action) for one in done for d in one.decisions} == wanted.keys()
    for config in (EXACT, CreditConfig(discount=0.9, conservatism=0.0, monte_carlo=False)):
        assert by_action(assign_credit(done, config)) == pytest.approx(wanted, abs=1e-12)


def test_episodes_are_stitched_together_by_the_states_they_share() -> None:
    """Neither episode went start -> right -> door, yet the log knows that it pays."""
    log = [
        episode(step("start", "a"), step("hall", "b")),
        episode(step("other", "a"), step("hall", "a", 1.0)),
    ]
    found = by_action(assign_credit(log, EXACT))
    assert found["start", "a"] == pytest.approx(0.9)
    assert found["start", "b"] == 0.0
    apart = CreditConfig(discount=0.9, conservatism=0.0, merge="history")
    split = assign_credit([log[0], episode(*log[1].decisions, seed=1)], apart)
    assert [(c.state, c.values) for c in split] == [
        ("start", (0.0, 0.0)),
        ("hall", (0.0, 0.0)),
        ("other", (0.9, 0.0)),
        ("hall", (1.0, 0.0)),
    ]


def test_a_tree_merges_the_same_beginning_of_one_seed() -> None:
    log = [episode(step("s", "a"), step("t", "a", 1.0)), episode(step("s", "a"), step("t", "b"))]
    credited = assign_credit(log, CreditConfig(merge="history", conservatism=0.0))
    assert [(c.state, c.tries) for c in credited] == [("s", (2, 0)), ("t", (1, 1))]


def test_the_return_that_followed_bounds_a_target_from_below() -> None:
    """The same action wins once and fails once: 0.5 by the mean, yet the episode that won has won 1."""
    log = [episode(step("s", "a"), step("t", "a", reward)) for reward in (1.0, 0.0)]
    plain = by_action(assign_credit(log, CreditConfig(conservatism=0.0, monte_carlo=False)))
    bound = by_action(assign_credit(log, CreditConfig(conservatism=0.0)))
    assert (plain["s", "a"], plain["t", "a"]) == (0.5, 0.5)
    assert (bound["s", "a"], bound["t", "a"]) == (0.75, 0.5)


def reference(log: Sequence[Trajectory], config: CreditConfig, floor: float) -> dict[tuple[str, str], float]:
    """The same fixed point in plain loops over dictionaries."""
    legal: dict[str, tuple[str, ...]] = {}
    tries: dict[tuple[str, str], list[tuple[float, str | None, float]]] = defaultdict(list)
    for one in log:
        for i, d in enumerate(one.decisions):
            legal[d.state] = d.actions
            rest = one.decisions[i:]
            won = math.fsum(config.discount**k * later.reward for k, later in enumerate(rest))
            tries[d.state, d.action].append((d.reward, rest[1].state if len(rest) > 1 else None, won))
    q = {(s, a): floor for s, actions in legal.items() for a in actions}
    for _ in range(3000):
        new: dict[tuple[str, str], float] = {}
        for s, actions in legal.items():
            visits = sum(len(tries[s, a]) for a in actions)
            for a in actions:
                targets = [
                    max(r + config.discount * (max(q[to, x] for x in legal[to]) if to else 0.0), won)
                    for r, to, won in tries[s, a]
                ]
                if not targets:
                    new[s, a] = floor
                    continue
                share = len(targets) / visits
                pull = config.conservatism * (1 - share) / (len(actions) - 1)
                new[s, a] = (share * math.fsum(targets) / len(targets) + pull * floor) / (share + pull)
        q = new
    return q


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.5, 0.9]))
def test_values_are_those_of_plain_loops(seed: int, conservatism: float, discount: float) -> None:
    draws = random.Random(seed)
    log = [
        episode(
            *(
                step(draws.choice("stuv"), draws.choice("abc"), draws.choice([-1.0, 0.0, 0.5, 1.0]), "abc")
                for _ in range(draws.randint(1, 4))
            )
        )
        for _ in range(draws.randint(1, 6))
    ]
    config = CreditConfig(discount=discount, conservatism=conservatism)
    floor = least_return((-1.0, 1.0), 4, discount)
    wanted = reference(log, config, floor)
    assert by_action(assign_credit(log, config, floor=floor)) == pytest.approx(wanted, abs=1e-9)


def test_values_are_the_least_of_q_transformers_loss() -> None:
    """J = 1/2 E_taken (Q - target)^2 + alpha/2 E_not-taken (Q - floor)^2: no step away from Q makes it smaller."""
    rewards = {"a": [1.0, 0.0, 1.0], "b": [0.5]}
    log = [episode(step("s", a, r, "abcd")) for a, drawn in rewards.items() for r in drawn]
    floor, alpha = -0.25, 0.7
    (found,) = assign_credit(log, CreditConfig(conservatism=alpha), floor=floor)

    def loss(q: Sequence[float]) -> float:
        share = {a: len(rewards.get(a, [])) / 4 for a in "abcd"}
        taken = sum((q["abcd".index(a)] - r) ** 2 for a, drawn in rewards.items() for r in drawn) / 4
        other = sum((1 - share[a]) / 3 * (q["abcd".index(a)] - floor) ** 2 for a in "abcd")
        return 0.5 * taken + 0.5 * alpha * other

    least = loss(found.values)
    for place, by in itertools.product(range(4), (-1e-3, 1e-3)):
        moved = list(found.values)
        moved[place] += by
        assert loss(moved) > least
    assert found.values[2:] == (floor, floor)


def test_an_action_never_tried_is_worth_the_least_return() -> None:
    log = [episode(step("s", "a", -0.5))]
    (found,) = assign_credit(log, floor=-1.0)
    assert found.values == (pytest.approx(-0.5), -1.0)
    assert found.weights[1] == 0.0


def test_a_cycle_of_rewards_needs_a_discount() -> None:
    log = [episode(step("s", "a", 0.1), step("t", "a", 0.1), step("s", "b"))]
    with pytest.raises(InputError, match="do not settle") as caught:
        assign_credit(log, CreditConfig(conservatism=0.0))
    assert "discount" in caught.value.hint
    # Round and round for ever: 0.1 a step.
    found = assign_credit(log, CreditConfig(discount=0.9, conservatism=0.0))
    assert [c.values[0] for c in found] == pytest.approx([0.1 / (1 - 0.9)] * 2, abs=1e-9)


def test_advantages_are_against_the_policys_own_value() -> None:
    policy = (0.2, 0.8)
    log = [episode(step("s", "a", 1.0, policy=policy)), episode(step("s", "b", 0.0, policy=policy))]
    (found,) = assign_credit(log, CreditConfig(conservatism=0.0, temperature=0.5, most=4.0))
    assert found.value == pytest.approx(0.2)
    assert found.advantages == pytest.approx((0.8, -0.2))
    assert found.weights == pytest.approx((4.0, math.exp(-0.4)))  # e^1.6 = 4.95 is clipped
    later = episode(step("s", "b", 0.0, policy=(0.6, 0.4)))
    assert assign_credit([*log, later], CreditConfig(conservatism=0.0))[0].value == pytest.approx(0.6)


def test_a_huge_advantage_is_clipped_and_not_infinite() -> None:
    (found,) = assign_credit([episode(step("s", "a", 1e6))], CreditConfig(temperature=1e-3))
    assert found.weights == pytest.approx((20.0, 0.0))


def test_where_nothing_tried_differs_there_is_nothing_to_learn() -> None:
    failed = [episode(step("s", a), seed=i) for i, a in enumerate("ab")]
    assert assign_credit(failed)[0].weights == (0.0, 0.0)
    assert advantage_rows(assign_credit(failed)) == []
    assert assign_credit([]) == []
    assert assign_credit([episode()]) == []


def test_rows_have_tries_times_weights_as_masses_and_mean_weight_one() -> None:
    log = [
        *[episode(step("s", "a", 1.0)), episode(step("s", "b")), episode(step("s", "b"))],
        episode(step("t", "b", 0.5)),
        episode(step("dead", "a")),
    ]
    credited = assign_credit(log, CreditConfig(conservatism=0.0))
    rows = advantage_rows(credited, "choose")
    assert [row.messages for row in rows] == [(("system", "choose"), ("user", s)) for s in "st"]
    s = credited[0]
    assert rows[0].completions == (("a", s.weights[0]), ("b", 2 * s.weights[1]))
    assert np.mean([row.weight for row in rows]) == pytest.approx(1.0)
    sums = [sum(mass for _, mass in row.completions) for row in rows]
    assert rows[0].weight / rows[1].weight == pytest.approx(sums[0] / sums[1])


def test_rows_become_training_rows_with_every_legal_action(fresh_tiny) -> None:
    credited = assign_credit([episode(step("s", "a", 1.0)), episode(step("s", "b"))])
    (row,) = tokenize_rows(fresh_tiny.tokenizer, advantage_rows(credited))
    assert len(row.branches) == 2
    assert sum(mass for _, mass in row.branches) == pytest.approx(1.0)
    assert row.branches[0][1] > 0.8


@pytest.mark.parametrize("low", [-1.0, 0.0, 0.25])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_least_return_is_that_of_the_worst_episode(low: float, steps: int) -> None:
    lengths = range(1, steps + 1)
    assert least_return((low, 1.0), steps, 0.9) == pytest.approx(
        min(sum(low * 0.9**k for k in range(n)) for n in lengths)
    )


@pytest.mark.parametrize(
    "wrong", [{"discount": 0.0}, {"discount": 1.1}, {"conservatism": -1.0}, {"temperature": 0.0}, {"most": 0.0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        CreditConfig(**wrong)  # pyright: ignore[reportArgumentType]
