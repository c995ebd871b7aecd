"""Consent for running model-written code: asked for before the first call, and only where the sandbox is weak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck.codecheck import UnitTests
from limbeck.sandbox import require
from limbeck.task import Task
from limbeck.verifiers import Verifier


def with_consent(task: Task, *, allow_code: bool) -> Task:
    """Return the task whose verifiers may run code in a weak sandbox where the user allows it.

    Raises InputError where a verifier runs code, the sandbox is weak and no one has allowed that: in a run its
    refusal would count against every row.
    """
    verifiers = tuple(_consenting(verifier, allow_code) for verifier in task.verifiers)
    for verifier in verifiers:
        if isinstance(verifier, UnitTests):
            require(allow_weak=verifier.allow_weak)
    return replace(task, verifiers=verifiers)


def _consenting(verifier: Verifier, allow_code: bool) -> Any:
    if isinstance(verifier, UnitTests) and allow_code:
        return replace(verifier, allow_weak=True)
    return verifier
