"""A run small enough for a test: what an effort level spends, and rows in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.pipeline.config import Effort

SMALL = Effort(
    folds=2,
    pool_rows=12,
    synthetic_rows=6,
    demo_tokens=200,
    learning_rates=(1e-3,),
    gold_epochs=3,
    student_epochs=2,
    gold_weights=(2.0,),
    test_rows=0,
    samples=1,
    open_rows=12,
    demos=(False, True),
)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON Lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
