"""Every reproduction from end to end on a tiny random model: arms on the same problems, a verdict, a figure."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from limbeck.errors import InputError, StageEmpty
from limbeck.reproduce import coa, dpo, environment, on_policy, prm, self_improvement, weak_to_strong
from limbeck.reproduce.catalog import CATALOG, find
from limbeck.reproduce.figure import draw
from limbeck.reproduce.outcome import Outcome, told
from limbeck.reproduce.setting import Setting
from limbeck.reproduce.solver import row_of
from limbeck.sums import Sum, make_sums

TEXTS = {"sport": "the late goal won the match", "food": "bread and soup with cheese", "sky": "rain and wind at night"}


def check_outcome(outcome: Outcome, arms: Sequence[str], tested: int, folder: Path) -> None:
    assert [arm.name for arm in outcome.arms] == list(arms)
    assert all(len(arm.scores) == tested for arm in outcome.arms)
    assert all(0 <= score <= 1 for arm in outcome.arms for score in arm.scores)
    assert outcome.verdict in told(outcome)
    json.loads(outcome.save(folder).read_text(encoding="utf-8"))
    assert draw(outcome, folder / "figure.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_process_and_outcome_models_choose_among_the_same_solutions(setting: Setting) -> None:
    outcome = prm.run(setting, prm.Sizes(worked=8, graded=4, tested=6, n=3, operations=2))
    names = (prm.VOTE, prm.PROCESS, "process model, least step", "vote weighted by the process model", prm.OUTCOME)
    check_outcome(outcome, (*names, "one solution", "a right one is among them"), 6, setting.folder)


def test_dpo_without_a_pair_says_so(setting: Setting) -> None:
    with pytest.raises(StageEmpty, match="no pair of a right and a wrong answer"):
        dpo.run(setting, dpo.Sizes(worked=6, paired=3, tested=4, n=2, operations=2))


def test_pairs_put_a_right_answer_before_a_wrong_one_and_use_none_twice() -> None:
    one = Sum(3, (("+", 4),))
    right, wrong = ("3 + 4 = 7", "The answer is 7."), ("3 + 4 = 8", "The answer is 8.")
    drawn = [right, wrong, right, ("The answer is 7.",), (), ("The answer is 1.",)]
    pairs = dpo.pairs_of(one, drawn, 5, random.Random(0))
    assert len(pairs) == 2
    assert all(
        "answer is 7" in chosen and "answer is 7" not in rejected
        for (chosen, _), (rejected, _) in (pair.completions for pair in pairs)
    )
    assert len({text for pair in pairs for text, _ in pair.completions}) == 4


def test_three_ways_of_answering_are_compared(setting: Setting) -> None:
    outcome = coa.run(setting, coa.Sizes(worked=6, tested=5, operations=2))
    check_outcome(outcome, (coa.DIRECT, coa.STEPS, coa.CHAIN), 5, setting.folder)


def test_every_chain_of_a_sum_is_filled_to_its_answer() -> None:
    assert all(coa.filled(one, coa.chain_of(one)) == 1.0 for one in make_sums(50, seed=3))
    assert coa.filled(make_sums(1)[0], ("no chain",)) == 0.0


def test_weak_labels_with_and_without_confidence(setting: Setting, tmp_path: Path) -> None:
    rows = [{"text": f"{text} {n}", "label": label} for n in range(14) for label, text in TEXTS.items()]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = Setting(setting.folder, setting.model, data=str(file), output="label", tell=lambda text: None)
    outcome = weak_to_strong.run(given, weak_to_strong.Sizes(half=12, tested=10, epochs=1.0))
    names = (weak_to_strong.WEAK, weak_to_strong.PLAIN, weak_to_strong.CONFIDENT, weak_to_strong.CEILING)
    check_outcome(outcome, names, 10, setting.folder)
    assert all("PGR" in note or "no gap" in note for note in outcome.notes)


def test_texts_that_are_not_there_or_too_few_are_named(setting: Setting, tmp_path: Path) -> None:
    missing = Setting(setting.folder, setting.model, data=str(tmp_path / "none.jsonl"), tell=lambda text: None)
    with pytest.raises(InputError, match=r"none\.jsonl"):
        weak_to_strong.read_texts(missing)
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 2, encoding="utf-8")
    with pytest.raises(InputError):
        weak_to_strong.read_texts(Setting(setting.folder, setting.model, data=str(few), tell=lambda text: None))


def test_on_policy_and_offline_students_start_alike(setting: Setting) -> None:
    outcome = on_policy.run(setting, on_policy.Sizes(taught=8, seen=4, asked=4, steps=2, tested=5, operations=2))
    names = (on_policy.TEACHER, on_policy.START, on_policy.OFFLINE, on_policy.ON_POLICY)
    check_outcome(outcome, names, 5, setting.folder)


def test_rounds_without_a_right_answer_end_with_the_start(setting: Setting) -> None:
    sizes = self_improvement.Sizes(worked=4, asked=4, held_out=3, tested=5, rounds=2, n=2, operations=2)
    outcome = self_improvement.run(setting, sizes)
    check_outcome(outcome, (self_improvement.START, self_improvement.BEST), 5, setting.folder)
    assert outcome.arms[0].scores == outcome.arms[1].scores
    assert "gathered no row" in outcome.notes[0]


def test_games_are_played_in_rounds_and_drawn_as_a_curve(setting: Setting) -> None:
    sizes = environment.Sizes(episodes=16, held_out=5, tested=8, rounds=1, attempts=4)
    outcome = environment.run(setting, sizes)
    check_outcome(outcome, (environment.START, environment.BEST), 8, setting.folder)
    assert [point[0] for point in outcome.curves["held-out games"]] == [0, 1]


def test_a_row_puts_the_better_solution_first() -> None:
    assert row_of("p", ("a", "b"), ("c",)).completions == (("a\nb", 1.0), ("c", 0.0))


def test_every_name_of_the_catalog_has_an_experiment_and_others_are_refused() -> None:
    assert all(callable(entry.run) for entry in CATALOG)
    with pytest.raises(InputError, match="no reproduction 'gpt'") as caught:
        find("gpt")
    assert "weak-to-strong" in caught.value.valid
