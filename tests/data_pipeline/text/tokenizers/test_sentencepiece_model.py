"""Training takes the same sample in whatever order texts come; loading says what is special."""

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.text.tokenizers import sentencepiece_model
from data_pipeline.text.tokenizers.sentencepiece_model import SentencePieceModel


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 200))
def test_sample_ignores_order(texts: list[str], size_bytes: int) -> None:
    sample = sentencepiece_model.sample_blocks(texts, size_bytes)
    assert sample == sentencepiece_model.sample_blocks(reversed(texts), size_bytes)
    taken = sum(len(block.encode()) for block in sample)
    available = sum(len(text.encode()) for text in texts if text.strip())
    assert taken >= min(size_bytes, available)
    if sample:
        assert taken - len(sample[-1].encode()) < size_bytes


def test_special_tokens_are_those_without_bytes() -> None:
    model = sentencepiece_model.train(["some words of a text"], 300, 1000)
    made = SentencePieceModel(model, "it")
    assert made.special_ids == {"<pad>": 0, "<eod>": 1}
    assert (made.eod_id, made.bos_id, made.chat_template) == (1, None, None)
