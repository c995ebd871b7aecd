"""Teachers and students behind one `dspy.LM`: names, backends, budgets, prices and the compact adapter.

>>> from limbeck.models import connect
>>> lm = connect("embedded")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.models.adapter import (
        CompactAdapter,
        Rendered,
        ScoredField,
        label_probabilities,
        probability_source,
        recorded_scores,
        render,
        render_program,
    )
    from limbeck.models.backend import Backend, LabelScores, ScoresUnavailable, Transient
    from limbeck.models.budget import Budget
    from limbeck.models.encoder_engine import EncoderBackend
    from limbeck.models.labels import closed_values, label_text, match_label
    from limbeck.models.lm import LM
    from limbeck.models.names import connect
    from limbeck.models.pricing import UnknownPriceWarning, price_of
    from limbeck.models.torch_engine import TorchBackend

_HOMES = {
    "Backend": "backend",
    "Budget": "budget",
    "CompactAdapter": "adapter",
    "EncoderBackend": "encoder_engine",
    "LM": "lm",
    "LabelScores": "backend",
    "Rendered": "adapter",
    "ScoredField": "adapter",
    "ScoresUnavailable": "backend",
    "TorchBackend": "torch_engine",
    "Transient": "backend",
    "UnknownPriceWarning": "pricing",
    "closed_values": "labels",
    "connect": "names",
    "label_probabilities": "adapter",
    "label_text": "labels",
    "match_label": "labels",
    "price_of": "pricing",
    "probability_source": "adapter",
    "recorded_scores": "adapter",
    "render": "adapter",
    "render_program": "adapter",
}

__all__ = [
    "LM",
    "Backend",
    "Budget",
    "CompactAdapter",
    "EncoderBackend",
    "LabelScores",
    "Rendered",
    "ScoredField",
    "ScoresUnavailable",
    "TorchBackend",
    "Transient",
    "UnknownPriceWarning",
    "closed_values",
    "connect",
    "label_probabilities",
    "label_text",
    "match_label",
    "price_of",
    "probability_source",
    "recorded_scores",
    "render",
    "render_program",
]


def __getattr__(name: str) -> Any:
    # Names load on first use: the command line's --help must not import dspy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
