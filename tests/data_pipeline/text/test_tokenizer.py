"""Every tokenizer must give back every byte of every text."""

import io
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.text.tokenizer import Tokenizer

TEXTS = [
    f"def add_{i}(left, right):\n    return left + right * {i}\n\n\tThe sum of caf\u00e9s.\r\n"
    for i in range(200)
]
CORPORA = Path(
    os.environ.get("RETRO_CORPORA", Path(__file__).parents[4] / "shared/corpora")
)

anything = st.text(max_size=60) | st.text(
    alphabet=" \t\n\r\0\u2581\u2585\ufeff\u200d<>/s0x41pad\u00e9\U0001f923", max_size=60
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "made" / "ours.model"
    return Tokenizer.train(TEXTS, 500, path)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A user's model that changes text in every way SentencePiece can."""
    model = foreign_model(byte_fallback=True, normalization_rule_name="nmt_nfkc_cf")
    path = tmp_path_factory.mktemp("tokenizer") / "foreign.model"
    path.write_bytes(model)
    return Tokenizer.load(path)


def foreign_model(**options: Any) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", "user_defined_symbols": ["<sep>"], **options},
    )
    return written.getvalue()


def assert_lossless(tokenizer: Tokenizer, text: str) -> None:
    ids_L = tokenizer.encode(text)
    assert ids_L.dtype == np.int32
    assert tokenizer.decode_bytes(ids_L) == text.encode()
    assert tokenizer.decode(ids_L) == text
    assert tokenizer.token_bytes_V[ids_L].sum() == len(text.encode())
    assert not {tokenizer.pad_id, tokenizer.eod_id} & set(ids_L.tolist())


@settings(deadline=None)
@given(anything)
@example("<s> <pad> </s> <0x41> <eod> <unk> <sep>")
@example(" \u2581 a\u2581\u2581b \u2581")
@example("\r\n\r\n \t \0\x7f\u2028")
@example("")
def test_every_text_comes_back(
    tokenizer: Tokenizer, foreign: Tokenizer, text: str
) -> None:
    assert_lossless(tokenizer, text)
    assert_lossless(foreign, text)


def test_every_character_comes_back(tokenizer: Tokenizer) -> None:
    plane = [chr(c) for c in range(0x11000) if not 0xD800 <= c < 0xE000]
    assert_lossless(tokenizer, "".join(plane))
    assert_lossless(tokenizer, " ".join(plane[::7]))


def test_foreign_model_would_lose_text_by_itself() -> None:
    plain = sentencepiece.SentencePieceProcessor(
        model_proto=foreign_model(
            byte_fallback=True, normalization_rule_name="nmt_nfkc_cf"
        )
    )
    assert plain.decode(plain.encode("  A  b ")) != "  A  b "


def test_ids_and_controls(tokenizer: Tokenizer, foreign: Tokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eod_id) == (0, 1)
    assert foreign.pad_id == 0  # <unk>, which is never emitted
    assert foreign.eod_id == 2
    assert tokenizer.vocab_size == len(tokenizer.token_bytes_V) <= 500
    assert tokenizer.token_bytes_V[:3].tolist() == [0, 0, 0]
    assert tokenizer.decode([0, *tokenizer.encode("a").tolist(), 1, 2]) == "a"


def test_recurring_text_becomes_tokens(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    assert {"left", " right", "\n", "\t", "   ", "\u00e9"} <= set(pieces)
    assert not [p for p in pieces if sum(c.isdigit() for c in p) > 1]
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])


def test_cut_character_is_replaced(tokenizer: Tokenizer) -> None:
    ids_L = tokenizer.encode("\U0001f923")
    assert len(ids_L) == 4
    assert tokenizer.decode(ids_L[:2]) == "\ufffd"
    assert tokenizer.decode_bytes(ids_L[:2]) == "\U0001f923".encode()[:2]


def test_refuses_what_is_no_text_or_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud800")
    for ids in ([tokenizer.vocab_size], [-1]):
        with pytest.raises(ValueError, match="outside"):
            tokenizer.decode(ids)


def test_batch_is_each_text(tokenizer: Tokenizer) -> None:
    texts = ["", "a b", "\u2581", TEXTS[0]]
    for ids_L, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids_L, tokenizer.encode(text))


def test_training_is_deterministic_in_any_order(tmp_path: Path) -> None:
    one = Tokenizer.train(TEXTS, 500, tmp_path / "one.model")
    two = Tokenizer.train(reversed(TEXTS), 500, tmp_path / "two.model")
    other = Tokenizer.train(TEXTS[:20], 500, tmp_path / "other.model")
    assert (tmp_path / "one.model").read_bytes() == (
        tmp_path / "two.model"
    ).read_bytes()
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 16
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "one.model",
        "other.model",
        "two.model",
    ]


def test_loading_gives_what_was_trained(tmp_path: Path) -> None:
    trained = Tokenizer.train(TEXTS, 400, tmp_path / "a.model")
    loaded = Tokenizer.load(str(tmp_path / "a.model"))
    assert loaded.fingerprint == trained.fingerprint
    np.testing.assert_array_equal(loaded.encode(TEXTS[3]), trained.encode(TEXTS[3]))


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "twenty characters, ok",
        "\U0001f923" * 40,
        "\u2585" * 9,
        "\0",
        "\u2581",
        "aa",
    ]
    + ["\u00e9" * 50, "a" * 3000, " \n x", "".join(map(chr, range(0x4E00, 0x5E00)))],
    ids=ascii,
)
@pytest.mark.parametrize("vocab_size", [260, 263, 300, 32000])
def test_trains_on_the_smallest_corpora(
    text: str, vocab_size: int, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train([text], vocab_size, tmp_path / "tiny.model")
    assert tokenizer.vocab_size <= vocab_size
    assert_lossless(tokenizer, text + " and <s> more \u2581")


def test_refuses_to_train_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        Tokenizer.train(["", " \n"], 300, tmp_path / "x.model")
    with pytest.raises(ValueError, match="vocab_size=259"):
        Tokenizer.train(TEXTS, 259, tmp_path / "x.model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (b"", "not a SentencePiece model"),
        (b"plainly no model", "not a SentencePiece model"),
        (foreign_model(), "byte fallback"),
        (foreign_model(byte_fallback=True, eos_id=-1), "end-of-document"),
    ],
    ids=["empty", "text", "no-fallback", "no-eos"],
)
def test_refuses_unfit_models(model: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "unfit.model"
    path.write_bytes(model)
    with pytest.raises(ValueError, match=says) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def test_text_and_special_tokens_are_put_together(tokenizer: Tokenizer) -> None:
    eod = tokenizer.special_ids["<eod>"]
    ids_L = tokenizer.encode_parts([eod, "a <eod>", eod, ""])
    np.testing.assert_array_equal(
        ids_L, [eod, *tokenizer.encode("a <eod>").tolist(), eod]
    )
    assert tokenizer.encode_parts([]).dtype == np.int32
    with pytest.raises(ValueError, match="260 is the id of no special token"):
        tokenizer.encode_parts(["a", 260])


def test_real_documents_come_back(tmp_path: Path) -> None:
    path = CORPORA / "wikitext-2/wikitext2.valid.txt.xz"
    if not path.exists():
        pytest.skip("the shared corpora are absent")
    text = lzma.decompress(path.read_bytes()).decode()
    tokenizer = Tokenizer.train(
        [text], 2000, tmp_path / "wikitext.model", sample_size_bytes=300_000
    )
    assert tokenizer.vocab_size == 2000
    assert_lossless(tokenizer, text)
    assert len(tokenizer.encode(text)) < len(text) / 2
