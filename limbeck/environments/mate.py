"""Mate in one: small endings drawn by seed in which White mates with the next move.

Rules come from python-chess (GPL-3.0), an optional package that is imported when the environment is made.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from limbeck.chesscheck import chess_library
from limbeck.environments.protocol import Observation, Outcome
from limbeck.errors import InputError

if TYPE_CHECKING:
    import chess

_PIECES = "QRBNP"


@dataclass
class MateInOne:
    """White to move and mate, with a king and `pieces` against a king; reward 1 for the mate, else 0.

    An episode is one move. A position has a mating move and a move that is none. `pieces` are letters of Q, R, B, N and
    P; `notation` says how moves are written. SAN moves are without the signs of check and mate, which would tell the
    answer. Bare bishops and knights mate too seldom to be drawn: InputError after `draws` positions without a mate.

    >>> MateInOne("R").reset(0).text
    'White: Kc7, Rb2. Black: Ka8. White mates in one move.'
    """

    pieces: str = "Q"
    notation: Literal["san", "uci"] = "san"
    draws: int = 10_000
    _board: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        chess_library()  # now, not at the first of a thousand episodes
        if not 1 <= len(self.pieces) <= 4 or set(self.pieces) - set(_PIECES):
            raise InputError(f"pieces {self.pieces!r}", valid=f"1 to 4 letters of {', '.join(_PIECES)}")

    @property
    def name(self) -> str:
        """The environment's name."""
        return f"mate in one with K{self.pieces}"

    @property
    def rewards(self) -> tuple[float, float]:
        """The lowest and the highest reward of one step."""
        return (0.0, 1.0)

    @property
    def most_steps(self) -> int:
        """The steps after which an episode is over at the latest."""
        return 1

    def reset(self, seed: int) -> Observation:
        """Begin the episode of a seed; raises InputError where no position with a mate is found."""
        rng = random.Random(f"mate {self.pieces} {seed}")
        for _ in range(self.draws):
            board = self._drawn(rng)
            if board.is_valid() and 0 < len(_mates(board)) < board.legal_moves.count():
                self._board = board
                return self._observation()
        raise InputError(
            f"no mate in one with K{self.pieces} in {self.draws} positions",
            valid="pieces that can mate, such as Q or RR",
        )

    def step(self, action: str) -> Outcome:
        """Play a move; raises InputError for what is no legal action."""
        moves = self._moves()
        if action not in moves:
            raise InputError(f"{action!r} is no legal action", valid=", ".join(moves))
        self._board.push(moves[action])
        return Outcome(self._observation(), float(self._board.is_checkmate()), True)

    @property
    def fen(self) -> str:
        """The position in Forsyth-Edwards notation."""
        return self._board.fen()

    def _drawn(self, rng: random.Random) -> chess.Board:
        lib = chess_library()
        board: chess.Board = lib.Board(None)
        symbols = ["K", "k", *self.pieces]
        for square, symbol in zip(rng.sample(range(64), len(symbols)), symbols, strict=True):
            board.set_piece_at(square, lib.Piece.from_symbol(symbol))
        return board

    def _moves(self) -> dict[str, chess.Move]:
        board: chess.Board = self._board
        if self.notation == "uci":
            return {move.uci(): move for move in board.legal_moves}
        return {board.san(move).rstrip("+#"): move for move in board.legal_moves}

    def _observation(self) -> Observation:
        lib, board = chess_library(), self._board
        placed = [(piece, lib.square_name(square)) for square, piece in board.piece_map().items()]
        sides = [
            ", ".join(
                sorted((f"{piece.symbol().upper()}{at}" for piece, at in placed if piece.color == color), key=_rank)
            )
            for color in (True, False)
        ]
        actions = tuple(self._moves()) if board.turn else ()
        return Observation(f"White: {sides[0]}. Black: {sides[1]}. White mates in one move.", actions)


def _rank(placed: str) -> tuple[int, str]:
    return ("K" + _PIECES).index(placed[0]), placed


def _mates(board: chess.Board) -> list[chess.Move]:
    found: list[chess.Move] = []
    for move in board.legal_moves:
        board.push(move)
        if board.is_checkmate():
            found.append(move)
        board.pop()
    return found
