"""Mate in one: drawn positions have a mate, its move alone wins, and its notation does not give it away."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from limbeck.chesscheck import ForcesMate, mate_in, read_board
from limbeck.environments.mate import MateInOne
from limbeck.environments.protocol import Guarded
from limbeck.errors import InputError

chess = pytest.importorskip("chess")


@pytest.mark.parametrize("pieces", ["R", "RR", "QR"])
@pytest.mark.parametrize("seed", range(3))
def test_a_position_can_be_and_has_a_mate_in_one(pieces: str, seed: int) -> None:
    world = MateInOne(pieces)
    observation = world.reset(seed)
    board = read_board(world.fen)
    assert mate_in(board, 1).found
    assert len(observation.actions) == board.legal_moves.count()
    for symbol, square in (placed.split("@") for placed in placed_pieces(board)):
        assert symbol.upper() + square in observation.text


def placed_pieces(board: Any) -> list[str]:
    return [f"{piece.symbol()}@{chess.square_name(square)}" for square, piece in board.piece_map().items()]


@pytest.mark.parametrize("notation", ["san", "uci"])
def test_only_mates_win_as_the_search_sees_it(notation: str) -> None:
    world = MateInOne("RR", notation)  # pyright: ignore[reportArgumentType]
    actions = world.reset(0).actions
    fen = world.fen
    judge = ForcesMate("move", "fen", 1)
    rewards: dict[str, float] = {}
    for action in actions:
        world.reset(0)
        outcome = world.step(action)
        assert outcome.done
        assert outcome.observation.actions == ()
        rewards[action] = outcome.reward
        assert outcome.reward == float(judge({"fen": fen}, {"move": action}).ok)
    assert 0 < sum(rewards.values()) < len(rewards)


def test_san_says_nothing_of_check_and_mate() -> None:
    world = MateInOne("QR")
    assert not any(sign in action for seed in range(5) for action in world.reset(seed).actions for sign in "+#")


def test_a_seed_is_a_position_and_the_guard_agrees() -> None:
    assert MateInOne("RR").reset(4) == MateInOne("RR").reset(4)
    assert len({MateInOne("RR").reset(seed).text for seed in range(10)}) == 10
    world = Guarded(MateInOne("RR"))
    assert world.step(world.reset(4).actions[0]).stop == "done"


def test_pieces_that_do_not_mate_and_illegal_moves_are_refused() -> None:
    with pytest.raises(InputError, match="no mate in one with KB in 50 positions"):
        MateInOne("B", draws=50).reset(0)
    with pytest.raises(InputError, match="pieces 'X'"):
        MateInOne("X")
    world = MateInOne("RR")
    world.reset(0)
    with pytest.raises(InputError, match="no legal action"):
        world.step("Kz9")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(InputError, match="not installed") as caught:
        MateInOne()
    assert caught.value.hint == "pip install chess"
