"""Readers of single files: records, suffixes, damage."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.text.corpora import Document, Skipped, read_documents
from tests.corpus_files import COMPRESS, read, write_jsonl


@pytest.mark.parametrize("suffix", COMPRESS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)))
def test_json_lines_come_back(suffix: str, tmp_path: Path, texts: list[str]) -> None:
    usable = [text for text in [*texts, "end"] if text.strip()]
    records = [{"text": text} for text in [*texts, "end"]]
    data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](data))
    documents, skipped = read(path)
    assert [document.text for document in documents] == usable
    assert sum(skipped.values()) == len(records) - len(usable)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("head.csv", b"id,text\n"),
        ("blank.jsonl", b"\n\n"),
        ("none.json", b"[]"),
        ("nothing.json", b""),
        ("none.ipynb", b'{"cells": [], "nbformat": 4}'),
        ("blank.txt", b" \n"),
        ("none.parquet", None),
    ],
)
def test_a_file_without_a_document_is_counted(name, data, tmp_path: Path) -> None:
    path = tmp_path / name
    if data is None:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_bytes(data)
    (tmp_path / "good.txt").write_text("text")
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == ["good.txt"]
    assert skipped == {"empty": 1}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_record_fields(suffix: str, tmp_path: Path) -> None:
    records = [
        {"text": "one", "id": "a", "title": "A", "uri": "u", "licence": "MIT"},
        {"text": "two", "id": None, "title": None, "uri": None, "licence": None},
        {"text": "three", "id": "a", "title": "", "uri": "", "licence": ""},
    ]
    path = tmp_path / f"c{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        write_jsonl(path, records)
    documents, _ = read(path)
    assert documents == [
        Document("a", "one", "A", "u", "MIT"),
        Document("c:2", "two", "", str(path)),
        Document("a#2", "three", "", str(path)),
    ]


def test_numbers_are_ids_and_suffixes_never_collide(tmp_path: Path) -> None:
    ids = [7, 7.5, "x", "x#2", "x", "x", True, [1]]
    records: list[object] = [{"text": f"t{i}", "id": id_} for i, id_ in enumerate(ids)]
    documents, _ = read(write_jsonl(tmp_path / "n.jsonl", records))
    found = [document.id for document in documents]
    assert found == ["7", "7.5", "x", "x#2", "x#3", "x#4", "n:7", "n:8"]


def test_unusable_json_lines_are_counted_by_name(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "good"}',
        b"",
        b'{"text": "cut',
        b"[" * 100_000,
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "x", "title": "\\udfff"}',
        b'{"text": " \\n\\t"}',
        b'{"text": 5}',
        b'{"text": null}',
        b'{"title": "none"}',
        b'["text"]',
        b'{"text": "pair \\ud83e\\udd23", "id": "last"}',
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines))
    skipped = Skipped()
    documents = list(read_documents(str(path), skipped))
    assert [(d.title, d.text) for d in documents] == [
        ("", "good"),
        ("", "\ufffd"),
        ("\ufffd", "x"),
        ("", "pair \U0001f923"),
    ]
    assert skipped.summary_lines() == [
        "1 empty: bad.jsonl:8",
        "2 invalid json: bad.jsonl:3, bad.jsonl:4",
        "2 no text field (data.text_column can name one of title): bad.jsonl:11, bad.jsonl:12",
        "1 text is no string: bad.jsonl:9",
        "1 text is null: bad.jsonl:10",
        "1 undecodable: bad.jsonl:5",
    ]
    assert skipped.total == 8
    json.dumps(skipped.as_dict())


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_files_give_what_is_whole(suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [{"text": rng.bytes(500).hex()} for _ in range(2500)]
    whole = write_jsonl(tmp_path / f"cut.jsonl{suffix}", list(records))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    documents, skipped = read(whole)
    assert 0 < len(documents) < 2500
    assert [d.text for d in documents] == [r["text"] for r in records][: len(documents)]
    assert skipped["damaged"] == 1
    (tmp_path / f"good.txt{suffix}").write_bytes(COMPRESS[suffix](b"some text"))
    (tmp_path / f"noise.txt{suffix}").write_bytes(b"no such format")
    documents, skipped = read(tmp_path)
    assert documents[-1].text == "some text"
    assert skipped["damaged"] == 2


def test_concatenated_zstd_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "frames.txt.zst"
    path.write_bytes(COMPRESS[".zst"](b"first ") + COMPRESS[".zst"](b"second"))
    assert read(path)[0][0].text == "first second"
