"""Review: which rows people get, what they may say, what follows for the records, how well they agree."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from limbeck.cli import main
from limbeck.compile.split import make_split
from limbeck.errors import InputError, LimbeckError
from limbeck.ledger import SCHEMA_VERSION, CallRow, Ledger
from limbeck.pipeline import curation
from limbeck.pipeline.config import RunConfig, write_config
from limbeck.pipeline.context import Context
from limbeck.pipeline.data import Turn
from limbeck.pipeline.runfolder import Silent, open_run
from limbeck.records import MANUAL, VERIFIED, Provenance, Record, write_records
from limbeck.review import (
    Review,
    agreement,
    apply_reviews,
    decide,
    latest,
    open_batch,
    put_verdicts,
    read_reviews,
    read_takes,
    review_status,
    take_batch,
    uncertainty,
)
from limbeck.review.batches import Drawing
from limbeck.review.decisions import answer_key
from limbeck.review.reliability import Coefficient
from limbeck.review.store import KEPT, Take, kept_records, open_reviews
from limbeck.task import task_from_labels

LABELS = ("fig", "pear", "plum")
CALL = CallRow("generate", "m", "teacher", {}, {"text": "plum"}, 3, 2)


def row(i: int, label: str = "plum", p: float = 0.9, **changes: Any) -> Record:
    soft = {name: p if name == label else (1 - p) / 2 for name in LABELS}
    origin = Provenance("pool", teacher="m", block=i % 2, parents=("gold-1",))
    made = Record({"text": f"row {i}"}, {"label": label}, origin, soft=soft, soft_source="calibrated", weight=0.8)
    return replace(made, **changes)


def at_level(record: Record, level: int) -> Record:
    return replace(record, provenance=replace(record.provenance, level=level))


ROWS = [row(i, LABELS[i % 3], 0.34 + 0.6 * i / 39) for i in range(40)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the curate stage leaves it, with a call that was paid for."""
    folder = tmp_path / "runs" / "fruit"
    write_records(ROWS, folder / KEPT)
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.put_call("paid", CALL)
    return folder


def said(record: Record, who: str, verdict: str, label: str = "") -> Review:
    seen = dict(record.outputs)
    right = {"accept": seen, "reject": {}, "correct": {"label": label}}[verdict]
    return Review(record.id, who, cast(Any, verdict), seen, right)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


# -- batches -------------------------------------------------------------------------------------------------


def test_a_batch_has_a_random_part_and_the_most_uncertain_rows(run: Path) -> None:
    batch = take_batch(run, 10, reviewer=" ada ", random_share=0.4, seed=3)
    assert batch.counts == {"random": 4, "uncertain": 6}
    assert batch.reviewer == "ada"
    drawn = {one.id for one in batch.rows if one.part == "random"}
    rest = [r.id for r in sorted(ROWS, key=uncertainty, reverse=True) if r.id not in drawn]
    assert {one.id for one in batch.rows if one.part == "uncertain"} == set(rest[:6])
    lines = [json.loads(line) for line in batch.lines().splitlines()]
    assert [line["verdict"] for line in lines] == [""] * 10
    assert all(set(line) == {"id", "reviewer", "verdict", "inputs", "outputs"} for line in lines)
    assert [t.record for t in read_takes(run)] != [line["id"] for line in lines], "the order tells no part"


def test_rows_of_others_make_up_the_shared_part_and_are_offered_where_nothing_else_is_left(run: Path) -> None:
    first = {one.id for one in take_batch(run, 20, reviewer="ada").rows}
    second = take_batch(run, 20, reviewer="ben", random_share=0.0, overlap_share=0.25)
    assert second.counts == {"shared": 5, "uncertain": 15}
    assert {one.id for one in second.rows if one.part == "shared"} <= first
    third = take_batch(run, 40, reviewer="ben", random_share=0.0, overlap_share=0.0)
    assert third.counts["uncertain"] == 5
    assert len({one.id for one in (*second.rows, *third.rows)}) == 40
    assert take_batch(run, 5, reviewer="ben").rows == ()


def test_what_people_wrote_or_verified_before_is_not_asked_again(tmp_path: Path) -> None:
    rows = [at_level(row(i), level) for i, level in enumerate((MANUAL, 2, VERIFIED, 4, 5, 6))]
    write_records([*rows, row(9).reject("duplicate")], tmp_path / KEPT)
    Ledger(tmp_path / "ledger.sqlite").close()
    given_ids = {one.id for one in take_batch(tmp_path, 9, reviewer="ada").rows}
    assert given_ids == {rows[i].id for i in (1, 3, 4, 5)}


@settings(max_examples=60)
@given(data=st.data())
def test_nobody_gets_a_row_twice_and_the_random_part_is_the_next_of_one_order(data: st.DataObject) -> None:
    rows = [row(i, p=0.4 + 0.01 * i) for i in range(data.draw(st.integers(1, 25)))]
    takes: list[Take] = []
    reviews: list[Review] = []
    for _ in range(data.draw(st.integers(1, 6))):
        who, n = data.draw(st.sampled_from("abc")), data.draw(st.integers(1, 8))
        n_random = data.draw(st.integers(0, n))
        drawing = Drawing(rows, takes, reviews, who, "entropy", 0)
        new = drawing.draw(n, n_random, data.draw(st.integers(0, n - n_random)))
        before = {t.record for t in takes if t.reviewer == who and t.shown}
        shown = [t.record for t in new if t.shown]
        assert not before & set(shown)
        assert len(shown) == len(set(shown)) == min(n, len(rows) - len(before))
        takes += new
        sampled = [t.record for t in takes if t.part == "random"]
        assert sampled == drawing.random[: len(sampled)]
        for record in shown:
            verdict = data.draw(st.sampled_from(["accept", "reject", ""]))
            if verdict:
                reviews.append(said(next(r for r in rows if r.id == record), who, verdict))


def test_the_random_part_says_what_share_of_labels_is_right_though_hard_rows_were_judged_before() -> None:
    """Rows are the likelier wrong the more uncertain they are, and the first batches took the most uncertain ones."""
    rng = random.Random(5)
    rows = [row(i, p=0.4 + 0.006 * i) for i in range(100)]
    estimates: list[float] = []
    unseen: list[float] = []
    for seed in range(150):
        wrong = {r.id for r in rows if rng.random() > max((r.soft or {}).values())}
        takes: list[Take] = []
        reviews: list[Review] = []
        for _ in range(3):
            new = Drawing(rows, takes, reviews, "ada", "margin", seed).draw(24, 8, 0)
            by_id = {r.id: r for r in rows}
            reviews += [
                said(by_id[t.record], "ada", "reject" if t.record in wrong else "accept") for t in new if t.shown
            ]
            takes += new
        drawn = [t for t in takes if t.part == "random"]
        found = agreement(rows, reviews, random_part=[t.record for t in drawn], resamples=10)
        assert found.precision is not None
        assert found.precision.rows == 24
        truth = 1 - len(wrong) / len(rows)
        estimates.append(found.precision.value - truth)
        unseen.append(float(np.mean([t.record not in wrong for t in drawn if t.shown])) - truth)
    assert abs(np.mean(estimates)) < 0.02
    assert np.mean(unseen) > 0.03, "the rows drawn anew alone would flatter the labels"


def test_two_at_once_get_different_rows(run: Path) -> None:
    found: dict[str, set[str]] = {}

    def ask(who: str) -> None:
        found[who] = {one.id for one in take_batch(run, 10, reviewer=who, random_share=0, overlap_share=0).rows}

    threads = [threading.Thread(target=ask, args=(who,)) for who in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, found.values())) == [10] * 4
    assert len(set().union(*found.values())) == 40


def test_a_lost_batch_is_given_again_without_what_was_judged(run: Path) -> None:
    batch = take_batch(run, 6, reviewer="ada")
    put_verdicts(run, [{"id": batch.rows[0].id, "reviewer": "ada", "verdict": "accept"}])
    again = open_batch(run, reviewer="ada")
    assert [one.id for one in again.rows] == [one.id for one in batch.rows[1:]]
    assert open_batch(run, reviewer="ben").rows == ()


def test_how_doubtful_an_answer_is() -> None:
    assert uncertainty(row(0, p=1.0)) == 0.0
    assert uncertainty(row(0, p=0.5)) == pytest.approx(0.75)
    assert uncertainty(row(0, p=1 / 3), "entropy") == pytest.approx(1.0)
    plain = replace(row(0), soft=None)
    assert uncertainty(plain) == 1.0
    assert uncertainty(replace(plain, scores={"agreement": 0.75, "confidence": 0.1})) == 0.25
    assert uncertainty(replace(plain, scores={"confidence": 0.1})) == pytest.approx(0.9)
    assert uncertainty(replace(plain, soft={"plum": 1.0})) == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "a batch of 0 rows"),
        ({"random_share": 1.5}, "random share is 1.5"),
        ({"random_share": float("nan")}, "random share is nan"),
        ({"overlap_share": -0.1}, "overlap share is -0.1"),
        ({"random_share": 0.6, "overlap_share": 0.6}, "more than a whole batch"),
        ({"by": "guess"}, "no measure 'guess'"),
        ({"reviewer": " \t"}, "the reviewer is"),
        ({"reviewer": "ada\nben"}, "the reviewer is"),
        ({"reviewer": "x" * 101}, "the reviewer is"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(run: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        take_batch(run, **cast(Any, {"n": 3, "reviewer": "ada", **options}))
    assert read_takes(run) == []


# -- verdicts ------------------------------------------------------------------------------------------------


def test_a_filled_in_batch_is_stored_and_a_second_time_changes_nothing(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in take_batch(run, 5, reviewer="ada").lines().splitlines()]
    shown = [dict(line["outputs"]) for line in lines]
    lines[0]["verdict"], lines[1]["verdict"] = "accept", " Reject "
    other = next(name for name in LABELS if name != shown[2]["label"])
    lines[2] |= {"verdict": "correct", "outputs": {"label": f" {other} "}}
    path = write_lines(tmp_path / "ada.jsonl", lines)
    assert asdict(put_verdicts(run, path)) == {"stored": 3, "unchanged": 0, "blank": 2}
    stored = read_reviews(run)
    assert [(r.verdict, r.seen) for r in stored] == list(zip(("accept", "reject", "correct"), shown, strict=False))
    assert [r.outputs for r in stored] == [shown[0], {}, {"label": other}]
    assert all(r.created > 0 for r in stored)
    assert asdict(put_verdicts(run, path)) == {"stored": 0, "unchanged": 3, "blank": 2}
    assert read_reviews(run) == stored
    changed = put_verdicts(run, [{"id": lines[0]["id"], "verdict": "reject"}], reviewer="ada")
    assert changed.stored == 1
    assert [r.verdict for r in read_reviews(run)] == ["accept", "reject", "correct", "reject"], "nothing is replaced"
    assert latest(read_reviews(run))[lines[0]["id"]]["ada"].verdict == "reject"


GOOD = {"id": ROWS[0].id, "reviewer": "ada", "verdict": "accept"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"id": "nosuch"}, "there is no row 'nosuch'"),
        ({"id": None}, "no id"),
        ({"verdict": "maybe"}, "the verdict is 'maybe'"),
        ({"verdict": 1}, "the verdict is '1'"),
        ({"reviewer": ""}, "the reviewer is"),
        ({"reviewer": 7}, "the reviewer is '7'"),
        ({"reviewer": ["ada"]}, "the reviewer is"),
        ({"verdict": "correct", "outputs": {"label": "apple"}}, "'apple' is no label of 'label'"),
        ({"verdict": "correct", "outputs": {"label": "plums"}}, "did you mean 'plum'"),
        ({"verdict": "correct", "outputs": {"label": None}}, "'None' is no label"),
        ({"verdict": "correct", "outputs": {"colour": "red"}}, "no output 'colour'"),
        ({"verdict": "correct", "outputs": "plum"}, "not an object"),
        ({"verdict": "correct"}, "corrects nothing"),
        ({"verdict": "correct", "outputs": dict(ROWS[0].outputs)}, "corrects nothing"),
        ({"verdict": "accept", "outputs": {"label": "plum"}}, "accepts {'label': 'plum'}"),
    ],
)
def test_one_bad_line_is_named_and_nothing_is_stored(run: Path, tmp_path: Path, bad: dict[str, Any], said: str) -> None:
    path = write_lines(tmp_path / "v.jsonl", [GOOD, {**GOOD, **bad}, GOOD])
    with pytest.raises(InputError, match=said) as caught:
        put_verdicts(run, path)
    assert f"{path}, line 2" in caught.value.message
    assert caught.value.valid
    assert read_reviews(run) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(GOOD).encode() + b'\n{"id": "\xff"}\n', "not UTF-8: byte .* on line 2"),
        (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
        (json.dumps(GOOD).encode() + b"\n{not json}\n", "line 2 is not JSON"),
        (json.dumps(GOOD).encode() + b"\n[1]\n", "line 2 is a list"),
        (b"", "holds no verdicts"),
        (b" \n", "is empty"),
        (json.dumps({**GOOD, "verdict": ""}).encode(), "holds no verdict: 1 row without one"),
        (json.dumps({"id": ROWS[0].id, "reviewer": "ada", "verdct": "accept"}).encode(), "holds no verdict"),
    ],
)
def test_a_file_that_cannot_be_read_stores_nothing(run: Path, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        put_verdicts(run, path)
    assert read_reviews(run) == []


def test_a_reviewer_may_be_given_once_for_all_rows_but_not_two(run: Path) -> None:
    rows = [{"id": r.id, "verdict": "accept"} for r in ROWS[:2]]
    with pytest.raises(InputError, match="row 1: the reviewer is"):
        put_verdicts(run, rows)
    with pytest.raises(InputError, match="row 2: the reviewer is 'ben', not 'ada'"):
        put_verdicts(run, [rows[0], {**rows[1], "reviewer": "ben"}], reviewer="ada")
    with pytest.raises(InputError, match="the list holds no verdicts"):
        put_verdicts(run, [])
    assert put_verdicts(run, rows, reviewer="ada").stored == 2


def test_a_verdict_is_of_the_answer_that_was_shown_though_the_run_says_another_by_now(run: Path) -> None:
    first = take_batch(run, 1, reviewer="ada").rows[0]
    other = next(name for name in LABELS if name != first.outputs["label"])
    relabelled = [replace(r, outputs={"label": other}) if r.id == first.id else r for r in ROWS]
    write_records(relabelled, run / KEPT)
    put_verdicts(run, [{"id": first.id, "reviewer": "ada", "verdict": "accept"}])
    after = next(r for r in apply_reviews(relabelled, read_reviews(run)) if r.id == first.id)
    assert after.outputs == first.outputs, "what was accepted is right, whatever stands there now"
    write_records([r for r in ROWS if r.id != first.id], run / KEPT)
    put_verdicts(run, [{"id": first.id, "reviewer": "ada", "verdict": "reject"}])
    assert review_status(run).gone == 1


def test_answers_of_several_kinds_are_held_to_the_kinds_and_labels_of_the_task(tmp_path: Path) -> None:
    folder, labels = tmp_path / "run", tmp_path / "labels.jsonl"
    write_lines(
        labels,
        [{"text": f"t{i}", "mood": ("glad", "sad")[i % 2], "stars": i + 0.5, "tags": [f"t{i}"]} for i in range(12)],
    )
    config = RunConfig(out=str(folder), labels=str(labels), output=("mood", "stars", "tags"))
    outputs = {"mood": "glad", "stars": 2, "tags": ["x"]}
    write_records([Record({"text": "new"}, outputs, Provenance("self_instruct"))], folder / KEPT)
    write_config(config, folder / "run.toml")
    Ledger(folder / "ledger.sqlite").close()
    line = {"id": take_batch(folder, 1, reviewer="ada").rows[0].id, "reviewer": "ada", "verdict": "correct"}
    for bad, why in (
        ({"mood": "happy"}, "valid: glad, sad"),
        ({"stars": "three"}, "'stars' holds text"),
        ({"stars": True}, "holds true or false"),
        ({"tags": {"a": 1}}, "holds an object"),
        ({"tags": " "}, "'tags' is blank"),
    ):
        with pytest.raises(InputError, match=why):
            put_verdicts(folder, [{**line, "outputs": bad}])
    put_verdicts(folder, [{**line, "outputs": {"mood": "sad", "stars": 2.0}}])
    assert read_reviews(folder)[0].outputs == {**outputs, "mood": "sad"}


# -- what follows --------------------------------------------------------------------------------------------


def test_an_accepted_row_is_of_level_3_and_surer_and_keeps_its_origin() -> None:
    before = row(1, "pear", 0.6)
    after = apply_reviews([before], [said(before, "ada", "accept")])[0]
    assert (after.id, after.outputs, after.kept) == (before.id, before.outputs, True)
    assert after.provenance == replace(before.provenance, level=VERIFIED)
    assert after.soft is not None
    assert sum(after.soft.values()) == pytest.approx(1)
    assert after.soft["pear"] == pytest.approx(0.6 * 0.95 / (0.6 * 0.95 + 0.4 * 0.05))
    assert after.weight == 1.0
    assert (after.scores["reviewers"], after.scores["review"]) == (1.0, 1.0)
    twice = apply_reviews([before], [said(before, who, "accept") for who in ("ada", "ben")])[0]
    assert (twice.soft or {})["pear"] > after.soft["pear"]
    impossible = replace(before, soft={"fig": 1.0, "pear": 0.0, "plum": 0.0})
    assert apply_reviews([impossible], [said(before, "ada", "accept")])[0].soft is None
    assert apply_reviews([at_level(before, 2)], [said(before, "ada", "accept")])[0].provenance.level == 2


def test_rows_of_later_rounds_are_reviewed_too(run: Path) -> None:
    changed, new = replace(ROWS[0], outputs={"label": "plum"}), row(99)
    write_records([changed, new], run / Turn(2).file(KEPT))
    assert len(kept_records(run)) == len(ROWS), "a file of a round that the run no longer has"
    config = RunConfig(out=str(run), labels="rows.csv", output=("label",))
    write_config(config, run / "run.toml")
    (run / "run.toml").write_text((run / "run.toml").read_text().replace("rounds = 1\n", "") + "rounds = 2\n")
    found = {r.id: r for r in kept_records(run)}
    assert len(found) == len(ROWS) + 1
    assert found[changed.id].outputs == changed.outputs
    (run / "run.toml").write_text("rounds = ")
    with pytest.raises(InputError, match="cannot be read"):
        kept_records(run)


def test_a_corrected_row_has_nothing_of_the_wrong_answer() -> None:
    before = row(1, "pear", rationale="it is green", calls=({"predictor": "p", "inputs": {}, "outputs": {}},))
    after = apply_reviews([before], [said(before, "ada", "correct", "fig")])[0]
    assert after.id == before.id
    assert after.provenance.parents == before.provenance.parents
    assert (after.outputs, after.soft, after.soft_source) == ({"label": "fig"}, None, "")
    assert (after.rationale, after.calls, after.provenance.level) == ("", (), VERIFIED)
    explained = replace(said(before, "ada", "correct", "fig"), rationale="it has seeds")
    assert apply_reviews([before], [explained])[0].rationale == "it has seeds"


def test_a_rationale_alone_can_be_corrected(run: Path) -> None:
    write_records([row(1, rationale="so")], run / KEPT)
    line = {"id": row(1).id, "reviewer": "ada", "verdict": "correct", "outputs": dict(row(1).outputs)}
    assert json.loads(take_batch(run, 1, reviewer="ada").lines())["rationale"] == "so"
    with pytest.raises(InputError, match="corrects nothing"):
        put_verdicts(run, [{**line, "rationale": " so "}])
    put_verdicts(run, [{**line, "rationale": "because"}])
    after = apply_reviews([row(1, rationale="so")], read_reviews(run))[0]
    assert (after.rationale, after.outputs) == ("because", row(1).outputs)


@pytest.mark.parametrize(
    ("votes", "kept", "reason", "label"),
    [
        (["reject"], False, "reviewed", "pear"),
        (["accept", "accept", "reject"], True, "", "pear"),
        (["correct:fig", "correct:fig", "accept"], True, "", "fig"),
        (["accept", "correct:pear"], True, "", "pear"),
        (["accept", "reject"], False, "review_tie", "pear"),
        (["correct:fig", "correct:plum", "accept"], False, "review_tie", "pear"),
        (["accept", "accept", "reject", "correct:fig"], False, "review_tie", "pear"),
    ],
)
def test_more_than_half_decide(votes: list[str], kept: bool, reason: str, label: str) -> None:
    before = row(1, "pear")
    reviews = [said(before, f"r{i}", *vote.split(":")) for i, vote in enumerate(votes)]
    after = apply_reviews([before, row(2)], reviews)
    assert (after[0].kept, after[0].reason, after[0].outputs["label"]) == (kept, reason, label)
    assert after[1] == row(2)


def test_a_row_without_a_majority_goes_to_another_reviewer_first(run: Path) -> None:
    target = ROWS[39]  # the least uncertain one
    put_verdicts(run, [{"id": target.id, "reviewer": "ada", "verdict": "accept"}])
    put_verdicts(run, [{"id": target.id, "reviewer": "ben", "verdict": "reject"}])
    assert target.id not in {one.id for one in take_batch(run, 4, reviewer="ada", random_share=0).rows}
    third = take_batch(run, 1, reviewer="eve", random_share=0, overlap_share=0).rows[0]
    assert (third.id, third.part) == (target.id, "shared")
    put_verdicts(run, [{"id": target.id, "reviewer": "eve", "verdict": "accept"}])
    assert not decide(read_reviews(run))[target.id].tied


def test_a_row_that_was_rejected_before_stays_as_it_is() -> None:
    gone = row(1).reject("duplicate")
    assert apply_reviews([gone], [said(row(1), "ada", "accept")]) == [gone]


_STEPS = st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sampled_from(["accept", "reject", "correct"]))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(_STEPS, st.sampled_from(LABELS[1:])), min_size=1, max_size=14))
def test_the_last_verdict_of_a_reviewer_on_a_row_wins(tmp_path: Path, steps: list[Any]) -> None:
    (tmp_path / "ledger.sqlite").unlink(missing_ok=True)
    rows = [row(i, "fig") for i in range(4)]
    write_records(rows, tmp_path / KEPT)
    Ledger(tmp_path / "ledger.sqlite").close()
    expected: dict[tuple[str, str], tuple[str, str]] = {}
    lines: list[dict[str, Any]] = []
    for (number, who, verdict), label in steps:
        line = {"id": rows[number].id, "reviewer": who, "verdict": verdict}
        lines.append({**line, "outputs": {"label": label}} if verdict == "correct" else line)
        right = {"accept": "fig", "reject": "", "correct": label}[verdict]
        expected[rows[number].id, who] = (verdict, right)
    for part in filter(None, (lines[: len(lines) // 2], lines[len(lines) // 2 :])):
        put_verdicts(tmp_path, part)
    found = {
        (record, who): (review.verdict, review.outputs.get("label", ""))
        for record, each in latest(read_reviews(tmp_path)).items()
        for who, review in each.items()
    }
    assert found == expected
    for record, decision in decide(read_reviews(tmp_path)).items():
        answers = [right for (one, _), (_, right) in expected.items() if one == record]
        best = max(answers.count(answer) for answer in answers)
        assert decision.tied == (2 * best <= len(answers))
        if not decision.tied:
            assert answers.count(str((decision.outputs or {}).get("label", ""))) == best


# -- agreement -----------------------------------------------------------------------------------------------


def only(found: tuple[Coefficient, ...], over: str) -> Coefficient:
    return next(one for one in found if one.over == over)


def test_cohens_kappa_is_what_the_textbook_and_a_library_say() -> None:
    pairs = [("accept", "accept")] * 20 + [("accept", "reject")] * 5
    pairs += [("reject", "accept")] * 10 + [("reject", "reject")] * 15
    rows = [row(i) for i in range(50)]
    reviews = [
        said(r, who, verdict)
        for r, pair in zip(rows, pairs, strict=True)
        for who, verdict in zip("ab", pair, strict=True)
    ]
    kappa = only(agreement(rows, reviews).coefficients, "verdicts")
    assert kappa.name == "cohen_kappa"
    assert kappa.value == pytest.approx(0.4)
    assert kappa.value == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))
    assert kappa.low is not None
    assert kappa.high is not None
    assert kappa.low < 0.4 < kappa.high
    # The large-sample standard error of this table is 0.127.
    assert kappa.high - kappa.low == pytest.approx(2 * 1.96 * 0.127, rel=0.1)
    assert kappa.same == pytest.approx(0.7)
    assert agreement(rows, reviews, seed=1).coefficients != agreement(rows, reviews, seed=2).coefficients
    assert agreement(rows, reviews, seed=1) == agreement(rows, reviews, seed=1)


def test_krippendorffs_alpha_is_what_his_own_example_says() -> None:
    """The nominal data of "Computing Krippendorff's Alpha-Reliability" (2011), section C: alpha is 0.743."""
    table = ["123321412...", "1233224125.3", ".33323422513"[:11] + ".", "12332441251."]
    table[2] = ".3332342251."
    rows = [row(i) for i in range(12)]
    reviews = [
        Review(rows[i].id, f"r{n}", "accept", {"y": c}, {"y": c})
        for n, line in enumerate(table)
        for i, c in enumerate(line)
        if c != "."
    ]
    alpha = only(agreement(rows, reviews).coefficients, "answers")
    assert (alpha.name, alpha.rows) == ("krippendorff_alpha", 11)
    assert alpha.value == pytest.approx(0.743, abs=0.001)
    assert alpha.low is not None
    assert alpha.low < 0.743 < (alpha.high or 0) <= 1


def test_agreement_without_a_doubt_is_not_certain_and_one_answer_alone_says_nothing() -> None:
    rows = [row(i, LABELS[i % 3]) for i in range(9)]
    both = [said(r, who, "accept") for r in rows for who in "ab"]
    found = agreement(rows, both).coefficients
    assert only(found, "verdicts").value is None
    answers = only(found, "answers")
    assert (answers.value, answers.high) == (1.0, 1.0)
    assert answers.low == pytest.approx(1 - (1 - 0.025 ** (1 / 9)) / (2 / 3))
    assert agreement(rows, both[::2]).coefficients == ()


def test_the_labels_precision_comes_from_the_random_part_alone() -> None:
    rows = [row(i, "plum", 0.8) for i in range(20)]
    reviews = [said(r, "ada", "accept") for r in rows[:8]] + [said(r, "ada", "correct", "fig") for r in rows[8:12]]
    reviews += [said(r, "ada", "reject") for r in rows[12:]]
    drawn = [r.id for r in rows[4:12]]
    found = agreement(rows, reviews, random_part=[*drawn, "gone"])
    assert found.precision is not None
    assert (found.precision.value, found.precision.rows) == (0.5, 8)
    assert 0 < found.precision.low < 0.5 < found.precision.high < 1
    assert found.claimed == pytest.approx(0.8)
    assert found.reviewers == {"ada": {"accept": 8, "correct": 4, "reject": 8}}
    split = [*reviews, said(rows[8], "ben", "accept")]
    undecided = agreement(rows, split, random_part=drawn)
    assert undecided.tied == 1
    assert undecided.precision is not None
    assert undecided.precision.value == 4.5 / 8
    nothing = agreement(rows, [], random_part=drawn)
    assert (nothing.precision, nothing.claimed, nothing.open_random, nothing.judged) == (None, None, 8, 0)
    json.dumps(asdict(found), allow_nan=False)


# -- the ledger ----------------------------------------------------------------------------------------------


def test_a_ledger_of_before_gets_the_tables_and_still_serves_as_ledger_and_sibling(run: Path) -> None:
    assert (read_reviews(run), read_takes(run)) == ([], [])
    with Ledger(run / "ledger.sqlite") as live:  # a run that is at work
        put_verdicts(run, [GOOD])
        live.put_call("later", CALL)
        assert live.totals().calls == 2
    with sqlite3.connect(run / "ledger.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    db.close()
    with Ledger(run.parent / "other.sqlite", siblings=[run / "ledger.sqlite"]) as other:
        assert other.get_call("paid") == CALL
        assert other.events() == []
    assert [r.reviewer for r in read_reviews(run)] == ["ada"]


def test_what_fails_on_the_way_stores_nothing(run: Path) -> None:
    def half_way() -> None:
        with open_reviews(run, write=True) as store:
            store.add_reviews([said(ROWS[0], "ada", "accept")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_way()
    assert read_reviews(run) == []


def test_a_folder_that_cannot_be_reviewed_says_why(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match=r"no data/kept\.parquet"):
        take_batch(tmp_path, 3, reviewer="ada")
    with pytest.raises(InputError, match="not a run folder"):
        read_reviews(tmp_path)
    with sqlite3.connect(run / "ledger.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InputError, match="schema 99"):
        take_batch(run, 3, reviewer="ada")
    (tmp_path / "ledger.sqlite").write_bytes(b"no database" * 99)
    with pytest.raises(LimbeckError, match="cannot use the reviews"):
        read_reviews(tmp_path)


# -- the whole way -------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Run `limbeck review ...` in this process; return its exit status."""
    monkeypatch.setattr("sys.argv", ["limbeck", "review", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_from_a_batch_to_rows_to_learn_from(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(ROWS[:30], run / curation.BLIND)
    assert curation.KEPT == KEPT
    assert command(monkeypatch, "take", run, "--reviewer", "ada", "-n", 12, "--random-share", 0.5) == 0
    shown = capsys.readouterr()
    assert "12 rows for ada: 6 random, 6 uncertain" in shown.err
    lines = [json.loads(line) for line in shown.out.splitlines()]
    for i, line in enumerate(lines):
        other = next(name for name in LABELS if name != line["outputs"]["label"])
        line |= [{"verdict": "accept"}, {"verdict": "reject"}, {"verdict": "correct", "outputs": {"label": other}}][
            i % 3
        ]
    path = write_lines(tmp_path / "ada.jsonl", lines[:-1])
    assert command(monkeypatch, "put", run, path) == 0
    assert "11 verdicts stored" in capsys.readouterr().err
    assert command(monkeypatch, "take", run, "--reviewer", "ada", "--again") == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [lines[-1]["id"]]
    assert command(monkeypatch, "status", run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decided"] == {"accepted": 4, "corrected": 3, "reviewed": 4}
    assert found["levels"] == {"3": 7, "4": 29}
    assert found["waiting"] == {"ada": 1}
    assert command(monkeypatch, "status", run) == 0
    assert "share of right labels: " in capsys.readouterr().out

    rows = [{"text": f"{label} number {i}", "label": label} for label in LABELS for i in range(6)]
    task = task_from_labels(rows, output="label")
    split = make_split(task, n_folds=2)
    gold = [
        Record(dict(e.inputs()), dict(e.labels()), Provenance("gold", seed=i, level=MANUAL, block=split.folds[i]))
        for i, e in enumerate(split.gold)
    ]

    def learned(level: str) -> tuple[curation.Learnable, list[dict[str, Any]], list[str]]:
        config = RunConfig(out=str(run), labels="rows.csv", output=("label",), level=level)
        with open_run(config, Silent()) as folder:
            context = Context(folder, task, split, cast(Any, None), cast(Any, None), {})
            return curation.learnable(context, gold), folder.stage_log, folder.warnings

    every, log, warnings = learned("")
    by_id = {r.id: r for r in every.kept}
    assert (len(every.gold), len(every.kept), warnings) == (len(gold), 36, [])
    for line in lines[:-1]:
        if line["verdict"] == "reject":
            assert line["id"] not in by_id
        else:
            assert answer_key(by_id[line["id"]].outputs) == answer_key(line["outputs"])
            assert by_id[line["id"]].provenance.level == VERIFIED
    for one in every.blind:
        assert one.outputs == by_id[one.id].outputs
    assert log[-1]["rejected"] == {"reviewed": 4}
    assert log[-1]["review"]["decided"] == found["decided"]

    verified, log, _ = learned("1-3")
    assert len(verified.kept) == 7
    assert log[-1]["rejected"] == {"reviewed": 4, "level": 29}
    assert log[-1]["levels"] == {1: len(gold), 3: 7}
    machine, log, _ = learned("4")
    assert (machine.gold, len(machine.kept)) == ([], 29)
    assert log[-1]["rejected"] == {"level": len(gold) + 7, "reviewed": 4}
    none, _, warnings = learned("1,5")
    assert not none.enough(2)
    assert "limbeck review take" in warnings[0]


def test_nothing_is_logged_where_nothing_was_reviewed_and_all_levels_are_allowed(run: Path) -> None:
    write_records(ROWS, run / curation.BLIND)
    with open_run(RunConfig(out=str(run), labels="rows.csv", output=("label",)), Silent()) as folder:
        task = task_from_labels([{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(8)], output="label")
        context = Context(folder, task, make_split(task), cast(Any, None), cast(Any, None), {})
        rows = curation.learnable(context, [])
        assert rows.kept == rows.blind == ROWS
        assert folder.stage_log == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("take", "RUN", "--reviewer", " "), "the reviewer is"),
        (("take", "RUN", "--reviewer", "ada", "--by", "luck"), "no measure 'luck'"),
        (("take", "RUN", "--reviewer", "ada", "--out", "nosuch/b.jsonl"), "cannot write nosuch/b.jsonl"),
        (("put", "RUN", "nosuch.jsonl"), "there is no file nosuch.jsonl"),
        (("status", "nosuch"), "no rows have been curated"),
    ],
)
def test_a_command_that_cannot_be_done_says_so_in_one_message(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert command(monkeypatch, *(run if word == "RUN" else word for word in words)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert read_takes(run) == []
