"""What DSPy passes to a language model, turned into requests: messages, settings, samples."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.engine.requests import GenerateRequest, Message
from limbeck.errors import ModelError
from limbeck.records import stable_hash

_IGNORED = frozenset({"cache", "num_retries", "prompt_cache", "parallel_tool_calls"})
_KNOWN = frozenset(
    {
        *("temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "n"),
        *("num_generations", "rollout_id", "assistant_prefix"),
    }
)


@dataclass(frozen=True)
class Decoding:
    """The settings of one call of an LM; `n` samples, each with its own seed and ledger row.

    `rollout` is DSPy's `rollout_id`: optimizers change nothing but it when they want another answer.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    n: int = 1
    rollout: int | None = None
    assistant_prefix: str = ""

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Decoding:
        """Read DSPy's keyword arguments, later layers over earlier ones; None and False ask for nothing.

        Raises ModelError for a setting that nothing here can honour.

        >>> Decoding.of({"temperature": 0.7, "n": 3, "stop": "END"}).stop
        ('END',)
        """
        items = [item for settings in layers for item in settings.items()]
        given = {k: v for k, v in items if v is not None and v is not False and k not in _IGNORED}
        if unknown := sorted(set(given) - _KNOWN):
            raise ModelError(
                f"limbeck.LM cannot honour the setting {unknown[0]!r}",
                valid=", ".join(sorted(_KNOWN)) + "; LM.score gives the probabilities of labels",
            )
        stop = given.get("stop", ())
        return cls(
            temperature=float(given.get("temperature", cls.temperature)),
            max_tokens=int(given.get("max_completion_tokens") or given.get("max_tokens") or cls.max_tokens),
            top_p=float(given.get("top_p", cls.top_p)),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=int(given.get("seed", cls.seed)),
            n=int(given.get("n") or given.get("num_generations") or 1),
            rollout=given.get("rollout_id"),
            assistant_prefix=given.get("assistant_prefix", ""),
        )

    def seed_of(self, sample: int) -> int:
        """Return the seed of one sample: the given one for the first of no rollout, else one of its own."""
        if self.rollout is None and sample == 0:
            return self.seed
        return int(stable_hash([self.seed, self.rollout, sample])[:7], 16)

    def request(self, messages: tuple[Message, ...], sample: int = 0) -> GenerateRequest:
        """Return the request of one sample; greedy decoding has no seed."""
        return GenerateRequest(
            messages,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=self.stop,
            seed=self.seed_of(sample) if self.temperature > 0 else 0,
            assistant_prefix=self.assistant_prefix,
        )


def as_messages(messages: Iterable[Any]) -> tuple[Message, ...]:
    """Return (role, content) pairs from pairs or OpenAI-style dictionaries; ModelError unless all is text.

    >>> as_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    (('user', 'Hi'),)
    """
    return tuple(_pair(message) for message in messages)


def _pair(message: Any) -> Message:
    role, content = (message["role"], message["content"]) if isinstance(message, Mapping) else message
    if content is None:
        return str(role), ""
    if isinstance(content, str):
        return str(role), content
    parts: Sequence[Any] = content
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        raise ModelError("a message holds something other than text", valid="text messages")
    return str(role), "\n".join(str(part["text"]) for part in parts)


def from_lm15(request: Any) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """Return the messages and settings of a `dspy.lm15.Request`; raises ModelError for what is not text."""
    if request.tools:
        raise ModelError("a request asks for tools", valid="text requests")
    pairs: list[Any] = []
    if request.system is not None:
        system = request.system
        pairs.append(("system", system if isinstance(system, str) else "\n".join(p.text for p in system)))
    for message in request.messages:
        if message.text is None:
            raise ModelError("a message holds something other than text", valid="text messages")
        pairs.append(("system" if message.role == "developer" else message.role, message.text))
    config = request.config
    names = ("max_tokens", "temperature", "top_p", "stop", "seed", "logprobs", "response_format")
    settings = {name: value for name in names if (value := getattr(config, name)) not in (None, ())}
    return tuple(pairs), settings
