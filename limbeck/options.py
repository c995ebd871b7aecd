"""The options that `limbeck run` and its stages share, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TASK, _MODELS, _ROWS = "The task", "Models and compiling", "Rows that are written"
_TRUST, _RUN = "What is trusted", "The run and its budget"

Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="Labelled rows: .jsonl, .csv, .tsv or .parquet.", metavar="FILE", rich_help_panel=_TASK
    ),
]
TaskFile = Annotated[
    Path | None, typer.Argument(help="A task.py with your own dspy.Module, or a run folder to go on with.")
]
Output = Annotated[
    list[str] | None,
    typer.Option("--output", help="Column to predict (repeat for several).", metavar="COL", rich_help_panel=_TASK),
]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", help="Input column (default: all others).", metavar="COL", rich_help_panel=_TASK),
]
Instructions = Annotated[str, typer.Option(help="What the task is, in a sentence or two.", rich_help_panel=_TASK)]
Kind = Annotated[
    str,
    typer.Option(
        help="classification, extraction, short_answer, number or text (default: from the column).",
        rich_help_panel=_TASK,
    ),
]
Descriptions = Annotated[
    str,
    typer.Option(
        "--label-descriptions", help="JSON file: label to one line of meaning.", metavar="FILE", rich_help_panel=_TASK
    ),
]
Test = Annotated[
    str, typer.Option("--test", help="Labelled rows for the final score alone.", metavar="FILE", rich_help_panel=_TASK)
]
Unlabeled = Annotated[
    str,
    typer.Option(
        "--unlabeled", help="Unlabelled rows; the teacher labels them.", metavar="FILE", rich_help_panel=_TASK
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        help="embedded, gguf:PATH, hf:NAME, or a server's model such as openai/gpt-5-mini.", rich_help_panel=_MODELS
    ),
]
Student = Annotated[
    str,
    typer.Option(
        help="embedded, gguf:PATH or hf:NAME_OR_PATH; for label sets also encoder or encoder:NAME_OR_PATH.",
        rich_help_panel=_MODELS,
    ),
]
Tune = Annotated[
    str,
    typer.Option(
        help="What of an encoder student is trained: lora or head (default: both are tried out of fold).",
        rich_help_panel=_MODELS,
    ),
]
Weak = Annotated[
    str,
    typer.Option(
        "--weak",
        help="A weak model in the teacher's place, which learns your labels and labels the --unlabeled rows: words "
        "(logistic regression), encoder, or a model no larger than --student.",
        metavar="MODEL",
        rich_help_panel=_MODELS,
    ),
]
ApiBase = Annotated[
    str,
    typer.Option("--api-base", help="Address of an OpenAI-compatible server.", metavar="URL", rich_help_panel=_MODELS),
]
EffortOption = Annotated[
    str, typer.Option(help="quick (minutes), standard (hours) or thorough.", rich_help_panel=_MODELS)
]
Optimizer = Annotated[
    str,
    typer.Option(
        help="labeled, bootstrap, random-search, mipro, gepa, simba, copro or knn. Default: the effort's choice; for "
        "label sets, demonstrations and label descriptions chosen out of fold.",
        rich_help_panel=_MODELS,
    ),
]
Reflection = Annotated[
    str, typer.Option("--reflection-model", help="Model that reflects for GEPA.", rich_help_panel=_MODELS)
]
Seed = Annotated[int, typer.Option(help="Seed of splits, demonstrations, sampling and training.", rich_help_panel=_RUN)]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder (default: runs/NAME).", metavar="DIR", rich_help_panel=_RUN)
]
SyntheticRows = Annotated[
    int | None, typer.Option(help="Texts to generate (0: none; default: the effort's count).", rich_help_panel=_ROWS)
]
PoolRows = Annotated[
    int | None, typer.Option(help="Unlabelled rows to label (default: the effort's count).", rich_help_panel=_ROWS)
]
TestRows = Annotated[
    int | None, typer.Option(help="Test rows to score (0: all; default: the effort's count).", rich_help_panel=_RUN)
]
Distribution = Annotated[
    str,
    typer.Option(
        "--label-distribution", help="uniform, observed, or JSON such as '{\"spam\": 0.2, ...}'.", rich_help_panel=_ROWS
    ),
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="How rows are written: NAME, NAME=SHARE, or FIRST>SECOND; repeat to mix. Default: label_conditioned for "
        "label sets, self_instruct for open answers.",
        metavar="NAME",
        rich_help_panel=_ROWS,
    ),
]
Program = Annotated[
    list[str] | None,
    typer.Option(
        "--program",
        help="limbeck compile alone: compile this method's programs against the labels as well, or one part of them, "
        "such as evol_instruct.evolve; repeat for several.",
        metavar="NAME",
        rich_help_panel=_MODELS,
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        help="Write again what the student gets wrong, up to N rounds, while it gets better.",
        metavar="N",
        rich_help_panel=_ROWS,
    ),
]
Documents = Annotated[
    str,
    typer.Option(
        "--documents", help="Folder of .txt and .md files to write from.", metavar="DIR", rich_help_panel=_ROWS
    ),
]
Ground = Annotated[
    bool,
    typer.Option(
        "--ground/--no-ground",
        help="Show the teacher passages of --documents when it writes rows, and when it answers open ones.",
        rich_help_panel=_ROWS,
    ),
]
Related = Annotated[
    str,
    typer.Option("--related", help="Rows of a nearby data set, for adaptation.", metavar="FILE", rich_help_panel=_ROWS),
]
Constitution = Annotated[
    str, typer.Option("--constitution", help="TOML file of principles.", metavar="FILE", rich_help_panel=_ROWS)
]
Encoder = Annotated[
    bool, typer.Option(help="Let a small sentence encoder vote on labels, where installed.", rich_help_panel=_TRUST)
]
Rule = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        help="Turn on a rule of curation, NAME or NAME=THRESHOLD: language, length_outlier, semantic_duplicate, "
        "label_error, by_field, or all; toxic asks a model. Repeat for several.",
        metavar="NAME",
        rich_help_panel=_TRUST,
    ),
]
Pii = Annotated[
    str,
    typer.Option(
        help="E-mail addresses, phone, card and id numbers in new rows: mask, drop (the row), or keep (and count).",
        rich_help_panel=_TRUST,
    ),
]
Judge = Annotated[
    str,
    typer.Option(
        "--judge",
        help="For open answers: a model that says which new rows are acceptable, where it proves itself on your "
        "labels; teacher, or a name as --teacher takes it.",
        metavar="MODEL",
        rich_help_panel=_TRUST,
    ),
]
JudgePrecision = Annotated[
    float,
    typer.Option(
        help="The share of right answers among those that the judge lets pass, on your labels.", rich_help_panel=_TRUST
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="What the student is trained for: sft (answers), or step-by-step[=WEIGHT] (rationales as a second task); "
        "then dpo[=BETA] (preferred answers): sft,dpo.",
        metavar="LIST",
        rich_help_panel=_MODELS,
    ),
]
Level = Annotated[
    str,
    typer.Option(
        help="Levels of human involvement that training rows may have, such as 1-3 or <=4: 1 manual, 3 generated and "
        "verified by people, 4 machine-rated, 6 without people.",
        metavar="LEVELS",
        rich_help_panel=_TRUST,
    ),
]
AcceptTerms = Annotated[
    str,
    typer.Option(
        "--accept-terms",
        help="Why to go on where a teacher's terms forbid training on its outputs (limbeck terms MODEL).",
        metavar="REASON",
        rich_help_panel=_TRUST,
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code/--no-allow-code",
        help="Run model-written code even where the sandbox is weak (limbeck doctor): on a machine that holds nothing "
        "of value.",
        rich_help_panel=_TRUST,
    ),
]
MaxUsd = Annotated[
    float | None, typer.Option(help="Stop before spending more than this many USD.", rich_help_panel=_RUN)
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Stop before using more than this many tokens.", rich_help_panel=_RUN)
]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Stop before running longer than this many minutes.", rich_help_panel=_RUN)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Forecast calls, tokens, USD and minutes; call nothing.", rich_help_panel=_RUN)
]
