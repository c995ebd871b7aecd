"""An adapter that shows passages of documents before a call's inputs: any program is grounded without knowing it.

Retrieval-augmented generation (Lewis et al. 2020, arXiv:2005.11401) puts retrieved passages before the question.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import dspy

from limbeck.models.adapter import CompactAdapter

PASSAGES = "passages"
# The passages for a query as one text, "" for none; the seed of a call that is one of several, else None.
Find = Callable[[str, int | None], str]


class GroundedAdapter(CompactAdapter):
    """A CompactAdapter with a field `passages` before the inputs, which `find` fills from the inputs' text.

    A signature that has such a field already is left as it is. Demonstrations are shown without passages.
    """

    def __init__(self, find: Find, **options: Any) -> None:
        super().__init__(**options)
        self.find = find

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return one dictionary of output values per sample."""
        signature, inputs = self.grounded(lm_kwargs, signature, inputs)
        return super().__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        signature, inputs = self.grounded(lm_kwargs, signature, inputs)
        return await super().acall(lm, lm_kwargs, signature, demos, inputs)

    def grounded(self, lm_kwargs: dict[str, Any], signature: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return a call's signature and inputs with passages, as they are where there are none."""
        if PASSAGES in signature.fields:
            return signature, inputs
        found = self.find("\n".join(str(value) for value in inputs.values()), lm_kwargs.get("rollout_id"))
        return (with_passages(signature), {PASSAGES: found, **inputs}) if found else (signature, inputs)


@lru_cache(maxsize=64)
def with_passages(signature: Any) -> Any:
    """Return a signature with an input field for passages before the others."""
    return signature.prepend(
        PASSAGES, cast(Any, dspy).InputField(desc="from documents; some may have nothing to do with it"), str
    )
