"""Rollouts: draws that depend on the episode alone, faults that keep what was won, a student's scores, records."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from worlds import WORDS, Graph, Pick, Table

from limbeck.engine import LoadedModel, TorchEngine
from limbeck.environments.countdown import Countdown
from limbeck.environments.protocol import Observation
from limbeck.environments.rollouts import (
    Decision,
    Student,
    Trajectory,
    ask,
    effective_actions,
    play,
    tempered,
    trajectory_records,
)
from limbeck.errors import InputError
from limbeck.records import ENVIRONMENT

LOOP = {"start": {"on": (0.5, "middle"), "end": (0.0, "")}, "middle": {"back": (0.25, "start"), "end": (1.0, "")}}


def test_an_episode_is_the_same_whatever_is_played_beside_it() -> None:
    many = play(lambda: Countdown(4), Table(), range(20), attempts=3, at_once=7, run=5)
    alone = play(lambda: Countdown(4), Table(), [11], attempts=3, at_once=1, run=5)
    assert [one for one in many if one.seed == 11] == alone
    assert [(one.seed, one.attempt) for one in many] == [(seed, k) for seed in range(20) for k in range(3)]
    assert len({tuple(d.action for d in one.decisions) for one in alone}) > 1
    assert play(lambda: Countdown(4), Table(), range(20), attempts=3, run=6) != many


def test_episodes_run_side_by_side_and_a_free_place_is_filled() -> None:
    policy = Table()
    played = play(lambda: Graph(LOOP), policy, range(10), at_once=4)
    assert len(played) == 10
    assert max(policy.sizes) == 4
    assert len(policy.sizes) < sum(len(one.decisions) for one in played)


def test_the_share_of_an_action_is_its_probability_at_the_temperature() -> None:
    policy = Table({f"text {seed}: pick one": {"free": 1.0} for seed in range(2000)})
    played = play(Pick, policy, range(2000), temperature=0.5)
    wanted = math.exp(2) / (math.exp(2) + 3)
    share = sum(one.won for one in played) / 2000
    assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 2000)
    assert played[0].decisions[0].probabilities[WORDS.index("free")] == pytest.approx(wanted)
    assert all(one.won == 1 for one in play(Pick, policy, range(20), temperature=0.0))


def test_tempered_is_the_softmax_of_the_quotient() -> None:
    values = np.array([-3.0, -1.5, -700.0, -2.0])
    for temperature in (0.3, 1.0, 4.0):
        wanted = np.exp(values / temperature - np.logaddexp.reduce(values / temperature))
        assert tempered(values.tolist(), temperature) == pytest.approx(wanted.tolist(), abs=1e-15)
    assert tempered([-1.0, -math.inf], 1.0) == (1.0, 0.0)
    with pytest.raises(InputError, match="best log-probability is -inf"):
        tempered([-math.inf, -math.inf], 1.0)


def test_what_was_won_before_a_fault_is_kept() -> None:
    bad = {"start": {"on": (0.5, "middle")}, "middle": {"on": (7.0, "")}}
    (one,) = play(lambda: Graph(bad), Table(), [0])
    assert (one.stop, one.won, len(one.decisions)) == ("bad reward", 0.5, 1)
    assert "reward of 7" in one.fault
    (endless,) = play(lambda: Graph({"start": {"stay": (0.25, "start")}}, most_steps=4), Table(), [0])
    assert (endless.stop, endless.won, len(endless.decisions)) == ("too long", 1.0, 4)
    (stuck,) = play(lambda: Graph({"start": {"on": (0.5, "nowhere")}}), Table(), [0])
    assert (stuck.stop, stuck.won) == ("no action", 0.5)


def test_returns_are_discounted_sums_of_what_follows() -> None:
    steps = tuple(Decision("s", ("a",), (1.0,), "a", reward) for reward in (1.0, 0.0, 2.0))
    one = Trajectory("e", 0, 0, 0, steps, "done")
    assert one.returns() == (3.0, 2.0, 2.0)
    assert one.returns(0.5) == (1.5, 1.0, 2.0)
    assert one.won == 3.0


def test_effective_actions_is_the_exponential_of_the_entropy() -> None:
    def taking(*actions: str) -> Trajectory:
        return Trajectory("e", 0, 0, 0, tuple(Decision("s", WORDS, (0.25,) * 4, a, 0.0) for a in actions), "done")

    assert effective_actions([taking("lost", "lost"), taking("lost")]) == pytest.approx(1.0)
    shares = np.array([0.5, 0.25, 0.25])
    found = effective_actions([taking("lost", "free"), taking("lost", "prize")])
    assert found == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))
    assert effective_actions([]) == 1.0


def test_a_student_gives_the_models_probabilities_of_whole_actions(fresh_tiny: LoadedModel) -> None:
    engine = TorchEngine(fresh_tiny)
    try:
        state = Observation("text 3: pick one", WORDS)
        (found,) = Student(engine, "pick a word")([state])
        chat = engine.chat
        prompt = chat.prompt(ask("pick a word", state.text)).ids
        model: Any = fresh_tiny.model
        for action, logprob in zip(WORDS, found, strict=True):
            tokens = chat.ids(action)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0].double()
            scored = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
            wanted = float(scored[torch.arange(len(tokens)), torch.tensor(tokens)].sum())
            assert logprob == pytest.approx(wanted, abs=1e-3)
        played = play(Pick, Student(engine), range(6), attempts=2)
        assert len(played) == 12
        beside = play(Pick, Student(engine), range(6), attempts=2, at_once=5)
        assert [one.decisions[0].action for one in played] == [one.decisions[0].action for one in beside]
    finally:
        engine.close()


def test_blank_instructions_leave_the_system_turn_out() -> None:
    assert ask("", "s") == (("user", "s"),)
    assert ask("do", "s") == (("system", "do"), ("user", "s"))


def test_records_are_of_level_six_and_chained() -> None:
    played = play(lambda: Graph(LOOP), Table(), range(4), run=2)
    longest = max(played, key=lambda one: len(one.decisions))
    records = trajectory_records([longest], student="tiny")
    assert len(records) == len(longest.decisions) > 1
    assert {r.provenance.level for r in records} == {ENVIRONMENT}
    assert {r.provenance.teacher for r in records} == {"tiny"}
    assert [r.provenance.parents for r in records] == [(), *[(r.id,) for r in records[:-1]]]
    assert [r.scores["return"] for r in records] == list(longest.returns())
    assert records[0].outputs == {"action": longest.decisions[0].action}
    assert records[0].scores["probability"] == 0.5
    everything = trajectory_records([*played, *(replace(one, run=3) for one in played)], student="tiny")
    assert len({r.id for r in everything}) == len(everything)


def test_impossible_numbers_and_a_policy_that_answers_too_little_are_refused() -> None:
    with pytest.raises(InputError, match="attempts=0"):
        play(Pick, Table(), [0], attempts=0)
    with pytest.raises(InputError, match="1 of 4 actions"):
        play(Pick, lambda observations: [[0.0] for _ in observations], [0])
