"""The frozen BERT against naive numpy and against sentence-transformers' vectors."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.embedding import bert, embedder
from data_pipeline.embedding.embedder import BertEmbedder, load_embedder
from tests.fixtures import make_minilm_vectors

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
HEADS, INNER, POSITIONS = 4, 24, 32


def write_tiny_bert(folder, *, prefix="", **overrides):
    """A random BERT folder without tokenizer; returns its tensors."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    width = SIZES["hidden_size"]

    def dense(name, rows, columns):
        return {
            f"{name}.weight": rng.normal(0, 0.3, (columns, rows)).astype(np.float32),
            f"{name}.bias": rng.normal(0, 0.3, columns).astype(np.float32),
        }

    def norm(name):
        return {
            f"{name}.LayerNorm.weight": rng.normal(1, 0.1, width).astype(np.float32),
            f"{name}.LayerNorm.bias": rng.normal(0, 0.1, width).astype(np.float32),
        }

    tensors = norm("embeddings")
    for name, rows in (
        ("word", SIZES["vocab_size"]),
        ("position", POSITIONS),
        ("token_type", 2),
    ):
        tensors[f"embeddings.{name}_embeddings.weight"] = rng.normal(
            0, 1, (rows, width)
        ).astype(np.float32)
    for layer in range(SIZES["num_hidden_layers"]):
        source = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            tensors |= dense(f"{source}.attention.self.{name}", width, width)
        tensors |= dense(f"{source}.attention.output.dense", width, width)
        tensors |= norm(f"{source}.attention.output")
        tensors |= dense(f"{source}.intermediate.dense", width, INNER)
        tensors |= dense(f"{source}.output.dense", INNER, width)
        tensors |= norm(f"{source}.output")
    save_file(
        {prefix + name: tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    config = SIZES | {
        "model_type": "bert",
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config | overrides))
    return tensors


def naive_bert(tensors, tokens):
    """One row, no padding, loops over heads, float64."""
    get = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def dense(name, x):
        return x @ get[f"{name}.weight"].T + get[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * get[f"{name}.LayerNorm.weight"] + get[f"{name}.LayerNorm.bias"]

    hidden = get["embeddings.word_embeddings.weight"][tokens]
    hidden = hidden + get["embeddings.position_embeddings.weight"][: len(tokens)]
    hidden = norm(
        "embeddings", hidden + get["embeddings.token_type_embeddings.weight"][0]
    )
    for layer in range(SIZES["num_hidden_layers"]):
        source = f"encoder.layer.{layer}"
        q, k, v = (
            np.split(dense(f"{source}.attention.self.{name}", hidden), HEADS, axis=1)
            for name in ("query", "key", "value")
        )
        heads = []
        for head in range(HEADS):
            shares = np.exp(q[head] @ k[head].T / math.sqrt(q[head].shape[1]))
            heads.append(shares / shares.sum(1, keepdims=True) @ v[head])
        read = dense(f"{source}.attention.output.dense", np.concatenate(heads, 1))
        hidden = norm(f"{source}.attention.output", hidden + read)
        inner = dense(f"{source}.intermediate.dense", hidden)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        hidden = norm(
            f"{source}.output", hidden + dense(f"{source}.output.dense", inner)
        )
    return hidden


def padded(rows, length):
    tokens_BL = np.full((len(rows), length), 7, np.int32)  # padding is any token
    for i, row in enumerate(rows):
        tokens_BL[i, : len(row)] = row
    return tokens_BL, np.array([len(row) for row in rows], np.int32)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_equals_naive_numpy_whatever_the_padding(tmp_path, prefix):
    tensors = write_tiny_bert(tmp_path, prefix=prefix)
    model = bert.load_bert(tmp_path, precision="float32")
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 50, length) for length in (1, 2, 9, 16)]
    for length in (16, 32):
        found_BW = np.asarray(model(*padded(rows, length)))
        for row, found_W in zip(rows, found_BW, strict=True):
            wanted_W = naive_bert(tensors, row).mean(0)
            wanted_W /= np.linalg.norm(wanted_W)
            np.testing.assert_allclose(found_W, wanted_W, atol=2e-6)


def test_rows_are_split_over_devices_and_vectors_stay_the_same(tmp_path, monkeypatch):
    write_tiny_bert(tmp_path)
    one = bert.load_bert(tmp_path, precision="float32")
    eight = bert.load_bert(tmp_path, precision="float32", devices=jax.devices())
    assert (one.mesh.size, eight.mesh.size) == (1, 8)
    places, embed_tokens = [], bert.embed_tokens

    def spy(params, tokens_BL, *rest):
        places.append(tokens_BL.sharding.shard_shape(tokens_BL.shape))
        return embed_tokens(params, tokens_BL, *rest)

    monkeypatch.setattr(bert, "embed_tokens", spy)
    rng = np.random.default_rng(0)
    for rows in (16, 3):  # 3 rows can't be split, and need not be
        tokens_BL = rng.integers(5, 20, (rows, 8)).astype(np.int32)
        lengths_B = rng.integers(1, 9, rows).astype(np.int32)
        np.testing.assert_allclose(
            one(tokens_BL, lengths_B), eight(tokens_BL, lengths_B), atol=1e-6
        )
    assert places == [(16, 8), (2, 8), (3, 8), (3, 8)]


def test_first_token_pooling(tmp_path):
    tensors = write_tiny_bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    model = bert.load_bert(tmp_path, precision="float32")
    row = np.arange(5)
    wanted_W = naive_bert(tensors, row)[0]
    wanted_W /= np.linalg.norm(wanted_W)
    np.testing.assert_allclose(model(*padded([row], 8))[0], wanted_W, atol=2e-6)


def test_padding_rows_are_finite_and_bfloat16_is_close(tmp_path):
    write_tiny_bert(tmp_path)
    rows = [np.arange(9), np.arange(0)]
    exact_BW = np.asarray(
        bert.load_bert(tmp_path, precision="float32")(*padded(rows, 16))
    )
    fast = bert.load_bert(tmp_path)
    fast_BW = np.asarray(fast(*padded(rows, 16)))
    assert np.isfinite(fast_BW).all()
    assert fast.params["layers/0/w_up_EF"].dtype == "bfloat16"
    assert 0 < np.abs(fast_BW - exact_BW)[0].max() < 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "roberta"}, "model_type"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
    ],
)
def test_refuses_what_it_does_not_compute(tmp_path, overrides, message):
    write_tiny_bert(tmp_path, **overrides)
    with pytest.raises(ValueError, match=message):
        bert.load_bert(tmp_path)


def test_refuses_other_weights_and_modules_and_precisions(tmp_path, untyped):
    write_tiny_bert(tmp_path)
    with pytest.raises(ValueError, match="sha256"):
        bert.load_bert(tmp_path, expected_sha256=embedder.MINILM_SHA256)
    with pytest.raises(ValueError, match="float16"):
        bert.load_bert(tmp_path, precision="float16")
    (tmp_path / "modules.json").write_text('[{"type": "a.models.Dense"}]')
    with pytest.raises(ValueError, match="Dense"):
        bert.load_bert(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        bert.load_bert(tmp_path)


def test_minilm_equals_sentence_transformers_reference():
    texts = make_minilm_vectors.reference_texts()
    with np.load(make_minilm_vectors.PATH, allow_pickle=False) as file:
        wanted_QW = file["vectors_QW"]
    assert len(wanted_QW) == len(texts)
    exact_QW = load_embedder("minilm", precision="float32").embed(texts)
    np.testing.assert_allclose(exact_QW, wanted_QW, atol=2e-6)
    cosine_Q = (load_embedder("minilm").embed(texts) * wanted_QW).sum(axis=1)
    assert cosine_Q.min() > 0.9999


def test_minilm_equals_sentence_transformers_here():
    pytest.importorskip("sentence_transformers")
    texts = [*make_minilm_vectors.reference_texts(), *json.__doc__.splitlines()]
    wanted_QW = load_embedder_of_torch().embed(texts)
    exact_QW = load_embedder("minilm", precision="float32").embed(texts)
    assert np.abs(exact_QW - wanted_QW).max() < 1e-4
    fast_QW = load_embedder("minilm").embed(texts)
    assert (fast_QW * wanted_QW).sum(axis=1).min() > 0.999


def load_embedder_of_torch():
    from data_pipeline.embedding.embedder import SentenceTransformerEmbedder

    return SentenceTransformerEmbedder(str(embedder.minilm_folder()), device="cpu")


def test_a_damaged_minilm_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write_tiny_bert(folder)
    shutil.copy(embedder.minilm_folder() / "tokenizer.json", folder)
    monkeypatch.setattr(embedder, "minilm_folder", lambda: folder)
    with pytest.raises(ValueError, match="expected 53aa51172d14"):
        load_embedder("minilm")
    assert isinstance(load_embedder(str(folder)), BertEmbedder)


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(embedder, "MINILM_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ValueError, match="requirements-weights"):
        load_embedder("minilm")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("The TPU is in use"), r"\(The TPU is in use\): free it"),
        (
            AssertionError(),
            r"\(it finds none\): free it, or embed .* JAX_PLATFORMS=cpu",
        ),
    ],
)
def test_an_accelerator_that_cannot_be_used_is_said(monkeypatch, error, said):
    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    with pytest.raises(
        ValueError, match=f"can't use this machine's accelerator {said}"
    ):
        bert.load_bert(embedder.minilm_folder())
