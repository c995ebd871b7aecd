"""`limbeck reproduce`: one paper's comparison at small scale, its claim beside what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limbeck.reproduce.catalog import CATALOG, Entry, find

if TYPE_CHECKING:
    from limbeck.reproduce.setting import Setting

_NAMES = "\n".join(f"  {entry.name:<18} {entry.compares}" for entry in CATALOG)


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="What to reproduce.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the work, for a first look.")] = False,
    model: Annotated[str, typer.Option(help="The small model that learns.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Seed of data, training and sampling.")] = 0,
    data: Annotated[str, typer.Option(help="Your own labelled rows, where it can use them.", metavar="FILE")] = "",
    output: Annotated[str, typer.Option(help="The column of --data to predict.", metavar="COL")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/reproduce"),
    page: Annotated[
        bool, typer.Option("--page", help="No new run: the outcomes that are in --out, as Markdown.")
    ] = False,
) -> None:
    """Reproduce a paper's comparison at small scale: claim, measurement, verdict, figure."""
    from limbeck.errors import InputError

    if page:
        typer.echo(_page(out))
        return
    if not names:
        raise InputError("no name of a reproduction", valid=", ".join(entry.name for entry in CATALOG))
    from limbeck.reproduce.setting import Setting

    for entry in [find(name) for name in names]:
        folder = out / (f"{entry.name}-quick" if quick else entry.name)
        _run(entry, Setting(folder, model, quick, seed, data, output, _tell))


reproduce.__doc__ = f"""{reproduce.__doc__}

\b
{_NAMES}

\b
Examples:
  limbeck reproduce prm --quick
  limbeck reproduce prm --seed 1 --out runs/again
  limbeck reproduce --page > reproductions.md
"""


def _run(entry: Entry, setting: Setting) -> None:
    from limbeck.reproduce.figure import draw
    from limbeck.reproduce.outcome import told

    _tell(f"{entry.name}: {entry.compares}. {entry.paper}")
    outcome = entry.run(setting)
    path = outcome.save(setting.folder)
    figure = draw(outcome, setting.folder / "figure.svg")
    typer.echo(told(outcome))
    _tell(f"{path} and {figure}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _page(out: Path) -> str:
    from limbeck.errors import InputError
    from limbeck.reproduce.outcome import page, read_outcome

    found = [read_outcome(path) for path in sorted(out.glob("*/outcome.json"))]
    if not found:
        raise InputError(f"no outcome in {out}", valid="a folder of limbeck reproduce", hint="limbeck reproduce prm")
    return page(found)
