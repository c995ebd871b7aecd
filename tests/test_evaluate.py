"""Systems measured on the same rows: failures, latency, prices, pairs and the verdict."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest

from limbeck.comparison import calibration
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, CallFailed, InputError, ModelError
from limbeck.evaluate import SystemResult, compare, run_system, score_predictions
from limbeck.ledger import Ledger
from limbeck.models import LM, Budget, CompactAdapter


class Scripted:
    """A backend that answers by a function of the last message and counts who asks at once."""

    supports_score = False
    supports_prefix = False
    score_source = ""
    thinking_tokens = 0
    usd_per_token: tuple[float, float] | None = (1e-6, 2e-6)

    def __init__(self, answer: Callable[[str], str], fingerprint: str = "scripted") -> None:
        self.name, self.fingerprint, self._answer = "scripted", fingerprint, answer
        self._lock = threading.Lock()
        self.asked, self.at_once = 0, 0
        self.most: list[int] = []

    def generate(self, request: GenerateRequest) -> Generation:
        with self._lock:
            self.asked += 1
            self.at_once += 1
            self.most.append(self.at_once)
        try:
            return Generation(self._answer(request.messages[-1][1]), 10, 2, "stop", 0)
        finally:
            with self._lock:
                self.at_once -= 1

    def score(self, request: ScoreRequest) -> Scores:
        raise AssertionError("never asked: supports_score is False")


class Sort(dspy.Signature):
    """Say whether the number is even or odd."""

    number: str = dspy.InputField()
    label: Literal["even", "odd"] = dspy.OutputField()


def rows(count: int) -> list[dspy.Example]:
    made = [dspy.Example(number=f"<{i}>", label=("even", "odd")[i % 2]) for i in range(count)]
    return [example.with_inputs("number") for example in made]


def right(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return float(example.label == prediction.label)


def number_in(text: str) -> int:
    return int(text.split("<")[1].split(">")[0])


def chat(label: str) -> str:
    return f"[[ ## label ## ]]\n{label}\n\n[[ ## completed ## ]]"


def knows(text: str) -> str:
    return chat(("even", "odd")[number_in(text) % 2])


def measured(backend: Any, examples: list[dspy.Example], **options: Any) -> SystemResult:
    lm = LM("scripted", backend, **{k: options.pop(k) for k in ("ledger", "budget", "retries") if k in options})
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    return run_system(
        "student", dspy.Predict(Sort), lm, examples, options.pop("metric", right), adapter=adapter, **options
    )


def test_every_row_is_scored_in_the_order_of_the_rows():
    result = measured(Scripted(lambda text: chat("even")), rows(30))
    assert result.scores == (1.0, 0.0) * 15
    assert [p["label"] for p in result.predictions] == ["even"] * 30
    assert result.failures == 0


def test_tokens_and_prices_are_those_of_the_calls():
    result = measured(Scripted(knows), rows(20))
    assert (result.tokens_in, result.tokens_out) == (200, 40)
    assert result.usd_per_1k == pytest.approx(1000 * (10 * 1e-6 + 2 * 2e-6))


def test_an_unknown_price_is_not_zero():
    backend = Scripted(knows)
    backend.usd_per_token = None
    assert measured(backend, rows(3)).usd_per_1k is None


def test_what_the_ledger_knows_is_not_asked_again_and_counts_the_same(tmp_path: Path):
    backend = Scripted(knows)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = measured(backend, rows(25), ledger=ledger)
        asked = backend.asked
        second = measured(backend, rows(25), ledger=ledger)
    assert asked == backend.asked == 25
    assert second == first


def test_the_first_rows_run_alone_and_the_others_together():
    gate = threading.Barrier(4, timeout=20)

    def answer(text: str) -> str:
        if number_in(text) >= 5:
            gate.wait()  # opens only where four rows are asked at once
        return knows(text)

    backend = Scripted(answer)
    measured(backend, rows(13), threads=4, latency_rows=5)
    assert backend.most[:5] == [1] * 5
    assert max(backend.most) == 4


def test_the_latency_is_the_median_of_the_rows_that_ran_alone():
    ticks = iter(range(1000))  # seconds: the LM looks twice a call, so that every call takes one
    lm = LM("scripted", Scripted(knows), clock=lambda: float(next(ticks)))
    options: dict[str, Any] = {"adapter": dspy.ChatAdapter(), "threads": 1}
    assert run_system("s", dspy.Predict(Sort), lm, rows(3), right, **options).p50_ms == 1000.0
    assert run_system("s", dspy.Predict(Sort), lm, rows(3), right, latency_rows=0, **options).p50_ms == 0.0
    ticks = itertools.accumulate(itertools.chain([0, 60], itertools.repeat(1)))  # the first call takes a minute
    assert run_system("s", dspy.Predict(Sort), lm, rows(3), right, **options).p50_ms == 1000.0


def test_one_unreadable_answer_scores_zero_and_is_counted():
    result = measured(Scripted(lambda text: "?" if number_in(text) == 3 else knows(text)), rows(12))
    assert result.failures == 1
    assert result.scores[3] == 0.0
    assert sum(result.scores) == 11
    assert "AdapterParseError" in result.errors[3]
    assert result.tokens_in == 120  # the unreadable answer was paid for too


def test_a_model_that_never_answers_readably_scores_zero():
    assert measured(Scripted(lambda text: "?"), rows(4)).score == 0.0


def test_a_program_that_always_breaks_is_an_error_and_no_score():
    def broken(example: Any, prediction: Any, trace: Any = None) -> float:
        raise TypeError("no such thing")

    with pytest.raises(ModelError, match=r"every row of student failed.*no such thing"):
        measured(Scripted(knows), rows(12), metric=broken)


def test_a_metric_that_explains_itself_is_read():
    def explains(example: Any, prediction: Any, trace: Any = None) -> Any:
        return dspy.Prediction(score=0.5, feedback="half")

    assert measured(Scripted(knows), rows(3), metric=explains).scores == (0.5,) * 3


def test_a_failing_server_is_not_a_bad_model():
    def answer(text: str) -> str:
        if number_in(text) > 6:
            raise CallFailed("the server is gone")
        return knows(text)

    with pytest.raises(ModelError, match="5 of 12 rows of student got no answer"):
        measured(Scripted(answer), rows(12))


def test_a_spent_budget_stops_the_measurement_and_drops_what_waits(tmp_path: Path):
    backend = Scripted(knows)
    with Ledger(tmp_path / "ledger.sqlite") as ledger, pytest.raises(BudgetExceeded):
        measured(backend, rows(400), ledger=ledger, budget=Budget(max_tokens=3_000), threads=4)
    assert 0 < backend.asked < 400


def test_ctrl_c_passes_through():
    def interrupted(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(Scripted(knows), rows(40), progress=interrupted)


def test_progress_counts_every_row():
    seen: list[tuple[int, int]] = []
    measured(Scripted(knows), rows(14), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 14) for i in range(14)]


def test_the_program_that_was_given_is_left_alone():
    program = dspy.Predict(Sort)
    run_system("student", program, LM("scripted", Scripted(knows)), rows(2), right, adapter=dspy.ChatAdapter())
    assert program.lm is None
    assert program.history == []


class Scoring(Scripted):
    """A backend that is 90% sure of "even" whatever it is asked."""

    supports_score = supports_prefix = True
    score_source = "exact"

    def score(self, request: ScoreRequest) -> Scores:
        return Scores(tuple(math.log(0.9 if c == "even" else 0.1) for c in request.candidates), 10, 0)


class Rewrites(dspy.Module):
    """A module that builds its own prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict(Sort)

    def forward(self, number: str) -> dspy.Prediction:
        return dspy.Prediction(label=self.sort(number=number).label)


@pytest.mark.parametrize("program", [dspy.Predict(Sort), Rewrites()])
def test_probabilities_come_with_their_source(program: dspy.Module):
    lm = LM("scripted", Scoring(knows))
    result = run_system("student", program, lm, rows(4), right, adapter=CompactAdapter())
    assert result.scores == (1.0, 0.0, 1.0, 0.0)
    assert result.probability_source == "exact"
    assert result.probabilities[1] == {"label": {"even": pytest.approx(0.9), "odd": pytest.approx(0.1)}}
    assert result.tokens_in == 40
    assert calibration(result) == pytest.approx(0.4)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no test rows"):
        measured(Scripted(knows), [])


# -- comparing -----------------------------------------------------------------------------------------------


def system(name: str, correct: int, of: int = 200, *, shift: int = 0, **more: Any) -> SystemResult:
    scores = tuple(float((i + shift) % of < correct) for i in range(of))
    return SystemResult(name, scores, ({},) * of, (None,) * of, errors=("",) * of, **more)


def report(*systems: SystemResult, **options: Any) -> dict[str, Any]:
    return compare({s.name: s for s in systems}, task="t", metric="accuracy", seed=0, **options)


def test_the_report_has_the_contracts_fields():
    made = report(system("teacher_compiled", 150), system("student_base", 80), system("student", 160))
    assert {"task", "metric", "n_test", "seed", "systems", "paired", "verdict"} <= set(made)
    assert set(made["systems"]) == {"teacher_compiled", "student_base", "student"}
    wanted = {"score", "ci95", "usd_per_1k", "p50_ms", "tokens_in", "tokens_out", "failures"}
    assert all(wanted <= set(entry) for entry in made["systems"].values())
    pair = next(p for p in made["paired"] if p["b"] == "student_base")
    assert pair["a"] == "student"
    assert pair["difference"] == pytest.approx(0.4)
    assert pair["ci95"][0] < 0.4 < pair["ci95"][1]
    assert pair["p"] < 1e-6
    assert json.loads(json.dumps(made)) == made


def test_gold_only_and_the_teacher_are_paired_with_their_own_base():
    made = report(*(system(n, 100) for n in ("teacher", "teacher_compiled", "student_base", "student_gold_only")))
    assert [(p["a"], p["b"]) for p in made["paired"]] == [
        ("student_gold_only", "student_base"),
        ("teacher_compiled", "teacher"),
    ]


def test_a_student_that_beats_everything_ships():
    verdict = report(system("teacher_compiled", 150), system("student_base", 80), system("student", 160))["verdict"]
    assert verdict["ship"] is True
    assert verdict["use"] == "student"
    assert "0.800 on 200 test rows" in verdict["reason"]
    assert "+40.0 points" in verdict["reason"]


def test_a_student_that_does_not_beat_its_base_does_not_ship():
    verdict = report(system("student_base", 155), system("student", 156))["verdict"]
    assert verdict["ship"] is False
    assert verdict["use"] == "student_base"
    assert "does not beat" in verdict["reason"]
    assert "these rows show differences from" in verdict["reason"]


def test_where_neither_student_works_the_verdict_names_what_does():
    verdict = report(system("teacher_compiled", 160), system("student_base", 2), system("student", 6))["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "teacher_compiled")
    assert "-77.0 points" in verdict["reason"]
    assert "does not beat beyond chance: +2.0 points" in verdict["reason"]


def test_a_simpler_system_that_is_clearly_better_is_named():
    verdict = report(system("student_base", 80), system("linear_probe", 190), system("student", 150))["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "linear_probe")
    assert "the linear probe" in verdict["reason"]


def test_the_verdict_says_when_an_encoder_is_enough_and_what_a_row_takes():
    base = system("student_base", 80)
    students = system("student", 160, p50_ms=48.4), system("student_gold_only", 100)
    as_good, better, worse = (system("encoder_probe", n, p50_ms=2.6) for n in (158, 190, 100))
    told = "3 ms a row by logistic regression on sentence embeddings, 48 ms by the distilled student"
    verdict = report(base, *students, as_good)["verdict"]
    assert verdict["ship"] is True
    assert verdict["reason"].endswith(f"An encoder may be enough: {told}.")
    verdict = report(base, *students, better)["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "encoder_probe")
    assert verdict["reason"].endswith(f"An encoder is enough: {told}.")
    assert "ncoder" not in report(base, *students, worse)["verdict"]["reason"]
    # A student that is an encoder itself takes as long.
    alike = report(base, system("student", 160, p50_ms=3.0), students[1], as_good)["verdict"]
    assert alike["ship"] is True
    assert "An encoder" not in alike["reason"]


def test_a_teacher_within_the_tolerance_does_not_stop_the_student():
    systems = [system("student_base", 800, 2000), system("student", 1600, 2000)]
    close, far = system("teacher_compiled", 1610, 2000), system("teacher_compiled", 1900, 2000)
    assert report(*systems, close)["verdict"]["ship"] is True
    verdict = report(*systems, far)["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "teacher_compiled")
    assert "unless its lower cost" in verdict["reason"]


def test_what_was_chosen_out_of_fold_is_what_is_used():
    systems = [system("student_base", 80), system("student_gold_only", 150), system("student", 170)]
    verdict = report(*systems, chosen="student_gold_only", chosen_because="which is ahead out of fold")["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "student_gold_only")
    assert "which is ahead out of fold" in verdict["reason"]


def test_a_gold_only_student_can_be_the_one_that_is_judged():
    verdict = report(system("student_base", 80), system("student_gold_only", 170), candidate="student_gold_only")
    assert verdict["verdict"]["ship"] is True
    assert verdict["verdict"]["reason"].startswith("Ship the student trained on the labels alone")


def test_without_a_distilled_student_nothing_ships():
    verdict = report(system("student_base", 80), system("teacher", 150))["verdict"]
    assert (verdict["ship"], verdict["use"]) == (False, "")
    assert "was not measured" in verdict["reason"]


def test_systems_with_other_rows_are_refused():
    with pytest.raises(InputError, match="same test rows"):
        report(system("student", 10, 20), system("student_base", 10, 21))


def test_a_failure_is_shown_with_an_example():
    broken = SystemResult("student", (1.0, 0.0), ({}, {}), (None, None), errors=("", "AdapterParseError: ?"))
    entry = report(broken)["systems"]["student"]
    assert (entry["failures"], entry["failure_example"]) == (1, "AdapterParseError: ?")


def test_calibration_is_that_of_the_one_closed_field():
    sure = SystemResult(
        "student",
        (1.0, 0.0),
        ({"label": "a"}, {"label": "a"}),
        ({"label": {"a": 0.9, "b": 0.1}}, {"label": {"a": 0.9, "b": 0.1}}),
        "exact",
    )
    assert calibration(sure) == pytest.approx(0.4)
    entry = report(sure)["systems"]["student"]
    assert (entry["ece"], entry["probability_source"]) == (pytest.approx(0.4), "exact")


def test_calibration_is_absent_where_it_means_nothing():
    two_fields = SystemResult("s", (1.0,), ({},), ({"a": {"x": 1.0}, "b": {"y": 1.0}},))
    graded = SystemResult("s", (0.5,), ({},), ({"a": {"x": 1.0}},))
    assert calibration(two_fields) is calibration(graded) is calibration(system("s", 3)) is None


def test_a_result_survives_json():
    made = measured(Scripted(knows), rows(3))
    assert SystemResult.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_probes_predictions_are_scored_by_the_same_metric():
    predictions = [{"label": "even"}] * 4
    probabilities = [{"label": {"even": 0.6, "odd": 0.4}}] * 4
    result = score_predictions(
        "linear_probe", predictions, rows(4), right, probabilities=probabilities, source="exact", p50_ms=3.0
    )
    assert result.scores == (1.0, 0.0, 1.0, 0.0)
    assert calibration(result) == pytest.approx(0.1)
    with pytest.raises(InputError, match="3 predictions for 4"):
        score_predictions("linear_probe", predictions[:3], rows(4), right)
