"""List prices of hosted models, from the map that DSPy ships (LiteLLM's), read without network."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast


class UnknownPriceWarning(UserWarning):
    """A model's price is not known, so its calls appear in the report without dollars."""


@dataclass(frozen=True)
class Price:
    """USD per token in and out, and where and when the figures were taken."""

    usd_in: float
    usd_out: float
    source: str


@cache
def _price_map() -> tuple[dict[str, Any], str]:
    folder = files("dspy.clients.model_metadata")
    prices = json.loads(gzip.decompress((folder / "snapshot.json.gz").read_bytes()))
    version = json.loads((folder / "provenance.json").read_text())["version"]
    return prices, f"LiteLLM's price map, version {version}"


def price_of(model: str) -> Price | None:
    """Return the list price of a model by DSPy's name, None where it is not known.

    >>> price_of("openai/gpt-4o-mini").usd_in < price_of("openai/gpt-4o").usd_in
    True
    >>> price_of("openai/no-such-model") is None
    True
    """
    provider, _, bare = model.partition("/")
    prices, source = _price_map()
    # The map's keys name the provider, save for OpenAI's own models.
    for key in (model, bare) if provider == "openai" else (model,):
        entry = prices.get(key)
        if isinstance(entry, dict) and "input_cost_per_token" in entry:
            found = cast(dict[str, Any], entry)
            usd_out = found.get("output_cost_per_token") or 0.0
            return Price(float(found["input_cost_per_token"] or 0.0), float(usd_out), source)
    return None
