"""The LM as DSPy sees it: samples, seeds, the ledger, budgets, copies, history, batches from threads."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from chat_server import answer, serve
from dspy.lm15 import Config, Message, Request

from limbeck.engine import LoadedModel, TorchEngine
from limbeck.engine.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.errors import BudgetExceeded, InputError, ModelError, PromptTooLong
from limbeck.ledger import Ledger
from limbeck.models import LM, Backend, Budget, CompactAdapter, TorchBackend
from limbeck.models.decoding import Decoding, as_messages
from limbeck.models.openai_engine import OpenAIBackend
from limbeck.models.pricing import price_of

ASK = [("user", "the quick brown")]


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    yield TorchBackend(engine)
    engine.close()


class Counting:
    """A backend over another one that counts what reaches it and how many calls run together."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name, self.fingerprint, self.score_source = inner.name, inner.fingerprint, inner.score_source
        self.supports_prefix, self.supports_score, self.thinking_tokens = True, inner.supports_score, 0
        self.usd_per_token: tuple[float, float] | None = (0.001, 0.01)
        self.requests: list[GenerateRequest | ScoreRequest] = []
        self.together = self.most_together = 0
        self._lock = threading.Lock()

    def _enter(self, request: GenerateRequest | ScoreRequest) -> None:
        with self._lock:
            self.requests.append(request)
            self.together += 1
            self.most_together = max(self.most_together, self.together)

    def generate(self, request: GenerateRequest) -> Generation:
        self._enter(request)
        try:
            return self.inner.generate(request)
        finally:
            self.together -= 1

    def score(self, request: ScoreRequest) -> Scores:
        self._enter(request)
        try:
            return self.inner.score(request)
        finally:
            self.together -= 1


@pytest.fixture
def counting(tiny: TorchBackend) -> Counting:
    return Counting(tiny)


# -- samples and the ledger ----------------------------------------------------------------------------------


def test_the_same_call_is_made_once(counting: Counting, ledger: Ledger):
    lm = LM("tiny", counting, ledger=ledger, max_tokens=5)
    first, again = lm("the card"), lm("the card")
    assert first == again
    assert len(counting.requests) == 1
    row = ledger.calls()[0]
    assert (row.model, row.role, row.tokens_out) == ("tiny", "teacher", 5)
    assert row.usd == pytest.approx(0.001 * row.tokens_in + 0.01 * 5)
    assert ledger.totals().cached_calls == 1


def test_whatever_changes_the_answer_changes_the_key(counting: Counting, ledger: Ledger):
    variants: Sequence[dict[str, Any]] = (
        {},
        {"max_tokens": 4},
        {"temperature": 1.0},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 1.0, "rollout_id": 1},
        {"temperature": 1.0, "rollout_id": 2},
        {"temperature": 1.0, "top_p": 0.5},
        {"stop": ["fox"]},
        {"assistant_prefix": "fox"},
    )
    for _ in range(2):
        for variant in variants:
            LM("tiny", counting, ledger=ledger, max_tokens=3)("the card", **variant)
    LM("tiny", counting, ledger=ledger, max_tokens=3, adapter_hash="a1")("the card")
    LM("tiny-2", counting, ledger=ledger, max_tokens=3)("the card")
    counting.fingerprint = "other weights"
    LM("tiny", counting, ledger=ledger, max_tokens=3)("the card")
    assert len(counting.requests) == len(variants) + 3


def test_every_sample_has_its_own_seed_and_row(counting: Counting, ledger: Ledger):
    lm = LM("tiny", counting, ledger=ledger, temperature=1.0, max_tokens=6)
    texts = lm("the card", n=4)
    seeds = [request.seed for request in counting.requests if isinstance(request, GenerateRequest)]
    assert len(set(seeds)) == len(set(texts)) == 4
    assert ledger.totals().calls == 4
    assert lm("the card", n=4) == texts
    assert lm("the card", n=2) == texts[:2]
    assert len(counting.requests) == 4
    assert counting.most_together > 1
    assert lm("the card", rollout_id=1) != [texts[0]]


def test_samples_repeat_without_a_ledger(tiny: TorchBackend):
    lm = LM("tiny", tiny, temperature=1.0, max_tokens=6)
    assert lm("the card", n=3) == lm("the card", n=3)


def test_scores_are_ledgered_exact_and_of_the_labels_given(counting: Counting, ledger: Ledger):
    lm = LM("tiny", counting, ledger=ledger)
    scores = lm.score(ASK, candidates=["spam", "ham", "maybe"])
    assert lm.score(ASK, candidates=["spam", "ham", "maybe"]) == scores
    assert len(counting.requests) == 1
    assert list(scores.probabilities) == ["spam", "ham", "maybe"]
    assert sum(scores.probabilities.values()) == pytest.approx(1)
    assert scores.source == "exact"
    assert scores.probabilities[scores.best] == max(scores.probabilities.values())
    with pytest.raises(InputError, match="distinct"):
        lm.score(ASK, candidates=["a", "a"])


def test_a_dead_thread_pool_does_not_hide_the_error(tiny: TorchBackend):
    with pytest.raises(PromptTooLong, match="tokens"):
        LM("tiny", tiny, temperature=1.0)("the " * 3000, n=2)


# -- DSPy's side ---------------------------------------------------------------------------------------------


def test_a_typed_request_gets_a_typed_response(counting: Counting, ledger: Ledger):
    lm = LM("tiny", counting, ledger=ledger, max_tokens=50)
    config = Config(max_tokens=4, temperature=1.0, seed=3, stop=("zzz",))
    request = Request(model="tiny", system="label", messages=(Message.user("the card"),), config=config)
    response: Any = lm(request)
    sent = counting.requests[0]
    assert isinstance(sent, GenerateRequest)
    assert sent.messages == (("system", "label"), ("user", "the card"))
    assert (sent.max_tokens, sent.temperature, sent.seed, sent.stop) == (4, 1.0, 3, ("zzz",))
    assert response.usage.output_tokens == 4
    assert response.finish_reason == "length"
    assert lm(request=request).message.text == response.message.text
    assert len(counting.requests) == 1


def test_messages_prompts_and_acall_say_the_same(tiny: TorchBackend):
    lm = LM("tiny", tiny, max_tokens=4)
    texts = lm("the card")
    assert lm(messages=[{"role": "user", "content": "the card"}]) == texts
    assert asyncio.run(lm.acall("the card")) == texts


def test_history_is_where_dspy_looks_for_it(tiny: TorchBackend, ledger: Ledger):
    lm = LM("tiny", tiny, ledger=ledger, max_tokens=4)
    with dspy.track_usage() as tracker:
        text = lm("the card")[0]
        lm("the card")
    paid, free = lm.history
    assert paid["outputs"] == [text]
    assert (paid["usage"]["completion_tokens"], free["usage"]) == (4, {})
    assert tracker.get_total_tokens()["tiny"]["completion_tokens"] == 4
    out = io.StringIO()
    lm.inspect_history(2, file=out)
    assert out.getvalue().count("the card") == 2


def test_copies_share_the_model_and_nothing_else(counting: Counting):
    lm = LM("tiny", counting, max_tokens=3)
    twin = lm.copy(rollout_id=1, temperature=1.0)
    twin("the card")
    assert twin.backend is lm.backend
    assert lm.history == []
    assert (lm.kwargs["temperature"], twin.kwargs["temperature"]) == (0.0, 1.0)
    assert copy.deepcopy({"lm": lm})["lm"] is lm
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(lm)


def test_a_saved_program_loads_in_plain_dspy(tiny: TorchBackend, tmp_path: Path):
    program: Any = dspy.ChainOfThought("question -> answer")
    program.set_lm(LM("gguf:/models/x.gguf", tiny, temperature=0.3, max_tokens=9))
    program.save(tmp_path / "program.json")
    saved = json.loads((tmp_path / "program.json").read_text())
    assert "limbeck" not in json.dumps(saved)
    fresh: Any = dspy.ChainOfThought("question -> answer")
    fresh.load(tmp_path / "program.json")
    assert type(fresh.predictors()[0].lm) is dspy.LM
    assert fresh.predictors()[0].lm.kwargs["temperature"] == 0.3


def test_a_reasoning_models_state_loads_in_plain_dspy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    state = LM("openai/gpt-5", OpenAIBackend("openai/gpt-5")).dump_state()
    assert dspy.BaseLM.load_state(state).model == "openai/gpt-5"


def test_dspy_sees_no_capabilities_that_are_not_there(tiny: TorchBackend):
    lm = LM("openai/gpt-4o", tiny)
    assert not any([lm.supports_function_calling, lm.supports_reasoning, lm.supports_response_schema])
    assert type(lm.provider).__name__ == "Provider"
    assert (lm.cache, lm.num_retries) == (False, 0)


def test_sixteen_threads_of_evaluate_become_batches(counting: Counting, ledger: Ledger):
    program = dspy.Predict("text -> reply")
    rows = [dspy.Example(text=f"the card {i}", reply="x").with_inputs("text") for i in range(32)]
    lm = LM("tiny", counting, ledger=ledger, max_tokens=4)
    evaluate = dspy.Evaluate(devset=rows, metric=lambda e, p, t=None: 1.0, num_threads=16, display_progress=False)

    with dspy.context(lm=lm, adapter=CompactAdapter()):
        assert evaluate(program).score == 100
    assert len(counting.requests) == 32
    assert counting.most_together > 4


@pytest.mark.parametrize("setting", [{"tools": ["x"]}, {"logprobs": True}, {"response_format": {"type": "json"}}])
def test_a_setting_that_cannot_be_honoured_is_refused(tiny: TorchBackend, setting: dict[str, Any]):
    with pytest.raises(ModelError, match=next(iter(setting))):
        LM("tiny", tiny)("the card", **setting)


def test_none_asks_for_nothing(counting: Counting):
    LM("tiny", counting, temperature=0.7, max_tokens=2)("the card", temperature=None, max_tokens=None)
    sent = counting.requests[0]
    assert isinstance(sent, GenerateRequest)
    assert (sent.temperature, sent.max_tokens) == (0.7, 2)


def test_pictures_are_refused():
    with pytest.raises(ModelError, match="other than text"):
        as_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_seeds_differ_by_rollout_sample_and_seed():
    settings = [Decoding(seed=s, rollout=r) for s in (0, 1) for r in (None, 1, 2)]
    assert len({decoding.seed_of(sample) for decoding in settings for sample in range(3)}) == 18
    assert Decoding(seed=5).seed_of(0) == 5


# -- budgets -------------------------------------------------------------------------------------------------


def test_no_call_is_made_that_the_token_budget_cannot_pay(counting: Counting, ledger: Ledger):
    lm = LM("tiny", counting, ledger=ledger, budget=Budget(max_tokens=300), max_tokens=20)
    answers = (lm(f"the card {i}") for i in range(100))
    with pytest.raises(BudgetExceeded, match=r"(?s)--max-tokens 300.*larger limit"):
        list(answers)
    spent = ledger.totals(metered=True)
    assert 200 < spent.tokens_in + spent.tokens_out <= 300
    assert lm("the card 0")  # what is in the ledger stays free


def test_threads_cannot_overshoot_a_budget_and_leave_none_of_it(counting: Counting, ledger: Ledger):
    # A call costs 4 tokens out at a cent and a few in; ten threads must not spend one another's money.
    lm = LM("tiny", counting, ledger=ledger, budget=Budget(max_usd=1.0), max_tokens=4)
    refused: list[BudgetExceeded] = []

    def work(worker: int) -> None:
        try:
            for i in range(20):
                lm(f"card {worker} {i}")
        except BudgetExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 10
    assert 0.85 < ledger.totals().usd <= 1.0


def test_minutes_end_a_run_before_the_call(counting: Counting, ledger: Ledger):
    now = [0.0]
    budget = Budget(max_minutes=2, clock=lambda: now[0])
    lm = LM("tiny", counting, ledger=ledger, budget=budget, max_tokens=2)
    lm("one")
    now[0] = 121.0
    with pytest.raises(BudgetExceeded, match="--max-minutes 2"):
        lm("two")
    assert len(counting.requests) == 1


def test_a_resumed_run_goes_on_with_the_spent_budget(counting: Counting, tmp_path: Path):
    for texts in (["a"], ["b"]):
        with Ledger(tmp_path / "l.sqlite") as ledger:
            lm = LM("tiny", counting, ledger=ledger, budget=Budget(max_tokens=70), max_tokens=30)
            for text in texts:
                if text == "a":
                    lm(text)
                else:
                    with pytest.raises(BudgetExceeded):
                        lm(text)


def test_calls_without_the_budget_do_not_count_against_it(counting: Counting, ledger: Ledger):
    LM("student", counting, ledger=ledger, role="student", max_tokens=50)("the card")
    lm = LM("tiny", counting, ledger=ledger, budget=Budget(max_tokens=60), max_tokens=2)
    assert lm("the card")


def test_a_dollar_budget_needs_a_price_and_a_ledger(counting: Counting, ledger: Ledger):
    with pytest.raises(InputError, match="needs a ledger"):
        LM("tiny", counting, budget=Budget(max_usd=1))
    counting.usd_per_token = None
    with pytest.raises(ModelError, match=r"(?s)price of tiny.*--max-tokens"):
        LM("tiny", counting, ledger=ledger, budget=Budget(max_usd=1))
    LM("tiny", counting, ledger=ledger, budget=Budget(max_tokens=1000), max_tokens=2)("the card")
    assert ledger.calls()[0].usd is None


def test_thinking_counts_in_what_a_call_may_cost(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serve(lambda body, n: answer("ok")) as server:
        backend = OpenAIBackend("openai/o3", api_base=server.url)
        lm = LM("openai/o3", backend, ledger=ledger, budget=Budget(max_tokens=10_000), max_tokens=100)
        with pytest.raises(BudgetExceeded):
            lm("Hello")
    assert server.bodies == []


def test_prices_come_with_their_source():
    price = price_of("openai/gpt-4o-mini")
    assert price is not None
    assert 0 < price.usd_in < price.usd_out < 1e-4
    assert "version" in price.source
    assert price_of("groq/gpt-4o-mini") is None
