"""What writes training rows: one interface, so that methods can be named, mixed by shares and chained.

A synthesizer reads records (the gold rows, or what the method before it in a chain wrote) and writes records. A
record without outputs is answered afterwards by the compiled program; one with outputs keeps them, and in a closed
task the program reads every record back. Methods are found by the entry point group `limbeck.synthesizers`; the
built-in ones come through the same door.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

import dspy

from limbeck.compile.focus import Focus
from limbeck.compile.label import Labeler
from limbeck.compile.prompts import States, loaded
from limbeck.compile.source import Source
from limbeck.compile.synthesize import Distribution
from limbeck.errors import InputError, StageEmpty
from limbeck.preferences import Preference
from limbeck.records import Record, stable_hash

GROUP = "limbeck.synthesizers"
GOLD = "gold"
# Written as entry points are, so that a method's module is imported only when it is asked for.
BUILT_IN = {
    "label_conditioned": "limbeck.compile.writers:LabelConditioned",
    "self_instruct": "limbeck.compile.writers:SelfInstruct",
    "simple": "limbeck.compile.writers:Simple",
    "chain_of_abstraction": "limbeck.compile.abstraction:ChainOfAbstraction",
    "constitutional": "limbeck.compile.constitution:Constitutional",
    "reformulation": "limbeck.compile.reformulate:Reformulation",
    "star": "limbeck.compile.rationales:Star",
    "adaptation": "limbeck.compile.adapt:Adaptation",
    "cleaning": "limbeck.compile.clean_rows:Cleaning",
    "evol_code": "limbeck.compile.evolve_code:EvolCode",
    "evol_instruct": "limbeck.compile.evolve:EvolInstruct",
    "instruction_backtranslation": "limbeck.compile.backtranslate:InstructionBacktranslation",
    "textbook": "limbeck.compile.textbook:Textbook",
}
# What is being done, how many are done, how many are wanted.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Materials:
    """What a synthesizer may use besides the records it reads.

    `lm` under `adapter` writes; `labeler` answers inputs with the compiled program. `options` are the files that some
    methods read, by the name of their setting ("documents", "related", "constitution"), "" where not given, and
    "allow_code": whether model-written code may run where the sandbox is weak.
    `threads` calls wait at once; everything drawn comes from `seed`. `focus` is what a student got wrong. `states` are
    the run's compiled prompts, as DSPy saves them, by METHOD.PART.
    """

    source: Source
    lm: dspy.LM
    adapter: Any
    labeler: Labeler
    samples: int = 3
    threads: int = 16
    seed: int = 0
    distribution: Distribution = "uniform"
    follows_styles: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    focus: Focus = field(default_factory=Focus)
    progress: Progress | None = None
    states: States = field(default_factory=dict[str, Mapping[str, Any]])

    def programs(self, method: WithPrograms) -> dict[str, dspy.Module]:
        """Return a method's programs by part, with the run's compiled prompts where there are some.

        Raises InputError for a compiled prompt of another task.
        """
        return loaded(method.name, method.programs(self.source), self.states)

    def compiled(self, method: str, part: str) -> list[str]:
        """Return a hash of a part's compiled prompt, none for a plain one: what a prompt's own hash ends in."""
        state = self.states.get(f"{method}.{part}")
        return [] if state is None else [stable_hash(state)]

    def show(self, what: str) -> Callable[[int, int], None]:
        """Return what shows the progress of one step."""
        tell = self.progress
        return (lambda done, total: tell(what, done, total)) if tell else (lambda done, total: None)


@dataclass(frozen=True)
class Cost:
    """About how many calls a method makes for each row that is wanted, for forecasts.

    `calls` are its own, tries that are rejected among them; `answers` are answers to inputs, each sampled as often as
    the run samples. `each`: it makes one row of each row that it is given, and no more.
    """

    calls: float = 2.0
    answers: float = 1.0
    each: bool = False


@dataclass(frozen=True)
class Synthesized:
    """The records written, rejected ones among them; `counts` says by rule what never became a record.

    `log` holds plain JSON values for the report: what the method measured while it worked. `preferences` are pairs of
    answers of which one is preferred.
    """

    records: tuple[Record, ...]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    log: Mapping[str, Any] = field(default_factory=dict[str, Any])
    preferences: tuple[Preference, ...] = ()


class Synthesizer(Protocol):
    """One method of writing training rows."""

    @property
    def name(self) -> str:
        """The method's name, as on the command line and in every record's provenance."""
        ...

    @property
    def begins(self) -> bool:
        """Whether it works from the gold rows alone and so can only begin a chain."""
        ...

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError where the task or the run's options do not fit, before anything is spent."""
        ...

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` new records; the same for the same seed.

        Raises StageEmpty when nothing passes; BudgetExceeded and KeyboardInterrupt pass through.
        """
        ...


class WithPrograms(Protocol):
    """A method that writes with DSPy modules, each of which can be compiled (`limbeck.compile.trials`)."""

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return the modules by the names of their parts."""
        ...


@dataclass(frozen=True)
class Portion:
    """One part of the rows to write: methods one after the other, and the share of the rows."""

    chain: tuple[str, ...]
    share: float

    @property
    def name(self) -> str:
        """The chain as it is written on the command line."""
        return ">".join(self.chain)


def parse_methods(given: Sequence[str]) -> tuple[Portion, ...]:
    """Return the portions that `--method NAME[>NAME...][=SHARE]`, given several times, asks for.

    A share left out is 1; shares are relative to their sum. Raises InputError for what is none.

    >>> [(p.name, round(p.share, 2)) for p in parse_methods(["self_instruct=3", "self_instruct>evol_instruct"])]
    [('self_instruct', 0.75), ('self_instruct>evol_instruct', 0.25)]
    """
    found: list[Portion] = []
    for text in given:
        names, _, share = text.partition("=")
        chain = tuple(_as_known(name.strip()) for name in names.split(">"))
        try:
            part = float(share) if share else 1.0
        except ValueError:
            part = 0.0
        if not all(chain) or not 0 < part < float("inf"):
            raise InputError(
                f"--method {text!r} is not a method with a share",
                valid="NAME, NAME=SHARE or FIRST>SECOND=SHARE with a share above 0, such as evol_instruct=0.5",
                hint="limbeck run --help",
            )
        found.append(Portion(chain, part))
    total = sum(portion.share for portion in found)
    return tuple(replace(portion, share=portion.share / total) for portion in found)


def _as_known(name: str) -> str:
    """Return the name as it is installed; built-in ones may be written with hyphens."""
    return name if name in known_methods() else name.replace("-", "_")


@lru_cache(maxsize=1)
def known_methods() -> Mapping[str, EntryPoint]:
    """Return the entry points of all installed synthesizers by name; a built-in name cannot be taken."""
    own = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    return {**{point.name: point for point in entry_points(group=GROUP)}, **own}


def load_method(name: str) -> Synthesizer:
    """Return a synthesizer by its name; InputError for one that is not installed."""
    known = known_methods()
    if name not in known:
        raise InputError(f"unknown method {name!r}", valid=", ".join(sorted(known)), hint="limbeck run --help")
    return cast(Synthesizer, known[name].load()())


def cost_of(method: Synthesizer) -> Cost:
    """Return what a method says of its cost as `cost`; a middling one for a method that says nothing."""
    return cast(Cost, getattr(method, "cost", Cost()))


def default_method(closed: bool) -> str:
    """Return the method of a run that names none."""
    return "label_conditioned" if closed else "self_instruct"


def portions_of(given: Sequence[str], closed: bool) -> tuple[Portion, ...]:
    """Return the portions that a run writes: those of `--method`, else all by the default method."""
    return parse_methods(given or (default_method(closed),))


def check_methods(portions: Sequence[Portion], source: Source, options: Mapping[str, Any]) -> None:
    """Raise InputError for a method that is not known, does not fit the task or stands where it cannot."""
    for portion in portions:
        for at, name in enumerate(portion.chain):
            method = load_method(name)
            method.check(source, options)
            if method.begins and at:
                raise InputError(
                    f"--method {portion.name}: {name} works from the gold rows and cannot follow another method",
                    valid=f"{name} first, or as a portion of its own",
                )


def block_of_child(parent: Record, source: Source) -> int:
    """Return the block of a record made from `parent` alone: a fold whose gold rows it has not seen.

    A generated parent hands down its own. Of a gold row's fold the student that is judged there must not learn,
    so its child gets another fold, drawn by the row; -1 where there are no folds.
    """
    if parent.provenance.method != GOLD:
        return parent.provenance.block
    others = [fold for fold in source.blocks if fold not in (-1, parent.provenance.block)]
    return others[int(parent.id, 16) % len(others)] if others else -1


def write_rows(portions: Sequence[Portion], materials: Materials, wanted: int) -> Synthesized:
    """Return about `wanted` records, each portion by its methods in turn.

    In a chain each method reads what the one before it kept; the records of the last one are returned, with the
    rejected ones of all. A portion that gives nothing is counted, and what its chain rejected before stays, unless all
    give nothing: StageEmpty.
    """
    records: list[Record] = []
    preferences: list[Preference] = []
    counts: Counter[str] = Counter()
    log: dict[str, Any] = {}
    errors: list[StageEmpty] = []
    for number, portion in enumerate(portions):
        part = max(1, round(wanted * portion.share))
        own = replace(materials, seed=materials.seed + number)
        try:
            made, error = _chained(portion, own, part)
        except StageEmpty as nothing:
            made, error = Synthesized(()), nothing
        if error is not None:
            errors.append(error)
            counts[f"{portion.name}: nothing"] += 1
        records += made.records
        preferences += made.preferences
        counts.update(made.counts)
        if error is None:
            log[portion.name] = {"wanted": part, "written": sum(r.kept for r in made.records), **made.log}
    if len(errors) == len(portions) and errors:
        raise errors[0]
    return Synthesized(tuple(records), dict(counts), log, tuple(preferences))


def _chained(portion: Portion, materials: Materials, wanted: int) -> tuple[Synthesized, StageEmpty | None]:
    """Return what a portion's methods give, and the error of a later one that gives nothing; raise the first one's."""
    given: Sequence[Record] = materials.source.gold
    rejected: list[Record] = []
    preferences: list[Preference] = []
    counts: Counter[str] = Counter()
    log: dict[str, Any] = {}
    made = Synthesized(())
    for at, name in enumerate(portion.chain):
        try:
            made = load_method(name)(given, materials, wanted)
        except StageEmpty as error:
            if at == 0:
                raise
            return Synthesized(tuple(rejected), dict(counts), log, tuple(preferences)), error
        counts.update(made.counts)
        warnings = [*log.get("warnings", ()), *made.log.get("warnings", ())]
        log |= {**made.log, **({"warnings": warnings} if warnings else {})}
        preferences += made.preferences
        if at + 1 < len(portion.chain):
            rejected += [r for r in made.records if not r.kept]
        given = [r for r in made.records if r.kept]
    return Synthesized((*rejected, *made.records), dict(counts), log, tuple(preferences)), None
