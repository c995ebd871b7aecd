"""Every error limbeck raises, in one tree.

    LimbeckError
    ├── InputError      (ValueError)    the user's rows, columns, files or options
    │   └── PromptTooLong               one row that does not fit the model's context
    ├── ModelError      (RuntimeError)  a model that cannot be found, loaded or reached
    │   └── CallFailed                  one call that failed after all retries
    ├── BudgetExceeded  (RuntimeError)  --max-usd, --max-tokens or --max-minutes is spent
    └── StageEmpty      (RuntimeError)  a stage that kept nothing

A message says what was wrong and the value; `valid` says what would be right and `hint` is the next
command. The command line prints the three without a traceback.
"""

from __future__ import annotations


class LimbeckError(Exception):
    """Base of all errors meant for people.

    >>> str(LimbeckError("no column 'lable'", valid="text, label", hint="limbeck run --output label"))
    "no column 'lable'\\n  valid: text, label\\n  next:  limbeck run --output label"
    """

    def __init__(self, message: str, *, valid: str = "", hint: str = "") -> None:
        self.message, self.valid, self.hint = message, valid, hint
        lines = [message]
        if valid:
            lines.append(f"  valid: {valid}")
        if hint:
            lines.append(f"  next:  {hint}")
        super().__init__("\n".join(lines))


class InputError(LimbeckError, ValueError):
    """Something the user gave is wrong: a file, a column, a row or an option."""


class PromptTooLong(InputError):
    """One prompt does not fit the model's context: a fault of the row, not of the model."""


class ModelError(LimbeckError, RuntimeError):
    """A model cannot be found, loaded or reached."""


class CallFailed(ModelError):
    """One call failed after every retry; the stage that made it goes on without it."""


class BudgetExceeded(LimbeckError, RuntimeError):
    """A budget is spent. Nothing is lost: a larger budget resumes at this call."""


class StageEmpty(LimbeckError, RuntimeError):
    """A stage kept no record; its rejects say why."""
