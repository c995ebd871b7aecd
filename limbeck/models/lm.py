"""The one `dspy.LM` behind which every model stands: ledger, budget, retries, samples and probabilities.

DSPy's own execution knows nothing of `n` and `rollout_id` below the LM and retries unseen by a budget, so
`__call__` and `acall` are overridden and everything between them and the backend happens here.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIncompatibleMethodOverride=false, reportUntypedBaseClass=false

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, NamedTuple, TypeVar, cast

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY, BaseLM
from dspy.clients.provider import Provider
from dspy.dsp.utils.settings import settings
from dspy.lm15 import Message as WireMessage
from dspy.lm15 import Request, Response, Usage
from dspy.utils.callback import with_callbacks

from limbeck.engine.requests import GenerateRequest, Message, ScoreRequest
from limbeck.errors import InputError, ModelError
from limbeck.ledger import CallRow, Ledger
from limbeck.models.backend import Backend, LabelScores, ScoresUnavailable, Transient
from limbeck.models.budget import Budget
from limbeck.models.decoding import Decoding, as_messages, from_lm15
from limbeck.models.history import history_entry, usage_of
from limbeck.models.labels import plain
from limbeck.models.retries import retrying
from limbeck.records import stable_hash

T = TypeVar("T")
_VOTE_TEMPERATURE = 0.7


class Answer(NamedTuple):
    """One call's ledger row, and whether it cost nothing."""

    row: CallRow
    hit: bool


class LM(dspy.LM):
    """A `dspy.LM` over a backend; use `limbeck.models.connect` to make one from a model's name.

    Every sample is its own call, seed and ledger row; an answer in the ledger costs nothing; a budget is
    checked before each call. Transient failures are tried again `retries` times with exponential backoff and
    jitter, then raise CallFailed. Copies, also deep ones, share the backend. `usd` and tokens land in the
    ledger, milliseconds too.
    """

    def __init__(
        self,
        model: str,
        backend: Backend,
        *,
        ledger: Ledger | None = None,
        budget: Budget | None = None,
        role: str = "teacher",
        temperature: float = 0.0,
        max_tokens: int = 512,
        retries: int = 4,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        adapter_hash: str = "",
        provider: Provider | None = None,
        **decoding: Any,
    ) -> None:
        Decoding.of(decoding)
        if budget is not None and ledger is None:
            raise InputError("a budget needs a ledger to measure on", hint="LM(..., ledger=Ledger(path))")
        if budget is not None and budget.max_usd is not None and backend.usd_per_token is None:
            raise ModelError(
                f"the price of {model} is not known, so --max-usd cannot hold",
                valid="a model with a list price, or a limit on tokens",
                hint=f"--max-tokens N instead of {budget.limits}",
            )
        # A plain Provider: DSPy would infer OpenAI's fine-tuning for openai/ names, even on localhost.
        super().__init__(
            model,
            temperature=temperature,
            max_tokens=max_tokens,
            cache=False,
            num_retries=0,
            provider=provider or Provider(),
            **decoding,
        )
        self.backend = backend
        self.ledger, self.budget, self.role = ledger, budget, role
        self.retries, self.adapter_hash = retries, adapter_hash
        self._clock, self._sleep = clock, sleep

    def _get_initial_kwargs(self, *, temperature: Any, max_tokens: Any, **kwargs: Any) -> dict[str, Any]:
        # DSPy refuses reasoning models below 16,000 tokens here; the backend knows their limits instead.
        return {"temperature": temperature, "max_tokens": max_tokens, **kwargs}

    # -- what DSPy asks about an LM --------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The model itself; also DSPy's `engine`, whose absence would make DSPy look one up by name."""
        return self._engine_spec

    @backend.setter
    def backend(self, backend: Backend) -> None:
        self._engine_spec: Any = backend

    @property
    def supports_score(self) -> bool:
        """Whether `score` gives probabilities without votes."""
        return self.backend.supports_score

    @property
    def supports_function_calling(self) -> bool:
        """False: tools are offered as text."""
        return False

    @property
    def supports_reasoning(self) -> bool:
        """False: rationales are fields of the signature."""
        return False

    @property
    def supports_response_schema(self) -> bool:
        """False: closed sets are scored instead."""
        return False

    @property
    def supported_params(self) -> set[str]:
        """The settings a call may carry."""
        return {"temperature", "max_tokens", "top_p", "stop", "seed", "n"}

    def __copy__(self) -> LM:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> LM:
        # DSPy deep-copies programs freely; weights, file handles and the budget exist once.
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("limbeck.LM is never pickled: save programs as JSON and set the LM after loading")

    def copy(self, **kwargs: Any) -> LM:
        """Return a copy with other settings, such as `rollout_id=1, temperature=1.0`, on the same backend."""
        return cast(LM, BaseLM.copy(self, **kwargs))

    def dump_state(self) -> dict[str, Any]:
        """Return a state that plain DSPy can load; limbeck sets its own LM on a loaded program anyway."""
        state = {LM_CLASS_STATE_KEY: "dspy.clients.lm.LM", "model": self.model, "model_type": self.model_type}
        decoding = {k: self.kwargs[k] for k in ("temperature", "max_tokens") if self.kwargs.get(k) is not None}
        try:
            dspy.LM(self.model, provider=Provider(), **decoding)
        except dspy.LMConfigurationError:  # a reasoning model takes DSPy's own limits only
            return state
        return state | decoding

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LM:
        """Connect again to the model that `dump_state` named."""
        from limbeck.models.names import connect

        known = {k: state[k] for k in ("temperature", "max_tokens") if state.get(k) is not None}
        return connect(state["model"], **known)

    # -- generation ------------------------------------------------------------------------------------------

    @with_callbacks
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Return a list of texts for a prompt or messages, or one Response for a `dspy.lm15.Request`."""
        return self._respond(prompt, messages, kwargs)

    @with_callbacks
    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Do the same in a thread."""
        return await asyncio.to_thread(self._respond, prompt, messages, kwargs)

    def _respond(self, prompt: Any, messages: Any, kwargs: Mapping[str, Any]) -> Any:
        kwargs = dict(kwargs)
        wire = kwargs.pop("request", None) or (prompt if isinstance(prompt, Request) else None)
        if wire is not None:
            pairs, asked = from_lm15(wire)
            kwargs = {**asked, **kwargs, "n": 1}
        else:
            pairs = as_messages(messages if messages else [("user", str(prompt))])
        decoding = Decoding.of(self.kwargs, kwargs)
        answers = self._samples(pairs, decoding)
        responses = tuple(self._response(answer.row) for answer in answers)
        outputs = [str(answer.row.response["text"]) for answer in answers]
        extra = {"request": wire} if wire is not None else {}
        shown = None if wire is not None else prompt
        self._remember(pairs, kwargs, answers, outputs, prompt=shown, response=responses, **extra)
        return responses[0] if wire is not None else outputs

    def complete(self, messages: Iterable[Any], *, sample: int = 0, **settings: Any) -> str:
        """Return one sample's text; with `assistant_prefix` the model goes on from there.

        The adapter's door: unlike a call with `n`, it names the sample, so that the fields of one answer
        belong to the same one.
        """
        pairs, decoding = as_messages(messages), Decoding.of(self.kwargs, settings)
        answer = self._generate(pairs, decoding, sample)
        text = str(answer.row.response["text"])
        self._remember(pairs, settings, [answer], [text], response=(self._response(answer.row),))
        return text

    def _samples(self, messages: tuple[Message, ...], decoding: Decoding) -> list[Answer]:
        if decoding.n == 1:
            return [self._generate(messages, decoding, 0)]
        # Together, so that a local engine answers the samples in one batch.
        context = contextvars.copy_context
        with ThreadPoolExecutor(min(decoding.n, 16)) as pool:
            jobs = [
                pool.submit(context().run, self._generate, messages, decoding, sample) for sample in range(decoding.n)
            ]
            return [job.result() for job in jobs]

    def _generate(self, messages: tuple[Message, ...], decoding: Decoding, sample: int) -> Answer:
        request = decoding.request(messages, sample)
        shown = {**asdict(request), "rollout": decoding.rollout, "sample": sample}

        def make() -> CallRow:
            started = self._clock()
            made = self._retrying(lambda: self.backend.generate(request))
            response = {"text": made.text, "finish_reason": made.finish_reason}
            tokens = (made.tokens_in, made.tokens_out, made.cached_tokens)
            return self._row("generate", shown, response, tokens, started)

        most = request.max_tokens + self.backend.thinking_tokens
        return self._once("generate", shown, make, _rough_tokens(request), most)

    def _response(self, row: CallRow) -> Response:
        return Response(
            id=None,
            model=self.model,
            message=WireMessage.assistant(str(row.response["text"])),
            finish_reason=row.response["finish_reason"],
            usage=Usage(
                input_tokens=row.tokens_in,
                output_tokens=row.tokens_out,
                cache_read_tokens=row.cached_tokens,
            ),
        )

    # -- probabilities ---------------------------------------------------------------------------------------

    def score(
        self,
        messages: Iterable[Any],
        *,
        assistant_prefix: str = "",
        candidates: Sequence[str],
        suffix: str = "",
        votes: int = 0,
    ) -> LabelScores:
        """Return the probability of every candidate as the continuation of `assistant_prefix`.

        Where the model gives no probabilities, `votes` answers are sampled and counted; with `votes=0`
        ScoresUnavailable is raised instead, since votes cost money. Ledgered like every call.
        """
        if len(set(candidates)) < len(candidates) or not candidates:
            raise InputError(f"labels to score must be distinct and at least one: {list(candidates)}")
        pairs = as_messages(messages)
        if self.supports_score:
            try:
                return self._score(ScoreRequest(pairs, assistant_prefix, tuple(candidates), suffix))
            except ScoresUnavailable:
                if not votes:
                    raise
        if not votes:
            raise ScoresUnavailable(f"{self.model} gives no probabilities", valid="votes=K samples K answers")
        return self._vote(pairs, assistant_prefix, candidates, votes)

    def _score(self, request: ScoreRequest) -> LabelScores:
        shown = asdict(request)

        def make() -> CallRow:
            started = self._clock()
            try:
                scores = self._retrying(lambda: self.backend.score(request))
            except ScoresUnavailable as error:
                if not error.tokens_in:
                    raise
                return self._row("score", shown, {"unavailable": error.message}, (error.tokens_in, 0, 0), started)
            response = {
                "probabilities": scores.probabilities(),
                "source": self.backend.score_source if scores.exact else "logprobs",
            }
            return self._row("score", shown, response, (scores.tokens_in, 0, scores.cached_tokens), started)

        answer = self._once("score", shown, make, _rough_tokens(request), 1)
        stored = answer.row.response
        if "unavailable" in stored:  # it was paid for, so it is not asked again
            raise ScoresUnavailable(str(stored["unavailable"]))
        scores = LabelScores(dict(zip(request.candidates, stored["probabilities"], strict=True)), str(stored["source"]))
        self._remember(request.messages, {"candidates": request.candidates}, [answer], [scores.best])
        return scores

    def _vote(self, messages: tuple[Message, ...], prefix: str, candidates: Sequence[str], votes: int) -> LabelScores:
        decoding = Decoding.of(self.kwargs)
        decoding = replace(
            decoding,
            n=votes,
            temperature=max(decoding.temperature, _VOTE_TEMPERATURE),
            max_tokens=max(len(label.encode()) for label in candidates) + 8,
            assistant_prefix=prefix,
        )
        answers = self._samples(messages, decoding)
        texts = [str(answer.row.response["text"]) for answer in answers]
        self._remember(messages, {"candidates": candidates, "votes": votes}, answers, texts)
        named = {plain(label): label for label in candidates}
        counts = Counter(named[plain(text)] for text in texts if plain(text) in named)
        if not counts:
            raise ScoresUnavailable(f"none of {votes} answers of {self.model} is one of the labels: {texts[0]!r}")
        heard = counts.total()
        return LabelScores({label: counts[label] / heard for label in candidates}, f"votes:{heard}")

    # -- ledger, budget, retries -----------------------------------------------------------------------------

    def _once(
        self, kind: str, shown: Mapping[str, Any], make: Callable[[], CallRow], tokens_in: int, tokens_out: int
    ) -> Answer:
        if self.ledger is None:
            return Answer(make(), False)
        key = stable_hash([kind, self.model, self.backend.fingerprint, self.adapter_hash, shown])
        hold: AbstractContextManager[None] | None = None
        if self.budget is not None:
            usd = self._usd(tokens_in, tokens_out) or 0.0
            hold = self.budget.reserve(self.ledger, usd, tokens_in + tokens_out)
        return Answer(*self.ledger.once(key, make, hold=hold))

    def _row(
        self, kind: Any, shown: Mapping[str, Any], response: Mapping[str, Any], tokens: Any, started: float
    ) -> CallRow:
        tokens_in, tokens_out, cached = tokens
        return CallRow(
            kind,
            self.model,
            self.role,
            shown,
            response,
            tokens_in,
            tokens_out,
            cached,
            usd=self._usd(tokens_in, tokens_out),
            ms=(self._clock() - started) * 1000,
            metered=self.budget is not None,
        )

    def _usd(self, tokens_in: int, tokens_out: int) -> float | None:
        price = self.backend.usd_per_token
        return None if price is None else tokens_in * price[0] + tokens_out * price[1]

    def _retrying(self, call: Callable[[], T]) -> T:
        def report(error: Transient, wait: float) -> None:
            if self.ledger is not None:
                self.ledger.event("retry", model=self.model, reason=str(error), wait=wait)

        return retrying(call, self.model, retries=self.retries, sleep=self._sleep, report=report)

    def _remember(
        self,
        messages: tuple[Message, ...],
        kwargs: Mapping[str, Any],
        answers: Sequence[Answer],
        outputs: list[str],
        **more: Any,
    ) -> None:
        """Record the call where DSPy looks for it: the usage tracker and the histories."""
        paid = [answer.row for answer in answers if not answer.hit]
        usage = usage_of(paid)
        if usage and settings.usage_tracker:
            settings.usage_tracker.add_usage(self.model, usage)
        if not settings.disable_history:
            entry = history_entry(self.model, messages, kwargs, paid, outputs)
            # `calls` are the ledger rows, also of what the ledger answered: limbeck.evaluate measures with them.
            self.update_history({**entry, **more, "calls": [answer.row for answer in answers]})


def _rough_tokens(request: GenerateRequest | ScoreRequest) -> int:
    """Bound a prompt's tokens from its bytes: English text has about four to a token, other scripts fewer.

    Sixteen tokens a message leave room for the chat template.
    """
    text = sum(len(content.encode("utf-8", "replace")) for _, content in request.messages)
    return (text + len(request.assistant_prefix)) // 2 + 16 * len(request.messages)
