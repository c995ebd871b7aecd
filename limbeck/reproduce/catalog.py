"""Which reproductions there are: a name, what is compared, and the module whose `run` does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from limbeck.errors import InputError

if TYPE_CHECKING:
    from limbeck.reproduce.outcome import Outcome
    from limbeck.reproduce.setting import Setting


@dataclass(frozen=True)
class Entry:
    """One reproduction: its name, the paper, and the comparison in a few words."""

    name: str
    paper: str
    compares: str

    @property
    def run(self) -> Callable[[Setting], Outcome]:
        """The experiment, loaded on first use."""
        module = import_module(f"limbeck.reproduce.{self.name.replace('-', '_')}")
        return cast("Callable[[Setting], Outcome]", module.run)


CATALOG = (
    Entry(
        "prm",
        "Let's Verify Step by Step, Lightman et al. 2023 (arXiv:2305.20050)",
        "best of N by process model, outcome model, majority",
    ),
    Entry(
        "dpo",
        "Direct Preference Optimization, Rafailov et al. 2023 (arXiv:2305.18290)",
        "SFT then DPO on verified pairs, against SFT",
    ),
    Entry(
        "coa",
        "Chain-of-Abstraction, Gao et al. 2024 (arXiv:2401.17464)",
        "chains that tools fill, worked steps, direct answers",
    ),
    Entry(
        "weak-to-strong",
        "Weak-to-Strong Generalization, Burns et al. 2023 (arXiv:2312.09390)",
        "a student of weak labels, with and without the confidence loss",
    ),
    Entry(
        "on-policy",
        "On-Policy Distillation of Language Models, Agarwal et al. 2023 (arXiv:2306.13649)",
        "own answers scored by the teacher, against the teacher's answers",
    ),
    Entry(
        "evol",
        "WizardLM, Xu et al. 2023 (arXiv:2304.12244)",
        "problems made harder in rounds, against as many originals",
    ),
    Entry(
        "filter",
        "Phi-3, Abdin et al. 2024 (arXiv:2404.14219), as phi-1, Gunasekar et al. 2023 (arXiv:2306.11644)",
        "what a classifier of quality keeps, against as many unfiltered rows",
    ),
    Entry(
        "step-by-step",
        "Distilling Step-by-Step, Hsieh et al. 2023 (arXiv:2305.02301)",
        "rationales as a second task, against labels alone",
    ),
    Entry(
        "self-improvement", "Beyond Human Data, Singh et al. 2023 (arXiv:2312.06585)", "rounds of own verified answers"
    ),
    Entry(
        "mipro",
        "Optimizing Instructions and Demonstrations, Opsahl-Ong et al. 2024 (arXiv:2406.11695)",
        "a program that MIPROv2 compiles, uncompiled, demonstrations alone",
    ),
    Entry(
        "active",
        "Let's Verify Step by Step, Lightman et al. 2023 (arXiv:2305.20050)",
        "labels for convincing wrong answers, against labels for random ones",
    ),
    Entry(
        "environment",
        "Q-Transformer, Chebotar et al. 2023 (arXiv:2309.10150), on a game of texts",
        "rounds of play in a game without people",
    ),
    Entry(
        "constitutional",
        "Constitutional AI, Bai et al. 2022 (arXiv:2212.08073)",
        "a student of answers revised by principles, one of the answers as they were",
    ),
    Entry(
        "backtranslation",
        "Instruction Backtranslation, Li et al. 2023 (arXiv:2308.06259)",
        "problems written for documents: curated, uncurated, none",
    ),
)


def find(name: str) -> Entry:
    """Return the entry of that name; raises InputError with the valid names for any other."""
    for entry in CATALOG:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in CATALOG)
    raise InputError(f"no reproduction {name!r}", valid=names, hint="limbeck reproduce --help")
