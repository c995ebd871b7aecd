"""OpenAI-compatible servers: retries, refusals, keys that stay secret, probabilities from first tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from chat_server import Body, Reply, answer, error, serve

from limbeck.errors import CallFailed, ModelError, PromptTooLong
from limbeck.ledger import Ledger
from limbeck.models import (
    LM,
    CompactAdapter,
    ScoresUnavailable,
    connect,
    label_probabilities,
    probability_source,
)
from limbeck.models.firsttoken import label_masses
from limbeck.models.openai_engine import PROVIDERS, OpenAIBackend

KEY = "sk-secret-0123456789"
ASK: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch):
    for info in PROVIDERS.values():
        for variable in info.keys:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Waits(list[float]):
    """Records the pauses instead of making them."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def lm_at(url: str, waits: Waits | None = None, timeout: float = 30, name: str = "openai/m", **options: Any) -> LM:
    backend = OpenAIBackend(name, api_base=url, timeout=timeout)
    return LM(name, backend, sleep=waits if waits is not None else Waits(), **options)


# -- generation ----------------------------------------------------------------------------------------------


def test_a_call_carries_the_settings_and_brings_back_usage(tmp_path: Path):
    with (
        serve(lambda body, n: answer("Hi there", finish="length")) as server,
        Ledger(tmp_path / "l") as ledger,
    ):
        lm = lm_at(server.url, ledger=ledger, temperature=0.5, max_tokens=7)
        assert lm("Hello", stop=["END"], seed=3, top_p=0.9) == ["Hi there"]
        row = ledger.calls()[0]
    body = server.bodies[0]
    assert (body["model"], body["messages"]) == ("m", ASK)
    assert (body["temperature"], body["max_tokens"], body["stop"], body["seed"]) == (0.5, 7, ["END"], 3)
    assert body["top_p"] == 0.9
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert (row.tokens_in, row.tokens_out, row.cached_tokens, row.usd) == (100, 10, 40, 0.0)
    assert row.response == {"text": "Hi there", "finish_reason": "length"}
    assert row.ms > 0


def test_a_missing_count_of_tokens_is_estimated():
    def reply(body: Body, n: int) -> Reply:
        sent = answer("x" * 40)
        del sent.payload["usage"]
        return sent

    with serve(reply) as server:
        made = lm_at(server.url).backend.generate(_request("y" * 80))
    assert (made.tokens_in, made.tokens_out) == (21, 11)


def test_a_full_server_is_asked_again_when_it_says(tmp_path: Path):
    waits = Waits()

    def reply(body: Body, n: int) -> Reply:
        return error(429, "slow down", retry_after="7") if n == 0 else answer("ok")

    with serve(reply) as server, Ledger(tmp_path / "l") as ledger:
        assert lm_at(server.url, waits, ledger=ledger)("Hello") == ["ok"]
        assert [event.data["wait"] for event in ledger.events("retry")] == [7.0]
        assert ledger.totals().calls == 1
    assert waits == [7.0]


def test_a_broken_server_is_given_up_with_growing_waits(tmp_path: Path):
    waits = Waits()
    with serve(lambda body, n: error(500, "boom")) as server, Ledger(tmp_path / "l") as ledger:
        with pytest.raises(CallFailed, match=r"openai/m failed 4 times in a row.*boom"):
            lm_at(server.url, waits, retries=3, ledger=ledger)("Hello")
        assert ledger.totals().calls == 0
    assert len(server.bodies) == 4
    assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits))
    assert len(waits) == 3


def test_a_server_that_asks_for_an_hour_is_down():
    waits = Waits()
    broken = serve(lambda body, n: error(503, "closed", retry_after="3600"))
    with broken as server, pytest.raises(CallFailed, match="asks to wait 3600 s"):
        lm_at(server.url, waits)("Hello")
    assert waits == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Reply(payload="<html>gateway</html>"), "Expecting value"),
        (Reply(payload={"id": "x", "choices": []}), "no choices"),
        (Reply(payload={"id": "x"}), "no choices"),
        (Reply(payload="[]"), "no choices"),
    ],
)
def test_an_unreadable_answer_is_asked_for_again(tmp_path: Path, bad: Reply, said: str):
    with serve(lambda body, n: bad if n == 0 else answer("ok")) as server, Ledger(tmp_path / "l") as ledger:
        assert lm_at(server.url, ledger=ledger)("Hello") == ["ok"]
        assert said in ledger.events("retry")[0].data["reason"]


def test_a_timeout_and_a_closed_port_are_tried_again_then_given_up():
    slow = Reply(payload=answer("late").payload, wait=5)
    with serve(lambda b, n: slow) as server, pytest.raises(CallFailed, match=r"failed 2 times.*timed out"):
        lm_at(server.url, timeout=0.2, retries=1)("Hello")
    with pytest.raises(CallFailed, match="Connection error"):
        lm_at(server.url, retries=1)("Hello")


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (401, "bad key", "OPENAI_API_KEY"),
        (404, "no such model", "check the model's name 'm'"),
        (400, "too long", "limbeck doctor"),
        (429, "insufficient_quota", "no credit"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(status: int, message: str, advice: str):
    waits = Waits()
    wanted = pytest.raises(ModelError, match=rf"(?s){message}.*{advice}")
    with serve(lambda body, n: error(status, message)) as server, wanted as caught:
        lm_at(server.url, waits)("Hello")
    assert not isinstance(caught.value, CallFailed)
    assert (len(server.bodies), waits) == (1, [])


def test_no_answer_text_is_an_empty_text():
    with serve(lambda body, n: answer(None)) as server:
        assert lm_at(server.url)("Hello") == [""]


def test_a_reasoning_model_gets_room_to_think_and_no_temperature():
    with serve(lambda body, n: answer("ok")) as server:
        lm = lm_at(server.url, name="openai/gpt-5-mini", max_tokens=100)
        assert lm("Hello", temperature=0.7, stop=["x"]) == ["ok"]
    assert server.bodies[0]["max_completion_tokens"] == 16_100
    assert {"temperature", "max_tokens", "stop"}.isdisjoint(server.bodies[0])
    assert not lm.supports_score


@pytest.mark.parametrize("name", ["gpt-5", "gpt-5.1-mini", "o3", "o4-mini-2025-04-16"])
def test_reasoning_models_are_known(name: str):
    assert OpenAIBackend(f"openai/{name}").reasons


@pytest.mark.parametrize("name", ["gpt-5-chat-latest", "gpt-4o", "o3d"])
def test_other_models_are_not(name: str):
    assert not OpenAIBackend(f"openai/{name}").reasons


def test_the_seed_goes_by_the_providers_name_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MISTRAL_API_KEY", "k")
    with serve(lambda body, n: answer("ok")) as server:
        lm_at(server.url, name="mistral/small")("Hello", temperature=1.0, seed=5)
        lm_at(server.url, name="deepseek/deepseek-chat")("Hello", temperature=1.0, seed=5)
    assert server.bodies[0]["random_seed"] == 5
    assert "seed" not in server.bodies[0]
    assert "seed" not in server.bodies[1]


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ModelError, match=r"(?s)MISTRAL_API_KEY.*export MISTRAL_API_KEY"):
        connect("mistral/mistral-medium-latest")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        connect("openai/gpt-4o", api_base="https://elsewhere.example/v1")
    assert connect("openai/gpt-4o", api_base="http://localhost:9/v1").backend.usd_per_token == (0.0, 0.0)


def test_the_key_is_in_no_ledger_history_or_error(tmp_path: Path):
    def reply(body: Body, n: int) -> Reply:
        return {0: error(500, f"key {KEY}"), 1: answer("ok")}.get(n, error(401, f"bad {KEY}"))

    with serve(reply) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        lm = lm_at(server.url, ledger=ledger)
        assert lm("Hello") == ["ok"]
        with pytest.raises(ModelError, match=r"bad \[key\]") as caught:
            lm("Again")
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Hello" in stored
    assert KEY.encode() not in stored
    assert KEY not in repr(lm.history) + repr(lm.dump_state()) + str(caught.value)
    assert caught.value.__cause__ is None


def test_a_password_in_the_address_is_shown_nowhere():
    with pytest.raises(CallFailed) as caught:
        lm_at("http://me:hunter2@127.0.0.1:1/v1?token=hunter2", retries=0)("Hello")
    assert "hunter2" not in str(caught.value)


# -- probabilities -------------------------------------------------------------------------------------------


def test_labels_are_told_apart_by_their_first_tokens(tmp_path: Path):
    top = {"sp": math.log(0.6), "Ham": math.log(0.2), " spam": math.log(0.15), "I": math.log(0.05)}
    with serve(lambda body, n: answer("sp", top=top)) as server, Ledger(tmp_path / "l") as ledger:
        lm = lm_at(server.url, ledger=ledger)
        scores = lm.score(ASK, candidates=["ham", "spam"])
        again = lm.score(ASK, candidates=["ham", "spam"])
    assert scores.probabilities["spam"] == pytest.approx(0.75 / 0.95, abs=1e-5)
    assert sum(scores.probabilities.values()) == pytest.approx(1)
    assert (scores.source, scores.best, again) == ("logprobs", "spam", scores)
    assert len(server.bodies) == 1
    assert (server.bodies[0]["max_tokens"], server.bodies[0]["top_logprobs"]) == (1, 20)


def test_labels_that_begin_alike_become_lettered_options():
    labels = ["card lost", "card arrival"]

    def reply(body: Body, n: int) -> Reply:
        lettered = "B. card arrival" in body["messages"][-1]["content"]
        return answer("x", top={"B": -0.1, "A": -2.5} if lettered else {"card": -0.01, "Hello": -5.0})

    with serve(reply) as server:
        lm = lm_at(server.url)
        assert lm.score(ASK, candidates=labels).best == "card arrival"
        assert len(server.bodies) == 2
        lm.score(ASK, candidates=labels)  # the second time it is known that first tokens do not do
        assert len(server.bodies) == 3


def test_too_many_labels_that_begin_alike_are_refused():
    alike = serve(lambda body, n: answer("x", top={"card": -0.1}))
    with alike as server, pytest.raises(ScoresUnavailable, match="30 labels"):
        lm_at(server.url).score(ASK, candidates=[f"card {i}" for i in range(30)])


def test_votes_stand_in_where_there_are_no_logprobs(tmp_path: Path):
    texts = ["ham", "Spam.", "spam", "what?"]

    def reply(body: Body, n: int) -> Reply:
        return answer(texts[body["seed"] % 4] if "seed" in body else "x")

    with serve(reply) as server, Ledger(tmp_path / "l") as ledger:
        lm = lm_at(server.url, ledger=ledger)
        assert lm.supports_score
        with pytest.raises(ScoresUnavailable):
            lm.score(ASK, candidates=["spam", "ham"])
        assert not lm.supports_score
        scores = lm.score(ASK, candidates=["spam", "ham"], votes=12)
        heard = [lm_text for row in ledger.calls() if (lm_text := str(row.response["text"])) != "what?"]
        assert ledger.totals().calls == 12
    assert scores.source == f"votes:{len(heard)}"
    assert scores.probabilities["ham"] == pytest.approx(heard.count("ham") / len(heard))
    assert 0 < scores.probabilities["ham"] < 1


def test_what_a_search_for_probabilities_cost_is_in_the_ledger(tmp_path: Path):
    reply = answer("none", top={"none": -0.1})
    with serve(lambda body, n: reply) as server, Ledger(tmp_path / "l") as ledger:
        for _ in range(2):
            with pytest.raises(ScoresUnavailable):
                lm_at(server.url, ledger=ledger).score(ASK, candidates=("alpha", "beta"))
        assert len(server.bodies) == 2, "the second time the ledger answers"
        assert ledger.totals().tokens_in == 200


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
        (400, "the request exceeds the available context size. try increasing the context size"),
        (400, "The decoder prompt (length 9000) is longer than the maximum model length of 4096"),
    ],
)
def test_other_servers_words_for_a_long_prompt_are_known(status: int, message: str):
    with serve(lambda body, n: error(status, message)) as server, pytest.raises(PromptTooLong):
        lm_at(server.url)("Hello")


def test_votes_that_name_no_label_are_no_probabilities():
    with serve(lambda body, n: answer("dunno")) as server:
        lm = lm_at(server.url, name="groq/m")
        with pytest.raises(ScoresUnavailable, match="none of 3 answers"):
            lm.score(ASK, candidates=["spam", "ham"], votes=3)


def test_a_server_that_refuses_logprobs_answers_by_generation():
    class Sort(dspy.Signature):
        """Sort the message."""

        text: str = dspy.InputField()
        label: Literal["spam", "ham"] = dspy.OutputField()

    def reply(body: Body, n: int) -> Reply:
        return error(400, "logprobs are not supported") if "logprobs" in body else answer("Spam")

    with serve(reply) as server, dspy.context(lm=lm_at(server.url), adapter=CompactAdapter()):
        prediction = dspy.Predict(Sort)(text="Win!")
        assert (prediction.label, label_probabilities(prediction)) == ("spam", {})
        dspy.Predict(Sort)(text="Win more!")
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]


def test_a_single_closed_field_is_scored_with_one_call():
    top = {"neg": -0.2, "pos": -1.8}
    judge = dspy.Predict("review -> mood: Literal['positive', 'negative']")
    with serve(lambda body, n: answer("neg", top=top)) as server:
        judge.set_lm(lm_at(server.url))
        with dspy.context(adapter=CompactAdapter()):
            prediction = judge(review="Bad.")
    assert prediction.mood == "negative"
    assert probability_source(prediction) == "logprobs"
    assert label_probabilities(prediction)["mood"]["negative"] == pytest.approx(1 / (1 + math.exp(-1.6)), abs=1e-5)
    assert len(server.bodies) == 1


def test_a_label_that_no_token_begins_gets_less_than_any_token_seen():
    masses = label_masses([("a", -0.1), ("", -0.5), ("b", -4.0)], ["alpha", "gamma"])
    assert masses.logprobs == (-0.1, -5.0)
    assert masses.ambiguous == 0
    assert label_masses([("card", -0.1)], ["card", "card lost"]).ambiguous == pytest.approx(math.exp(-0.1))


def _request(text: str) -> Any:
    from limbeck.engine.requests import GenerateRequest

    return GenerateRequest((("user", text),))


def test_a_prompt_that_a_server_finds_too_long_is_the_rows_fault():
    with (
        serve(lambda body, n: error(400, "context_length_exceeded")) as server,
        pytest.raises(PromptTooLong, match="does not fit"),
    ):
        lm_at(server.url, Waits())("Hello")
