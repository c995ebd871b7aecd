"""Environments that a student learns from without people: the protocol, a guard around any of them, two built in.

Names load on first use: neither torch nor dspy is imported, nor chess before the first position.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.environments.countdown import Countdown
    from limbeck.environments.mate import MateInOne
    from limbeck.environments.protocol import Environment, Guarded, Observation, Outcome
    from limbeck.environments.rollouts import Decision, Policy, Student, Trajectory, play, trajectory_records

_HOMES = {
    "Countdown": "countdown",
    "Decision": "rollouts",
    "Environment": "protocol",
    "Guarded": "protocol",
    "MateInOne": "mate",
    "Observation": "protocol",
    "Outcome": "protocol",
    "Policy": "rollouts",
    "Student": "rollouts",
    "Trajectory": "rollouts",
    "play": "rollouts",
    "trajectory_records": "rollouts",
}

__all__ = [
    "Countdown",
    "Decision",
    "Environment",
    "Guarded",
    "MateInOne",
    "Observation",
    "Outcome",
    "Policy",
    "Student",
    "Trajectory",
    "play",
    "trajectory_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
