"""Calls in the form in which DSPy keeps its history and counts usage."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.engine.requests import Message
from limbeck.ledger import CallRow


def usage_of(paid: Sequence[CallRow]) -> dict[str, int]:
    """Return the tokens of calls that were paid for, {} where all came from the ledger."""
    if not paid:
        return {}
    tokens_in, tokens_out = sum(row.tokens_in for row in paid), sum(row.tokens_out for row in paid)
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }


def history_entry(
    model: str,
    messages: Sequence[Message],
    kwargs: Mapping[str, Any],
    paid: Sequence[CallRow],
    outputs: Sequence[str],
) -> dict[str, Any]:
    """Return one entry of DSPy's history; its cost in USD is None where a price is not known."""
    costs = [row.usd for row in paid]
    return {
        "prompt": None,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "kwargs": dict(kwargs),
        "response": None,
        "outputs": list(outputs),
        "usage": usage_of(paid),
        "cost": None if None in costs else sum(cost or 0.0 for cost in costs),
        "timestamp": datetime.datetime.now().isoformat(),
        "uuid": str(uuid.uuid4()),
        "model": model,
        "response_model": model,
        "model_type": "chat",
    }
