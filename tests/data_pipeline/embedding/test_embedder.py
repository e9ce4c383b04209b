"""The embedders' contract: order, ragged texts, fingerprints, errors."""

import importlib.machinery
import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.embedding import bert
from data_pipeline.embedding.embedder import (
    BertEmbedder,
    compile_for_queries,
    load_embedder,
    padded_length,
)
from tests.data_pipeline.embedding.test_bert import (
    load_embedder_of_torch,
    write_tiny_bert,
)
from tests.toy_embedder import ToyEmbedder

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A random BERT of 32 positions whose word pieces are letters."""
    import tokenizers

    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    for letter in LETTERS:
        vocabulary[letter] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128)  # as MiniLM's file has; must be undone
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_embedder(str(tiny_folder), precision="float32")


@given(texts=st.lists(st.text(LETTERS + "  ", max_size=80), max_size=40))
@settings(max_examples=20, deadline=None)
def test_a_vector_depends_on_its_text_alone(tiny, texts):
    found_QW = tiny.embed(texts)
    assert found_QW.shape == (len(texts), 16)
    assert found_QW.dtype == np.float32
    for text, found_W in zip(texts, found_QW, strict=True):
        np.testing.assert_allclose(found_W, tiny.embed([text])[0], atol=1e-5)
        assert abs(np.linalg.norm(found_W) - 1) < 1e-5


def test_order_is_kept_over_blocks(tiny_folder):
    model = bert.load_bert(tiny_folder, precision="float32")
    small = BertEmbedder(model, tiny_folder / "tokenizer.json", batch_rows=1)
    rng = np.random.default_rng(0)
    texts = [" ".join(LETTERS[: rng.integers(1, 26)]) for _ in range(200)]
    found_QW = small.embed(texts)  # four blocks of 64
    wanted = {text: small.embed([text])[0] for text in set(texts)}
    for text, found_W in zip(texts, found_QW, strict=True):
        np.testing.assert_allclose(found_W, wanted[text], atol=1e-6)


def test_no_query_waits_for_a_compiler(tiny, tiny_folder):
    model = bert.load_bert(tiny_folder, precision="float32")
    ready = BertEmbedder(model, tiny_folder / "tokenizer.json", batch_rows=8)
    compile_for_queries(ready)
    num_compiled = bert.embed_tokens._cache_size()
    texts = [" ".join(LETTERS[:letters]) for letters in (1, 4, 9, 14, 19, 26)]
    for count in range(1, 15):
        ready.embed((texts * 3)[:count])
    assert bert.embed_tokens._cache_size() == num_compiled
    np.testing.assert_allclose(ready.embed(texts), tiny.embed(texts), atol=1e-5)
    compile_for_queries(ToyEmbedder())  # which has nothing to compile


def test_empty_and_blank_texts_have_vectors(tiny):
    vectors_QW = tiny.embed(["", "  \n", "a"])
    np.testing.assert_allclose(np.linalg.norm(vectors_QW, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors_QW[0], vectors_QW[1])
    assert tiny.embed([]).shape == (0, 16)


def test_long_texts_are_cut_at_the_maximum_length(tiny):
    kept = "a b c " * 10  # 30 letters, [CLS] and [SEP]: 32
    found_QW = tiny.embed([kept, kept + "x y z " * 500, kept[:-2]])
    np.testing.assert_array_equal(found_QW[0], found_QW[1])
    assert np.abs(found_QW[0] - found_QW[2]).max() > 1e-3


def test_wrong_texts_are_refused(tiny, untyped):
    with pytest.raises(TypeError, match="one string"):
        tiny.embed("abc")
    with pytest.raises(TypeError, match="text 1 is a NoneType"):
        tiny.embed(["a", None])
    with pytest.raises(ValueError, match="text 2 is not valid Unicode"):
        tiny.embed(["a", "\u00e9", "\ud800"])


def test_fingerprint_names_all_that_changes_vectors(tiny, tiny_folder, tmp_path):
    same = load_embedder(str(tiny_folder), precision="float32")
    assert same.fingerprint == tiny.fingerprint
    found = {tiny.fingerprint, load_embedder(str(tiny_folder)).fingerprint}
    for change in ("pooling", "length", "weights", "tokenizer"):
        folder = tmp_path / change
        shutil.copytree(tiny_folder, folder)
        if change == "pooling":
            (folder / "1_Pooling").mkdir()
            mode = '{"pooling_mode_cls_token": true}'
            (folder / "1_Pooling" / "config.json").write_text(mode)
        elif change == "length":
            (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
        elif change == "weights":
            write_tiny_bert(folder, prefix="bert.")
        else:
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            tokenizer["normalizer"] = {"type": "Lowercase"}
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        found.add(load_embedder(str(folder), precision="float32").fingerprint)
    assert len(found) == 6
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in found)


def test_padded_length_is_tight_where_chunks_are_and_never_too_long():
    for length in range(1, 513):
        padded = padded_length(length, 512)
        assert length <= padded <= max(length + 7, length * 1.5)
        assert padded_length(min(length, 40), 40) <= 40
    assert len({padded_length(length, 256) for length in range(1, 257)}) == 16


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        load_embedder("./no_such_folder")
    write_tiny_bert(tmp_path / "bert")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_embedder(str(tmp_path / "bert"))


def test_batch_rows_must_be_a_power_of_two(tiny_folder):
    model = bert.load_bert(tiny_folder)
    with pytest.raises(ValueError, match="not 12"):
        BertEmbedder(model, tiny_folder / "tokenizer.json", batch_rows=12)


def test_other_names_need_sentence_transformers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e .*\[torch\]"):
        load_embedder("some-organisation/some-model")


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_model_that_is_not_to_be_had_is_refused_at_once(monkeypatch, name):
    """Left alone, sentence-transformers tries each file five times, with pauses between."""

    def load(name, *, local_files_only=False, **_):
        assert local_files_only, "only what is here is loaded without asking the hub"
        raise OSError("not in the cache")

    def snapshot_download(repository, **_):
        asked.append(repository)
        raise FileNotFoundError("no route to the hub")

    asked: list[str] = []
    theirs = types.ModuleType("sentence_transformers")
    hub = types.ModuleType("huggingface_hub")
    theirs.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    monkeypatch.setattr(theirs, "SentenceTransformer", load, raising=False)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download, raising=False)
    monkeypatch.setitem(sys.modules, "sentence_transformers", theirs)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ValueError, match=f"'{name}' is no folder here.*check the name"):
        load_embedder(name)
    assert asked[-1] == name
    assert len(asked) <= 2


@pytest.mark.parametrize(
    "kind", ["payload.Module", "os.system", "sentence_transformers_.X", ""]
)
def test_a_folder_that_names_code_of_others_is_refused(tmp_path, monkeypatch, kind):
    """Of modules.json: sentence-transformers would import what it names."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="loading it would run that"):
        load_embedder(str(tmp_path))


def test_sentence_transformers_embedder():
    pytest.importorskip("sentence_transformers")
    embedder = load_embedder_of_torch()
    assert embedder.width == 384
    assert embedder.fingerprint == load_embedder_of_torch().fingerprint
    assert embedder.fingerprint != load_embedder("minilm").fingerprint
    assert embedder.embed([]).shape == (0, 384)
    vectors_QW = embedder.embed(["", "a longer text", "b"])
    np.testing.assert_allclose(np.linalg.norm(vectors_QW, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors_QW[2:], embedder.embed(["b"]), atol=1e-5)


def test_toy_embedder_keeps_the_contract():
    toy = ToyEmbedder()
    texts = ["", "the quick brown fox", "the quick brown dog", "zzz 123"]
    vectors_QW = toy.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors_QW, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors_QW, ToyEmbedder().embed(texts))
    cosine_QQ = vectors_QW @ vectors_QW.T
    assert cosine_QQ[1, 2] > cosine_QQ[1, 3] + 0.2
    assert toy.embed([]).shape == (0, toy.width)
