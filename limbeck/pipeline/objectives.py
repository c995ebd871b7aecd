"""What the distilled student is trained for: the names that `--objective` takes, and how much each counts.

`sft` learns the rows' answers. `step-by-step` learns their rationales as well, as a task of its own that is not decoded
when the student answers (Hsieh et al. 2023, arXiv:2305.02301). `dpo` goes on after either with pairs of answers of
which one is preferred (Rafailov et al. 2023, arXiv:2305.18290).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from limbeck.errors import InputError

SFT, STEP_BY_STEP, DPO = "sft", "step-by-step", "dpo"
# What a rationale weighs against its row's answer (the paper's lambda), and DPO's beta.
_DEFAULTS = {SFT: 0.0, STEP_BY_STEP: 1.0, DPO: 0.1}


@dataclass(frozen=True)
class Objectives:
    """The weight of the rationales beside the answers and the beta of DPO after them; 0: that is not trained."""

    rationales: float = 0.0
    beta: float = 0.0


def parse_objectives(given: str) -> Objectives:
    """Return what a comma-separated list such as "sft,dpo" asks for; a number after "=" replaces a default.

    Raises InputError for an unknown name, a number that is none, and a list without or with two supervised ones.

    >>> parse_objectives("sft"), parse_objectives("step-by-step=0.5,dpo")
    (Objectives(rationales=0.0, beta=0.0), Objectives(rationales=0.5, beta=0.1))
    """
    numbers: dict[str, float] = {}
    names: list[str] = []
    for part in given.split(","):
        name, _, number = (text.strip() for text in part.partition("="))
        names.append(name)
        numbers[name] = _number(given, name, number) if number else _DEFAULTS.get(name, 0.0)
    if names not in ([SFT], [STEP_BY_STEP], [SFT, DPO], [STEP_BY_STEP, DPO]):
        raise _refused(given)
    return Objectives(numbers.get(STEP_BY_STEP, 0.0), numbers.get(DPO, 0.0))


def _number(given: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if name not in (STEP_BY_STEP, DPO) or not 0 < number < math.inf:
        raise _refused(given)
    return number


def _refused(given: str) -> InputError:
    return InputError(
        f"--objective {given!r} is nothing to train for",
        valid=f"{SFT} or {STEP_BY_STEP}, and {DPO} after it where wanted, such as {SFT},{DPO}; {STEP_BY_STEP}=WEIGHT "
        f"and {DPO}=BETA with a number above 0",
        hint="limbeck run --help",
    )
