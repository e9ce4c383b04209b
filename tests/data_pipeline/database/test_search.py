"""Search by words beside vectors: what each finds, how they are fused, what is excluded."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, search
from data_pipeline.index import lexical
from tests import tiny_corpus

_OTHER = "wholly unrelated matters, thankfully bypassed here " * 4  # in no document
_RARE = {"number": "90417", "identifier": "qzx_9fw", "name": "Żółwik"}


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """The tiny corpus, with a rare word at the end of some documents; not to be changed."""
    texts = tiny_corpus.texts()
    for number, (name, word) in enumerate(_RARE.items()):
        texts[name] = f"{texts[f'document-{number:02d}'][:150]} value {word} end"
    folder = tmp_path_factory.mktemp("worded")
    corpus = tiny_corpus.write(folder / "corpus", texts)
    with tiny_corpus.toy_embedder():
        changes = {"lexical": True, "validation_share": 0.0, "test_share": 0.0}
        cfg = tiny_corpus.config(corpus, **changes, index_shard_rows=300, chunk_len=16)
        pipeline.Build(cfg, folder / "database").run("neighbours")
        database = Database.open(folder / "database")
        assert database.embedder.width == 32  # loaded while the toy is in place
    return database


def ids_of(found):
    return [passage.document_id for passage in found]


@pytest.mark.parametrize("name", list(_RARE))
def test_a_rare_word_is_found_by_hybrid_alone(worded, name):
    query = f"{_OTHER} {_RARE[name]}"
    (dense,) = worded.search([query], 3)
    (found,) = worded.search([query], 3, rank="hybrid")
    assert name not in ids_of(dense)
    assert name in ids_of(found)
    (other,) = worded.search([query], 3, rank="hybrid", exclude_documents=[name])
    assert name not in ids_of(other)
    assert len(other) == 3


def test_distances_are_those_of_dense_search(worded):
    (dense,) = worded.search(["umbrellas and 90417"], 500)
    true = {passage.chunk_id: passage for passage in dense}
    (found,) = worded.search(["umbrellas and 90417"], 20, rank="hybrid")
    assert [true[passage.chunk_id] for passage in found] == found
    assert len({passage.chunk_id for passage in found}) == 20


@pytest.mark.parametrize("query", ["", " \n", "!?… --", "\0\0", "☃", "unseenword"])
def test_without_known_words_it_is_dense(worded, query):
    assert worded.search([query], 7, rank="hybrid") == worded.search([query], 7)


def test_retrieve_is_search_and_one_query_equals_many(worded):
    tokens_QM = worded.chunks().take("tokens", np.arange(5))
    got = worded.retrieve(tokens_QM, 3, rank="hybrid")
    texts = [worded.tokenizer.decode(tokens) for tokens in tokens_QM]
    for query, found in enumerate(worded.search(texts, 3, rank="hybrid")):
        assert [f.chunk_id for f in found] == got.chunk_ids_QN[query].tolist()
        assert worded.search([texts[query]], 3, rank="hybrid") == [found]
    assert worded.search([], 3, rank="hybrid") == []
    (all_found,) = worded.search(["value"], 10_000, rank="hybrid")
    assert len(all_found) == len(worded.searchable)


def test_what_can_not_be_asked(worded, tiny_database):
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be at least 1, is {k}"):
            worded.search(["a"], k, rank="hybrid")
    with pytest.raises(ValueError, match="rank must be one of dense, hybrid, is 'bm'"):
        worded.search(["a"], 1, rank="bm")
    with pytest.raises(ValueError, match=r"without an index of words.*lexical=true"):
        tiny_database.search(["a"], 1, rank="hybrid")
    with pytest.raises(ValueError, match="'nobody' is not in"):
        worded.search(["a"], 1, rank="hybrid", exclude_documents=["nobody"])


def test_a_word_that_a_chunk_cuts_is_whole_in_it(worded):
    """Numbers of any length, so that some end at a chunk's border, some across."""
    table, ids = worded.chunks(), worded.searchable
    texts = list(lexical.texts_of(table, ids, worded.tokenizer))
    decode = worded.tokenizer.decode
    cut = 0
    for chunk_id, text in zip(ids, texts, strict=True):
        found = worded.found(int(chunk_id))
        whole = found.text + found.continuation
        assert whole.startswith(text) and text.startswith(found.text)
        assert lexical.words(whole)[: len(lexical.words(text))] == lexical.words(text)
        cut += text != found.text
    assert 0 < cut < len(texts)
    assert decode(table.take("tokens", ids[:1])[0]).startswith(texts[0][:5])


def test_updates_and_compaction_keep_the_words(worded, tmp_path):
    folder = shutil.copytree(worded.folder, tmp_path / "copy")
    with tiny_corpus.toy_embedder():
        database = Database.open(folder)
        query = f"{_OTHER} xylograph77 90417"
        database.add([{"id": "new", "text": "a thing of its own is xylograph77"}])
        (found,) = database.search([query], 4, rank="hybrid")
        assert {"new", "number"} <= set(ids_of(found))
        database.delete(["number"])
        database.add([{"id": "newer", "text": "one more of the kind, 555123"}])
        for _ in range(2):
            (found,) = database.search([f"{query} 555123"], 4, rank="hybrid")
            assert {"new", "newer"} <= set(ids_of(found))
            assert "number" not in ids_of(found)
            database.compact()
    vocabularies = [path.read_text() for path in folder.rglob("vocab.index.json")]
    assert not any("90417" in text for text in vocabularies)
    assert any("xylograph77" in text for text in vocabularies)


def test_the_stage_is_made_only_if_asked_for(worded, tmp_path, tiny_corpus_folder):
    cfg = tiny_corpus.config(tiny_corpus_folder)
    assert pipeline.Build(cfg, tmp_path).stages == pipeline.STAGES
    cfg = tiny_corpus.config(tiny_corpus_folder, lexical=True)
    words = [
        s for s in pipeline.Build(cfg, tmp_path).stages if s not in pipeline.STAGES
    ]
    assert words == ["lexical"]
    assert len(list((worded.folder / "lexical").glob("[0-9]*"))) > 1
    assert not list(worded.folder.rglob("*.pkl"))


def test_words_do_not_change_the_fingerprint(
    tiny_database, tiny_corpus_folder, copy_of
):
    folder = copy_of(tiny_database)
    with tiny_corpus.toy_embedder(), tiny_corpus.recorded() as made:
        cfg = tiny_corpus.config(tiny_corpus_folder, lexical=True)
        pipeline.Build(cfg, folder).run()
        assert {stage for stage, _ in made} == {"lexical"}
        assert Database.open(folder).fingerprint == tiny_database.fingerprint
        assert Database.open(folder).has_words


@pytest.fixture
def copy_of(tmp_path):
    return lambda database: shutil.copytree(database.folder, tmp_path / "copy")


def test_fusion_is_the_sum_of_reciprocal_ranks():
    dense = np.array([[7, 3, 9, -1], [1, 2, -1, -1]])
    words = np.array([[3, 8, 7], [-1, -1, -1]])
    # 3: 1/62 + 1/61, 7: 1/61 + 1/63, 8: 1/62, 9: 1/63
    assert search.fuse([dense, words], 4).tolist() == [[3, 7, 8, 9], [1, 2, -1, -1]]
    swapped = search.fuse([np.array([[5, 6]]), np.array([[6, 5]])], 3)
    assert swapped.tolist() == [[5, 6, -1]]  # equal sums: the first ranking's order
    apart = search.fuse([np.array([[2, 1]]), np.array([[8, 9]])], 4)
    assert apart.tolist() == [[2, 8, 1, 9]]
    assert search.fuse([np.zeros((0, 5), int)] * 2, 2).shape == (0, 2)


def test_words():
    text = "Foo_Bar(x1, 3.14) ÄÖ don't\0NUL"
    assert lexical.words(text) == ["foo_bar", "x1", "3", "14", "äö", "don", "t", "nul"]
    assert lexical.words("…!") == []


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
    for path in sorted(tmp_path.iterdir()):
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
    with pytest.raises(ImportError, match=r"retro-jax\[hybrid\].*'bm25s'"):
        lexical.write_shard(tmp_path, np.arange(1), ["a"])
