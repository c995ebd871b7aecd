"""Personal data: what is found, what is left alone, and masks that agree within a record."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.compile.curate import curate
from limbeck.compile.pii import KINDS, MASK, PiiConfig, PiiFilter, find_pii
from limbeck.compile.thresholds import CurateConfig
from limbeck.errors import InputError
from limbeck.records import Provenance, Record


def record(inputs: dict[str, Any], outputs: dict[str, Any] | None = None, method: str = "pool", **more: Any) -> Record:
    return Record(inputs, outputs or {"label": "a"}, Provenance(method), **more)


@pytest.mark.parametrize(
    ("text", "kind", "surface"),
    [
        ("write to Bob.Smith+x@mail.example.co.uk.", "email", "Bob.Smith+x@mail.example.co.uk"),
        ("bob (at) example (dot) org", "email", "bob (at) example (dot) org"),
        ("iban de89 3704 0044 0532 0130 00 is mine", "iban", "de89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432, thanks", "iban", "GB82WEST12345698765432"),
        ("card 4111-1111-1111-1111!", "card", "4111-1111-1111-1111"),
        ("amex 378282246310005", "card", "378282246310005"),
        ("my number is 219-12-3456", "national_id", "219-12-3456"),
        ("NINO ab123456c", "national_id", "ab123456c"),
        ("DNI: 12345678Z", "national_id", "12345678Z"),
        ("my BSN is 111222333", "national_id", "111222333"),
        ("from 93.184.216.34, I think", "ip", "93.184.216.34"),
        ("2001:db8:85a3::8a2e:370:7334", "ip", "2001:db8:85a3::8a2e:370:7334"),
        ("ring +49 30 901820", "phone", "+49 30 901820"),
        ("or (415) 555-2671", "phone", "(415) 555-2671"),
        ("call 4155552671", "phone", "4155552671"),
    ],
)
def test_one_piece_is_found_whole(text: str, kind: str, surface: str) -> None:
    (found,) = find_pii(text)
    assert (found.kind, text[found.start : found.end]) == (kind, surface)


@pytest.mark.parametrize(
    "text",
    [
        "GB83WEST12345698765432",  # check digits of an IBAN
        "4111 1111 1111 1112",  # Luhn
        "9111 1111 1111 1119",  # no issuer begins with 9
        "12345678A",  # the letter of a DNI
        "000-12-3456",  # never given out
        "order 4155552671",  # a phone number only if somebody says so
        "219123456",
        "111222333",
        "v1.2.3.4, version 10.0.0.1, 300.1.1.1, 127.0.0.1, 255.255.255.0",
        "std::vector<int> at 12:30:45 and a::b",
        "@anna and bob@ and @example.org",
        "12 - 07 - 2024, 1,234,567.89, 2019-2023",
        "400-200-100=100",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert find_pii(text) == ()


def test_a_field_name_can_say_what_a_number_is() -> None:
    assert find_pii("111222333", context="bsn")[0].kind == "national_id"
    assert find_pii("4155552671", context="mobile phone")[0].kind == "phone"
    # A field called text is in every task, and "text me" is not meant.
    assert find_pii("4155552671", context="text") == ()


def test_regions_decide_which_national_numbers_are_read() -> None:
    text = "ring 030 901820 99"
    assert [f.kind for f in find_pii(text, PiiConfig(regions=("DE",)))] == ["phone"]
    assert find_pii(text, PiiConfig(regions=("US",))) == ()
    assert [f.key for f in find_pii("+49 30 90182099", PiiConfig(regions=()))] == ["+493090182099"]


def test_masks_agree_over_the_whole_record() -> None:
    row = record(
        {"text": "I am a@x.org, my wife B@x.org. Call +44 20 7946 0018, not a@x.org!", "phone": "020 7946 0018"},
        {"mails": ["A@X.ORG", "b@x.org"], "numbers": {"first": "2079460018"}},
        rationale="a@x.org comes first",
        calls=({"predictor": "p", "inputs": {"text": "b@x.org"}, "outputs": {}},),
    )
    masked = PiiFilter([]).apply(row)
    assert masked.inputs == {
        "text": "I am <EMAIL_1>, my wife <EMAIL_2>. Call <PHONE_1>, not <EMAIL_1>!",
        "phone": "<PHONE_1>",
    }
    assert masked.outputs == {"mails": ["<EMAIL_1>", "<EMAIL_2>"], "numbers": {"first": "<PHONE_1>"}}
    assert masked.rationale == "<EMAIL_1> comes first"
    assert masked.calls[0]["inputs"] == {"text": "<EMAIL_2>"}
    assert masked.scores == {"pii:email": 2.0, "pii:phone": 1.0}


def test_an_extracted_value_is_masked_where_only_the_input_says_what_it_is() -> None:
    row = record({"text": "My BSN is 1112.22.333"}, {"id": "111222333", "other": "111222334"})
    masked = PiiFilter([]).apply(row)
    assert masked.inputs["text"] == "My BSN is <NATIONAL_ID_1>"
    assert masked.outputs == {"id": "<NATIONAL_ID_1>", "other": "111222334"}


def test_numbers_in_number_columns_are_masked_and_others_stay() -> None:
    masked = PiiFilter([]).apply(record({"phone": 4155552671, "age": 41, "vip": True, "score": 0.5}))
    assert masked.inputs == {"phone": "<PHONE_1>", "age": 41, "vip": True, "score": 0.5}


def test_masks_that_stand_there_already_keep_their_numbers() -> None:
    masked = PiiFilter([]).apply(record({"text": "<EMAIL_1> wrote to c@x.org"}))
    assert masked.inputs == {"text": "<EMAIL_1> wrote to <EMAIL_2>"}


def test_what_gold_outputs_hold_is_the_task_and_stays() -> None:
    gold = [record({"text": "call 415-555-2671"}, {"phone": "415-555-2671"}, "gold")]
    row = record({"text": "I am a@x.org, call 212-736-5000"}, {"phone": "212-736-5000"})
    privacy = PiiFilter(gold)
    assert privacy.acted == tuple(kind for kind in KINDS if kind != "phone")
    assert "phone" in privacy.notes[0]
    assert privacy.apply(row).inputs == {"text": "I am <EMAIL_1>, call 212-736-5000"}
    assert privacy.apply(row).outputs == {"phone": "212-736-5000"}
    forced = PiiFilter(gold, PiiConfig(task_kinds=True)).apply(row)
    assert forced.outputs == {"phone": "<PHONE_1>"}


def test_keep_only_counts() -> None:
    row = record({"text": "a@x.org and b@x.org"})
    kept = PiiFilter([], PiiConfig(action="keep")).apply(row)
    assert (kept.inputs, kept.scores) == (row.inputs, {"pii:email": 2.0})


def test_dropped_rows_name_the_kind_and_kinds_can_be_chosen() -> None:
    rows = [
        record({"text": "mail a@x.org about the red lamp"}),
        record({"text": "my address is 93.184.216.34 today"}),
        record({"text": "nothing to see in this row"}),
    ]
    config = CurateConfig(pii=PiiConfig(action="drop", kinds=("ip",)))
    done = curate(rows, gold=[], protected=(), config=config)
    assert (done.counts, done.pii) == ({"pii_ip": 1}, {"ip": 1})
    assert len(done.kept) == 2


def test_masked_rows_are_compared_with_masked_rows_and_masks_are_no_placeholders() -> None:
    gold = [record({"text": "please write to gold@x.org about my red lamp"}, method="gold")]
    rows = [
        record({"text": "please write to other@y.org about my red lamp"}, method="self_instruct"),
        record({"text": "the copper kettle? ask eve@y.org for it"}, method="self_instruct"),
        record({"text": "tell test@y.org that it rained all day"}, method="self_instruct"),
        record({"text": "<EMAIL> is what I use for the shop"}, method="self_instruct"),
    ]
    protected = ["tell somebody@z.org that it rained all day"]
    done = curate(rows, gold=gold, protected=protected, config=CurateConfig(pii=PiiConfig()))
    reasons = {"duplicate": 1, "contaminated": 1, "leaked_prompt": 1}
    assert done.counts == reasons
    assert [r.inputs["text"] for r in done.kept] == ["the copper kettle? ask <EMAIL_1> for it"]
    assert any("names" in note for note in done.notes)


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spaCy is installed")
def test_names_without_a_model_are_said_to_be_missing() -> None:
    privacy = PiiFilter([], PiiConfig(kinds=("email", "name")))
    assert privacy.acted == ("email",)
    assert any("spaCy" in note for note in privacy.notes)
    assert privacy.apply(record({"text": "Anna Keller"})).inputs == {"text": "Anna Keller"}


def test_unknown_kinds_and_actions_are_refused() -> None:
    with pytest.raises(InputError, match="passport"):
        PiiConfig(kinds=("passport",))
    with pytest.raises(InputError, match="blur"):
        PiiConfig(action="blur")  # pyright: ignore[reportArgumentType]


PIECES = st.sampled_from(
    ["a@x.org", "B@x.org", "+44 20 7946 0018", "4111 1111 1111 1111", "219-12-3456", "93.184.216.34", "<EMAIL_3>"]
)


@settings(max_examples=60)
@given(st.lists(st.one_of(PIECES, st.text(alphabet="ab .,:-(@0123456789", max_size=8)), max_size=6))
@example(["a@x.org", "a@x.org"])
def test_masking_twice_changes_nothing_more_and_leaves_nothing(parts: list[str]) -> None:
    text = " ; ".join(parts)
    once = PiiFilter([]).apply(record({"text": text}))
    assert find_pii(once.inputs["text"]) == ()
    assert PiiFilter([]).apply(once).inputs == once.inputs
    assert bool(find_pii(text)) == any(name.startswith("pii:") for name in once.scores)
    assert len(MASK.findall(once.inputs["text"])) >= len(MASK.findall(text))


@settings(max_examples=100)
@given(st.text())
def test_any_text_is_read_and_spans_are_in_order(text: str) -> None:
    found = find_pii(text)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(0 <= f.start < f.end <= len(text) for f in found)
