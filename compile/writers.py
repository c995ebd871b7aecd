"""The methods that write new inputs from the gold rows alone: by label, with or without attributes; Self-Instruct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import dspy

from limbeck.compile.selfinstruct import SelfInstructConfig, self_instruct
from limbeck.compile.source import Source, writer_of
from limbeck.compile.synthesize import SynthesisConfig, synthesize
from limbeck.compile.synthesizers import Cost, Materials, Synthesized
from limbeck.errors import InputError
from limbeck.programs.generate import InputWriter
from limbeck.records import Record


class LabelConditioned:
    """Inputs for labels chosen first; see `limbeck.compile.synthesize`.

    Demonstrations of a compiled prompt stand before the gold rows that each call shows.
    """

    name = "label_conditioned"
    begins = True
    styled = True
    cost = Cost(calls=0.2)

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task without labels."""
        if not source.labels:
            raise InputError(
                f"--method {self.name} writes inputs for labels, and this task has none",
                valid="a task with one closed set of labels",
                hint="--method self_instruct",
            )

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the writer."""
        return {"write": writer_of(source, labelled=True)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return inputs with the labels they were written for; a small model follows no style."""
        config = SynthesisConfig(
            total=wanted,
            distribution=materials.distribution,
            threads=materials.threads,
            seed=materials.seed,
            focus=materials.focus,
            method=self.name,
        )
        if not (self.styled and materials.follows_styles):
            config = replace(config, styled=0.0)
        config = sampled(config, materials)
        made = synthesize(
            materials.source,
            lm=materials.lm,
            adapter=materials.adapter,
            config=config,
            writer=cast(InputWriter, materials.programs(self)["write"]),
            progress=materials.show("writing rows"),
        )
        counts = {"failed_calls": made.failed, "refused_calls": sum(made.refused.values())}
        log = {"warnings": list(made.warnings)} if made.warnings else {}
        return Synthesized(made.records, {name: n for name, n in counts.items() if n}, log)


def sampled(config: SynthesisConfig, materials: Materials) -> SynthesisConfig:
    """Return the configuration as a teacher of this size is sampled: small ones stray at higher temperatures."""
    return config if materials.follows_styles else replace(config, temperature=0.7, top_p=0.9)


class Simple(LabelConditioned):
    """Inputs for labels chosen first, without attributes: plain generation, the baseline for every other method.

    SimPrompt of Yu et al. 2023 (arXiv:2306.15895). A small model, which follows no style, writes so anyway.
    """

    name = "simple"
    styled = False


class SelfInstruct:
    """New inputs beside eight demonstrations, answered by rejection sampling; see `limbeck.compile.selfinstruct`.

    Demonstrations of a compiled prompt stand before the eight of each call.
    """

    name = "self_instruct"
    begins = True
    cost = Cost(calls=0.4)
    # Calls of one wave of new inputs: later waves show what earlier ones wrote.
    wave = 32

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Every task fits."""

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the writer."""
        return {"write": writer_of(source, labelled=False)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return new inputs with their answers."""
        show = {"write": materials.show("writing new inputs"), "answer": materials.show("answering new inputs")}
        made = self_instruct(
            materials.source,
            materials.labeler,
            config=SelfInstructConfig(
                total=wanted,
                samples=materials.samples,
                threads=materials.threads,
                wave=self.wave,
                seed=materials.seed,
                focus=materials.focus,
            ),
            writer=cast(InputWriter, materials.programs(self)["write"]),
            progress=lambda what, done, total: show[what](done, total),
        )
        counts = {"failed_calls": made.failed} if made.failed else {}
        return Synthesized(made.records, counts, preferences=made.preferences)
