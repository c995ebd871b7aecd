"""The guard: what it lets through, what ends an episode by name, what is the caller's own fault."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from worlds import Graph

import limbeck.environments
from limbeck.environments.protocol import Guarded, Outcome
from limbeck.errors import InputError

LINE = {"start": {"on": (0.25, "middle"), "off": (0.0, "")}, "middle": {"on": (0.5, "")}}


def test_a_world_that_keeps_its_word_passes_unchanged() -> None:
    world, plain = Guarded(Graph(LINE)), Graph(LINE)
    assert (world.name, world.rewards, world.most_steps) == ("graph", (0.0, 1.0), 10)
    assert world.reset(0) == plain.reset(0)
    middle, end = (world.step("on") for _ in range(2))
    assert (middle.reward, middle.done, middle.stop, middle.observation.text) == (0.25, False, None, "middle")
    assert (end.reward, end.done, end.stop, end.fault) == (0.5, True, "done", "")


def test_an_illegal_action_names_the_legal_ones_and_leaves_the_episode_as_it_was() -> None:
    world = Guarded(Graph(LINE))
    world.reset(0)
    with pytest.raises(InputError, match="'jump' is not legal in graph") as caught:
        world.step("jump")
    assert caught.value.valid == "on, off"
    assert world.step("on").observation.text == "middle"


def test_no_step_before_the_beginning_or_after_the_end() -> None:
    world = Guarded(Graph(LINE))
    with pytest.raises(InputError, match="no episode under way"):
        world.step("on")
    world.reset(0)
    world.step("off")
    with pytest.raises(InputError, match="no episode under way"):
        world.step("on")
    assert world.reset(0).text == "start"


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, 1.001, -0.001, None, "1"])
def test_a_reward_that_cannot_be_ends_the_episode_and_counts_nothing(reward: Any) -> None:
    world = Guarded(Graph({"start": {"on": (0.5, "middle")}, "middle": {"on": (reward, "start")}}))
    world.reset(0)
    assert world.step("on").reward == 0.5
    broken = world.step("on")
    assert (broken.stop, broken.reward, broken.done) == ("bad reward", 0.0, True)
    assert str(reward) in broken.fault
    assert "0 to 1" in broken.fault


def test_an_episode_that_never_ends_is_ended() -> None:
    world = Guarded(Graph({"start": {"stay": (0.1, "start")}}, most_steps=3))
    world.reset(0)
    outcomes = [world.step("stay") for _ in range(3)]
    assert [one.stop for one in outcomes] == [None, None, "too long"]
    assert outcomes[-1].done
    assert outcomes[-1].reward == 0.1
    assert "3 steps" in outcomes[-1].fault


def test_an_end_at_the_last_step_is_no_fault() -> None:
    world = Guarded(Graph(LINE, most_steps=2))
    world.reset(0)
    world.step("on")
    assert world.step("on").stop == "done"


def test_no_action_before_the_end_is_named() -> None:
    world = Guarded(Graph({"start": {"on": (0.5, "nowhere")}}))
    world.reset(0)
    stuck = world.step("on")
    assert (stuck.stop, stuck.reward, stuck.done) == ("no action", 0.5, True)
    assert "no legal action" in stuck.fault


def test_a_start_without_actions_and_actions_that_look_alike_are_refused() -> None:
    with pytest.raises(InputError, match="no legal action at the start of seed 7"):
        Guarded(Graph({})).reset(7)
    with pytest.raises(InputError, match="blank or repeated"):
        Guarded(Graph({"start": {" ": (0.0, "")}})).reset(0)


def test_actions_that_look_alike_end_an_episode_and_mean_nothing_at_its_end() -> None:
    world = Guarded(Graph({"start": {"on": (0.5, "middle")}, "middle": {" ": (0.0, "")}}))
    world.reset(0)
    stuck = world.step("on")
    assert (stuck.stop, stuck.reward, stuck.done) == ("bad actions", 0.5, True)
    assert "blank or repeated" in stuck.fault

    class Ended(Graph):
        def step(self, action: str) -> Outcome:
            return replace(super().step(action), done=True)

    over = Guarded(Ended({"start": {"on": (0.5, "middle")}, "middle": {" ": (0.0, "")}}))
    over.reset(0)
    assert over.step("on").stop == "done"


@pytest.mark.parametrize("rewards", [(1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (0.5, 0.5)])
def test_declared_rewards_are_a_finite_range(rewards: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="declares rewards"):
        Guarded(Graph(LINE, rewards=rewards))


def test_an_episode_has_at_least_a_step() -> None:
    with pytest.raises(InputError, match="0 steps"):
        Guarded(Graph(LINE, most_steps=0))


@pytest.mark.parametrize("name", limbeck.environments.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(limbeck.environments, name) is not None


def test_the_package_is_light() -> None:
    heavy = {"torch", "dspy", "transformers", "chess"}
    code = "import sys; from limbeck.environments import Countdown, MateInOne, play; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert heavy & set(loaded) == set()
