"""Methods of writing rows behind one interface: shares, chains, other packages' methods, blocks of children."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from limbeck.compile import synthesizers
from limbeck.compile.label import Labeler
from limbeck.compile.source import Source
from limbeck.compile.synthesizers import (
    BUILT_IN,
    Materials,
    Synthesized,
    block_of_child,
    check_methods,
    default_method,
    known_methods,
    load_method,
    parse_methods,
    write_rows,
)
from limbeck.errors import InputError, StageEmpty
from limbeck.models import CompactAdapter
from limbeck.programs.generate import ANY_STYLE
from limbeck.records import Provenance, Record
from limbeck.signatures.tasks import FieldSpec, build_signature

GOLD = tuple(Record({"text": f"row {i}"}, {"label": "ab"[i % 2]}, Provenance("gold", seed=i)) for i in range(6))


class Double:
    """Writes each record it reads once more, refuses every third one."""

    name, begins = "double", False

    def check(self, source: Source, options: Mapping[str, Any]) -> None:
        if not options.get("related"):
            raise InputError("double needs --related")

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        made = [
            Record({"text": f"{r.inputs['text']}, {i}"}, {}, Provenance("double", parents=(r.id,)))
            for i, r in enumerate(list(records) * wanted)
        ][:wanted]
        return Synthesized(
            tuple(r.reject("third") if i % 3 == 2 else r for i, r in enumerate(made)),
            {"unread": 1},
            {"seed": materials.seed},
        )


class Nothing(Double):
    """Gives nothing."""

    name = "nothing"

    def __call__(self, records: Sequence[Record], materials: Materials, wanted: int) -> Synthesized:
        raise StageEmpty("nothing came")


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Two methods of another package, as its entry points name them."""
    found = [EntryPoint(c.name, f"test_synthesizers:{c.__name__}", synthesizers.GROUP) for c in (Double, Nothing)]
    taken = EntryPoint("self_instruct", "test_synthesizers:Nothing", synthesizers.GROUP)
    monkeypatch.setattr(synthesizers, "entry_points", lambda group: [*found, taken])
    known_methods.cache_clear()
    yield
    known_methods.cache_clear()


def source(**more: Any) -> Source:
    return Source({"text": str}, "Name it.", GOLD, label_field="label", labels=("a", "b"), **more)


def materials(lm: Any = None) -> Materials:
    lm = lm or scripted(lambda request: "1. new one\n2. new two")[0]
    signature = build_signature([FieldSpec("text")], [FieldSpec("label")], "Name it.")
    labeler = Labeler({-1: dspy.Predict(signature)}, lm, CompactAdapter(), ("label",))
    return Materials(source(), lm, CompactAdapter(), labeler, seed=5)


@pytest.mark.usefixtures("methods")
def test_portions_share_what_is_wanted_and_keep_their_rejects():
    made = write_rows(parse_methods(["double=3", "double"]), materials(), 12)
    kept = [r for r in made.records if r.kept]
    assert (len(made.records), len(kept)) == (12, 8)
    assert {r.reason for r in made.records if not r.kept} == {"third"}
    assert made.counts == {"unread": 2}
    assert made.log["double"]["seed"] in (5, 6)


@pytest.mark.usefixtures("methods")
def test_a_chain_reads_what_the_method_before_it_kept():
    made = write_rows(parse_methods(["double>double"]), materials(), 6)
    first = [r for r in made.records if r.inputs["text"].count(",") == 1]
    second = [r for r in made.records if r.inputs["text"].count(",") == 2]
    assert all(not r.kept for r in first)  # of the first method only what it refused is told
    assert len(first) == 2
    assert len(second) == 6
    refused = {r.inputs["text"] for r in first}
    assert not any(r.inputs["text"].rsplit(",", 1)[0] in refused for r in second)


@pytest.mark.usefixtures("methods")
def test_one_empty_portion_is_counted_and_all_empty_ones_end_the_stage():
    made = write_rows(parse_methods(["nothing", "double"]), materials(), 6)
    assert made.counts["nothing: nothing"] == 1
    assert len(made.records) == 3
    with pytest.raises(StageEmpty, match="nothing came"):
        write_rows(parse_methods(["nothing", "nothing>double"]), materials(), 6)


@pytest.mark.usefixtures("methods")
def test_what_a_chain_refused_before_it_gave_nothing_stays():
    made = write_rows(parse_methods(["double>nothing", "double"]), materials(), 12)
    assert made.counts == {"unread": 2, "double>nothing: nothing": 1}
    assert [r.reason for r in made.records if not r.kept] == ["third"] * 4
    assert "double>nothing" not in made.log
    with pytest.raises(StageEmpty, match="nothing came"):
        write_rows(parse_methods(["double>nothing"]), materials(), 6)


@pytest.mark.usefixtures("methods")
def test_a_method_is_refused_before_anything_is_spent():
    with pytest.raises(InputError, match="unknown method 'dubble'"):
        check_methods(parse_methods(["dubble"]), source(), {})
    with pytest.raises(InputError, match="needs --related"):
        check_methods(parse_methods(["double"]), source(), {"related": ""})
    with pytest.raises(InputError, match="cannot follow another method"):
        check_methods(parse_methods(["double>self-instruct"]), source(), {"related": "rows.csv"})
    with pytest.raises(InputError, match="this task has none"):
        check_methods(parse_methods(["label_conditioned"]), replace(source(), labels=()), {})


@pytest.mark.usefixtures("methods")
def test_another_package_cannot_take_a_built_in_name():
    assert type(load_method("self_instruct")).__name__ == "SelfInstruct"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_method_has_its_name(name: str):
    method = load_method(name)
    assert method.name == name
    assert isinstance(method.begins, bool)


@pytest.mark.parametrize("given", ["", "a=", "a=0", "a=-1", "a=x", "a=nan", "a=inf", ">a", "a>=2"])
def test_what_is_no_share_is_refused(given: str):
    if given == "a=":
        assert parse_methods([given])[0].share == 1.0
        return
    with pytest.raises(InputError, match="method"):
        parse_methods([given])


@given(st.lists(st.tuples(st.sampled_from(["x", "y>z"]), st.floats(0.01, 100)), min_size=1, max_size=5))
def test_shares_sum_to_one(parts: list[tuple[str, float]]):
    found = parse_methods([f"{name}={share}" for name, share in parts])
    assert sum(p.share for p in found) == pytest.approx(1)


def test_a_child_of_a_gold_row_is_kept_from_the_student_judged_on_its_parents_fold():
    folds = (0, 1, 2, 0, 1, 2)
    gold = tuple(replace(r, provenance=replace(r.provenance, block=f)) for r, f in zip(GOLD, folds, strict=True))
    known = replace(source(), gold=gold, folds=folds)
    for row, fold in zip(gold, folds, strict=True):
        block = block_of_child(row, known)
        assert block in {0, 1, 2} - {fold}
        child = replace(row, provenance=Provenance("double", block=block))
        assert block_of_child(child, known) == block
    assert block_of_child(GOLD[0], source()) == -1


@pytest.mark.parametrize("name", [default_method(closed=True), "simple"])
def test_rows_carry_the_label_they_were_written_for(name: str):
    made = load_method(name)(GOLD, materials(), 24)
    assert {r.provenance.method for r in made.records} == {name}
    styles = {str(r.provenance.attributes) for r in made.records}
    assert (styles == {str(ANY_STYLE)}) == (name == "simple")
    assert set(Counter(r.outputs["label"] for r in made.records)) <= {"a", "b"}
    assert made.records
