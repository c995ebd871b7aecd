"""The report of rounds: as JSON and as lines."""

from __future__ import annotations

import json

from limbeck.finetune.round_report import Round, RoundReport
from limbeck.stats import Estimate

ROUNDS = (
    Round(0, Estimate(0.25, 0.125, 0.5)),
    Round(1, Estimate(0.5, 0.25, 0.625), 0.25, 0.0625, 3.5, 40, {"won": 0.375}),
    Round(2, Estimate(0.375, 0.25, 0.5), -0.125, 0.0625, 1.25, 44),
)
REPORT = RoundReport(ROUNDS, 1, "collapse of score", "round 2: <worse>")


def test_the_values_survive_json() -> None:
    found = json.loads(json.dumps(REPORT.report()))
    assert (found["best"], found["stop"], found["reason"]) == (1, "collapse of score", "round 2: <worse>")
    assert found["rounds"][1] == {
        **{"number": 1, "score": 0.5, "ci95": [0.25, 0.625], "gain": 0.25, "error": 0.0625},
        **{"diversity": 3.5, "rows": 40, "counts": {"won": 0.375}},
    }


def test_every_round_has_a_line_and_the_kept_one_a_mark() -> None:
    lines = str(REPORT).splitlines()
    assert len(lines) == 5
    assert [("*" in line) for line in lines[1:4]] == [False, True, False]
    assert lines[2].split() == ["1", "*", "0.500", "[0.250,", "0.625]", "+0.250", "0.062", "3.500", "40"]
    assert lines[4] == "stopped: collapse of score (round 2: <worse>)"
