"""Search under filters, by vectors and by words beside them, and how rankings are fused."""

import shutil

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, search
from data_pipeline.index import lexical
from data_pipeline.text.words import search_terms
from tests import tiny_corpus

_OTHER = "wholly unrelated matters, thankfully bypassed here " * 4  # in no document
_RARE = {"number": "90417", "identifier": "qzx_9fw", "name": "Żółwik"}


def test_excluded_documents_are_not_found(tiny_database):
    excluded = [tiny_corpus.PLANTED_IN]
    queries = [tiny_corpus.PLANTED, tiny_corpus.PLANTED[:30]]
    for query in queries:
        (found,) = tiny_database.search([query], 20, exclude_documents=excluded)
        assert len(found) == 20
        while found[0].document_id not in excluded and len(excluded) < 6:
            excluded.append(found[0].document_id)
            (found,) = tiny_database.search([query], 20, exclude_documents=excluded)
            assert not {passage.document_id for passage in found} & set(excluded)
    assert len(excluded) == 6


def test_unknown_document_and_bad_k(tiny_database):
    with pytest.raises(ValueError, match="'no such one' is not in"):
        tiny_database.search(["a"], 1, exclude_documents=["no such one"])
    held_out = tiny_database.snapshot.documents("test").column("id")[0].as_py()
    with pytest.raises(ValueError, match=f"'{held_out}' is not in"):
        tiny_database.search(["a"], 1, exclude_documents={held_out})
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be at least 1, is {k}"):
            tiny_database.search(["a"], k)


def test_k_beyond_the_database_gives_all_that_has_text(tiny_database):
    (found,) = tiny_database.search(
        ["anything"], len(tiny_database.snapshot.chunks()) + 5
    )
    distances = [passage.distance for passage in found]
    assert distances == sorted(distances)
    assert all(passage.text for passage in found)
    table = tiny_database.snapshot.chunks()
    _, lengths = table.passages(np.arange(len(table)), tiny_database.chunk_len)
    ids = sorted(passage.chunk_id for passage in found)
    assert ids == np.flatnonzero(lengths).tolist()
    assert len(ids) < len(table)  # some chunks are EOD alone


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


@pytest.mark.parametrize("query", [" \n", "!?… --", "☃", "unseenword"])
def test_without_known_words_it_is_dense(worded, query):
    assert worded.search([query], 7, rank="hybrid") == worded.search([query], 7)


def test_retrieve_is_search_and_one_query_equals_many(worded):
    tokens_QM = worded.snapshot.chunks().take("tokens", np.arange(5))
    got = worded.retrieve(tokens_QM, 3, rank="hybrid")
    texts = [worded.tokenizer.decode(tokens) for tokens in tokens_QM]
    for query, found in enumerate(worded.search(texts, 3, rank="hybrid")):
        assert [f.chunk_id for f in found] == got.chunk_ids_QN[query].tolist()
        assert worded.search([texts[query]], 3, rank="hybrid") == [found]
    assert worded.search([], 3, rank="hybrid") == []
    (all_found,) = worded.search(["value"], 10_000, rank="hybrid")
    assert len(all_found) == len(worded.snapshot.searchable)


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
    table, ids = worded.snapshot.chunks(), worded.snapshot.searchable
    texts = list(lexical.texts_of(table, ids, worded.tokenizer))
    decode = worded.tokenizer.decode
    cut = 0
    for chunk_id, text in zip(ids, texts, strict=True):
        found = worded.found(int(chunk_id))
        whole = found.text + found.continuation
        assert whole.startswith(text) and text.startswith(found.text)
        terms = search_terms(text)
        assert search_terms(whole)[: len(terms)] == terms
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
        assert Database.open(folder).snapshot.lexical


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


@pytest.mark.parametrize(("rank", "first"), [(61, "both"), (62, "one")])
def test_fusion_counts_ranks_from_one_and_adds_sixty(rank, first):
    """Twice at rank 61, 2 / 121, beats once at rank 1, 1 / 61; twice at 62 is equal to it.

    With ranks from 0 the one is ahead both times; with 61 for 60 the other is.
    """
    one, both = 1000, 1001
    by_vectors, by_words = np.arange(1, 71), np.arange(101, 171)
    by_vectors[0] = one
    by_vectors[rank - 1] = by_words[rank - 1] = both
    ((best,),) = search.fuse([by_vectors[None], by_words[None]], 1)
    assert best == {"one": one, "both": both}[first]
