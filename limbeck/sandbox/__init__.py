"""A sandbox for model-written code: a process of its own without network, files, environment or leftovers."""

from limbeck.sandbox.launch import Program, compile_own
from limbeck.sandbox.levels import isolation, require
from limbeck.sandbox.run import run_code, run_many, run_pair
from limbeck.sandbox.values import DEFAULT_LIMITS, Isolation, Level, Limits, Ran, Status

__all__ = [
    "DEFAULT_LIMITS",
    "Isolation",
    "Level",
    "Limits",
    "Program",
    "Ran",
    "Status",
    "compile_own",
    "isolation",
    "require",
    "run_code",
    "run_many",
    "run_pair",
]
