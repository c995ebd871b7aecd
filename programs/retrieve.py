"""A DSPy module that answers with passages in view: retrieval-augmented generation in one call.

Lewis et al. 2020 (arXiv:2005.11401) put retrieved passages before the question; so does this, as an input field.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import dspy

from limbeck.errors import InputError
from limbeck.models.grounded import PASSAGES, with_passages


class WithPassages(dspy.Module):
    """Answers a signature's inputs with an input field `passages` before them, which `find` fills from the others.

    `find` gets all inputs as one text and returns the passages as one text, as `limbeck.compile.retrieve.grounding`
    does. Raises InputError for a signature that has a field `passages` already.

    >>> module = WithPassages("question -> answer", find=lambda query: "[1] Boil the water.")
    >>> list(module.answer.signature.input_fields)
    ['passages', 'question']
    """

    def __init__(self, signature: str | type[dspy.Signature], find: Callable[[str], str]) -> None:
        super().__init__()
        plain: Any = cast(Any, dspy).ensure_signature(signature)
        if PASSAGES in plain.fields:
            raise InputError(
                f"the signature {plain.signature!r} has a field {PASSAGES!r} of its own",
                valid=f"a signature without {PASSAGES!r}: the module fills it",
            )
        self.answer = dspy.Predict(with_passages(plain))
        self.find = find

    def forward(self, **inputs: Any) -> Any:
        """Answer one input; the prediction holds its `passages` too."""
        found = self.find("\n".join(str(value) for value in inputs.values()))
        made: Any = self.answer(**{PASSAGES: found}, **inputs)
        return dspy.Prediction(**made.toDict(), **{PASSAGES: found})
