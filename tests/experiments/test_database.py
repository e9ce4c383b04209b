"""The database at the command line: what people read, and what a mistake gives."""

import json
import re
import shutil

import numpy as np
import pytest

from data_pipeline.embedding import chunk_vectors
from experiments import database as command
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


@pytest.fixture
def folder(tiny_database, tmp_path):
    return shutil.copytree(tiny_database.folder, tmp_path / "database")


@pytest.fixture
def run(folder, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        status = command.main([*words, f"--database={folder}"])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_search_names_its_sources(run):
    status, out, _ = run("search", tiny_corpus.PLANTED, "-k", "3")
    assert status == 0
    assert [line[:2] for line in out.splitlines() if line[:1].isdigit()] == [
        "1.",
        "2.",
        "3.",
    ]
    assert "document " in out
    assert "distance 0." in out


def test_search_passes_over_documents(run):
    _, out, _ = run("search", tiny_corpus.PLANTED, "-k", "1")
    document = out.split("document ")[1].split(",")[0]
    _, out, _ = run("search", tiny_corpus.PLANTED, "-k", "50", "--without", document)
    assert f"document {document}," not in out


def test_show_and_stats_and_verify(run, tmp_path):
    status, out, _ = run("show", "0")
    assert status == 0
    assert "byte 0, chunk 0" in out
    plot = tmp_path / "distances.png"
    status, out, _ = run("stats", f"--plot={plot}")
    assert status == 0
    assert re.search(r"recall@2 1\.000, .*, [\d,]+ queries/s when it was built", out)
    assert "near-duplicate chunks" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run("verify", "--blocks=2")
    assert status == 0
    assert "files are as they were written" in out
    assert out.count("bit for bit the same") == 2


@pytest.mark.parametrize(("noise", "status"), [(1e-3, 0), (0.1, 2)])
def test_verify_tells_rounding_from_other_vectors(run, monkeypatch, noise, status):
    embed = chunk_vectors.embed_chunks

    def embed_elsewhere(*args):
        vectors_TW = embed(*args)
        noise_TW = np.random.default_rng(0).normal(scale=noise, size=vectors_TW.shape)
        return (vectors_TW * (1 + noise_TW)).astype(np.float16)

    monkeypatch.setattr(chunk_vectors, "embed_chunks", embed_elsewhere)
    found, out, err = run("verify", "--blocks=1")
    assert found == status
    if status:
        assert "are not what the embedder gives today (cosine 0.9" in err
    else:
        assert re.search(r"cosine 0\.99999\d or more: another processor", out)


def test_add_delete_compact_and_go_back(run, tmp_path):
    new = tmp_path / "new.jsonl"
    records = [
        {"id": "a", "text": "Some new text."},
        {"id": "b", "text": "Other text."},
    ]
    new.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run("add", str(new))[1] == "version 1: 2 documents added\n"
    status, _, err = run("add", str(new))
    assert status == 2
    assert "already" in err
    assert run("add", str(new), "--replace")[1].startswith("version 2: 2 documents")
    assert run("delete", "a")[1] == "version 3: 1 document deleted\n"
    out = run("versions")[1]
    assert out.count("version ") == 4
    assert "in force" in out.splitlines()[3]
    assert "in force" in run("versions", "--use=1")[1].splitlines()[1]
    run("versions", "--use=3")
    assert run("verify", "--blocks=0")[0] == 0
    assert "nothing deleted is left" in run("compact")[1]
    assert run("verify", "--blocks=0")[0] == 0
    assert run("versions")[1].startswith("version 4: ")
    assert "document a," not in run("search", "Some new text.", "-k", "500")[1]


def test_a_damaged_version_is_listed_and_can_be_left(run, folder, tmp_path):
    new = tmp_path / "new.jsonl"
    new.write_text(json.dumps({"id": "a", "text": "Some new text."}))
    run("add", str(new))
    run("delete", "a")
    with (folder / "versions" / "000002.npy").open("ab") as file:
        file.write(b"x")
    status, out, _ = run("versions")
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert "000002.npy is damaged" in lines[2] and lines[2].endswith("  in force")
    assert run("versions", "--use=2")[0] == 2
    assert "in force" in run("versions", "--use=1")[1].splitlines()[1]
    assert "document a," in run("search", "Some new text.")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", ""], "the query is empty"),
        (["search", " \n"], "the query is empty"),
        (["search", "NUL \x00 within"], "character"),
        (["search", "x", "-k", "0"], "k must be at least 1, is 0"),
        (["search", "x", "-k", "-1"], "k must be at least 1, is -1"),
        (["search", "x", "--without", "nobody"], "document 'nobody' is not in"),
        (["show", "-1"], "chunk ids go from 0 to"),
        (["show", "1000000000000"], "chunk ids go from 0 to"),
        (["verify", "--blocks=-1"], "--blocks must be at least 0, is -1"),
        (["stats", "--plot=/dev/null/plot.png"], "can't write to /dev/null"),
        (["verify", "--seed=-1"], "--seed must be at least 0, is -1"),
        (["add", ""], "the name of the corpus is empty"),
        (["add", "/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["delete", "nobody"], "document 'nobody' is not in"),
        (["delete", "../../../etc"], "document '../../../etc' is not in"),
        (["versions", "--use=7"], "has no version 7"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    status, _, err = run(*words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("query", ["x" * 200_000, "?!", "é" * 999])
def test_odd_queries_find_something(run, query):
    status, out, err = run("search", query, "-k", "1")
    assert (status, err) == (0, "")
    assert out.startswith("1. ")


def test_a_query_that_is_not_utf8_is_refused(run):
    status, _, err = run("search", "caf\udce9", "-k", "1")
    assert status == 2
    assert "not valid Unicode" in err


def test_k_beyond_everything_gives_all_there_is(run):
    status, out, _ = run("search", "x", "-k", "1000000000")
    assert status == 0
    assert out.count("distance") > 900


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


READ = [
    "chunks/train-00000/tokens.npy",
    "chunks/train-00000/offsets.npy",
    "chunks/test-00000/tokens.npy",
    "documents/all/train-00000.parquet",
    "tokenizer/all/tokenizer.model",
    "index/00000/ids.npy",
    "index/00000/index/vectors.npy",
    "index/00000/index/meta.json",
]


@pytest.mark.parametrize("path", READ)
def test_a_flipped_bit_is_refused_and_named(run, folder, path):
    flip(folder / path)
    status, _, err = run("search", "x")
    assert status == 2
    assert f"{path} is damaged" in err


@pytest.mark.parametrize(
    "path",
    [*READ, "embeddings/train-00001/vectors.npy", "neighbours/train-00000/ids.npy"],
)
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_missing_or_cut_file_is_refused_and_named(run, folder, path, how):
    if how == "missing":
        (folder / path).unlink()
    else:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[:-1])
    status, _, err = run("search", "x")
    assert status == 2
    assert str(folder / path) in err
    assert ("is missing" if how == "missing" else "bytes instead of") in err


def test_verify_finds_what_opening_does_not_read(run, folder):
    flip(folder / "embeddings/train-00001/vectors.npy")
    assert run("search", "x")[0] == 0
    status, _, err = run("verify")
    assert status == 2
    assert "embeddings/train-00001/vectors.npy is damaged" in err


def test_a_shard_of_another_database_is_refused(run, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "chunks" / "train-00001", other)
    shutil.rmtree(folder / "chunks" / "train-00000")
    shutil.move(other, folder / "chunks" / "train-00000")
    status, _, err = run("search", "x")
    assert status == 2
    assert "chunks/train-00000" in err


def test_search_for_programs_is_an_object_a_line(run):
    status, out, _ = run("search", tiny_corpus.PLANTED, "--k", "2", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [row["place"] for row in rows] == [1, 2]
    keys = "place text continuation document_id title uri licence offset distance"
    assert set(rows[0]) == {*keys.split(), "chunk_id", "passage"}
    assert out.isascii()


def test_search_leaves_out_what_is_far_and_says_how_near_it_came(run):
    _, out, _ = run("search", tiny_corpus.PLANTED, "--json")
    distances = [json.loads(line)["distance"] for line in out.splitlines()]
    nearest, limit = distances[0], str(distances[1])
    _, out, _ = run("search", tiny_corpus.PLANTED, "--max_distance", limit)
    assert 2 <= len(re.findall(r"(?m)^\d+\. ", out)) < len(distances) + 1
    _, out, _ = run("search", "zzz qqq", "--max_distance", "0")
    assert re.fullmatch(r"nothing is as near as that; .* \d\.\d{3}\n", out)
    assert nearest <= distances[1]


def test_what_a_terminal_obeys_is_shown_by_no_command(run, tmp_path):
    evil = "\x1b]0;title\x07\x9b31m\u202e"
    new = tmp_path / "new.jsonl"
    fields = {name: evil + name for name in ("id", "title", "uri", "licence")}
    new.write_text(
        json.dumps({**fields, "uri": f"x\n1. {evil}", "text": f"walrus {evil}"})
    )
    (tmp_path / f"bin{evil[:-1]}.jsonl").write_text('{"id": "a"}')
    said = [*run("add", str(new))[1:], *run("add", str(tmp_path), "--replace")[1:]]
    shown = run("search", "walrus", "-k", "1000")[1]
    assert not re.search(r"(?m)^1\. \ufffd", shown)  # no line of ours is forged
    rows = map(
        json.loads, run("search", "walrus", "-k", "1000", "--json")[1].splitlines()
    )
    found = next(row for row in rows if "walrus" in row["text"])
    assert found["document_id"].endswith("id")
    said += run("show", str(found["chunk_id"]))[1:] + run("versions")[1:]
    said += run("delete", evil)[1:] + run("versions", "--use", "1")[1:]
    harmful = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]"
    assert not re.search(harmful, "".join([*said, shown]))
    assert "walrus" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "x", "--steps=30"], "arguments: --steps=30 (retro --help)"),
        (["show", "first"], "CHUNK_ID: invalid int value: 'first' (retro show --help)"),
        (["delete"], "arguments are required: ID (retro delete --help)"),
        (["serch"], "invalid choice: 'serch'"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message, capsys):
    assert command.main(words, prog="retro") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
