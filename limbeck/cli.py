"""The command line. stdout is data, stderr is progress; nothing here imports torch or dspy before it must."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbeck.errors import LimbeckError
from limbeck.options import (
    AcceptTerms,
    AllowCode,
    ApiBase,
    Constitution,
    Descriptions,
    Distribution,
    Documents,
    DryRun,
    EffortOption,
    Encoder,
    Ground,
    Input,
    Instructions,
    Judge,
    JudgePrecision,
    Kind,
    Labels,
    Level,
    MaxMinutes,
    MaxTokens,
    MaxUsd,
    Method,
    Objective,
    Optimizer,
    Out,
    Output,
    Pii,
    PoolRows,
    Program,
    Reflection,
    Related,
    Rounds,
    Rule,
    Seed,
    Student,
    SyntheticRows,
    TaskFile,
    Teacher,
    Test,
    TestRows,
    Tune,
    Unlabeled,
    Weak,
)
from limbeck.reproduce.commands import reproduce
from limbeck.review.commands import app as review

if TYPE_CHECKING:
    from limbeck.pipeline.config import RunConfig, Stage

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from limbeck import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """From tens of labels to a small model you own."""


def _name_of(path: Path) -> str:
    stem = path.stem if path.stem not in {"labels", "train", "task", "rows"} else path.resolve().parent.name
    return stem or "run"


def _build(values: dict[str, Any], given: set[str]) -> RunConfig:
    """Turn the command line's values into a checked configuration.

    In a run folder its own configuration holds, and the options given on the command line replace it.
    """
    from limbeck.pipeline.config import RunConfig, check, read_config
    from limbeck.terms import check_reason

    if "accept_terms" in given:
        check_reason(values["accept_terms"])
    target, labels, out = values.pop("target"), values.pop("labels"), values.pop("out")
    for name in ("output", "inputs", "method", "program", "rule"):
        values[name] = tuple(values[name] or ())
    for name in ("test", "unlabeled", "descriptions", "documents", "related", "constitution"):
        values[name] = _absolute(values[name])
    if target is not None and target.is_dir():
        changes = {name: value for name, value in values.items() if name in given}
        config = replace(read_config(target), **changes, **({"labels": _absolute(labels)} if labels else {}))
    else:
        _refuse_data(target)
        source = labels or target
        config = RunConfig(
            out=str(out or Path("runs") / (_name_of(source) if source else "run")),
            labels=_absolute(labels),
            task_file=_absolute(target),
            **values,
        )
        if out is None:
            config = _in_free_folder(config)
    check(config)
    return config


def _absolute(path: Path | str | None) -> str:
    """Return a path that holds in any folder the run is gone on with from."""
    return str(Path(path).resolve()) if path else ""


def _refuse_data(target: Path | None) -> None:
    """Raise `InputError` for a file of rows where a task.py or a run folder belongs."""
    from limbeck.errors import InputError

    if target is not None and target.suffix.lower() in {".csv", ".tsv", ".jsonl", ".json", ".parquet"}:
        raise InputError(
            f"{target} holds rows, not a task",
            valid="a task.py, a run folder, or --labels FILE",
            hint=f"limbeck run --labels {target} --output COLUMN",
        )


def _in_free_folder(config: RunConfig) -> RunConfig:
    """Return the configuration in the first default folder that is free or holds this very run."""
    from limbeck.errors import InputError
    from limbeck.pipeline.config import read_config

    def free(folder: Path) -> bool:
        try:
            return not (folder / "run.toml").is_file() or read_config(folder).same_run(config)
        except InputError:  # whose it is cannot be read
            return False

    folders = (config.out if number == 1 else f"{config.out}-{number}" for number in count(1))
    return replace(config, out=next(folder for folder in folders if free(Path(folder))))


def _go(values: dict[str, Any], given: set[str], until: Stage, dry_run: bool) -> None:
    if "program" in given and until != "compile":
        from limbeck.errors import InputError

        raise InputError(
            "--program is for limbeck compile alone",
            valid="limbeck compile RUN_OR_OPTIONS --program NAME; what comes after it in that folder uses the program",
        )
    config = _build(values, given)
    from limbeck.pipeline import terminal

    if dry_run:
        terminal.forecast(config)
    else:
        terminal.run(config, until=until)


_EXAMPLES = """
\b
Examples:
  limbeck run --labels tickets.csv --output label
  limbeck run --labels tickets.csv --output label --unlabeled pool.jsonl --teacher gguf:teacher.gguf
  limbeck run task.py --teacher openai/gpt-5-mini --max-usd 2
  limbeck run --labels tickets.csv --output label --dry-run
  limbeck run runs/tickets              (go on where it stopped)
"""


def _command(until: Stage, doc: str) -> Any:
    def command(
        context: typer.Context,
        target: TaskFile = None,
        labels: Labels = None,
        output: Output = None,
        inputs: Input = None,
        instructions: Instructions = "",
        kind: Kind = "",
        descriptions: Descriptions = "",
        test: Test = "",
        unlabeled: Unlabeled = "",
        teacher: Teacher = "embedded",
        student: Student = "embedded",
        tune: Tune = "",
        weak: Weak = "",
        api_base: ApiBase = "",
        effort: EffortOption = "quick",
        optimizer: Optimizer = "",
        reflection: Reflection = "",
        synthetic_rows: SyntheticRows = None,
        pool_rows: PoolRows = None,
        label_distribution: Distribution = "uniform",
        method: Method = None,
        program: Program = None,
        rounds: Rounds = 1,
        documents: Documents = "",
        ground: Ground = False,
        related: Related = "",
        constitution: Constitution = "",
        encoder: Encoder = True,
        rule: Rule = None,
        pii: Pii = "keep",
        judge: Judge = "",
        judge_precision: JudgePrecision = 0.9,
        objective: Objective = "sft",
        level: Level = "",
        accept_terms: AcceptTerms = "",
        allow_code: AllowCode = False,
        seed: Seed = 0,
        out: Out = None,
        test_rows: TestRows = None,
        max_usd: MaxUsd = None,
        max_tokens: MaxTokens = None,
        max_minutes: MaxMinutes = None,
        dry_run: DryRun = False,
    ) -> None:
        values = dict(context.params)
        values.pop("dry_run")
        given = {n for n in values if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"}
        _go(values, given, until, dry_run)

    command.__doc__ = doc
    return command


app.command("run", help="From labels to a verdict: every stage, resumable.\n" + _EXAMPLES)(
    _command("evaluate", "From labels to a verdict.")
)
_STAGE_HELP: dict[Stage, str] = {
    "compile": "Split the labels, compile the teacher's prompt, and stop.",
    "synthesize": "Go on to writing and labelling synthetic rows, and stop.",
    "curate": "Go on to curation: what can be trusted is kept, and why not the rest.",
    "finetune": "Go on to training the student.",
    "evaluate": "Go on to the paired evaluation and the verdict.",
}
for _stage, _help in _STAGE_HELP.items():
    _shown = f"\b\nExamples:\n  limbeck {_stage} runs/tickets\n  limbeck {_stage} --labels tickets.csv --output label"
    if _stage == "compile":
        _shown += "\n  limbeck compile runs/tickets --program evol_instruct --program label_conditioned.write"
    app.command(_stage, help=f"{_help} Takes a run folder, or the options of `limbeck run`.\n\n{_shown}")(
        _command(_stage, _help)
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    rows: Annotated[Path, typer.Argument(help="Rows to predict: .jsonl, .csv, .tsv or .parquet.")],
    output: Annotated[
        Path | None,
        typer.Option("--out", help="Write here instead of stdout (.jsonl, .csv).", metavar="FILE"),
    ] = None,
    system: Annotated[
        str,
        typer.Option(help="Which program of the run: student, student_gold_only, ... (default: the verdict's)."),
    ] = "",
    probabilities: Annotated[bool, typer.Option(help="Add label probabilities.")] = False,
) -> None:
    """Rows in, rows with predictions out, from a run folder.

    \b
    Examples:
      limbeck predict runs/tickets new.csv > labelled.jsonl
      limbeck predict runs/tickets new.jsonl --out labelled.csv --probabilities
    """
    from limbeck.pipeline import terminal

    terminal.predict(run, rows, output, system, probabilities)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="Names of runs to put side by side.", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List runs, or compare some.

    \b
    Examples:
      limbeck runs
      limbeck runs --compare tickets --compare tickets-2
    """
    from limbeck.report import compare_runs, list_runs, render_runs

    found = compare_runs(folder, compare) if compare else list_runs(folder)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
    else:
        render_runs(found)


@app.command("terms")
def terms_command(
    model: Annotated[str, typer.Argument(help="A model as --teacher takes it (default: the whole list).")] = "",
    api_base: ApiBase = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Say whether a teacher's terms let its outputs train a model, or list them all; exit status 1: forbidden.

    \b
    Examples:
      limbeck terms
      limbeck terms openai/gpt-5-mini
      limbeck terms openai/mine --api-base http://localhost:8000/v1
    """
    from limbeck import terms

    ruling = terms.resolve(model, api_base) if model else None
    if as_json:
        found = ruling.public() if ruling else [entry.public() for entry in terms.catalogue()]
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    elif ruling:
        terms.show(ruling)
    else:
        terms.show_all()
    sys.exit(1 if ruling and ruling.verdict == "forbidden" else 0)


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Fetch what is missing (hash-checked).")] = False,
) -> None:
    """Say what this machine can do, and the commands that mend what is missing; exit status 1 where a run needs it.

    \b
    Examples:
      limbeck doctor
      limbeck doctor --fix
    """
    from limbeck import doctor as machine

    if fix:
        machine.fix()
    sys.exit(0 if machine.show(measure=True) else 1)


app.add_typer(review, name="review")
app.command()(reproduce)


def main() -> None:
    """Run the command line; errors for people are printed without a traceback, exit status 2 (130: Ctrl-C)."""
    try:
        app()
    except LimbeckError as error:
        typer.echo(f"limbeck: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(f"limbeck: stopped; go on with: {_resume_hint()}", err=True)
        sys.exit(130)


def _resume_hint() -> str:
    return "the same command again: what is finished is not done twice"


if __name__ == "__main__":
    main()
