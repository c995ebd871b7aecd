"""The report of rounds: as JSON, as lines, as a drawing."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from limbeck.finetune.round_report import Round, RoundReport
from limbeck.stats import Estimate

ROUNDS = (
    Round(0, Estimate(0.25, 0.125, 0.5)),
    Round(1, Estimate(0.5, 0.25, 0.625), 0.25, 0.0625, 3.5, 40, {"won": 0.375}),
    Round(2, Estimate(0.375, 0.25, 0.5), -0.125, 0.0625, 1.25, 44),
)
REPORT = RoundReport(ROUNDS, 1, "collapse of score", "round 2: <worse>")
SVG = "{http://www.w3.org/2000/svg}"


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


def test_the_drawing_shows_scores_and_intervals_to_scale() -> None:
    root: Any = ElementTree.fromstring(REPORT.svg())
    points = [tuple(map(float, p.split(","))) for p in root.find(f"{SVG}polyline").get("points").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    (_, a), (_, b), (_, c) = points
    assert a - b == pytest.approx(2 * (a - c), abs=0.2)  # upwards is better: 0.25, 0.5, 0.375
    bars = [(float(line.get("y1")) - float(line.get("y2"))) for line in root.findall(f"{SVG}line")]
    assert bars[0] == pytest.approx(bars[1], abs=0.2)
    assert bars[0] == pytest.approx(1.5 * bars[2], abs=0.2)
    fills = [circle.get("fill") for circle in root.findall(f"{SVG}circle")]
    assert fills[0] == fills[2] != fills[1]
    width, height = map(float, root.get("viewBox").split()[2:])
    assert all(0 < x < width and 0 < y < height for x, y in points)


def test_one_round_without_a_spread_is_drawn_too() -> None:
    one = RoundReport((Round(0, Estimate(0.5, 0.5, 0.5)),), 0, "nothing to learn", "round 1 gathered no row")
    assert len(ElementTree.fromstring(one.svg()).findall(f"{SVG}circle")) == 1
