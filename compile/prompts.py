"""Compiled prompts of the programs that write rows: how a method gets them, and which demonstrations it may show.

A prompt that was compiled against gold rows shows demonstrations made from them. Each carries, beside its fields, which
gold rows its prompt had seen, so that a block's prompts still show nothing of that block's fold and no row is shown its
own demonstration. Instructions are shared by all blocks, as those of the task's own program are.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import dspy

from limbeck.compile.source import Source
from limbeck.errors import InputError
from limbeck.records import stable_hash

# Where a run folder holds compiled programs, each as METHOD.PART.json.
FOLDER = "programs"
# The key of a demonstration that holds the gold rows its prompt had seen; no signature has such a field.
SEEN = "seen_gold_rows"
# What a program was made from is not known: such a demonstration counts as having seen every gold row.
ANY = "any"
# What a file was made from, beside DSPy's versions: a hash of gold rows and folds.
MADE_FROM = "made_from"
# The demonstrations of the plain program, which a blinded prompt falls back on.
_PLAIN = "plain_demos"

States = Mapping[str, Mapping[str, Any]]


def row_key(inputs: Mapping[str, Any]) -> str:
    """Return what names a row in a demonstration's list of rows: a hash of its inputs."""
    return stable_hash(dict(inputs))


def file_of(name: str) -> str:
    """Return where a run folder holds a compiled program.

    >>> file_of("evol_instruct.evolve")
    'programs/evol_instruct.evolve.json'
    """
    return f"{FOLDER}/{name}.json"


def stamp(path: Path, made_from: str) -> None:
    """Write into a program's file what gold rows it was compiled on."""
    state: Any = json.loads(path.read_text(encoding="utf-8"))
    state.setdefault("metadata", {})[MADE_FROM] = made_from
    path.write_text(json.dumps(state, indent=2), encoding="utf-8")


def read_states(folder: Path, methods: Iterable[str], made_from: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the compiled states that a run folder holds for these methods, by METHOD.PART, and which are of others.

    Those compiled on other gold rows than `made_from` are left out: they may show what is a test row now. A file that
    does not say what it was made from is the user's own, and used. Raises InputError for one that cannot be read.
    """
    wanted, found, others = set(methods), dict[str, dict[str, Any]](), list[str]()
    for path in sorted((folder / FOLDER).glob("*.json")):
        if path.stem.partition(".")[0] not in wanted:
            continue
        try:
            state: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _unreadable(path, error) from error
        if not isinstance(state, dict):
            raise _unreadable(path, TypeError("it holds no JSON object"))
        parts = cast(dict[str, Any], state)
        if dict(parts.get("metadata") or {}).get(MADE_FROM, made_from) != made_from:
            others.append(path.stem)
            continue
        # DSPy writes its versions beside the predictors.
        found[path.stem] = {name: value for name, value in parts.items() if name != "metadata"}
    return found, others


def loaded(method: str, programs: Mapping[str, dspy.Module], states: States) -> dict[str, dspy.Module]:
    """Return a method's programs by part, those compiled that there are states for, the others as they are.

    Raises InputError for a state of another program.
    """
    found: dict[str, dspy.Module] = {}
    for part, program in programs.items():
        state = states.get(f"{method}.{part}")
        found[part] = program
        if state is not None:
            found[part] = program.deepcopy()
            try:
                found[part].load_state(dict(state))
            except Exception as error:  # whatever a file of another version or task holds
                raise _unreadable(Path(file_of(f"{method}.{part}")), error) from error
            found[part].set_lm(None)  # a file brings no model of its own: the run's has ledger and budget
            for plain, predictor in zip(program.predictors(), found[part].predictors(), strict=True):
                setattr(predictor, _PLAIN, list(plain.demos))
    return found


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} does not fit this run: {type(error).__name__}: {error}"[:300],
        valid="a program that limbeck compile --program wrote for this task",
        hint=f"remove the file, then: limbeck compile RUN --program {path.stem}",
    )


def blind(program: dspy.Module, source: Source, block: int, row: Mapping[str, Any] | None = None) -> dspy.Module:
    """Return the program without demonstrations that have seen the block's gold rows, or the row with these inputs.

    Where a predictor would have none left it shows those of the plain program: without any a small model loses the
    form. Only demonstrations of compiled prompts say what they have seen: any other program comes back as it is.
    """
    predictors = cast(list[Any], program.predictors())
    if not any(demo.get(SEEN) for predictor in predictors for demo in predictor.demos):
        return program
    folds = source.folds or (-1,) * len(source.gold)
    hidden = {row_key(one.inputs) for one, fold in zip(source.gold, folds, strict=True) if block >= 0 and fold == block}
    hidden |= {row_key(row)} if row is not None else set()
    if not hidden:
        return program
    copy = program.deepcopy()
    for predictor in cast(list[Any], copy.predictors()):
        kept = [demo for demo in predictor.demos if not _seen(demo) & hidden and _seen(demo) != {ANY}]
        predictor.demos = kept or list(getattr(predictor, _PLAIN, ()))
    return copy


def _seen(demo: Any) -> set[str]:
    return set(str(demo.get(SEEN) or "").split())
