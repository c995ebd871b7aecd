"""Chess: positions that can be, legal moves in both notations, mates that are forced and those that are not."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

chess = pytest.importorskip("chess")

from limbeck.chesscheck import ForcesMate, LegalMove, ValidFen, mate_in, read_board, read_move  # noqa: E402
from limbeck.errors import InputError  # noqa: E402
from limbeck.verifiers import Verdict  # noqa: E402

BACK_RANK = "6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1"
FOOLS_MATE = "rnbqkbnr/pppp1ppp/8/4p3/6P1/5P2/PPPPP2P/RNBQKBNR b KQkq - 0 2"
SCHOLARS_MATE = "r1bqkb1r/pppp1ppp/2n2n2/4p2Q/2B1P3/8/PPPP1PPP/RNB1K1NR w KQkq - 4 4"
MORPHYS_PROBLEM = "kbK5/pp6/1P6/8/8/8/8/R7 w - - 0 1"  # a quiet key: Ra6
OPERA_GAME = "4kb1r/p2n1ppp/4q3/4p1B1/4P3/1Q6/PPP2PPP/2KR4 w k - 1 16"  # Morphy, Paris 1858
LEGALS_MATE = "r2qkb1r/ppp2ppp/2np4/4N3/2B1P3/2N5/PPPP1PPP/R1BbK2R w KQkq - 0 7"
SMOTHERED = "5rk1/5Npp/8/8/2Q5/8/8/6K1 w - - 0 1"  # Nh6+ Kh8, Qg8+ Rxg8, Nf7 mate
START = chess.STARTING_FEN


@pytest.mark.parametrize(
    ("fen", "moves", "keys"),
    [
        (BACK_RANK, 1, {"Ra8#"}),
        (FOOLS_MATE, 1, {"Qh4#"}),
        (SCHOLARS_MATE, 1, {"Qxf7#"}),
        (MORPHYS_PROBLEM, 2, {"Ra6"}),
        (OPERA_GAME, 2, {"Qb8+"}),
        (LEGALS_MATE, 2, {"Bxf7+"}),
        (SMOTHERED, 3, {"Nh6+"}),
    ],
)
def test_known_mates_have_these_keys_and_no_shorter_way(fen: str, moves: int, keys: set[str]):
    board = read_board(fen)
    assert mate_in(board, moves).found
    assert {board.san(move) for move in board.legal_moves if mate_in(board, moves, first=move).found} == keys
    if moves > 1:
        assert mate_in(board, moves - 1).found is False
    assert board.fen() == chess.Board(fen).fen()


@pytest.mark.parametrize(("fen", "moves"), [(OPERA_GAME, 2), (SMOTHERED, 3), (MORPHYS_PROBLEM, 2)])
def test_a_mate_that_is_found_can_be_played_against_every_defence(fen: str, moves: int):
    def play(board: Any, left: int) -> None:
        move = next(m for m in board.legal_moves if mate_in(board, left, first=m).found)
        board.push(move)
        for answer in [] if board.is_checkmate() else list(board.legal_moves):
            assert left > 1
            board.push(answer)
            play(board, left - 1)
            board.pop()
        assert board.is_checkmate() or any(board.legal_moves)
        board.pop()

    play(chess.Board(fen), moves)


def test_a_stalemate_and_a_lone_king_are_no_mate():
    stalemate = read_board("7k/5K2/8/8/8/8/8/6Q1 w - - 0 1")
    assert mate_in(stalemate, 1, first=chess.Move.from_uci("g1g5")).found is False
    assert mate_in(read_board("7k/8/5KB1/8/8/8/8/8 w - - 0 1"), 3).found is False
    assert mate_in(read_board(START), 2).found is False


def test_a_search_ends_at_its_number_of_positions():
    mate = mate_in(read_board(SMOTHERED), 3, positions=50)
    assert (mate.found, mate.positions) == (None, 50)
    whole = mate_in(read_board(SMOTHERED), 3)
    assert 50 < whole.positions < 5000
    verdict = ForcesMate("move", "fen", 3, positions=5)({"fen": SMOTHERED}, {"move": "Nh6+"})
    assert verdict == Verdict(False, "'Nh6+' is undecided after 5 positions")
    with pytest.raises(InputError, match="a mate in 0 moves"):
        mate_in(read_board(START), 0)


@pytest.mark.parametrize("text", ["Nf3", "g1f3", "G1F3", "1. Nf3", "1.Nf3!", "Nf3, which develops", "1. Nf3 d5 2. g3"])
def test_a_move_is_read_in_uci_and_san(text: str):
    assert read_move(read_board(START), text).uci() == "g1f3"


def test_castling_and_promotion_are_read():
    castling = read_board("4k3/8/8/8/8/8/8/4K2R w K - 0 1")
    assert {read_move(castling, text).uci() for text in ("O-O", "0-0", "e1g1")} == {"e1g1"}
    promotion = read_board("8/4P2k/8/8/8/8/8/4K3 w - - 0 1")
    assert {read_move(promotion, text).uci() for text in ("e8=Q", "e8Q", "e7e8q")} == {"e7e8q"}
    assert read_move(read_board(FOOLS_MATE), "2... Qh4#").uci() == "d8h4"


@pytest.mark.parametrize("text", ["", "Nf6", "e2e5", "e7e5", "castle", "Qh5", "--", "0000", "e2", "N\x00"])
def test_what_is_no_legal_move_is_refused_with_some_that_are(text: str):
    with pytest.raises(InputError, match="is no legal move here") as caught:
        read_move(read_board(START), text)
    assert "and 12 more" in caught.value.valid
    verdict = LegalMove("move", "fen")({"fen": START}, {"move": text})
    assert not verdict.ok


@pytest.mark.parametrize(
    ("fen", "fault"),
    [
        ("nothing", "is no FEN"),
        ("8/8/8/8/8/8/8/K7 w - - 0 1", "no black king"),
        ("KK5k/8/8/8/8/8/8/8 w - - 0 1", "too many kings"),
        ("7k/8/8/8/8/8/8/K6Q w - - 0 1", "opposite check"),
        ("P6k/8/8/8/8/8/8/K7 w - - 0 1", "pawns on backrank"),
        ("7k/8/8/8/8/8/8/K7 w KQ - 0 1", "bad castling rights"),
        ("9/8/8/8/8/8/8/K6k w - - 0 1", "is no FEN"),
    ],
)
def test_a_position_that_cannot_be_is_named_with_its_fault(fen: str, fault: str):
    with pytest.raises(InputError, match=fault):
        read_board(fen)
    for verifier in (LegalMove("move", "fen"), ForcesMate("move", "fen", 1)):
        assert fault in verifier({"fen": fen}, {"move": "Ka2"}).reason
    assert fault in ValidFen("fen")({}, {"fen": fen}).reason


def test_the_verifiers_pass_what_is_right():
    assert ValidFen("fen")({}, {"fen": START}).ok
    assert LegalMove("move", "fen")({"fen": START}, {"move": "e4"}).ok
    assert ForcesMate("move", "fen", 2)({"fen": OPERA_GAME}, {"move": "b3b8"}).ok
    assert ForcesMate("move", "fen", 1)({"fen": OPERA_GAME}, {"move": "Qb8+"}).reason == "'Qb8+' does not mate in 1"
    assert [v.name for v in (ValidFen("f"), LegalMove("m", "f"), ForcesMate("m", "f", 2))] == [
        "f is a chess position",
        "m is a legal move",
        "m mates in 2",
    ]


def test_without_the_package_the_verifier_names_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(InputError, match="pip install chess"):
        LegalMove("move", "fen")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_every_legal_move_of_a_random_game_passes_in_both_notations(choices: list[int]):
    board = chess.Board()
    verifier = LegalMove("move", "fen")
    for choice in choices:
        legal = list(board.legal_moves)
        if not legal:
            break
        move = legal[choice % len(legal)]
        for text in (move.uci(), board.san(move)):
            assert verifier({"fen": board.fen()}, {"move": text}).ok
        assert (mate_in(board, 1, first=move).found is True) == board.san(move).endswith("#")
        board.push(move)
