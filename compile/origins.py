"""What curation must know of a record's method: whether a model wrote the input, and what may repeat its parent."""

from __future__ import annotations

from dataclasses import replace

from limbeck.records import Record

# The user's own rows, and methods that answer a row anew without touching its input.
_OWN = frozenset({"gold", "pool"})
_SAME_INPUT = frozenset({"star", "chain_of_abstraction", "reformulation", "constitutional"})
# Written for a label that was known before anything was read back.
_INTENDED = frozenset({"label_conditioned", "simple", "evol_instruct", "cleaning", "textbook"})


def is_written(record: Record) -> bool:
    """Return whether a model wrote the input: the user's own rows are not held to the rules about writing."""
    return record.provenance.method not in _OWN | _SAME_INPUT


def may_repeat(record: Record, key: str, kind: str) -> bool:
    """Return whether a record may be like the row `key`: its parent, answered anew or merely repaired.

    A repaired row may be near its parent; an exact copy of it teaches nothing new.
    """
    origin = record.provenance
    near = origin.method in _SAME_INPUT or (origin.method == "cleaning" and kind == "near")
    return near and key in origin.parents


def own_words(record: Record) -> Record:
    """Return the record without what its method takes from documents by design: a backtranslated row's answer."""
    return replace(record, outputs={}) if record.provenance.method == "instruction_backtranslation" else record


def has_intended_label(record: Record) -> bool:
    """Return whether the record's label is what its input was written for."""
    return record.provenance.method in _INTENDED
