"""BM25 over the words of chunks: its scores, its files, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.index import lexical
from tests import tiny_corpus


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("今天天气很好我们去公园", "天气"),
        ("今天天气很好我们去公园", "园"),
        ("สวัสดีครับ", "ดี"),
    ],
)
def test_words_within_a_clause_are_found(tmp_path, text, query):
    others = ["語言模型", "ภาษา", "a b"]
    lexical.write_shard(tmp_path, np.arange(4), [*others, text])
    found, _ = lexical.Lexical([tmp_path]).search([query], 1)
    assert found.tolist() == [[3]]


def test_bm25_is_lucene_s(tmp_path):
    """Against the formula, written out."""
    texts = ["a b b c", "a c", "d", "", "b d d d e"]
    query, k1, b = "b d b", 1.5, 0.75
    lengths = [len(t.split()) for t in texts]
    wanted = np.zeros(len(texts))
    for word in query.split():
        count = sum(word in text.split() for text in texts)
        idf = np.log(1 + (len(texts) - count + 0.5) / (count + 0.5))
        for row, text in enumerate(texts):
            tf = text.split().count(word)
            norm = k1 * (1 - b + b * lengths[row] / np.mean(lengths))
            wanted[row] += idf * tf / (tf + norm)
    lexical.write_shard(tmp_path, np.arange(len(texts)) * 10, texts)
    found, scores = lexical.Lexical([tmp_path]).search([query], 9)
    order = [row for row in np.argsort(-wanted, kind="stable") if wanted[row] > 0]
    assert found[0].tolist() == [*(10 * r for r in order), *[-1] * (9 - len(order))]
    np.testing.assert_allclose(scores[0, : len(order)], wanted[order], rtol=1e-5)


@pytest.mark.parametrize("texts", [[], ["", "!"], ["same"] * 30])
def test_small_and_empty_shards(tmp_path, texts):
    lexical.write_shard(tmp_path, np.arange(len(texts)), texts)
    found, scores = lexical.Lexical([tmp_path]).search(["same", ""], 5)
    wanted = [0, 1, 2, 3, 4] if "same" in texts else [-1] * 5  # ties by id
    assert found.tolist() == [wanted, [-1] * 5]
    assert ((scores > 0) == (found >= 0)).all()
    nothing, _ = lexical.Lexical([]).search(["same"], 2)
    assert nothing.tolist() == [[-1, -1]]


def test_damaged_files_are_named(tmp_path):
    lexical.write_shard(tmp_path, np.arange(3), ["a b", "b c", "c"])
    # bm25s's parameters are SETTINGS and are not read.
    read = {path for path in tmp_path.iterdir() if path.name != "params.index.json"}
    for path in sorted(read):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=tmp_path.name):
            lexical.LexicalShard(tmp_path)
        path.write_bytes(content)
    lexical.LexicalShard(tmp_path)


def test_the_same_texts_give_the_same_files_in_any_process(tmp_path):
    """Python's order of words in a set differs from process to process."""
    texts = list(tiny_corpus.texts().values())
    code = (
        "import json, pathlib, sys; import numpy as np; "
        "from data_pipeline.index import lexical;"
        "texts = json.load(sys.stdin); folder = pathlib.Path(sys.argv[1]);"
        "lexical.write_shard(folder, np.arange(len(texts)), texts);"
        "assert 'jax' not in sys.modules, 'JAX was started'"
    )
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            input=json.dumps(texts),
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "PATH": ""},
            text=True,
            check=True,
        )
        contents.append(tiny_corpus.contents(folder))
    assert contents[0] == contents[1]


def test_bm25s_is_asked_for_by_its_extra(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(lexical.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"'bm25s'.*\[hybrid\]"):
        lexical.write_shard(tmp_path, np.arange(1), ["a"])
