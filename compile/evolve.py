"""Evol-Instruct (Xu et al. 2023, arXiv:2304.12244): rows made harder round by round, and what fails eliminated.

Every lineage starts from a given row and goes through four rounds. A round draws one of six operations uniformly
(five in depth, one in breadth), asks for 10 to 20 words more, and eliminates what gained nothing over its parent,
leaked the prompt's wording, or is answered by a refusal or by stop words alone; the parent then goes into the next
round as it was. Every round's rows are data, not only the last one's.

Beyond the paper: limits on length, no copies of rows that exist, and no row that its answer repeats (a model that
answers where it should rewrite leaves nothing to ask). A rule that gold rows break themselves is not applied. The model
is not asked whether two rows are equal, which small ones affirm of nearly all, but what the second adds; nothing means
equal. An answer is what the compiled program says. In a closed task the row keeps its parent's label; there the answer
is a label, so the rules about answers have nothing to look at.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from limbeck.compile.children import child_of
from limbeck.compile.dedup import normalize
from limbeck.compile.label import answered, prompt_hash
from limbeck.compile.prompts import blind
from limbeck.compile.rewriting import Calls, answers_of, is_closed, require_text, text_of, tokens_for
from limbeck.compile.rouge import rouge_l
from limbeck.compile.source import Source
from limbeck.compile.synthesize import SynthesisConfig, label_counts
from limbeck.compile.synthesizers import Cost, Materials, Synthesized, block_of_child
from limbeck.programs.evolve import Comparer, Evolver
from limbeck.programs.rewrite import changed_fields
from limbeck.records import Provenance, Record, stable_hash
from limbeck.signatures.evolve import BREADTH, OPERATIONS
from limbeck.signatures.rewrite import new_names

# Wording of the prompts; the first two are the paper's.
LEAKS = (
    "given prompt",
    "rewritten prompt",
    "harder version",
    "little harder",
    "more complex version",
    "rewritten version",
    "10 to 20 words",
    "output fields:",
    "[[ ##",
)
_STOP_WORDS = """
a about all also am an and any are as at be been but by can could did do does for from had has have he her here him his
how i if in into is it its just me my of on or our she should so some than that the their them then there these they
this those to too very was we were what when where which who whom why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class EvolveConfig:
    """How long lineages are and what is eliminated.

    A row made harder has at least `min_share` of its parent's words (it keeps what is there) and at most `max_added`
    more: twice the 20 that are asked for, since models count badly. One in breadth has between a third and twice the
    words, with ten to spare. `apology_words` is the length from which an answer with "sorry" in it is no refusal; an
    answer over `echo` (ROUGE-L) with the row repeats it, so that the row asked for nothing. At most `max_calls`
    rewritings (None: three times what is wanted); StageEmpty when the first `patience` give nothing.
    """

    rounds: int = 4
    min_share: float = 0.8
    max_added: int = 40
    apology_words: int = 80
    echo: float = 0.7
    temperature: float = 0.8
    top_p: float = 0.95
    max_calls: int | None = None
    patience: int = 24


@dataclass(frozen=True)
class Job:
    """One evolution to try: `operation` on `parent` in one round, with the seed of its calls."""

    parent: Record
    operation: str
    round: int
    seed: int

    @property
    def attributes(self) -> str:
        """What the record says of how it was made."""
        return f"round {self.round}: {self.operation}"


# Evolves rows of one round together: for each a record, kept or rejected, or None where the call failed.
Step = Callable[[Sequence[Job]], Sequence[Record | None]]


@dataclass
class Evolution:
    """Lineages from given rows, round by round; what a round eliminates goes into the next one as it was."""

    starts: Sequence[Record]
    step: Step
    calls: Calls
    operations: Sequence[str]
    config: EvolveConfig
    done: list[Record] = field(default_factory=list[Record])
    begun: int = 0
    tried: int = 0
    kept: int = 0

    def run(self, wanted: int) -> Synthesized:
        """Return about `wanted` kept rows and those eliminated; the log counts every rule by round.

        So many lineages begin that all rounds together can give what is missing; where rounds eliminate some, others
        begin. Raises StageEmpty when nothing is kept.
        """
        show = self.calls.materials.show("evolving rows")
        limit = self.config.max_calls or 3 * wanted
        rounds = {str(number): Counter[str]() for number in range(1, self.config.rounds + 1)}
        while self.starts and self.kept < wanted and self.tried < limit:
            size = min(-(-(wanted - self.kept) // self.config.rounds), limit - self.tried)
            pool = [self.starts[(self.begun + i) % len(self.starts)] for i in range(size)]
            for name, tally in rounds.items():
                jobs = [self._job(parent, self.begun + i, int(name)) for i, parent in enumerate(pool)]
                made = self._round(jobs[: limit - self.tried])
                tally.update("failed_calls" if r is None else r.reason or "kept" for r in made)
                pool[: len(made)] = [r if r and r.kept else old for r, old in zip(made, pool, strict=False)]
                show(min(self.kept, wanted), wanted)
            self.begun += size
        if not self.kept:
            raise self.calls.empty(self.done)
        log = {"lineages": self.begun, "calls": self.calls.made, "rounds": {n: dict(t) for n, t in rounds.items()}}
        return Synthesized(tuple(self.done), self.calls.counts, log)

    def _job(self, parent: Record, lineage: int, number: int) -> Job:
        seed = self.calls.materials.seed
        operation = random.Random(f"{seed}:{lineage}:{number}").choice(self.operations)
        return Job(parent, operation, number, int(stable_hash([seed, lineage, number])[:7], 16))

    def _round(self, jobs: Sequence[Job]) -> list[Record | None]:
        """Evolve one round's rows; as long as nothing has been kept, no more of them at once than patience allows."""
        made: list[Record | None] = []
        while len(made) < len(jobs):
            found = self.step(jobs[len(made) :][: None if self.kept else self.config.patience])
            made += found
            self.done += [record for record in found if record is not None]
            self.tried += len(found)
            self.kept += sum(record is not None and record.kept for record in found)
            if not self.kept and self.tried >= self.config.patience:
                raise self.calls.empty(self.done)
        return made


def origin_of(job: Job, method: str, prompt: str, materials: Materials) -> Provenance:
    """Return where an evolved row comes from; all of a lineage is in the block of its first row's child."""
    child = child_of(
        job.parent, materials.source, method, materials.lm, seed=job.seed, prompt=prompt, attributes=job.attributes
    )
    return replace(child, seed=job.seed)


class Eliminator:
    """The rules on one evolved row and on its answer, in order; what passes is remembered.

    Two rows are the same where their `keyed` fields are, all by default. Wording, stop words and apologies that gold
    rows hold themselves are no fault.
    """

    def __init__(
        self, source: Source, changed: Sequence[str], config: EvolveConfig, *, keyed: Sequence[str] = ()
    ) -> None:
        self.changed, self.keyed, self.config = changed, keyed or tuple(source.fields), config
        texts = [text_of(row.inputs, changed).casefold() for row in source.gold]
        leaks = (*LEAKS, *new_names(source.fields, changed).values())
        self.leaks = tuple(phrase for phrase in leaks if not any(phrase in text for text in texts))
        self.seen = {normalize(text_of(row.inputs, self.keyed)) for row in source.gold}
        self.used: set[str] = set()
        self.used = {reason for row in source.gold if (reason := self.answer_reason(row.inputs, row.outputs))}

    def text_reason(self, job: Job, row: Mapping[str, Any]) -> str:
        """Return the name of the first rule about the text that an evolved row breaks, "" for none."""
        old, new = (text_of(inputs, self.changed) for inputs in (job.parent.inputs, row))
        key = normalize(text_of(row, self.keyed))
        if any(phrase in new.casefold() for phrase in self.leaks):
            return "leaked"
        if not new.strip() or normalize(old) == normalize(new):
            return "unchanged"
        if key in self.seen:
            return "duplicate"
        before, after = len(old.split()), len(new.split())
        low, high = self.config.min_share * before, before + self.config.max_added
        if job.operation == BREADTH:
            low, high = before / 3, 2 * before + 10
        if not low <= after <= high:
            return "too_short" if after < low else "too_long"
        self.seen.add(key)
        return ""

    def answer_reason(self, row: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
        """Return the name of the first rule about the answer that it breaks, "" for none."""
        broken = {
            "empty_answer": says_nothing(outputs),
            "refusal": apologizes(outputs, self.config.apology_words),
            "echo": rouge_l(text_of(row, self.changed), _texts(outputs)) > self.config.echo,
        }
        return next((name for name, is_broken in broken.items() if is_broken and name not in self.used), "")


def says_nothing(outputs: Mapping[str, Any]) -> bool:
    """Return whether all texts of an answer hold stop words and punctuation alone; numbers and lists are no texts.

    >>> says_nothing({"answer": "It is what it is."}), says_nothing({"answer": "No"}), says_nothing({"answer": 7})
    (True, False, False)
    """
    texts = [value for value in outputs.values() if isinstance(value, str)]
    words = {word for text in texts for word in re.findall(r"[^\W_]+", text.casefold())}
    return bool(texts) and len(texts) == len(outputs) and words <= STOP_WORDS


def apologizes(outputs: Mapping[str, Any], words: int) -> bool:
    """Return whether an answer with "sorry" in it is shorter than so many words: the paper's sign of a refusal.

    >>> apologizes({"answer": "I'm sorry, I cannot do that."}, 80)
    True
    """
    text = _texts(outputs)
    return "sorry" in text.casefold() and len(text.split()) < words


def each_kept(
    jobs: Sequence[Job],
    records: Sequence[Record | None],
    work: Callable[[Sequence[tuple[Job, Record]]], Sequence[Record]],
) -> list[Record | None]:
    """Return the records, those that are still kept as `work` gives them back."""
    pairs = {i: (jobs[i], record) for i, record in enumerate(records) if record is not None and record.kept}
    told = dict(zip(pairs, work(list(pairs.values())) if pairs else [], strict=True))
    return [told.get(i, record) for i, record in enumerate(records)]


def compared(
    pairs: Sequence[tuple[Job, Record]], calls: Calls, programs: Mapping[str, dspy.Module], changed: Sequence[str]
) -> list[Record]:
    """Return the rows, those rejected as "no_gain" that the model finds equal to their parents."""

    source = calls.materials.source

    def ask(pair: tuple[Job, Record]) -> bool:
        job, record = pair
        texts = (text_of(inputs, changed) for inputs in (job.parent.inputs, record.inputs))
        compare = blind(programs["compare"], source, record.provenance.block, job.parent.inputs)
        made: Any = compare(*texts, config={"temperature": 0.0})
        return bool(made.equal)

    reasons = {True: "no_gain", False: "", None: "not_compared"}
    found = zip(pairs, calls.run(ask, pairs), strict=True)
    return [record.reject(reasons[equal]) if equal is not False else record for (_, record), equal in found]


def _texts(outputs: Mapping[str, Any]) -> str:
    return " ".join(value for value in outputs.values() if isinstance(value, str))


def sampling(job: Job, row: Mapping[str, Any], changed: Sequence[str], config: EvolveConfig) -> dict[str, Any]:
    """Return the settings of the call that evolves a row; a text of one paragraph stays one."""
    one_paragraph = len(changed) == 1 and "\n\n" not in str(row[changed[0]]).strip()
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": tokens_for(row, changed, config.max_added),
        "rollout_id": job.seed,
        **({"stop": ["\n\n"]} if one_paragraph else {}),
    }


def starts_of(records: Sequence[Record], materials: Materials, changed: Sequence[str], count: int) -> list[Record]:
    """Return `count` rows for lineages to start from, in a seeded order; of labels as many as the run wants of each."""
    source, rng = materials.source, random.Random(materials.seed)
    usable = [row for row in records if text_of(row.inputs, changed).strip()]
    groups = {"": usable}
    shares = {"": count}
    if is_closed(source):
        groups = {n: [r for r in usable if str(r.outputs.get(source.label_field)) == n] for n in source.labels}
        config = SynthesisConfig(total=count, distribution=materials.distribution, focus=materials.focus)
        shares = label_counts(source, config)
    placed: list[tuple[float, Record]] = []
    for name, rows in groups.items():
        order = materials.focus.draw(rows, len(rows), rng)[::-1]  # what the student gets wrong comes first
        if order:
            placed += [((i + 0.5) / shares[name], order[i % len(order)]) for i in range(shares[name])]
    # The first lineages already have the labels in their shares.
    return [row for _, row in sorted(placed, key=lambda found: found[0])]


class EvolInstruct:
    """Given rows made harder or rarer in rounds, with the answers that the compiled program gives.

    Demonstrations of a compiled prompt take the place of the built-in ones.
    """

    name = "evol_instruct"
    begins = False
    cost = Cost(calls=3.0)

    def __init__(self, config: EvolveConfig | None = None) -> None:
        self.config = config or EvolveConfig()

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        """Raise InputError for a task without a text among its inputs."""
        require_text(source, self.name)

    def programs(self, source: Source) -> dict[str, dspy.Module]:
        """Return what evolves rows and what compares them with their parents."""
        changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        evolver = Evolver(
            source.fields,
            changed,
            source.instructions,
            labelled=is_closed(source),
            described=bool(source.meanings),
        )
        return {"evolve": evolver, "compare": Comparer(changed)}

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        """Return about `wanted` evolved rows, eliminated ones among them.

        Raises StageEmpty when nothing passes; BudgetExceeded and KeyboardInterrupt pass through.
        """
        calls = Calls(materials, self.name, self.config.patience)
        steps = Steps(materials, calls, self.config, materials.programs(self))
        starts = starts_of(records, materials, steps.changed, wanted)
        made = Evolution(starts, steps, calls, OPERATIONS, self.config).run(wanted)
        return Synthesized(made.records, made.counts, {self.name: dict(made.log)})


@dataclass
class Steps:
    """One step of text rows: evolve, hold to the rules, compare, answer, hold the answers to the rules."""

    materials: Materials
    calls: Calls
    config: EvolveConfig
    programs: Mapping[str, dspy.Module]

    def __post_init__(self) -> None:
        source = self.materials.source
        self.changed = changed_fields(source.fields, [row.inputs for row in source.gold])
        self.closed = is_closed(source)
        self.rules = Eliminator(source, self.changed, self.config)
        self.hash = prompt_hash(self.programs["evolve"])

    def __call__(self, jobs: Sequence[Job]) -> list[Record | None]:
        """Return what becomes of each job: a record, kept or rejected, None where the call failed."""
        rows = self.calls.run(lambda job: self.evolve(job, self.programs["evolve"]), jobs)
        records = [self._record(job, row) if row is not None else None for job, row in zip(jobs, rows, strict=True)]
        records = each_kept(jobs, records, lambda pairs: compared(pairs, self.calls, self.programs, self.changed))
        return records if self.closed else each_kept(jobs, records, self._answer)

    def evolve(self, job: Job, program: dspy.Module) -> Mapping[str, Any]:
        """Return the row that the program makes of the job's parent."""
        source = self.materials.source
        label = str(job.parent.outputs[source.label_field]) if self.closed else ""
        row = {name: job.parent.inputs[name] for name in source.fields}
        config = sampling(job, row, self.changed, self.config)
        meaning = source.meanings.get(label, "")
        program = blind(program, source, block_of_child(job.parent, source), job.parent.inputs)
        made: Any = program(row, job.operation, label=label, meaning=meaning, config=config)
        return made.row

    def _record(self, job: Job, row: Mapping[str, Any]) -> Record:
        field = self.materials.source.label_field
        outputs = {field: job.parent.outputs[field]} if self.closed else {}
        record = Record(dict(row), outputs, origin_of(job, EvolInstruct.name, self.hash, self.materials))
        reason = self.rules.text_reason(job, row)
        return record.reject(reason) if reason else record

    def _answer(self, pairs: Sequence[tuple[Job, Record]]) -> list[Record]:
        """Return the rows with the compiled program's answers, as the run itself would answer them."""
        blocks = [record.provenance.block for _, record in pairs]
        answers = answers_of(
            [record.inputs for _, record in pairs],
            blocks,
            self.materials,
            method=EvolInstruct.name,
            samples=self.materials.samples,
        )
        told = [answered(record, answer) for (_, record), answer in zip(pairs, answers, strict=True)]
        reasons = [self.rules.answer_reason(record.inputs, record.outputs) if record.kept else "" for record in told]
        return [record.reject(why) if why else record for record, why in zip(told, reasons, strict=True)]
