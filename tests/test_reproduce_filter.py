"""The reproduction of filtering: what the corpus holds, what the filter keeps of it, and students of every part."""

from __future__ import annotations

from collections import Counter

from limbeck.reproduce import filter as filtering
from limbeck.reproduce.setting import Setting
from limbeck.sums import make_sums

GRADES = {filtering.RIGHT: 5, filtering.BARE: 3, filtering.SKIPPED: 3, filtering.SLIP: 1}


def test_a_row_is_graded_by_its_own_steps() -> None:
    corpus = filtering.corpus_of(make_sums(200, operations=2, largest=50), seed=0)
    assert all(row.grade == GRADES[row.kind] for row in corpus)
    counts = Counter(row.kind for row in corpus)
    assert set(counts) == set(filtering.KINDS)
    # About half: five standard deviations of a draw of 200 around 90.
    assert 55 < counts[filtering.RIGHT] < 125
    assert corpus == filtering.corpus_of(make_sums(200, operations=2, largest=50), seed=0)


def test_the_filter_keeps_more_good_rows_than_the_corpus_has_and_few_bare_answers() -> None:
    corpus = filtering.corpus_of(make_sums(240, operations=2, largest=50), seed=0)
    found = filtering.filter_of(corpus, 90, seed=0)
    kept = [row for row, keep in zip(corpus, found.keeps([row.text for row in corpus]), strict=True) if keep]
    base, precision = (sum(row.kind == filtering.RIGHT for row in rows) / len(rows) for rows in (corpus, kept))
    assert precision > base + 0.1
    bare = sum(row.kind == filtering.BARE for row in corpus)
    assert sum(row.kind == filtering.BARE for row in kept) < bare / 4


def test_students_of_every_part_answer_the_same_sums(setting: Setting) -> None:
    outcome = filtering.run(setting, filtering.Sizes(rows=6, corpus=60, graded=40, tested=5))
    names = [filtering.UNFILTERED, filtering.FILTERED, filtering.PERFECT, filtering.ALL]
    assert [arm.name for arm in outcome.arms] == names
    assert all(len(arm.scores) == 5 for arm in outcome.arms)
    assert outcome.settings["rows"] == 6
    assert "learned from: " in outcome.notes[1]
