"""Verifiers of chess: a position that can be, a move that is legal, a move that mates in n by search.

Rules come from python-chess (GPL-3.0), an optional package that is imported when the first verifier is made. The
search for a mate is exact: every defence is answered, over at most a given number of positions.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from limbeck.errors import InputError
from limbeck.verifiers import Verdict

if TYPE_CHECKING:
    import chess

_MOST_POSITIONS = 50_000
_NUMBERED = re.compile(r"^\d{1,3}\s*\.(?:\s*\.\.)?\s*")
_UCI = re.compile(r"[a-h][1-8][a-h][1-8][qrbn]?", re.IGNORECASE)


def chess_library() -> ModuleType:
    """Return python-chess; raises InputError where it is not installed."""
    try:
        import chess
    except ModuleNotFoundError as error:
        raise InputError(
            "chess needs the package chess, which is not installed", valid="chess 1.11", hint="pip install chess"
        ) from error
    return chess


def read_board(fen: str) -> chess.Board:
    """Return the position of a FEN; raises InputError where it is none, or one that cannot be.

    >>> read_board("8/8/8/8/8/8/8/K6k w - - 0 1").turn
    True
    """
    lib = chess_library()
    try:
        board: chess.Board = lib.Board(str(fen).strip())
    except ValueError as error:
        raise InputError(
            f"{str(fen)[:90]!r} is no FEN: {error}", valid="such as 8/8/8/8/8/8/8/K6k w - - 0 1"
        ) from error
    status = board.status()
    if status != lib.STATUS_VALID:
        faults = ", ".join(str(flag.name).lower().replace("_", " ") for flag in lib.Status if flag & status)
        raise InputError(f"the position {str(fen)[:90]!r} cannot be: {faults}", valid="a position of a legal game")
    return board


def read_move(board: chess.Board, text: str) -> chess.Move:
    """Return the legal move that a text names in UCI or SAN; raises InputError where it is none.

    A move's number before it counts for nothing, and of several moves the first is read.

    >>> read_move(read_board("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"), "1. Ra8#").uci()
    'a1a8'
    """
    words = _NUMBERED.sub("", str(text).strip()).split()
    word = words[0].rstrip(".,;") if words else ""
    try:
        move = board.parse_uci(word.lower()) if _UCI.fullmatch(word) else board.parse_san(word.rstrip("!?"))
    except ValueError:
        move = None
    if not move:  # to pass, which python-chess reads from "--", is no move of a game
        raise InputError(f"{str(text)[:40]!r} is no legal move here", valid=_some_moves(board))
    return move


def _some_moves(board: chess.Board) -> str:
    moves = [board.san(move) for move in board.legal_moves]
    return ", ".join(moves[:8]) + (f" and {len(moves) - 8} more" if len(moves) > 8 else "")


@dataclass(frozen=True)
class Mate:
    """What a search found: whether there is a mate in n, None where its positions ran out, and how many it saw."""

    found: bool | None
    positions: int


class _OutOfPositions(Exception):
    pass


def _position(board: chess.Board) -> tuple[int | bool | None, ...]:
    """Return all that decides what can follow, but for the counters of moves."""
    pieces = (board.pawns, board.knights, board.bishops, board.rooks, board.queens, board.kings)
    return (*pieces, *board.occupied_co, board.turn, board.clean_castling_rights(), board.ep_square)


@dataclass
class _Search:
    """A search for a forced mate; what is known of a position with so many moves left is kept."""

    board: chess.Board
    most: int
    positions: int = 0
    known: dict[tuple[Any, int], bool] = field(default_factory=dict[tuple[Any, int], bool])

    def mates(self, moves: int) -> bool:
        """Return whether the side to move mates in at most so many of its moves."""
        key = (_position(self.board), moves)
        if key not in self.known:
            self._count()
            # The shortest mates first: they are cheap, and most refutations of the others are among them.
            shorter = moves > 1 and self.mates(moves - 1)
            self.known[key] = shorter or any(self.forces(move, moves) for move in self._attacks(moves))
        return self.known[key]

    def forces(self, move: chess.Move, moves: int) -> bool:
        """Return whether a move mates at once or leaves every answer with a mate in `moves - 1`."""
        self._count()
        self.board.push(move)
        try:
            if self.board.is_checkmate():
                return True
            if moves == 1 or not any(self.board.legal_moves) or self.board.is_insufficient_material():
                return False
            return all(self._loses(answer, moves - 1) for answer in list(self.board.legal_moves))
        finally:
            self.board.pop()

    def _count(self) -> None:
        self.positions += 1
        if self.positions > self.most:
            raise _OutOfPositions

    def _loses(self, answer: chess.Move, moves: int) -> bool:
        self.board.push(answer)
        try:
            return self.mates(moves)
        finally:
            self.board.pop()

    def _attacks(self, moves: int) -> Iterator[chess.Move]:
        """Yield the moves to try: checks first, and at the last move nothing else."""
        legal = list(self.board.legal_moves)
        checks = [move for move in legal if self.board.gives_check(move)]
        yield from checks
        if moves > 1:
            yield from (move for move in legal if move not in checks)


def mate_in(
    board: chess.Board, moves: int, *, first: chess.Move | None = None, positions: int = _MOST_POSITIONS
) -> Mate:
    """Return whether the side to move can force mate in at most `moves` of its moves, beginning with `first`.

    `positions` bounds the search (some 10,000 a second); known mates in 3 take hundreds to thousands. The rules of
    fifty moves and of repetition, which do not matter within so few moves, are left out.

    >>> mate_in(read_board("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"), 1).found
    True
    """
    if moves < 1:
        raise InputError(f"a mate in {moves} moves", valid="1 or more")
    search = _Search(board.copy(stack=False), positions)
    try:
        found = search.mates(moves) if first is None else search.forces(first, moves)
    except _OutOfPositions:
        return Mate(None, positions)
    return Mate(found, search.positions)


@dataclass(frozen=True)
class _Chess:
    field: str

    def __post_init__(self) -> None:
        chess_library()  # now, not at the first of a thousand rows


@dataclass(frozen=True)
class ValidFen(_Chess):
    """Passes if the field is a FEN of a position that can be.

    >>> ValidFen("fen")({}, {"fen": "8/8/8/8/8/8/8/K7 w - - 0 1"}).reason
    "the position '8/8/8/8/8/8/8/K7 w - - 0 1' cannot be: no black king"
    """

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} is a chess position"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        try:
            read_board(outputs[self.field])
        except InputError as error:
            return Verdict(False, error.message)
        return Verdict(True)


@dataclass(frozen=True)
class LegalMove(_Chess):
    """Passes if the field names a legal move, in UCI or SAN, in the position of the input `board` (a FEN).

    >>> LegalMove("move", "fen")({"fen": "8/8/8/8/8/8/8/K6k w - - 0 1"}, {"move": "Ka3"}).reason
    "'Ka3' is no legal move here"
    """

    board: str

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} is a legal move"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        try:
            read_move(read_board(inputs[self.board]), outputs[self.field])
        except InputError as error:
            return Verdict(False, error.message)
        return Verdict(True)


@dataclass(frozen=True)
class ForcesMate(_Chess):
    """Passes if the field names a move that forces mate in at most `moves` moves, itself included.

    A search of more than `positions` positions ends undecided, which does not pass.

    >>> ForcesMate("move", "fen", 1)({"fen": "6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"}, {"move": "Ra7"}).reason
    "'Ra7' does not mate in 1"
    """

    board: str
    moves: int
    positions: int = _MOST_POSITIONS

    @property
    def name(self) -> str:
        """The verifier's name."""
        return f"{self.field} mates in {self.moves}"

    def __call__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Verdict:
        """Return the verdict."""
        try:
            board = read_board(inputs[self.board])
            move = read_move(board, outputs[self.field])
        except InputError as error:
            return Verdict(False, error.message)
        mate = mate_in(board, self.moves, first=move, positions=self.positions)
        shown = repr(str(outputs[self.field])[:40])
        if mate.found is None:
            return Verdict(False, f"{shown} is undecided after {mate.positions} positions")
        return Verdict(mate.found, "" if mate.found else f"{shown} does not mate in {self.moves}")
