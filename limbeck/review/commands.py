"""`limbeck review`: take a batch, put verdicts, see how far it is. stdout is data, stderr is what people read."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from limbeck.review import OVERLAP_SHARE, RANDOM_SHARE

app = typer.Typer(
    help="Let people judge the rows that a run keeps.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(help="A run folder that has been curated.")]


@app.command()
def take(
    run: Run,
    reviewer: Annotated[str, typer.Option(help="Who judges; the same name every time.", metavar="NAME")],
    n: Annotated[int, typer.Option("-n", "--rows", help="Rows in the batch.")] = 40,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of stdout.", metavar="FILE")] = None,
    random_share: Annotated[float, typer.Option(help="Part drawn at random: error rates come from it.")] = RANDOM_SHARE,
    overlap_share: Annotated[
        float, typer.Option(help="Part that other reviewers have too, for agreement.")
    ] = OVERLAP_SHARE,
    by: Annotated[str, typer.Option(help="Uncertainty of a soft label: margin or entropy.")] = "margin",
    again: Annotated[
        bool, typer.Option("--again", help="No new rows: those the reviewer has not judged, once more.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random part and of the order.")] = 0,
) -> None:
    """Write a batch of rows to judge as JSON Lines, each with an empty verdict.

    \b
    Examples:
      limbeck review take runs/tickets --reviewer ada > ada.jsonl
      limbeck review take runs/tickets --reviewer ben -n 100 --overlap-share 0.5 --out ben.jsonl
    """
    from limbeck.errors import InputError
    from limbeck.review.batches import open_batch, take_batch

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"cannot write {out}", valid="a file in a folder that is there")
    if again:
        batch = open_batch(run, reviewer=reviewer, seed=seed)
    else:
        batch = take_batch(
            run,
            n,
            reviewer=reviewer,
            random_share=random_share,
            overlap_share=overlap_share,
            by=cast(Any, by),  # checked where it is used
            seed=seed,
        )
    if out is None:
        sys.stdout.write(batch.lines())
    else:
        out.write_text(batch.lines(), encoding="utf-8")
    if not batch.rows:
        typer.echo(f"no rows are left for {batch.reviewer}", err=True)
        return
    parts = ", ".join(f"{count} {part}" for part, count in batch.counts.items())
    typer.echo(f"{len(batch.rows)} rows for {batch.reviewer}: {parts}", err=True)
    typer.echo(
        "set each verdict to accept, reject or correct (with changed outputs), then: "
        f"limbeck review put {shlex.quote(str(run))} {shlex.quote(str(out or 'FILE'))}",
        err=True,
    )


@app.command()
def put(
    run: Run,
    verdicts: Annotated[Path, typer.Argument(help="A batch with its verdicts filled in (.jsonl).")],
    reviewer: Annotated[str, typer.Option(help="Who judged, where the rows do not say.", metavar="NAME")] = "",
) -> None:
    """Store verdicts and corrections, all of a file or none; `limbeck run` then trains on what they say.

    \b
    Examples:
      limbeck review put runs/tickets ada.jsonl
      limbeck review put runs/tickets ada.jsonl && limbeck run runs/tickets
    """
    from limbeck.review.verdicts import put_verdicts

    done = put_verdicts(run, verdicts, reviewer=reviewer)
    parts = [f"{done.stored} verdicts stored"]
    parts += [f"{done.unchanged} said before"] if done.unchanged else []
    parts += [f"{done.blank} rows without a verdict left out"] if done.blank else []
    typer.echo(", ".join(parts), err=True)
    typer.echo(f"train on them: limbeck run {shlex.quote(str(run))}", err=True)


@app.command()
def status(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show what was judged and decided, how good the labels are, and how well reviewers agree.

    \b
    Examples:
      limbeck review status runs/tickets
      limbeck review status runs/tickets --json
    """
    from limbeck.review.status import describe, review_status

    found = review_status(run)
    text = json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(describe(found))
    sys.stdout.write(text + "\n")
