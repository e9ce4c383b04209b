"""Records of all formats are read as records; a field that can't be used is named."""

import datetime
import decimal
import json
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.text.corpora import Document, Reading, Skipped, read_documents
from tests.corpus_files import COMPRESS, read

RECORDS = [
    {"text": "one,\nwith a line", "id": "a", "title": "A", "url": "u"},
    {"text": "two; \u00e9", "id": "b", "title": "", "url": ""},
]


def expected(path: Path) -> list[Document]:
    return [
        Document("a", "one,\nwith a line", "A", "u"),
        Document("b", "two; \u00e9", "", str(path)),
    ]


def table(delimiter: str) -> str:
    return (
        delimiter.join(["text", "id", "title", "url"])
        + "\r\n"
        + delimiter.join(['"one,\nwith a line"', "a", "A", "u"])
        + "\r\n\r\n"
        + delimiter.join(['"two; \u00e9"', "b", "", ""])
    )


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", "".join(json.dumps(record) + "\n" for record in RECORDS)),
        ("array.json", json.dumps(RECORDS)),
        ("pretty.json", json.dumps(RECORDS, indent=2, ensure_ascii=False)),
        (
            "one after the other.json",
            "\n".join(json.dumps(r, indent=1) for r in RECORDS),
        ),
        ("lines.ndjson", "\n".join(map(json.dumps, RECORDS))),
        ("lines.dump", "\n".join(map(json.dumps, RECORDS))),
        ("array.txt", json.dumps(RECORDS, indent=2)),
        ("t.csv", table(",")),
        ("t.semicolons.csv", table(";")),
        ("t.tsv", table("\t")),
    ],
)
def test_formats_of_records(
    name: str, text: str, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}{compression}"
    path.write_bytes(COMPRESS[compression](text.encode()))
    assert read(tmp_path) == (expected(path), {})
    path.write_bytes(COMPRESS[compression](text.encode("utf-16")))
    assert read(tmp_path) == (expected(path), {})


def test_one_record_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text('{\n "title": "T",\n "content": "the text"\n}')
    (tmp_path / "package.json").write_text('{\n "name": "x",\n "version": "1"\n}')
    (tmp_path / "empty.json").write_text(" \n")
    documents, skipped = read(tmp_path)
    uri = str(tmp_path / "page.json")
    assert documents == [Document("page:1", "the text", "T", uri)]
    assert skipped == {"empty": 1, "no text field": 1}


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl", "a.parquet", "a.txt"])
def test_a_column_that_is_named(name: str, tmp_path: Path) -> None:
    """And the message of a corpus that has none lists what there is."""
    records = [{"prose": "one", "author": "x"}, {"prose": "two", "author": "y"}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path)
    elif name.endswith(".csv"):
        path.write_text("prose,author\none,x\ntwo,y\n")
    elif name.endswith(".json"):
        path.write_text(json.dumps(records))
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    message = r"no text field \(data\.text_column can name one of author, prose\)"
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    documents, _ = read(tmp_path, reading=Reading(text_column="prose"))
    assert [document.text for document in documents] == ["one", "two"]


def test_a_named_column_is_the_only_one(tmp_path: Path) -> None:
    lines = [{"text": "t", "summary": "s"}, {"text": "t"}, {"text": None, "body": "b"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    documents, skipped = read(path, reading=Reading(text_column="summary"))
    assert ([d.text for d in documents], skipped) == (["s"], {"no text field": 2})
    assert [document.text for document in read(path)[0]] == ["t", "t", "b"]


def test_broken_json_keeps_what_is_before(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "whole"}, {"text": "cut')
    (tmp_path / "b.json").write_text('{"text": "whole"}\n{"te')
    (tmp_path / "c.json").write_text("[" * 100_000)
    (tmp_path / "d.json").write_text('{"text": \n' * 50_000)
    (tmp_path / "e.json").write_bytes(b'[{"text": "\xff"}]')
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == ["a:1", "b:1"]
    assert skipped == {"invalid json": 3, "damaged": 1, "undecodable": 1}


def test_long_values_are_not_begun_again_and_again(tmp_path: Path) -> None:
    values = [{"text": "x " * 2_500_000}, {"text": "short"}]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(values, indent=1))
    assert [len(document.text) for document in read(path)[0]] == [5_000_000, 5]


@pytest.mark.parametrize(
    ("data", "texts", "reason"),
    [
        (b"", [], "no text field"),
        (b"text\n", [], "empty"),
        (b"\n\n", [], "no text field"),
        (b"text\na\0b\n", [], "binary"),
        ("text\nПривет, мир\n".encode("cp1251"), [], "undecodable"),
        (b'text,id\none,1\n"a"b,2\nthree,3\n', ["one", "three"], "damaged"),
        (b'text,id\none,1\n"never closed,2\nthree,3\n', ["one"], "damaged"),
        (b"id,text\n1,caf\xe9,more,fields\n2\n", ["caf\u00e9"], "no text field"),
    ],
)
def test_odd_tables(data: bytes, texts: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    (tmp_path / "b.txt").write_text("good")
    documents, skipped = read(tmp_path)
    assert [document.text for document in documents] == [*texts, "good"]
    assert skipped == {reason: 1}


def test_fields_are_few_and_printable(tmp_path: Path) -> None:
    record = {f"{n}\ud800" + "x" * 99: n for n in range(1000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="can name one of 0\ufffdxxx") as raised:
        read(tmp_path)
    assert len(str(raised.value).encode()) < 2000


ODD_COLUMNS = {
    "nested": pa.array([{"text": "x"}] * 2),
    "list": pa.array([["x"], ["y"]]),
    "null": pa.nulls(2),
    "number": pa.array([1, 2]),
    "broken": pa.array([b"\xff", b"\xfe"]),
    "date": pa.array([datetime.date(2020, 1, 1)] * 2),
}


@pytest.mark.parametrize("kind", ODD_COLUMNS)
def test_text_in_a_column_of_another_type(kind: str, tmp_path: Path) -> None:
    """Counted by name; files beside it are read."""
    pq.write_table(pa.table({"text": ODD_COLUMNS[kind]}), tmp_path / "odd.parquet")
    (tmp_path / "good.txt").write_text("good")
    documents, skipped = read(tmp_path)
    assert [document.text for document in documents] == ["good"]
    reason = {"null": "text is null", "broken": "undecodable"}.get(
        kind, "text is no string"
    )
    assert skipped == {reason: 2}


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["one", "two"], pa.large_string()),
        pa.array(["one", "two"], pa.string_view()),
        pa.array(["one", "two"]).dictionary_encode(),
        pa.array([b"one", b"two"]),
    ],
)
def test_columns_that_hold_text(text: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": text}), tmp_path / "t.parquet")
    assert [document.text for document in read(tmp_path)[0]] == ["one", "two"]


UUID = uuid.UUID("12345678-1234-5678-9234-567812345678")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([decimal.Decimal(10**20)], pa.decimal128(25, 0)), str(10**20)),
        (pa.array([2**63], pa.uint64()), str(2**63)),
        (pa.array([UUID.bytes], pa.uuid()), str(UUID)),
        (pa.array([UUID.bytes], pa.binary(16)), UUID.hex),
        (pa.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([["no id"]]), "t:1"),
        (pa.nulls(1), "t:1"),
    ],
)
def test_ids_of_any_type(ids: pa.Array, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x"], "id": ids}), path)
    assert [document.id for document in read(path)[0]] == [expected]


def test_a_column_twice_and_dates_out_of_range(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["x"], "id": far}), tmp_path / "far.parquet")
    (tmp_path / "good.txt").write_text("good")
    skipped = Skipped()
    documents = list(read_documents(str(tmp_path), skipped))
    assert documents[-1].text in ("a", "b", "good")
    assert len(documents) + skipped.total == 3


def test_parquet_that_expands(tmp_path: Path) -> None:
    """The same text a thousand times in a few kilobytes."""
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1000, pa.int32()), ["x" * 10**5]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10**5
    documents, skipped = read(tmp_path)
    assert len(documents) < 200
    assert skipped == {"too large (expands more than 500 times)": 1}


def test_cut_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x" * 99] * 999}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "good.txt").write_text("good")
    for damaged in (data[:-9], data[:300] + b"\x15" * 40 + data[340:], b"PAR1" * 9):
        (tmp_path / "t.parquet").write_bytes(damaged)
        documents, skipped = read(tmp_path)
        assert documents[0].text == "good"
        assert sum(skipped.values()) in (0, 1)
