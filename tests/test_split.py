"""The split: an exact partition, stratified, the same for the same seed, and honest about thin classes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.compile.split import Split, make_split
from limbeck.errors import InputError
from limbeck.task import Task, task_from_labels


def make_task(counts: dict[str, int], n_test: int = 0) -> Task:
    rows = [{"text": f"{label} number {i}", "label": label} for label, n in counts.items() for i in range(n)]
    labels = list(counts)
    test = [{"text": f"test row {i}", "label": labels[i % len(labels)]} for i in range(n_test)]
    return task_from_labels(rows, output="label", test=test or None, kind="classification")


def open_task(n: int) -> Task:
    rows = [{"question": f"what is {i} plus {i}?", "answer": f"{i + i}.5"} for i in range(n)]
    return task_from_labels(rows, output="answer")


def texts(rows: Any) -> list[str]:
    return [row["text"] for row in rows]


def labels(rows: Any) -> Counter[str]:
    return Counter(row["label"] for row in rows)


def names(split: Split) -> set[str]:
    return {note.split(":")[0] for note in split.notes}


counts_strategy = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 12), min_size=2, max_size=8)


@settings(max_examples=60)
@given(counts_strategy.filter(lambda c: max(c.values()) > 1), st.integers(0, 99), st.sampled_from([0, 5]))
def test_every_row_is_used_exactly_once(counts: dict[str, int], seed: int, n_test: int):
    task = make_task(counts, n_test)
    split = make_split(task, seed=seed)
    ours = texts(split.gold) + ([] if n_test else texts(split.test))
    assert sorted(ours) == sorted(texts(task.examples))
    assert len(split.folds) == len(split.gold)
    assert set(labels(split.train)) == set(counts), "every class can be learned from"
    if split.n_folds:
        assert set(split.folds) == set(range(split.n_folds))
        sizes = Counter(split.folds).values()
        assert max(sizes) - min(sizes) <= 1
    for fold in range(split.n_folds):
        both = split.held_out(fold) + split.fitted_on(fold)
        assert sorted(both) == list(range(len(split.gold)))


def test_the_same_seed_cuts_the_same_way():
    task = make_task({"a": 20, "b": 10})
    assert make_split(task, seed=3) == make_split(task, seed=3)
    assert texts(make_split(task, seed=3).test) != texts(make_split(task, seed=4).test)


def test_shares_follow_the_classes():
    split = make_split(make_task({"a": 40, "b": 20}))
    assert labels(split.test) == {"a": 12, "b": 6}
    assert labels(split.dev) == {"a": 9, "b": 5}
    assert labels(split.train) == {"a": 19, "b": 9}
    assert names(split) == {"test-cut", "few-test-rows"}


def test_thin_classes_keep_two_rows_for_learning():
    split = make_split(make_task({"a": 20, "b": 2, "c": 3}))
    assert labels(split.gold)["b"] == 2
    assert labels(split.gold)["c"] >= 2


def test_where_every_class_has_two_rows_one_goes_to_the_test():
    split = make_split(make_task({"a": 2, "b": 2, "c": 2}))
    assert sorted(labels(split.gold).values()) == [1, 1, 2]
    assert len(split.test) == 2
    assert split.n_folds == 0, "two of three classes have one row left"


def test_a_given_test_set_is_used_whole():
    task = make_task({"a": 6, "b": 6}, n_test=120)
    split = make_split(task)
    assert split.test == task.test
    assert len(split.gold) == 12
    assert split.notes == ()


def test_a_large_test_set_can_be_sampled():
    task = make_task({"a": 6, "b": 6}, n_test=120)
    split = make_split(task, seed=1, max_test=100)
    assert len(set(texts(split.test))) == 100
    assert names(split) == {"test-sample"}
    assert len(make_split(make_task({"a": 20, "b": 20}), max_test=4).test) == 4


def test_one_row_a_class_means_no_folds():
    split = make_split(make_task(dict.fromkeys("abcdef", 1), n_test=6))
    assert (len(split.train), len(split.dev), split.n_folds) == (6, 0, 0)
    assert split.folds == (0,) * 6
    assert "no-folds" in names(split)


def test_one_row_a_class_and_no_test_is_an_error():
    with pytest.raises(InputError, match="no row of 6 can be spared") as caught:
        make_split(make_task(dict.fromkeys("abcdef", 1)))
    assert "--test" in caught.value.hint


def test_a_few_classes_with_one_row_keep_the_folds():
    split = make_split(make_task({"a": 9, "b": 9, "c": 1}, n_test=6))
    assert split.n_folds == 3
    assert "thin-folds" in names(split)


def test_two_rows_of_a_class_are_never_held_out_together():
    split = make_split(make_task({"a": 2, "b": 2, "c": 9}, n_test=6))
    for label in "ab":
        folds = [f for f, row in zip(split.folds, split.gold, strict=True) if task_label(row) == label]
        assert len(set(folds)) == 2


def task_label(row: Any) -> str:
    return row["label"]


def test_open_outputs_are_cut_by_chance():
    split = make_split(open_task(30))
    assert (len(split.train), len(split.dev), len(split.test)) == (14, 7, 9)
    assert Counter(split.folds) == {0: 7, 1: 7, 2: 7}


def test_few_rows_get_fewer_folds():
    split = make_split(open_task(7))
    assert len(split.gold) == 5
    assert split.n_folds == 2
    assert "folds" in names(split)
    assert make_split(open_task(4)).n_folds == 0


def _sentences(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in pairs]


LABELLED = _sentences(
    ("please play some quiet jazz in the kitchen tonight", "music"),
    ("turn the volume of the radio down a little bit", "music"),
    ("what will the weather be like in Leeds tomorrow", "weather"),
    ("is it going to rain on the coast this weekend", "weather"),
)


def test_a_test_row_that_copies_a_labelled_row_is_left_out() -> None:
    test = _sentences(
        ("Please, play some quiet jazz in the kitchen tonight!", "music"),
        ("please play some quiet jazz in the kitchen tonite", "weather"),
        ("how warm does it get in York at noon", "weather"),
    )
    split = make_split(task_from_labels(LABELLED, output="label", test=test))
    assert [row.text for row in split.test] == [test[1]["text"], test[2]["text"]]
    assert any(note.startswith("test-copies: left out 1 of 3") for note in split.notes)


def test_nothing_but_copies_is_tested_on_and_said() -> None:
    test = [{**row, "text": row["text"] + "!"} for row in LABELLED]
    split = make_split(task_from_labels(LABELLED, output="label", test=test))
    assert len(split.test) == 4
    assert any("flatter" in note for note in split.notes)


def test_a_cut_leaves_copies_with_the_labels() -> None:
    words = ("jazz", "rain", "bridge", "candle", "garden", "silver", "window", "market", "violin", "harbour")
    rows = [
        {"text": f"{word} {other} is what the {label} people asked for", "label": label}
        for label, other in (("music", "loudly"), ("weather", "quietly"))
        for word in words
    ]
    rows += [{**row, "text": row["text"] + "!"} for row in rows[:6]]
    moved = 0
    for seed in range(8):
        split = make_split(task_from_labels(rows, output="label"), seed=seed)
        assert len(split.test) + len(split.gold) == len(rows)
        told = {row.text.rstrip("!") for row in split.gold}
        assert all(row.text.rstrip("!") not in told for row in split.test)
        moved += any(note.startswith("test-copies") for note in split.notes)
    assert moved


def test_a_template_filled_anew_is_no_copy() -> None:
    def row(number: int) -> dict[str, str]:
        said = f"Dear team, customer {number} wrote that the parcel has not come and wants an answer before Monday"
        return {"text": said, "label": ("late", "lost")[number % 2]}

    split = make_split(
        task_from_labels([row(n) for n in range(100, 112)], output="label", test=[row(n) for n in range(200, 220)])
    )
    assert len(split.test) == 20


def test_folds_do_not_depend_on_how_many_rows_are_tested() -> None:
    task = make_task({"a": 9, "b": 11}, 40)
    whole, some = (make_split(task, seed=3, max_test=most) for most in (None, 12))
    assert (texts(whole.gold), whole.folds) == (texts(some.gold), some.folds)
    assert len(some.test) == 12
