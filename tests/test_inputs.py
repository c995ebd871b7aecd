"""Reading rows: every format, and one named error for every way a file can be wrong."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.inputs import Table, read_rows, read_table

ROWS = [{"text": "where is my card", "label": "card"}, {"text": "pay the rent, please", "label": "pay"}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fails(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_table(path)
    error = caught.value
    assert error.valid, "an error says what is valid"
    assert error.hint, "an error names the next command"
    return error


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "rows.csv", "rows.tsv", "rows.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)  # pyright: ignore[reportUnknownMemberType]
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(r) for r in ROWS) + "\n\n")
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    assert read_rows(path) == ROWS


def test_json_lines_under_the_name_json_are_read(tmp_path: Path):
    assert read_rows(write(tmp_path, "a.json", "\n".join(json.dumps(r) for r in ROWS))) == ROWS


def test_a_dataset_gives_rows_and_class_names():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert read_rows(data) == [{"text": "a", "label": "spam"}, {"text": "b", "label": "ham"}]


def test_a_dict_of_splits_is_refused():
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(InputError, match="mapping of train") as caught:
        read_rows(data)  # pyright: ignore[reportArgumentType]
    assert "data['train']" in caught.value.hint


def test_rows_with_different_keys_get_the_same_columns():
    table = read_table([{"a": 1}, {"b": float("nan")}])
    assert table.columns == ("a", "b")
    assert table.rows == ({"a": 1, "b": None}, {"a": None, "b": None})


def test_dates_and_decimals_become_json_types():
    row = {"when": date(2020, 1, 2), "price": Decimal("1.50"), "tags": ("a",), "more": {"n": float("inf")}}
    assert read_rows([row]) == [{"when": "2020-01-02", "price": 1.5, "tags": ["a"], "more": {"n": None}}]


MESSY = '\ufeff text ; label \r\n"He said ""hi; there""\nand left, quickly";greeting\r\n\r\n  x  ;bye;\r\n'


def test_messy_csv_is_read(tmp_path: Path):
    """A byte order mark, ';', blanks around the header, quotes, a line break in a cell, a last separator."""
    table = read_table(write(tmp_path, "messy.csv", MESSY))
    assert table.rows == (
        {"text": 'He said "hi; there"\nand left, quickly', "label": "greeting"},
        {"text": "  x  ", "label": "bye"},
    )
    assert table.where(1).endswith("messy.csv, line 5")


def test_a_line_that_names_the_delimiter_is_no_header(tmp_path: Path):
    path = tmp_path / "excel.csv"
    path.write_text("sep=;\r\ntext;label\r\nhi, you;a\r\n", encoding="utf-8")
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert table.rows[0]["text"] == "hi, you"
    assert table.where(0).endswith("line 3")


def test_a_saved_row_index_without_a_name_is_dropped(tmp_path: Path):
    assert read_rows(write(tmp_path, "a.csv", ",text,label\n0,a,x\n1,b,y\n")) == [
        {"text": "a", "label": "x"},
        {"text": "b", "label": "y"},
    ]


def test_one_column_of_prose_stays_one_column(tmp_path: Path):
    assert read_rows(write(tmp_path, "a.csv", 'text\n"one, two; three"\n')) == [{"text": "one, two; three"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.jsonl", "  \n ", "is empty"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.json", "[]", "no rows"),
        ("a.csv", '""\n""\n', "column without a name"),
        ("a.csv", "a,,c\n1,2,3\n", "column without a name"),
        ("a.csv", "a,b,a\n1,2,3\n", "'a' twice"),
        ("a.csv", "a,b\n1,2\n\n1,2,3\n", "line 4 has 3 cells"),
        ("a.csv", "a,b\n1\n", "line 2 has 1 cells"),
        ("a.csv", 'a,b\n1,2\n"x,y\n1,2\n', "starts on line 3 is not CSV"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 is a list"),
        ("a.json", '{"a": 1}', "holds a dict"),
        ("a.json", '[{"a": 1}, 2]', "row 2 is a int"),
        ("a.json", '[{"a": 1}', "is not JSON"),
        ("a.jsonl", '{"a": "\\ud800"}\n', "half a surrogate pair"),
        ("a.parquet", "PAR1 no", "not a Parquet file"),
        ("a.xlsx", "PK", "a .xlsx file"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str):
    path = write(tmp_path, name, content)
    error = fails(path)
    assert message in error.message
    assert name in error.message


def test_a_missing_file_names_close_ones(tmp_path: Path):
    write(tmp_path, "labels.csv", "a,b\n1,2\n")
    error = fails(tmp_path / "lables.csv")
    assert "labels.csv" in error.valid


def test_a_folder_is_no_file(tmp_path: Path):
    assert "a folder" in fails(tmp_path).message


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, "a.csv", "a,b\n1,2\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in fails(path).message


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_name_byte_and_line(tmp_path: Path, mark: bytes):
    data = mark + "text,label\nok,a\ncaf\u00e9,b\n".encode("latin-1")
    error = fails(write(tmp_path, "a.csv", data))
    assert f"byte {data.index(0xE9)} (0xe9), on line 3" in error.message
    assert "iconv -f WINDOWS-1252 -t UTF-8" in error.hint


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le"])
def test_utf_16_is_recognised(tmp_path: Path, codec: str):
    error = fails(write(tmp_path, "a.csv", "text,label\nok,a\n".encode(codec)))
    assert "UTF-16" in error.message
    assert "iconv -f UTF-16" in error.hint


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_cell_of_ten_megabytes_is_named(tmp_path: Path, name: str):
    big = "x" * 10_000_000
    content = f"text,label\nok,a\n{big},b\n" if name == "a.csv" else json.dumps({"text": big, "label": "b"})
    before = csv.field_size_limit()
    error = fails(write(tmp_path, name, content))
    assert "column 'text': 10,000,000 bytes" in error.message
    assert csv.field_size_limit() == before


def test_a_long_but_allowed_cell_is_read(tmp_path: Path):
    text = "word " * 60_000  # above csv's own limit of 131,072 characters
    assert read_rows(write(tmp_path, "a.csv", f"text,label\n{text},b\n"))[0]["text"] == text


def test_values_no_model_can_read_are_refused():
    with pytest.raises(InputError, match="a bytes cannot be given"):
        read_rows([{"image": b"\x89PNG"}])


def test_a_missing_column_names_a_close_one():
    table = read_table(ROWS)
    table.require(["text", "label"])
    with pytest.raises(InputError, match="no column 'lable'; did you mean 'label'") as caught:
        table.require(["lable"])
    assert caught.value.valid == "text, label"


def test_a_table_knows_the_place_of_its_rows():
    assert Table(({"x": 1},), ("x",), "a.csv", (7,), "line").where(0) == "a.csv, line 7"


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.sampled_from([",", ";", "\t", "|"]))
def test_what_csv_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str
):
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    path = write(tmp_path_factory.mktemp("csv"), "a.csv", out.getvalue())
    if not kept:
        assert "no rows" in fails(path).message
    else:
        assert [tuple(r.values()) for r in read_rows(path)] == kept


values = st.recursive(
    st.none() | st.booleans() | st.integers() | cells,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cells, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.fixed_dictionaries({"a": values, "b": values}), min_size=1, max_size=5))
def test_what_json_writes_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]):
    folder = tmp_path_factory.mktemp("json")
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    assert read_rows(write(folder, "a.jsonl", lines)) == rows
    assert read_rows(write(folder, "a.json", json.dumps(rows))) == rows
