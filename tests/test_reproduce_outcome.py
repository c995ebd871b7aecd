"""Verdicts of reproductions, and their forms in text, JSON and Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck.reproduce.outcome import Arm, Claim, Outcome, judge, page, read_outcome, told
from limbeck.reproduce.setting import Setting

CLAIM = Claim("treated", "plain", "the treatment helps by 20 points", effect=0.2)


def arms(treated: list[float], plain: list[float]) -> tuple[Arm, Arm]:
    return Arm("treated", tuple(treated)), Arm("plain", tuple(plain))


def test_a_clear_difference_is_reproduced_and_its_contrary_is_not() -> None:
    good, bad = [1.0] * 60 + [0.0] * 40, [0.0] * 100
    assert judge(CLAIM, *arms(good, bad), chance=0.0).verdict == "reproduced"
    assert judge(CLAIM, *arms(bad, good), chance=0.0).verdict == "not reproduced"


def test_few_rows_are_too_small_to_tell_and_say_from_which_effect_they_would_show_it() -> None:
    found = judge(CLAIM, *arms([1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]), chance=0.1)
    assert found.verdict == "too small to tell"
    assert found.detectable > CLAIM.effect
    assert found.ci95[0] < 0 < found.ci95[1]


def test_rows_that_would_have_shown_the_papers_effect_do_not_excuse_its_absence() -> None:
    same = [1.0, 0.0] * 300
    other = [0.0, 1.0, *same[2:]]
    found = judge(CLAIM, *arms(same, other), chance=0.1)
    assert found.detectable < CLAIM.effect
    assert found.verdict == "not reproduced"


def test_a_start_at_chance_is_no_excuse() -> None:
    found = judge(CLAIM, *arms([1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1]), chance=0.5)
    assert found.verdict == "not reproduced"


def outcome() -> Outcome:
    treated, plain = arms([1.0] * 30, [0.0] * 30)
    compared = (judge(CLAIM, treated, plain, chance=0.0),)
    return Outcome("trial", "A paper, 2020", "accuracy", (treated, plain), compared, {"seed": 3}, ("a note",), 61.0)


def test_an_outcome_survives_its_file(tmp_path: Path) -> None:
    path = outcome().save(tmp_path / "new")
    assert read_outcome(path) == outcome()
    assert not list(path.parent.glob("*.part"))


def test_a_file_that_is_no_outcome_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_text('{"name": 1}', encoding="utf-8")
    with pytest.raises(InputError, match="is no outcome"):
        read_outcome(path)


def test_the_text_puts_the_claim_beside_what_was_measured() -> None:
    text = told(outcome())
    assert "claim:    the treatment helps by 20 points" in text
    assert "treated - plain +1.000" in text
    assert "verdict:  reproduced" in text
    assert "seed 3" in text


def test_the_page_has_one_line_a_claim_and_every_arm() -> None:
    text = page([outcome(), outcome()])
    assert text.count("| trial | the treatment helps by 20 points |") == 2
    assert text.count("| plain | 0.000 [0.000, ") == 2


def test_an_outcome_has_its_paper_and_settings_and_arms_of_different_problems_are_refused(tmp_path: Path) -> None:
    setting = Setting(tmp_path, seed=4)
    done = setting.conclude("dpo", [CLAIM], arms([1.0] * 9, [0.0] * 9), unit="accuracy", settings={"beta": 0.1})
    assert "arXiv:2305.18290" in done.source
    assert dict(done.settings) == {"size": "full", "model": "embedded", "seed": 4, "beta": 0.1}
    assert done.verdict == "reproduced"
    with pytest.raises(InputError, match="treated: 2, plain: 1"):
        setting.conclude("dpo", [CLAIM], arms([1.0, 0.0], [1.0]), unit="accuracy", settings={})
