"""Evol-Instruct for code: shapes accepted and refused, solutions against tests in the real sandbox, what is read."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, scripted

from limbeck.compile.evolve import EvolveConfig
from limbeck.compile.evolve_code import EvolCode, EvolveCodeConfig, shape_of
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import Materials, Synthesized, load_method
from limbeck.engine.requests import GenerateRequest
from limbeck.errors import BudgetExceeded, InputError, StageEmpty
from limbeck.models import CompactAdapter
from limbeck.programs.evolve_code import functions_of, read_function, read_tests
from limbeck.records import CHECKED, Provenance, Record
from limbeck.sandbox import Isolation, Level, Limits
from limbeck.signatures.evolve_code import CODE_OPERATIONS

ROWS = [
    ("Write a function to double a number.", "def double(n):\n    return 2 * n", "double(2) == 4"),
    ("Write a function to add two numbers.", "import math\ndef add(a, b=1):\n    return a + b", "add(2, 3) == 5"),
]
DOUBLE = "def double(n):\n    return 2 * n + 1"
TESTS = "assert double(1) == 3\nassert double(2) == 5\nassert double(-2) == -3"


def gold(form: Callable[[str], Any] | None = lambda test: [f"assert {test}"] * 3) -> tuple[Record, ...]:
    """Rows with tests in the given form, None for no tests."""
    return tuple(
        Record(
            {"prompt": prompt} | ({"test_list": form(test)} if form else {}),
            {"code": code},
            Provenance("gold", seed=i, level=1),
        )
        for i, (prompt, code, test) in enumerate(ROWS)
    )


def source(rows: Sequence[Record]) -> Source:
    kinds = {name: list[str] if isinstance(value, list) else str for name, value in rows[0].inputs.items()}
    return Source(kinds, "Write the Python function.", tuple(rows))


def asked(request: GenerateRequest) -> str:
    system = request.messages[0][1]
    starts = {"Make a pro": "evolve", "Compare tw": "compare", "Solve the ": "solve", "Write test": "test"}
    return starts[system[:10]]


def field(request: GenerateRequest, name: str) -> str:
    return re.findall(rf"^{name}: (.*)$", request.messages[-1][1], re.M)[-1]


def scripts(solve: str | Sequence[str] = DOUBLE, test: str = TESTS, **more: str) -> Callable[[GenerateRequest], str]:
    """A model that adds a requirement, and answers with these solutions in turn and these tests."""
    left = [solve] if isinstance(solve, str) else list(solve)

    def answer(request: GenerateRequest) -> str:
        if asked(request) == "evolve":
            problem, function = field(request, "problem"), field(request, "function")
            problem = f"{problem} Then add one to it in step {request.seed}."
            return more.get("evolve", f"[[ ## new_problem ## ]]\n{problem}\n\n[[ ## new_function ## ]]\n{function}")
        if asked(request) == "solve":
            return left[0] if len(left) == 1 else left.pop(0)
        return test if asked(request) == "test" else more.get("compare", "one more")

    return answer


def run(
    answer: Callable[[GenerateRequest], str],
    rows: Sequence[Record] | None = None,
    *,
    wanted: int = 1,
    samples: int = 1,
    rounds: int = 1,
    starts: int = 1,
    **config: Any,
) -> tuple[Synthesized, Scripted]:
    rows = rows or gold()
    lm, backend = scripted(answer)
    labeler = Labeler({-1: dspy.Predict("prompt -> code")}, lm, CompactAdapter(), ("code",))
    # One thread: solutions come in turn.
    materials = Materials(source(rows), lm, CompactAdapter(), labeler, samples=samples, threads=1)
    method = EvolCode(
        EvolveCodeConfig(
            evolve=EvolveConfig(rounds=rounds, max_added=60, max_calls=wanted),
            limits=Limits(seconds=20.0, cpu_seconds=1),
            allow_weak=True,
            **config,
        )
    )
    return method(rows[:starts], materials, wanted), backend


def test_a_harder_problem_is_kept_with_its_solution_and_the_tests_it_passes() -> None:
    done, backend = run(scripts())
    (record,) = done.records
    assert record.kept
    assert record.inputs["prompt"].startswith(ROWS[0][0] + " Then add one to it")
    assert record.inputs["test_list"] == TESTS.splitlines()
    assert record.outputs == {"code": DOUBLE}
    assert record.scores == {"tests_passed": 1.0, "solutions_agree": 1.0}
    operation = record.provenance.attributes.removeprefix("round 1: ")
    assert field(backend.requests[0], "how") == CODE_OPERATIONS[operation]
    assert (record.provenance.method, record.provenance.level) == ("evol_code", CHECKED)
    assert Counter(map(asked, backend.requests)) == {"evolve": 1, "compare": 1, "solve": 1, "test": 1}


def test_tests_are_written_without_a_look_at_the_solution() -> None:
    _, backend = run(scripts(), samples=2)
    tests = [request for request in backend.requests if asked(request) == "test"]
    assert tests
    for request in tests:
        assert "2 * n + 1" not in str(request.messages)
        assert field(request, "function") == "def double(n):"
    assert not any("assert double" in str(r.messages[-1]) for r in backend.requests if asked(r) == "solve")


def test_the_next_round_starts_from_the_problem_that_was_kept() -> None:
    done, _ = run(scripts(), wanted=2, rounds=2)
    first, second = done.records
    assert second.provenance.parents == (first.id,)
    assert second.inputs["prompt"].count("Then add one") == 2
    assert done.log["evol_code"]["rounds"] == {"1": {"kept": 1}, "2": {"kept": 1}}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (scripts(solve="I cannot do that."), "no_solution"),
        (scripts(solve="def triple(n): return 3 * n"), "no_solution"),
        (scripts(test="It should work."), "no_tests"),
        (scripts(test="assert double(1) == 3\nassert other(2) == 5"), "no_tests"),
        (scripts(test="assert double(1) is None\nassert double(2) or True\nassert double(1) == 3"), "weak_tests"),
        (scripts(test="assert double(1) == 3\nassert double(-1) == -1\nassert double(-1.0) == -1"), "weak_tests"),
        (scripts(test="assert double(1) == 3\nassert double(1) + 0 == 3\nassert double(a := 1) == 3"), "weak_tests"),
        (scripts(test="assert double(1) == 9\nassert double(2) == 9\nassert double(3) == 7"), "disagree"),
        (
            scripts(test="assert double(1) == 3\nassert double(2) == 5\nassert double(3) == 8\nassert double(4) == 8"),
            "disagree",
        ),
        (scripts(solve="def double(n):\n    while n: pass", test=TESTS[:43]), "disagree"),
        (scripts(solve="import os\ndef double(n):\n    os._exit(0)"), "disagree"),
        (scripts(compare="nothing"), "no_gain"),
        (scripts(evolve="[[ ## new_problem ## ]]\nA rewritten prompt\n\n[[ ## new_function ## ]]\nx"), "leaked"),
        (scripts(evolve=f"[[ ## new_problem ## ]]\n{ROWS[1][0]}\n\n[[ ## new_function ## ]]\nx"), "duplicate"),
    ],
)
def test_every_rule_names_what_it_rejects(answer: Callable[[GenerateRequest], str], reason: str) -> None:
    with pytest.raises(StageEmpty, match=f"1 {reason}"):
        run(answer)


def test_tests_that_the_solution_fails_are_dropped_while_half_agree() -> None:
    done, _ = run(scripts(test=f"{TESTS}\nassert double(9) == 18"))
    (record,) = done.records
    assert record.inputs["test_list"] == TESTS.splitlines()
    assert record.scores["tests_passed"] == 0.75


def test_the_largest_group_of_solutions_that_passes_most_wins() -> None:
    wrong, half = "def double(n):\n    return 0", "def double(n):\n    return 3 if n == 1 else 5"
    other = "def double(n):\n    return n + n + 1"
    done, backend = run(scripts(solve=[wrong, half, f"```python\n{other}\n```", DOUBLE]), samples=4)
    (record,) = done.records
    assert record.outputs == {"code": other}
    assert record.scores == {"tests_passed": 1.0, "solutions_agree": 0.5}
    temperatures = [request.temperature for request in backend.requests if asked(request) == "solve"]
    assert temperatures[0] == 0
    assert min(temperatures[1:]) > 0


def test_tests_come_in_the_form_of_the_gold_rows() -> None:
    lines = gold(lambda test: f"assert {test}\nassert {test}")
    (record,) = run(scripts(), lines)[0].records
    assert record.inputs["test_list"] == "\n".join(TESTS.splitlines()[:2])
    (record,) = run(scripts(), gold(None))[0].records
    assert set(record.inputs) == {"prompt"}
    assert record.kept


def test_new_parameters_are_taken_and_another_name_is_not() -> None:
    def answer(line: str) -> Callable[[GenerateRequest], str]:
        return scripts(
            solve="def double(n, k):\n    return 2 * n + k",
            test="assert double(1, 2) == 4\nassert double(2, 1) == 5",
            evolve=f"[[ ## new_problem ## ]]\nDouble n and add k to it, please.\n\n[[ ## new_function ## ]]\n{line}",
        )

    for line, told in (("def double(n, k):", "def double(n, k):"), ("def twice(n, k):", "def double(n):")):
        done, backend = run(answer(line))
        assert {field(r, "function") for r in backend.requests if asked(r) in ("solve", "test")} == {told}
        assert done.records[0].kept


def test_the_same_seed_gives_the_same_records() -> None:
    one, two = (run(scripts(), wanted=4, rounds=2, starts=2)[0] for _ in range(2))
    assert one == two


def test_failed_calls_are_counted_and_a_spent_budget_passes_through() -> None:
    def fails(request: GenerateRequest) -> str:
        if asked(request) == "test":
            raise ValueError("no")
        return scripts()(request)

    with pytest.raises(StageEmpty, match="1 no_tests"):
        run(fails)

    def spent(request: GenerateRequest) -> str:
        raise BudgetExceeded("spent")

    with pytest.raises(BudgetExceeded):
        run(spent)


def test_rows_of_mbpp_have_their_shape_and_other_tasks_are_refused() -> None:
    method = load_method("evol_code")
    assert method.name == "evol_code"
    with_setup = [Record({**r.inputs, "test_setup": ""}, r.outputs, r.provenance) for r in gold()]
    assert tuple(shape_of(source(with_setup))) == ("prompt", "test_list", "code")
    assert tuple(shape_of(source(gold(None)))) == ("prompt", "", "code")
    fenced = [Record(r.inputs, {"code": f"```python\n{r.outputs['code']}\n```"}, r.provenance) for r in gold()]
    assert shape_of(source(fenced)).code == "code"
    refused = [
        [Record(r.inputs, {"code": "a text"}, r.provenance) for r in gold()],
        [Record(r.inputs, {**r.outputs, "why": "so"}, r.provenance) for r in gold()],
        [Record({**r.inputs, "hint": "use a loop"}, r.outputs, r.provenance) for r in gold()],
        [Record({"tests": ["assert f(1)"]}, r.outputs, r.provenance) for r in gold()],
    ]
    for rows in refused:
        with pytest.raises(InputError, match="programming problems"):
            method.check(source(rows), {})


def test_rows_without_a_function_are_no_start() -> None:
    plain = Record({"prompt": "Write it.", "test_list": []}, {"code": "x = 1"}, Provenance("self_instruct"))
    lm, _ = scripted(scripts())
    labeler = Labeler({-1: dspy.Predict("prompt -> code")}, lm, CompactAdapter(), ("code",))
    with pytest.raises(StageEmpty, match="no row to begin with"):
        EvolCode()([plain], Materials(source(gold()), lm, CompactAdapter(), labeler), 2)


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        ("1. assert f(1) == 2\nassert f(2) == 3, 'why'", ["assert f(2) == 3, 'why'"]),
        ("assert f([1,\n  2]) == 3", ["assert f([1, 2]) == 3"]),
        ("assert f(1) == 2\nassert f( 1 )==2  # again", ["assert f(1) == 2"]),
        ("assert max(f(x) for x in (1, 2)) == 3", ["assert max((f((x)) for x in (1, 2))) == 3"]),
        ("assert g(1) == 2\nprint(f(1))", []),
        ("def f(x): return x\nassert f('\\d') == 1", ["assert f('\\\\d') == 1"]),
        ("\0", []),
    ],
)
def test_asserts_are_read_from_what_models_write(text: str, tests: list[str]) -> None:
    assert read_tests(text, "f") == [ast.unparse(ast.parse(test)) for test in tests]


@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert read_tests(text, "f") == []
    assert read_function(text, "def f(a):") == "def f(a):"
    assert set(functions_of(text)) <= set(re.findall(r"\w+", text))


@given(st.lists(st.from_regex(r"[a-z]{1,4}_", fullmatch=True), unique=True, max_size=4))
def test_a_first_line_is_read_back(names: list[str]) -> None:
    line = f"def f({', '.join(names)}):"
    assert read_function(f"Here: `{line}`", "def f():") == line
    assert functions_of(f"{line}\n    pass") == {"f": line}
    assert read_function(line, "def other(a):") == "def other(a):"


# -- consent ---------------------------------------------------------------------------------------------------

WEAK = Isolation(Level.LIMITS, filtered=True, why=("landlock: needs Linux 6.2 with Landlock",))
STRONG = Isolation(Level.LANDLOCK, filtered=True)


def reach(monkeypatch: pytest.MonkeyPatch, level: Isolation) -> None:
    monkeypatch.setattr("limbeck.sandbox.levels.isolation", lambda: level)


def test_code_is_not_run_in_a_weak_sandbox_without_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, WEAK)
    with pytest.raises(InputError, match=r"limits only: .*Landlock[\s\S]*--allow-code"):
        EvolCode().check(source(gold()), {})
    EvolCode().check(source(gold()), {"allow_code": True})
    reach(monkeypatch, STRONG)
    EvolCode().check(source(gold()), {})
    reach(monkeypatch, Isolation(Level.NONE, filtered=False))
    with pytest.raises(InputError, match="cannot run model-written code"):
        EvolCode().check(source(gold()), {"allow_code": True})


def test_leave_to_run_code_reaches_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, WEAK)
    lm, backend = scripted(scripts())
    labeler = Labeler({-1: dspy.Predict("prompt -> code")}, lm, CompactAdapter(), ("code",))
    materials = Materials(source(gold()), lm, CompactAdapter(), labeler, samples=1, threads=1)
    method = EvolCode(EvolveCodeConfig(evolve=EvolveConfig(rounds=1, max_calls=1), limits=Limits(seconds=20.0)))
    with pytest.raises(InputError, match="--allow-code"):
        method(gold()[:1], materials, 1)
    asked = len(backend.requests)
    done = method(gold()[:1], replace(materials, options={"allow_code": True}), 1)
    assert done.records[0].kept
    assert len(backend.requests) == 2 * asked
