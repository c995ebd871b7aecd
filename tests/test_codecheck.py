"""Unit-test verifiers: right answers pass, wrong ones say which test they fail, and a verdict cannot be forged."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.codecheck import Checked, Suite, UnitTests, check_code, check_many, unfence
from limbeck.errors import InputError
from limbeck.sandbox import Limits
from limbeck.sandbox.guest.wire import as_error, as_exception, decode, encode
from limbeck.sandbox.guest.worker import assemble
from limbeck.verifiers import Verdict, Verifier, votes

# Rows of our own in the shape of the two benchmarks.
PROMPT = '''from typing import List


def half(n: int) -> int:
    """Half of a number."""
    return n // 2


def halves(numbers: List[int]) -> List[int]:
    """ Halve every number of a list.
    >>> halves([4, 6])
    [2, 3]
    """
'''
TEST = """

METADATA = {'author': 'limbeck'}


def check(candidate):
    assert candidate([]) == []
    assert candidate([4, 6]) == [half(4), 3]
    assert candidate(
        [9]
    ) == [4], "odd"
"""
BODY = "    return [half(n) for n in numbers]\n"
HALVES = Suite.humaneval(PROMPT, TEST, "halves")
SQUARE = Suite.mbpp(["assert square(3) == 9", "assert square(-2) == 4", "assert square(0.5) == 0.25"])
GOOD = "def square(x):\n    return x * x\n"


def check(answer: str, suite: Suite = SQUARE, **limits: Any) -> Checked:
    return check_code(answer, suite, limits=Limits(**limits), allow_weak=True)


def reason(answer: str, suite: Suite = SQUARE, **limits: Any) -> str:
    checked = check(answer, suite, **limits)
    assert not checked.ok
    return checked.reason


# Answers


def test_a_right_answer_passes_every_test():
    checked = check(GOOD)
    assert (checked.ok, checked.reason, checked.status, checked.passed, checked.total) == (True, "", "ok", 3, 3)
    assert 0 < checked.seconds < 10


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        textwrap.dedent(BODY),  # a body whose indent is lost
        BODY.lstrip(),
        PROMPT + BODY,
        "def halves(numbers):\n" + BODY,  # needs the given helper
        f"Here it is:\n\n```python\n{PROMPT}{BODY}```\nIt halves.",
        f"```\n{BODY}```",
        f"```python\n{BODY}",  # cut off
        "```python\nimport os\n```\nand\n```python\ndef halves(numbers):\n" + BODY + "```",
    ],
)
def test_an_answer_continues_the_given_head_or_replaces_it(answer: str):
    checked = check(answer, HALVES)
    assert (checked.reason, checked.ok, checked.total) == ("", True, 1)


def test_the_reason_names_the_first_test_that_fails():
    wrong = "def square(x): return 9"
    assert reason(wrong) == "test 2 of 3 failed: assert square(-2) == 4: the code returned 9"
    assert check(wrong).passed == 1
    assert reason("    return numbers", HALVES) == (
        "test 1 of 1 failed: assert candidate([4, 6]) == [half(4), 3]: the code returned [4, 6]"
    )
    assert "'odd'; the code returned [5]" in reason("    return [(n + 1) // 2 for n in numbers]", HALVES)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            "def square(x): return x / 0",
            "test 1 of 3 failed: assert square(3) == 9: ZeroDivisionError: division by zero",
        ),
        ("def square(x)", "the code failed: SyntaxError: expected ':' (solution, line 1)"),
        ("raise ValueError('no')", "the code failed: ValueError: no"),
        ("import numpy_of_nowhere", "the code failed: ModuleNotFoundError: No module named 'numpy_of_nowhere'"),
        ("def cube(x): return x", "test 1 of 3 failed: assert square(3) == 9: NameError: name 'square' is not defined"),
        ("def square(x): return None", "test 1 of 3 failed: assert square(3) == 9: the code returned None"),
        ("def square(x): return 'x' * 500", "the code returned '" + "x" * 76 + "..."),
        ("def square(x): return 1 << 100_000", "the code returned a value of type int that cannot be shown"),
        ("\ud800", "UnicodeEncodeError"),
        ("", "NameError"),
    ],
)
def test_a_reason_says_what_is_wrong(answer: str, why: str):
    assert why in reason(answer)


def test_a_missing_entry_point_is_said():
    assert reason("def other(): pass", Suite.humaneval("", TEST, "halves")) == "the code failed: it defines no halves"
    assert reason("halves = 3", Suite.humaneval("", TEST, "halves")) == "the code failed: it defines no halves"


# Code that does not end, or takes too much


def test_code_that_never_ends_is_a_timeout_and_survived():
    checked = check("def square(x):\n    while True: pass", seconds=1)
    assert checked.status == "timeout"
    assert checked.reason == "test 1 of 3 failed: no answer in 1 s"
    assert check("while True: pass", seconds=0.5).reason == "the code failed: no answer in 0.5 s"
    spent = check("def square(x):\n    while True: pass", cpu_seconds=1, seconds=60)
    assert spent.status == "timeout"
    assert spent.reason.endswith("the code used 1 s of processor time")


def test_tests_that_never_end_are_a_timeout_and_survived():
    checked = check(GOOD, Suite.mbpp(["assert square(1) == 1", "while True: pass"]), seconds=1)
    assert (checked.status, checked.passed) == ("timeout", 1)
    assert checked.reason == "test 2 of 2 failed: no answer in 1 s"


def test_memory_has_an_end():
    assert check("def square(x): return bytearray(10 ** 10)").status == "memory"
    assert check("def square(x):\n    x = []\n    while True: x.append(x * 9)", memory_mib=64, seconds=60).ok is False


def test_tests_that_print_without_end_are_ended():
    checked = check(GOOD, Suite.mbpp(["while True: print('x' * 1000)"]))
    assert checked.status == "output"
    assert checked.reason == "test 1 of 1 failed: the tests ended with output"


# Forgeries

EQUAL = "class A:\n    def __eq__(self, o): return True\n    __hash__ = None\n"
EQUAL_CLASS = "class B(type):\n    def __eq__(self, o): return True\n    __hash__ = None\n"
HOLDS_ALL = "class A:\n    def __contains__(self, x): return True\n    def __iter__(self): return iter([])\n"
FORGED = {
    "prints a marker": "print('passed'); print('{\"passed\": 3}')\ndef square(x): print('{\"passed\": 3}'); return 0",
    "exits at once": "import sys; sys.exit(0)",
    "ends the process at once": "import os; os._exit(0)",
    "exits in the test": "import sys\ndef square(x): sys.exit(0)",
    "ends the process in the test": "import os\ndef square(x): os._exit(0)",
    "equals everything": EQUAL + "def square(x): return A()",
    "is a number that equals everything": (
        "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef square(x): return A(7)"
    ),
    "redefines the builtins": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n"
        "def square(x): return 0"
    ),
    "ends when an assertion is made": (
        "import builtins, os\nclass E(Exception):\n    def __init__(self, *a): os._exit(0)\n"
        "builtins.AssertionError = E\ndef square(x): return 0"
    ),
    "patches the modules of its process": (
        "import sys, json\njson.dumps = lambda *a, **k: '{\"passed\": 3}'\n"
        "for m in list(sys.modules.values()):\n"
        "    for name in ('run_tests', 'find_names', 'say', '_why'):\n"
        "        if hasattr(m, name): setattr(m, name, lambda *a, **k: None)\n"
        "def square(x): return 0"
    ),
    "walks the stack for a secret": (
        "import sys, gc\ndef square(x):\n    f = sys._getframe()\n    while f:\n"
        "        for v in list(f.f_locals.values()) + list(f.f_globals.values()):\n"
        "            if isinstance(v, dict) and 'secret' in v: print(v['secret'] + '{\"passed\": 3}')\n"
        "        f = f.f_back\n"
        "    for v in gc.get_objects():\n"
        "        if isinstance(v, dict) and 'secret' in v: print(str(v['secret']) + '{\"passed\": 3}')\n    return 0"
    ),
    "writes to every open file": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'{\"passed\": 3}\\n')\n    except OSError: pass\n"
        "def square(x): return 0"
    ),
    "answers the tester before it asks": (
        'import os\nos.write(5, b\'{"names": {"square": ["far", 0], "__builtins__": ["dict", []]}}\\n\')\n'
        "os.write(5, b'{\"passed\": 3}\\n')\nos._exit(0)"
    ),
    "sends builtins of its own": (
        'import os\nos.write(5, b\'{"names": {"square": ["type", "int"], "__builtins__": ["dict", []], '
        '"AssertionError": null}}\\n\')\nwhile True: pass'
    ),
    "kills the tester": "import os\nfor p in (os.getppid(), os.getpid() - 1): os.kill(p, 9)\ndef square(x): return 0",
    "closes its pipes": "import os\nos.close(4); os.close(5)\nwhile True: pass",
    "ends a loop of cases": "def square(x): raise StopIteration",
    "passes as an iterator's end": "def square(x):\n    yield",
    "stops time": "import signal, time\nsignal.alarm(1)\ntime.sleep(5)\ndef square(x): return 0",
}


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
def test_a_verdict_is_not_forged(code: str):
    assert not check(code, seconds=5).ok


@pytest.mark.parametrize(
    ("test", "code"),
    [
        ("assert set(f(1)) == set([2])", "set = lambda x: 1\ndef f(x): return [x]"),
        ("assert all(map(lambda x: f(x) == x, [1, 2]))", "def f(x): raise StopIteration"),
        ("assert 3 in f(1)", HOLDS_ALL + "def f(x): return A()"),
        ("assert math.isclose(f(1), 5)", "class math:\n    isclose = lambda *a: True\ndef f(x): return x"),
        ("assert math.isclose(f(1), 5)", "import math\nmath.isclose = lambda *a: True\ndef f(x): return x"),
        ("assert f(1) == 2", EQUAL_CLASS + "def f(x): return B('C', (), {})"),
        ("try:\n    assert f(1) == 2\nexcept:\n    pass", "import os\ndef f(x): os._exit(0)"),
        ("assert len(f(1)) > 5", "def f(x):\n    raise SystemExit(0)"),
        ("from functools import reduce\nassert reduce(f, [1, 2, 3]) == 6", "import os\ndef f(a, b): os._exit(0)"),
    ],
)  # fmt: skip
def test_what_tests_are_made_of_is_python_s_own(test: str, code: str):
    assert not check(code, Suite.mbpp([test])).ok


def test_a_helper_of_the_given_head_cannot_be_replaced():
    test = "def check(candidate):\n    assert half(candidate([8])[0]) == 2\n"
    suite = Suite.humaneval(PROMPT, test, "halves")
    assert check("def half(n): return 2\ndef halves(numbers): return [0]", suite).ok is False
    assert check(BODY, suite).ok


# Values and objects


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x): x.sort()", ["l = [2, 1]; f(l); assert l == [1, 2]"]),
        ("def f(d): d['b'] = {2}", ["d = {'a': 1}; assert f(d) is None and d == {'a': 1, 'b': {2}}"]),
        ("def f(g, x): return g(g(x))", ["assert f(lambda x: x + 1, 1) == 3", "assert f(str, 1) == '1'"]),
        ("def f(g): return g", ["g = lambda: 1; assert f(g) is g"]),
        ("def f(g):\n    try: g()\n    except KeyError: return 1", ["def g(): raise KeyError\nassert f(g) == 1"]),
        ("def f(g): return g(h)\ndef h(x): return x + 1", ["assert f(lambda h: h(1)) == 2"]),
        ("def f(xs, t): return [x for x in xs if isinstance(x, t)]", ["assert f([1, 'a'], int) == [1]"]),
        ("def f(n):\n    yield from range(n)", ["assert list(f(3)) == [0, 1, 2]", "g = f(2); assert next(g) == 0"]),
        ("def f(x): return type(x)", ["assert f(1) is int"]),
        ("def f(x):\n    if x < 0: raise ValueError('negative')", [
            "try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'",
        ]),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
         "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]\n"
         "    def __str__(self): return 'S'", [
            "s = Stack(); s.push(1); s.push(x=2); assert len(s) == 2 and s[1] == 2 and s.items == [1, 2]",
            "s = Stack(); assert not s and str(s) == 'S' and s == s and s != Stack() and {s: 1}[s] == 1",
            "s = Stack(); s.items = [3]; assert list(s) == [3] and 3 in s",
        ]),
        ("import math\ndef f(x): return math.pi * x", ["assert math.isclose(f(1), 3.14159, rel_tol=1e-4)"]),
        ("def f(x): return x", ["assert f(float('inf')) > 1e300", "assert f(10 ** 5000) == 10 ** 5000"]),
        ("def f(x): return 3\nN = 3", ["assert f(1) == N"]),
        ("L = []\nL.append(L)\ndef f(x): return x", ["assert f(1) == 1"]),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
         "def f(): return P(1).x", ["assert f() == 1"]),
    ],
)  # fmt: skip
def test_honest_code_passes_whatever_it_works_with(code: str, tests: list[str]):
    assert check(code, Suite.mbpp(tests)).reason == ""


def test_setup_comes_between_the_code_and_the_tests():
    code = """
class Node:
    def __init__(self, v): self.v, self.left = v, None
def total(n): return n.v + (total(n.left) if n.left else 0)
"""
    suite = Suite.mbpp(["assert total(root) == 3"], setup="root = Node(1)\nroot.left = Node(2)")
    assert check(code, suite).ok
    assert reason(code, Suite.mbpp(["assert total(root) == 3"], setup="root = Leaf(1)")).startswith(
        "the code failed: root"
    )


NUMBERS = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
EXACT = st.decimals(allow_nan=False) | st.fractions() | st.dates() | st.datetimes() | st.timedeltas() | st.times()
SIMPLE = st.none() | st.booleans() | st.text() | st.binary() | NUMBERS | EXACT
PLAIN = st.recursive(
    SIMPLE | st.frozensets(st.integers()) | st.sets(st.text()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(PLAIN)
@example(1 << 70)
@example(range(3, 9, 2))
@example(bytearray(b"ab"))
@example([int, float])
def test_plain_values_come_back_as_they_went(value: Any):
    found = decode(encode(value, refer=lambda _: ["far", 0]), find=lambda _, number: number)
    assert found == value
    assert type(found) is type(value)


def test_errors_keep_their_class_where_it_is_python_s_own():
    def back(error: BaseException) -> Exception:
        return as_exception(*as_error(error)["error"])

    assert (type(back(KeyError("k"))), type(back(SystemExit(0)))) == (KeyError, RuntimeError)
    assert str(back(UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"))).startswith("UnicodeDecodeError: ")


# Parts of an answer


@pytest.mark.parametrize(
    ("text", "wanted", "code"),
    [
        ("x = 1", "", "x = 1"),
        ("```py\na\n```\n```\nlonger\n```", "", "longer"),
        ("```\ndef f(): pass\n```\n```\nprint(f(), 'a long example')\n```", "f", "def f(): pass"),
        ("````\n```\ninner\n```\n````", "", "```\ninner\n```"),
        ("~~~python\na\n~~~", "", "a"),
        ("```python\na = 1", "", "a = 1"),
        ("1. do\n   ```python\n   a\n   ```", "", "   a"),
    ],
)
def test_code_is_taken_out_of_markdown(text: str, wanted: str, code: str):
    assert unfence(text, wanted) == code


@given(st.text(alphabet="`~\n def:x ()", max_size=200))
def test_any_answer_gives_some_text_of_its_own(text: str):
    assert all(line in text for line in unfence(text, "x").split("\n"))


def test_an_answer_that_fits_no_way_is_left_for_the_compiler_to_name():
    assert assemble("def (", "def f():\n", "f") == "def f():\ndef ("
    assert assemble("def f(:", "import os\n", "f") == "def f(:"
    assert assemble("x", "", "") == "x"


# Verifiers


def test_the_verifier_reads_a_row_of_either_shape():
    humaneval: Verifier = UnitTests.humaneval(allow_weak=True)
    row = {"prompt": PROMPT, "test": TEST, "entry_point": "halves"}
    assert humaneval(row, {"completion": BODY}) == Verdict(True)
    assert not humaneval(row, {"completion": "    return None"}).ok
    mbpp: Verifier = UnitTests.mbpp(allow_weak=True)
    assert mbpp({"test_list": list(SQUARE.tests), "test_setup": ""}, {"code": GOOD}) == Verdict(True)
    assert mbpp({"test_list": list(SQUARE.tests)}, {"code": " "}) == Verdict(False, "code is empty")
    assert (humaneval.name, mbpp.name) == ("completion passes its tests", "code passes its tests")


def test_a_row_without_tests_is_an_error_that_names_its_columns():
    with pytest.raises(InputError, match=r"its columns are text\n.*test_list, a list of asserts"):
        UnitTests.mbpp()({"text": "x"}, {"code": GOOD})
    with pytest.raises(InputError, match=r"test and entry_point"):
        UnitTests.humaneval()({"test": TEST}, {"completion": BODY})
    with pytest.raises(InputError, match="list of asserts"):
        UnitTests.mbpp()({"test_list": "assert True"}, {"code": GOOD})


def test_the_verifier_votes_like_any_other():
    found = votes([UnitTests.mbpp(allow_weak=True)], {"test_list": ["assert square(1) == 2"]}, {"code": GOOD})
    assert found["code passes its tests"].reason == "test 1 of 1 failed: assert square(1) == 2: the code returned 1"


def test_many_answers_keep_their_order():
    answers = [(GOOD, SQUARE), ("def square(x): return 9", SQUARE), (BODY, HALVES), ("1/0", SQUARE)]
    found = check_many(answers, threads=2, allow_weak=True)
    assert [checked.ok for checked in found] == [True, False, True, False]
    assert check_many([], threads=2) == []
