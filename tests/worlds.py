"""Small environments for the tests: one written out as a graph, one that picks a word, one that breaks its word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from limbeck.environments.protocol import Observation, Outcome


@dataclass
class Graph:
    """A deterministic world as a table: state -> action -> (reward, next state or "" for the end)."""

    edges: Mapping[str, Mapping[str, tuple[float, str]]]
    starts: Sequence[str] = ("start",)
    rewards: tuple[float, float] = (0.0, 1.0)
    most_steps: int = 10
    name: str = "graph"
    at: str = ""

    def look(self) -> Observation:
        return Observation(self.at, tuple(self.edges.get(self.at, {})))

    def reset(self, seed: int) -> Observation:
        self.at = self.starts[seed % len(self.starts)]
        return self.look()

    def step(self, action: str) -> Outcome:
        reward, self.at = self.edges[self.at][action]
        return Outcome(self.look(), reward, self.at == "")


WORDS = ("lost", "free", "prize", "transfer")


@dataclass
class Pick:
    """One step: reward 1 for the word "free" among four; every seed asks in words of its own."""

    rewards: tuple[float, float] = (0.0, 1.0)
    most_steps: int = 1
    name: str = "pick"

    def reset(self, seed: int) -> Observation:
        return Observation(f"text {seed}: pick one", WORDS)

    def step(self, action: str) -> Outcome:
        return Outcome(Observation("end", ()), float(action == "free"), True)


@dataclass
class Table:
    """A policy by state: {state: {action: log-probability}}, 0 for what it does not hold; counts its calls."""

    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    sizes: list[int] = field(default_factory=list[int])

    def __call__(self, observations: Sequence[Observation]) -> list[list[float]]:
        self.sizes.append(len(observations))
        return [[self.rows.get(o.text, {}).get(action, 0.0) for action in o.actions] for o in observations]
