"""What a run is asked to do, and what each effort level spends.

Everything here lands in the run folder as `run.toml`, keys and secrets excepted: they are never in it.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from limbeck.errors import InputError
from limbeck.levels import parse_levels
from limbeck.models.kinds import ENCODER_NAMES, LOCAL_NAMES, is_encoder, is_local
from limbeck.pipeline.objectives import Objectives, parse_objectives
from limbeck.terms import check_reason

EffortName = Literal["quick", "standard", "thorough"]
Stage = Literal["compile", "synthesize", "curate", "finetune", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Effort:
    """How much one effort level spends; counts are rows, `samples` answers per open input.

    `open_rows` stands for `pool_rows` and `synthetic_rows` where answers are written instead of scored: each then
    costs `samples` texts. Programs that reason write several times as much a row and get a quarter of the rows. Where
    `brief`, what is written is trained at the first learning rate alone and in fewer passes, and programs that reason
    get a sixth of the rows, of the test rows too, and a second try at the labelled ones, no third. `demos` says which
    prompts the student is tried with: without the demonstrations, with them, or both.
    """

    folds: int
    pool_rows: int
    synthetic_rows: int
    demo_tokens: int
    learning_rates: tuple[float, ...]
    gold_epochs: int
    student_epochs: int
    gold_weights: tuple[float, ...]
    test_rows: int
    samples: int
    open_rows: int
    demos: tuple[bool, ...] = (False,)
    brief: bool = False

    def passes(self, closed: bool, reasons: bool) -> tuple[float, float]:
        """Return the passes over the labels alone and over all rows; whole texts take more than labels."""
        factor = 1.0 if closed or (self.brief and reasons) else 1.5 if self.brief else 2.0
        return factor * self.gold_epochs, factor * self.student_epochs

    def rates(self, closed: bool) -> tuple[float, ...]:
        """Return the learning rates that are tried on the labels alone."""
        return self.learning_rates if closed or not self.brief else self.learning_rates[:1]

    def rows_to_label(self, closed: bool, reasons: bool) -> int:
        """Return how many unlabelled rows are labelled at most."""
        return self.pool_rows if closed else min(self.pool_rows, self._part(self.open_rows, reasons))

    def rows_to_have(self, closed: bool, reasons: bool) -> int:
        """Return how many rows there should be, written ones included."""
        return self.synthetic_rows if closed else min(self.synthetic_rows, self._part(self.open_rows, reasons))

    def rows_to_test(self, reasons: bool) -> int:
        """Return how many test rows are used at most (0: all)."""
        return self._part(self.test_rows, reasons) if self.brief else self.test_rows

    @property
    def tries(self) -> int:
        """How often the teacher may try a labelled row whose rationale is wanted."""
        return min(2, self.samples) if self.brief else self.samples

    def _part(self, rows: int, reasons: bool) -> int:
        return rows // (6 if self.brief else 4) if reasons else rows


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(
        folds=2,
        pool_rows=360,
        synthetic_rows=240,
        demo_tokens=1200,
        learning_rates=(1e-3, 4e-4),
        gold_epochs=6,
        student_epochs=3,
        gold_weights=(2.0,),
        test_rows=400,
        samples=3,
        open_rows=200,
        brief=True,
    ),
    "standard": Effort(
        folds=3,
        pool_rows=1000,
        synthetic_rows=600,
        demo_tokens=2000,
        learning_rates=(2e-4, 5e-4, 1e-3),
        gold_epochs=12,
        student_epochs=5,
        gold_weights=(2.0, 6.0),
        test_rows=2000,
        samples=5,
        open_rows=600,
        demos=(False, True),
    ),
    "thorough": Effort(
        folds=4,
        pool_rows=4000,
        synthetic_rows=2000,
        demo_tokens=3000,
        learning_rates=(1e-4, 3e-4, 5e-4, 1e-3),
        gold_epochs=15,
        student_epochs=6,
        gold_weights=(1.0, 3.0, 9.0),
        test_rows=0,
        samples=8,
        open_rows=2000,
        demos=(False, True),
    ),
}


_ASIDE = ("out", "max_usd", "max_tokens", "max_minutes", "accept_terms", "allow_code", "program")
# Settings that name a file or a folder which a method of writing rows reads.
METHOD_FILES = ("documents", "related", "constitution")
_LATER = ("level", "method", "ground", "rounds", "rule", "pii", "judge", "judge_precision", "tune", "objective", "weak")
# What of an encoder can be trained: LoRA layers and its head, or the head alone.
TUNED = ("lora", "head")
# What `--weak` takes for logistic regression on tf-idf words.
WORDS = "words"
# What `--judge` takes for the run's own teacher.
TEACHER = "teacher"
_FILES = ("labels", "test", "unlabeled", "task_file", "descriptions")


@dataclass(frozen=True)
class RunConfig:
    """One run, as the command line or the Python API asks for it.

    Paths are strings so that the configuration is plain TOML. `max_*` are budgets (None: no limit);
    `test_rows` and `synthetic_rows` override the effort's counts (0: all, respectively none); `level` names the levels
    of human involvement that the student may learn from ("": all that the methods give). `tune` is what of an encoder
    student is trained, "lora" or "head" ("": both are tried out of fold). `weak` is the model that labels in the
    teacher's place ("": the teacher does). `accept_terms` is why a run goes on where the terms of a teacher forbid it
    ("": it does not). `judge` is the model that says which answers are acceptable ("": none, "teacher": the teacher),
    `objective` is what the student is trained for, and `allow_code` lets model-written code run in a weak sandbox.
    """

    out: str
    labels: str = ""
    task_file: str = ""
    output: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    instructions: str = ""
    kind: str = ""
    descriptions: str = ""
    test: str = ""
    unlabeled: str = ""
    teacher: str = "embedded"
    student: str = "embedded"
    tune: str = ""
    weak: str = ""
    api_base: str = ""
    effort: EffortName = "quick"
    optimizer: str = ""
    reflection: str = ""
    seed: int = 0
    synthetic_rows: int | None = None
    pool_rows: int | None = None
    test_rows: int | None = None
    label_distribution: str = "uniform"
    method: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    rounds: int = 1
    documents: str = ""
    ground: bool = False
    related: str = ""
    constitution: str = ""
    encoder: bool = True
    rule: tuple[str, ...] = ()
    pii: str = "keep"
    judge: str = ""
    judge_precision: float = 0.9
    objective: str = "sft"
    level: str = ""
    max_usd: float | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None
    accept_terms: str = ""
    allow_code: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out)

    @property
    def spend(self) -> Effort:
        """The effort level's counts."""
        return EFFORTS[self.effort]

    @property
    def objectives(self) -> Objectives:
        """What the distilled student is trained for; InputError where `objective` names nothing."""
        return parse_objectives(self.objective)

    @property
    def judge_model(self) -> str:
        """The name of the judge's model, "" for none."""
        return self.teacher if self.judge == TEACHER else self.judge

    @property
    def judge_base(self) -> str | None:
        """The address of the judge's server: the teacher's, None for weights on this machine."""
        return None if is_local(self.judge_model) else self.api_base or None

    def models_asked(self) -> dict[str, str]:
        """The names of the models whose answers shape the student's rows, by role; "" where there is none."""
        if self.weak:
            return {"weak model": "" if self.weak == WORDS or is_encoder(self.weak) else self.weak}
        judge = {} if self.judge_model in ("", self.teacher) else {"judge": self.judge_model}
        return {"teacher": self.teacher, "reflection model": self.reflection, **judge}

    def labelled_by(self) -> dict[str, str]:
        """The model that labels, by its role: the teacher, or a weak model in its place."""
        return {"weak": self.weak} if self.weak else {"teacher": self.teacher}

    def method_options(self) -> dict[str, Any]:
        """What methods of writing rows are told besides the rows: their files, and whether code may run anywhere."""
        return {**self.method_files(), "allow_code": self.allow_code}

    def method_files(self) -> dict[str, str]:
        """The files that methods of writing rows read, by the name of their setting."""
        return {name: getattr(self, name) for name in METHOD_FILES}

    def identity(self) -> dict[str, Any]:
        """The fields that change results: the root of every stage's key.

        Folder, budgets, accepted terms and leave to run code do not, and files count by what they hold (the task's
        fingerprint), as compiled programs of methods do in the keys of synthesis. The methods of writing rows concern
        synthesis and what follows it, rules and the judge curation, whose keys hold them; levels, rounds and objectives
        concern the student, whose keys hold its rows and its recipe, as `tune` does. Where the test rows are a file of
        their own, how many are scored concerns evaluation alone, whose keys hold the rows. A weak model is named where
        there is one, so that the keys of all other runs stay.
        """
        skip = {*_ASIDE, *_FILES, *_LATER, *METHOD_FILES, *(("test_rows",) if self.test else ())}
        spend = {k: v for k, v in asdict(self.spend).items() if k not in skip}
        weak = {"weak": self.weak} if self.weak else {}
        return {**{k: v for k, v in asdict(self).items() if k not in skip}, "spend": spend, **weak}

    def same_run(self, other: RunConfig) -> bool:
        """Return whether another configuration differs in folder, budgets, programs and what the user allows alone."""
        mine, others = asdict(self), asdict(other)
        return all(mine[name] == others[name] for name in mine if name not in _ASIDE)


def check(config: RunConfig) -> None:
    """Raise `InputError` for options that contradict each other or are out of range."""
    if config.effort not in EFFORTS:
        raise InputError(f"unknown effort {config.effort!r}", valid=", ".join(EFFORTS))
    if bool(config.labels) == bool(config.task_file):
        raise InputError(
            "a run needs either a file of labels or a task.py, not both and not neither",
            valid="limbeck run --labels rows.jsonl --output COLUMN, or limbeck run task.py",
            hint="limbeck run --help",
        )
    if config.labels and not config.output:
        raise InputError("--labels needs --output, the column to predict", hint="limbeck run --help")
    if not is_local(config.student):
        raise InputError(
            f"the student {config.student!r} cannot be trained here",
            valid=f"local weights: {LOCAL_NAMES}, {ENCODER_NAMES}",
            hint="limbeck doctor",
        )
    _check_encoders(config)
    if config.weak and config.weak != WORDS and not is_local(config.weak):
        raise InputError(
            f"--weak {config.weak!r} is no model that is trained here",
            valid=f"{WORDS}, {ENCODER_NAMES}, {LOCAL_NAMES}",
        )
    label_shares(config.label_distribution)
    if config.accept_terms:
        check_reason(config.accept_terms)
    parse_levels(config.level)
    parse_objectives(config.objective)
    for name in ("max_usd", "max_tokens", "max_minutes"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(
                f"--{name.replace('_', '-')} is {value}",
                valid="a number above 0, or leave it out for no limit",
            )
    if not 0 < config.judge_precision < 1:
        raise InputError(f"--judge-precision is {config.judge_precision}", valid="a share between 0 and 1, such as 0.9")
    if config.rounds < 1:
        raise InputError(f"--rounds is {config.rounds}", valid="1 or more")
    if config.seed < 0:
        raise InputError(f"--seed is {config.seed}", valid="0 or more")
    try:
        address = urlsplit(config.api_base)
    except ValueError as error:
        raise InputError(f"--api-base {config.api_base!r}: {error}", valid="http://localhost:8000/v1") from error
    if address.username or address.password or address.query:
        raise InputError(
            "--api-base holds a user, a password or a query, which would land in the run folder",
            valid="an address alone, such as http://localhost:8000/v1",
            hint="put the key into the provider's environment variable",
        )
    for name in ("synthetic_rows", "pool_rows", "test_rows"):
        value = getattr(config, name)
        if value is not None and value < 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}", valid="0 or more")


def _check_encoders(config: RunConfig) -> None:
    """Raise `InputError` where an encoder is asked to write, and for an unknown way to train one."""
    for role, name in config.models_asked().items():
        if is_encoder(name):
            raise InputError(
                f"the {role} {name!r} is an encoder, which writes no text",
                valid=f"{LOCAL_NAMES}, or a server's model",
            )
    if config.tune not in ("", *TUNED):
        raise InputError(f"--tune {config.tune!r}", valid=", ".join(TUNED))
    if config.tune and not is_encoder(config.student):
        raise InputError(
            f"--tune {config.tune} concerns encoders, and the student is {config.student!r}", valid=ENCODER_NAMES
        )
    if is_encoder(config.student) and parse_objectives(config.objective) != Objectives():
        raise InputError(
            f"--objective {config.objective}: the student {config.student!r} is an encoder, which writes no text",
            valid="sft, or a student that writes",
        )


def label_shares(given: str) -> Literal["uniform", "observed"] | Mapping[str, float]:
    """Return a label distribution as `--label-distribution` gives it; InputError where it is none."""
    if given in ("uniform", "observed"):
        return given
    try:
        found: Any = json.loads(given)
        shares = {str(label): float(share) for label, share in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"--label-distribution {given!r} is no JSON object of shares", valid='uniform, observed or {"label": share}'
        ) from error
    if not shares or min(shares.values()) < 0 or not any(shares.values()):
        raise InputError(f"--label-distribution {given!r} has no share above 0, or one below", valid='{"label": 0.5}')
    return shares


def _toml_value(value: Any) -> str:
    return json.dumps(list(cast(Any, value)) if isinstance(value, tuple) else value, ensure_ascii=False)


def write_config(config: RunConfig, path: Path) -> None:
    """Write the configuration as TOML, whole or not at all; options left at None are left out.

    So is `program`, which asks for one start of `limbeck compile`: what it compiled stands in files of its own.
    """
    lines = [f"{k} = {_toml_value(v)}" for k, v in asdict(config).items() if v is not None and k != "program"]
    part = path.with_name(path.name + ".part")
    part.write_text("# resolved configuration of this run\n" + "\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of a run folder; `InputError` where there is none."""
    path = folder / "run.toml"
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no run.toml", hint="limbeck runs")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            valid="the TOML that a run writes",
            hint=f"give the run's options again with --out {folder}: what is finished is kept",
        ) from error
    known = {f.name for f in fields(RunConfig)}
    values: dict[str, Any] = {
        k: tuple(cast(list[Any], v)) if isinstance(v, list) else v for k, v in data.items() if k in known
    }
    values["out"] = str(folder)
    return RunConfig(**values)
