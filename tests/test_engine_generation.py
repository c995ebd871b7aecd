# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false
from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from limbeck.engine import GenerateRequest, Generation, LoadedModel, TorchEngine, continuous, graphs, prefix_cache
from limbeck.engine.batching import Limits
from limbeck.engine.chat import Chat, Prompt
from limbeck.engine.drafts import Draft, choose
from limbeck.engine.generation import generate_batch
from limbeck.engine.graphs import Graphs
from limbeck.engine.requests import ScoreRequest
from limbeck.engine.tree import TokenForest
from limbeck.errors import PromptTooLong

SYSTEM = ("system", "label the text as spam or ham")
TEXTS = ["win a free prize now", "see you", "the card was lost or stolen; the transfer is pending", "yes", ""]


def request(text: str, system: tuple[str, str] = SYSTEM, **options: Any) -> GenerateRequest:
    given: dict[str, Any] = {"max_tokens": 12, **options}
    return GenerateRequest((system, ("user", text)), **given)


def plain_greedy(loaded: LoadedModel, asked: GenerateRequest) -> list[int]:
    """Greedy decoding by the model itself, the whole text each time: no cache, no batch."""
    chat = Chat(loaded.tokenizer)
    ids = list(chat.prompt(asked.messages).ids + chat.ids(asked.assistant_prefix))
    written: list[int] = []
    model: Any = loaded.model
    while len(written) < asked.max_tokens:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] in chat.stop_ids:
            break
    return written


@pytest.fixture(params=["tiny_llama", "tiny_qwen2"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[False, True], ids=["growing", "fixed buffers"])
def engine(loaded: LoadedModel, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = TorchEngine(loaded, max_batch=4)
    if request.param:
        # As on a GPU, but for the graphs themselves.
        engine._prefixes.graphs = Graphs(loaded.model, capture=False)
    yield engine
    engine.close()


def expected_text(loaded: LoadedModel, asked: GenerateRequest) -> str:
    return Chat(loaded.tokenizer).text(plain_greedy(loaded, asked))


def test_a_ragged_batch_writes_what_each_row_writes_alone(loaded: LoadedModel, engine: TorchEngine):
    asked = [request(text, max_tokens=5 + 4 * i) for i, text in enumerate(TEXTS)]
    found = engine.generate_many(asked)
    assert [g.text for g in found] == [expected_text(loaded, a) for a in asked]
    assert [g.tokens_out for g in found] == [len(plain_greedy(loaded, a)) for a in asked]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_on_a_gpu_write_what_the_cpu_writes(fresh_tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "_COLUMNS", 32)
    asked = [request(text, max_tokens=5 + 9 * i) for i, text in enumerate(TEXTS * 3)]
    expected = [expected_text(fresh_tiny, one) for one in asked]
    model: Any = fresh_tiny.model
    engine = TorchEngine(replace(fresh_tiny, model=model.to("cuda"), device=torch.device("cuda")), max_batch=8)
    assert [found.text for found in engine.generate_many(asked)] == expected
    kept = engine._prefixes.graphs
    assert kept is not None
    assert kept.captured >= 2


@pytest.mark.parametrize("fixed", [False, True])
def test_waiting_rows_take_the_places_of_finished_ones(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, fixed: bool
):
    monkeypatch.setattr(graphs, "_COLUMNS", 8)
    monkeypatch.setattr(continuous, "_ADMITTED", 2)
    monkeypatch.setattr(continuous, "_SLACK", 4)
    texts = [*TEXTS, "see you", TEXTS[0], *TEXTS[1:]]
    asked = [request(text, max_tokens=3 + 5 * (i % 4)) for i, text in enumerate(texts)]
    engine = TorchEngine(loaded, max_batch=4)
    engine._prefixes.graphs = Graphs(loaded.model, capture=False) if fixed else None
    passes = 0

    def counted(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*given)

    forward = prefix_cache.Context.forward
    monkeypatch.setattr(prefix_cache.Context, "forward", counted)
    found = engine.generate_many(asked)
    assert [g.text for g in found] == [expected_text(loaded, a) for a in asked]
    assert [g.tokens_out for g in found] == [len(plain_greedy(loaded, a)) for a in asked]
    assert len(asked) < passes < sum(g.tokens_out for g in found)


def test_calls_that_come_while_others_are_written_join_their_batch(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(continuous, "_ADMITTED", 1)
    other = ("system", "the quick brown fox jumps over the lazy dog")
    first = [request("see you", max_tokens=12)]
    # Of the same prompt; of another one, in number enough for a batch of its own; longer than what runs.
    late = [request(text, max_tokens=2 + 3 * i) for i, text in enumerate(TEXTS[:4])]
    late += [request(text, other, max_tokens=5) for text in TEXTS] + [request("yes", max_tokens=40)]
    engine = TorchEngine(loaded, max_batch=4)
    texts: dict[int, str] = {}
    asked = [*first, *late]
    drafts = [engine._draft(one) for one in asked]
    places = {id(draft): place for place, draft in enumerate(drafts)}
    coming = [drafts[1:3], drafts[3:]]
    steps = 0

    def more() -> list[Draft]:
        nonlocal steps
        steps += 1
        return coming.pop(0) if coming and steps > 2 else []

    def deliver(draft: Draft, result: Generation) -> None:
        texts[places[id(draft)]] = result.text

    limits = Limits(rows=4, tokens=4096, pack_tokens=64)
    prefixes = prefix_cache.PrefixCache(loaded.model, loaded.device, 1000)
    generate_batch(prefixes, engine.chat, drafts[:1], limits, deliver, more)
    assert not coming
    assert [texts[place] for place in range(len(asked))] == [expected_text(loaded, one) for one in asked]


def test_a_batch_ends_though_calls_keep_coming(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(continuous, "_ADMITTED", 1)
    monkeypatch.setattr(continuous, "_TURNS", 2)
    engine = TorchEngine(loaded)
    came: list[Draft] = []

    def more() -> list[Draft]:
        came.append(engine._draft(request(TEXTS[len(came) % len(TEXTS)], max_tokens=3)))
        return came[-1:]

    drafts, told = [engine._draft(request("see you", max_tokens=3))], Counter[int]()
    shared = drafts[0].prompt.shared > 0
    prefixes = prefix_cache.PrefixCache(loaded.model, loaded.device, 1000)
    work = continuous.Work(2, 64, shared)
    continuous.write(prefixes, engine.chat, drafts, work, lambda one, _: told.update([id(one)]), more)
    assert 1 <= len(came) <= 4
    assert told == Counter(map(id, drafts))
    assert len(told) == 1 + len(came)


def test_an_error_reaches_every_caller_also_those_that_came_late(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    engine = TorchEngine(loaded, wait_ms=0)
    begun, go_on = threading.Event(), threading.Event()
    forward = prefix_cache.Context.forward

    def failing(*given: Any) -> Any:
        begun.set()
        go_on.wait(30)
        if len(given[1]) > 1:  # the second call has joined
            raise RuntimeError("out of memory")
        return forward(*given)

    monkeypatch.setattr(continuous, "_ADMITTED", 1)
    monkeypatch.setattr(prefix_cache.Context, "forward", failing)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(engine.generate, request("see you"))
        begun.wait(30)
        two = pool.submit(engine.generate, request("yes"))
        while not engine._gatherer.waiting:
            time.sleep(0.01)
        go_on.set()
        for job in (one, two):
            with pytest.raises(RuntimeError, match="out of memory"):
                job.result(30)
    engine.close()


def test_samples_of_one_input_share_its_tokens(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama, max_batch=3)
    asked = [request(text, temperature=1.0, seed=seed) for seed in (1, 2, 3) for text in TEXTS[:2]]
    together = engine.generate_many(asked)
    assert [g.text for g in together] == [engine.generate_many([a])[0].text for a in asked]
    # The first sample of an input reads it, the others find it read.
    assert sum(g.cached_tokens == g.tokens_in for g in together) == 4


def test_rows_with_different_shared_prompts_run_in_one_batch(loaded: LoadedModel, engine: TorchEngine):
    other = ("system", "the quick brown fox jumps over the lazy dog")
    asked = [request(text, system) for text in TEXTS[:2] for system in (SYSTEM, other)]
    assert [g.text for g in engine.generate_many(asked)] == [expected_text(loaded, a) for a in asked]


def test_the_assistants_turn_can_be_opened(loaded: LoadedModel, engine: TorchEngine):
    asked = request("see you", assistant_prefix="the quick")
    (found,) = engine.generate_many([asked])
    assert found.text == expected_text(loaded, asked)


@pytest.mark.parametrize("apart", [False, True])
def test_an_answer_that_goes_on_reads_its_own_tokens_alone(
    embedded: LoadedModel, monkeypatch: pytest.MonkeyPatch, apart: bool
):
    """Behind one shared prompt, and behind prompts of which each row has its own."""
    loaded = embedded
    systems = [("system", f"{SYSTEM[1]} {number if apart else 0}") for number in range(len(TEXTS))]
    engine = TorchEngine(loaded)
    begun = [
        request(text, system, max_tokens=6 + place, assistant_prefix="yes: ")
        for place, (text, system) in enumerate(zip(TEXTS, systems, strict=True))
    ]
    wrote = [one.text for one in engine.generate_many(begun)]
    going_on = [
        replace(one, assistant_prefix=f"yes: {text}; no", max_tokens=5) for one, text in zip(begun, wrote, strict=True)
    ]
    expected = [expected_text(loaded, one) for one in going_on]
    appended = 0
    append = TokenForest.append

    def counted(self: TokenForest, ids: Any, *rest: Any) -> int:
        nonlocal appended
        appended += len(ids)
        return append(self, ids, *rest)

    monkeypatch.setattr(TokenForest, "append", counted)
    found = engine.generate_many(going_on)
    assert [one.text for one in found] == expected
    assert appended == 0
    assert all(one.tokens_in - 32 <= one.cached_tokens < one.tokens_in for one in found)
    assert [one.text for one in TorchEngine(loaded).generate_many(going_on)] == expected


def test_a_closed_field_is_scored_behind_the_text_before_it(embedded: LoadedModel):
    engine, fresh = TorchEngine(embedded), TorchEngine(embedded)
    begun = [request(text, max_tokens=8, assistant_prefix="yes: ") for text in TEXTS]
    wrote = engine.generate_many(begun)
    asked = [
        ScoreRequest(one.messages, f"yes: {text.text}; no ", ("spam", "ham", "spam prize"))
        for one, text in zip(begun, wrote, strict=True)
    ]
    found, expected = engine.score_many(asked), fresh.score_many(asked)
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-3)
        assert one.cached_tokens >= one.tokens_in - 32
    assert max(one.cached_tokens for one in expected) < min(one.cached_tokens for one in found)


def test_the_texts_that_ended_last_are_kept():
    def ended(*ids: int) -> prefix_cache.Ended:
        return prefix_cache.Ended(ids, 0, prefix_cache.KeyValues((), len(ids)))

    kept = prefix_cache.EndedTexts(7)
    kept.keep((1,), ended(1, 2, 3))
    kept.keep((1,), ended(1, 2, 4, 5))
    assert kept.find((1, 2, 4, 5, 6), 1) == (ended(1, 2, 4, 5), 4)
    assert kept.find((1, 2, 3, 9), 1) == (ended(1, 2, 3), 3)
    assert kept.find((1, 2, 4), 1) == (ended(1, 2, 3), 2)  # the last token stays to be read
    assert kept.find((1, 9), 1) is None
    assert kept.find((7, 2, 3), 1) is None
    assert kept.find((1, 2, 3, *range(90)), 1) is None
    kept.keep((7,), ended(7, 8))
    assert kept.find((1, 2, 3, 9), 1) == (ended(1, 2, 4, 5), 2)
    kept.clear()
    assert kept.find((7, 8, 9), 1) is None


def test_the_embedded_model_writes_what_transformers_writes(embedded: LoadedModel):
    engine = TorchEngine(embedded)
    asked = [
        request("Say hello.", max_tokens=8),
        request("Name the capital of France, please.", max_tokens=8),
    ]
    assert [g.text for g in engine.generate_many(asked)] == [expected_text(embedded, a) for a in asked]


def test_the_shared_prompt_is_kept_between_calls(engine: TorchEngine):
    first, second = engine.generate_many([request(text) for text in TEXTS[:2]])
    (third,) = engine.generate_many([request(TEXTS[2])])
    # The longer one is read first.
    assert {first.cached_tokens, second.cached_tokens} == {0, third.cached_tokens}
    assert third.tokens_in > third.cached_tokens


@pytest.mark.parametrize(
    ("written", "temperature", "ends"),
    [([1, 2, 3] * 32, 0.0, True), ([1, 2, 3] * 32, 0.7, False), ([*range(50), *range(46)], 0.0, False)],
)
def test_a_greedy_text_that_goes_round_in_circles_ends(
    tiny_llama: LoadedModel, written: list[int], temperature: float, ends: bool
):
    chat = Chat(tiny_llama.tokenizer)
    chat.stop_ids = frozenset()
    draft = Draft(request("see you", temperature=temperature, max_tokens=500), Prompt((1,), 0), 500)
    draft.written += [token + 20 for token in written]
    found = draft.result(chat)
    assert (found is not None) == ends
    assert found is None or (found.finish_reason, found.tokens_out) == ("length", 96)


def test_the_length_is_a_limit(engine: TorchEngine):
    (found,) = engine.generate_many([request("see you", max_tokens=1)])
    assert (found.tokens_out, found.finish_reason) == (1, "length")


def test_a_stop_string_ends_the_text_and_is_cut_off(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    (whole,) = engine.generate_many([request("see you")])
    stop = whole.text[3:5]
    (found,) = engine.generate_many([request("see you", stop=("never-there", stop))])
    assert found.finish_reason == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.tokens_out < whole.tokens_out


def test_the_end_of_turn_ends_the_text(fresh_tiny: LoadedModel):
    engine = TorchEngine(fresh_tiny)
    (whole,) = engine.generate_many([request("see you")])
    written = plain_greedy(fresh_tiny, request("see you"))
    # The third token becomes an end of turn.
    engine.chat.stop_ids = frozenset({written[2]})
    (found,) = engine.generate_many([request("see you")])
    at = written.index(written[2])
    assert (found.finish_reason, found.tokens_out) == ("stop", at + 1)
    assert whole.text.startswith(found.text)


def test_samples_depend_on_the_seed_and_not_on_the_batch(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    asked = [request(text, temperature=1.0, seed=seed) for text in TEXTS[:3] for seed in (1, 2)]
    together = [g.text for g in engine.generate_many(asked)]
    alone = [engine.generate_many([a])[0].text for a in reversed(asked)][::-1]
    assert together == alone
    assert together[0] != together[1]


def test_a_longer_limit_does_not_change_a_samples_beginning(tiny_llama: LoadedModel):
    engine = TorchEngine(tiny_llama)
    short, long = engine.generate_many([request("see you", temperature=1.0, seed=5, max_tokens=n) for n in (4, 16)])
    assert long.text.startswith(short.text.rstrip("\ufffd"))


def draft(seed: int, **options: Any) -> Draft:
    return Draft(request("", seed=seed, **options), Prompt((1,), 0), 4)


def test_tokens_are_drawn_as_often_as_the_model_says():
    weights = torch.tensor([0.5, 0.3, 0.2])
    logits = weights.log().expand(3000, 3)
    counts = Counter(choose([draft(seed, temperature=1.0) for seed in range(3000)], logits))
    # Five standard deviations of 3000 draws are 0.046 at most.
    assert [counts[i] / 3000 for i in range(3)] == pytest.approx(weights.tolist(), abs=0.046)


def test_top_p_leaves_the_tail_out():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(400, 4)
    drawn = choose([draft(seed, temperature=1.0, top_p=0.7) for seed in range(400)], logits)
    assert set(drawn) == {1, 3}


def test_top_p_wider_than_the_first_tokens_is_exact():
    logits = torch.zeros(200, 1000)
    drawn = choose([draft(seed, temperature=1.0, top_p=0.999) for seed in range(200)], logits)
    assert len(set(drawn)) > 150


def test_a_low_temperature_is_almost_greedy():
    logits = torch.tensor([1.0, 2.0, 1.5]).expand(100, 3)
    assert set(choose([draft(seed, temperature=0.01) for seed in range(100)], logits)) == {1}


def test_a_prompt_beyond_the_context_is_an_error_with_both_numbers(engine: TorchEngine):
    asked = request("win a free prize now " * 400)
    with pytest.raises(PromptTooLong, match=r"a prompt of \d{4} tokens .*\n.*at most 1024 tokens"):
        engine.generate_many([asked])


def test_the_answer_is_cut_where_the_context_ends(engine: TorchEngine):
    text = "the " * 960
    room = 1024 - engine.count_tokens((SYSTEM, ("user", text)))
    assert 0 < room < 60
    (found,) = engine.generate_many([request(text, max_tokens=5000, temperature=0.5)])
    assert found.finish_reason == "stop" or found.tokens_out == room


def test_results_come_in_the_order_asked(engine: TorchEngine, loaded: LoadedModel):
    asked = [request("the " * n, max_tokens=3) for n in (1, 40, 3, 20, 7, 2)]
    found = engine.generate_many(asked)
    assert [g.tokens_in for g in found] == [engine.count_tokens(a.messages) for a in asked]
    assert all(isinstance(g, Generation) for g in found)
