"""Play: what is played and held out, that rows follow what won, and that a student gets better by it."""

from __future__ import annotations

import pytest
from worlds import WORDS, Graph, Pick

from limbeck.engine.loading import LoadedModel
from limbeck.environments.countdown import Countdown
from limbeck.errors import InputError
from limbeck.finetune.loop import TrainConfig
from limbeck.finetune.practice import Play
from limbeck.finetune.rounds import RoundsConfig, run_rounds


def test_rows_are_the_states_where_something_was_won(fresh_tiny: LoadedModel) -> None:
    practice = Play(Pick, range(100), range(100, 110), instructions="choose", episodes=12, attempts=6, temperature=4.0)
    gathered = practice.gather(1, fresh_tiny)
    (played,) = practice.trajectories
    assert len(played) == 72
    assert gathered.counts["episodes"] == 72
    assert gathered.counts["won"] == pytest.approx(sum(one.won for one in played) / 72)
    assert gathered.counts["states"] == 12
    assert gathered.counts["faults"] == 0
    assert 1 < gathered.diversity <= 4
    assert [r.scores["reward"] for r in practice.records] == [one.won for one in played]
    winners = {one.decisions[0].state for one in played if one.won}
    assert len(gathered.rows) == len(winners)
    for row in gathered.rows:
        masses = [mass for _, mass in row.branches]
        assert len(masses) == 4
        assert max(masses) == masses[WORDS.index("free")] > 0.5


def test_every_round_draws_its_own_seeds_and_the_same_again(fresh_tiny: LoadedModel) -> None:
    def seeds(number: int, seed: int = 0) -> list[int]:
        practice = Play(Pick, range(100), range(100, 102), episodes=8, attempts=1, seed=seed)
        practice.gather(number, fresh_tiny)
        return [one.seed for one in practice.trajectories[0]]

    assert seeds(1) == seeds(1)
    assert seeds(1) != seeds(2)
    assert seeds(1) != seeds(1, seed=1)
    assert len(set(seeds(1))) == 8


def test_a_seed_that_begins_as_a_held_out_one_is_not_trained_on(fresh_tiny: LoadedModel) -> None:
    """Countdown of two small numbers has few games: other seeds are the same ones."""
    held_out = range(1000, 1010)
    begun = {Countdown(2, 3).reset(seed).text for seed in held_out}
    practice = Play(lambda: Countdown(2, 3), range(200), held_out, episodes=200, attempts=1)
    practice.gather(1, fresh_tiny)
    states = {one.decisions[0].state for one in practice.trajectories[0]}
    assert states
    assert not states & begun
    assert any(Countdown(2, 3).reset(seed).text in begun for seed in range(200))


def test_held_out_seeds_are_played_greedily(fresh_tiny: LoadedModel) -> None:
    practice = Play(Pick, range(10), range(10, 40))
    scores = practice.measure(fresh_tiny)
    # Whatever draws there might be: another seed's would be others.
    assert scores == Play(Pick, range(10), range(10, 40), seed=5).measure(fresh_tiny)
    assert len(scores) == 30
    assert set(scores) <= {0.0, 1.0}
    assert practice.trajectories == []


def test_memory_keeps_earlier_rounds_in_the_log(fresh_tiny: LoadedModel) -> None:
    def states(memory: int) -> list[float]:
        practice = Play(Pick, range(100), range(100, 102), episodes=5, attempts=1, memory=memory)
        return [practice.gather(number, fresh_tiny).counts["states"] for number in (1, 2, 3)]

    assert states(0) == [5, 5, 5]
    first, second, third = states(1)
    assert first == 5 < second <= 10
    assert third <= 10


def test_broken_episodes_are_counted_and_do_not_end_the_round(fresh_tiny: LoadedModel) -> None:
    world = {"start": {"on": (0.5, "middle"), "off": (0.0, "")}, "middle": {"on": (9.0, "")}}
    practice = Play(lambda: Graph(world), range(1, 5), [0], episodes=4, attempts=4, temperature=50.0)
    practice._begun = set()  # one start for all seeds
    gathered = practice.gather(1, fresh_tiny)
    broken = [one for one in practice.trajectories[0] if one.stop == "bad reward"]
    assert gathered.counts["faults"] == len(broken) > 0
    assert all(one.won == 0.5 for one in broken)


def test_seeds_on_both_sides_and_impossible_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="seed 4 is both"):
        Play(Pick, range(5), range(4, 9))
    with pytest.raises(InputError, match="episodes=0"):
        Play(Pick, range(5), range(5, 9), episodes=0)


@pytest.mark.slow
def test_a_student_learns_the_word_that_wins(fresh_tiny: LoadedModel) -> None:
    """The random model says "free" to some two thirds of the held-out texts."""
    seeds = [seed for seed in range(150) if seed % 5]
    practice = Play(Pick, seeds, range(0, 150, 5), episodes=24, attempts=4, temperature=4.0)
    training = TrainConfig(lr=3e-3, max_steps=15, batch_size=8, rank=4, alpha=8, normalize="labels")
    done = run_rounds(fresh_tiny, practice, training, RoundsConfig(most=2, diversity_share=0.0))
    first, best = done.report.rounds[0], done.report.rounds[done.report.best]
    assert first.score.mean < 0.8
    assert best.score.mean > 0.9
    assert sum(practice.measure(done.loaded)) / 30 == best.score.mean
