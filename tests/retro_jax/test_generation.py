import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_jax import generation
from retro_jax.generation import generate, sample_token
from tests import tiny_model

CFG = tiny_model.small_config(depth=2, cca_layers=(2,), tie_output=False)
PARAMS = tiny_model.parameters(CFG)
M, N, R, V = CFG.chunk_len, 2, CFG.neighbour_len, CFG.vocab_size
NEVER = -7  # an end-of-document id that is no token


@dataclasses.dataclass
class Found:
    tokens_QNR: np.ndarray
    lengths_QN: np.ndarray
    chunk_ids_QN: np.ndarray
    distances_QN: np.ndarray


class FakeRetriever:
    """Neighbours that depend on the chunk's tokens alone; keeps what it is asked."""

    def __init__(self):
        self.asked: list[list[int]] = []

    def retrieve(self, tokens_QM, num_neighbours):
        assert tokens_QM.dtype == np.int32 and len(tokens_QM) == 1
        assert num_neighbours == N
        self.asked.append(tokens_QM[0].tolist())
        rng = np.random.default_rng(self.asked[-1])
        ids_QN = np.array([[len(self.asked), -1]], np.int64)
        return Found(
            rng.integers(0, V, (1, N, R), np.int32),
            np.array([[R, 3]], np.int32),
            ids_QN,
            ids_QN / 2,
        )


def _generate(
    prompt, retriever, *, cfg=CFG, num_tokens=9, window_chunks=8, eod_id=NEVER, **kw
):
    return generate(
        cfg,
        PARAMS,
        np.array(prompt, np.int32),
        retriever,
        num_tokens=num_tokens,
        window_chunks=window_chunks,
        num_neighbours=N,
        eod_id=eod_id,
        **kw,
    )


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def greedy():
    retriever = FakeRetriever()
    return retriever, _generate(PROMPT, retriever)


def test_each_complete_chunk_is_asked_for_once(greedy):
    retriever, generated = greedy
    text = PROMPT + generated.tokens.tolist()
    assert len(text) == 17
    assert retriever.asked == [text[start : start + M] for start in range(0, 16, M)]


def test_greedy_tokens_are_the_likeliest_of_the_whole_text(greedy):
    """One run over the text, without a window or padding, by causality."""
    _, generated = greedy
    text_L = np.array(PROMPT + generated.tokens.tolist(), np.int32)[:-1]
    retriever = FakeRetriever()
    found = [
        retriever.retrieve(text_L[None, start : start + M], N)
        for start in range(0, 16, M)
    ]
    logits_LV = tiny_model.forward(CFG)(
        PARAMS,
        text_L[None],
        np.stack([f.tokens_QNR for f in found], axis=1),
        np.stack([f.lengths_QN for f in found], axis=1),
    )[0]
    expected = np.argmax(logits_LV, axis=-1)[len(PROMPT) - 1 :]
    np.testing.assert_array_equal(generated.tokens, expected)
    without = _generate(PROMPT, None)
    assert without.tokens.tolist() != generated.tokens.tolist()


def test_a_prompt_that_is_not_whole_chunks_is_padded_on_the_left():
    retriever = FakeRetriever()
    generated = _generate(PROMPT[:5], retriever, num_tokens=6)
    text = PROMPT[:5] + generated.tokens.tolist()
    assert retriever.asked == [text[:1], text[1:5], text[5:9]]


def test_tokens_that_the_tokenizer_does_not_have_are_never_drawn():
    """A model's vocabulary is rounded up, and its rest is hardly trained."""
    drawn = _generate(PROMPT, None, num_tokens=40, temperature=50.0, top_p=1.0)
    assert drawn.tokens.max() >= 10
    few = {"vocab_size": 10, "temperature": 50.0, "top_p": 1.0}
    assert _generate(PROMPT, None, num_tokens=40, **few).tokens.max() < 10
    assert _generate(PROMPT, None, vocab_size=10).tokens.max() < 10


def test_a_form_of_attention_that_training_had_is_not_asked_for(greedy):
    """Kernels are for batches: a mesh can't divide one sequence."""
    _, expected = greedy
    fused = dataclasses.replace(CFG, attention="cudnn")  # of which a CPU has none
    generated = _generate(PROMPT, FakeRetriever(), cfg=fused)
    np.testing.assert_array_equal(generated.tokens, expected.tokens)


def test_left_padding_alone_changes_no_token():
    """Without retrieval nothing else is left of it."""
    generated = _generate(PROMPT[:5], None)
    text_L = np.array(PROMPT[:5] + generated.tokens.tolist(), np.int32)[:-1]
    logits_LV = tiny_model.forward(CFG)(PARAMS, text_L[None])[0]
    expected = np.argmax(logits_LV, axis=-1)[4:]
    np.testing.assert_array_equal(generated.tokens, expected)
    assert generated.sources == []


@pytest.mark.parametrize("window_chunks", [1, 2])
def test_the_window_slides_by_chunks(window_chunks):
    """Each token is the likeliest after the last C - 1 chunks and what follows them."""
    generated = _generate(PROMPT, None, window_chunks=window_chunks)
    text = PROMPT + generated.tokens.tolist()
    for end in range(len(PROMPT), len(text)):
        start = max(-(-end // M) - window_chunks, 0) * M
        seen_L = np.zeros(window_chunks * M, np.int32)
        seen_L[: end - start] = text[start:end]
        logits_LV = tiny_model.forward(CFG)(PARAMS, seen_L[None])[0]
        assert text[end] == np.argmax(logits_LV[end - start - 1]), end


@pytest.mark.parametrize("window_chunks", [1, 2])
def test_a_sliding_window_asks_for_each_chunk_once_and_names_every_source(
    window_chunks,
):
    retriever = FakeRetriever()
    generated = _generate(PROMPT[:7], retriever, window_chunks=window_chunks)
    text = PROMPT[:7] + generated.tokens.tolist()
    assert len(generated.tokens) == 9
    starts = range(3, len(text) - M + 1, M)
    assert retriever.asked == [text[:3], *(text[s : s + M] for s in starts)]
    assert len(generated.sources) == 4


def test_sources_say_which_tokens_could_read_them(greedy):
    _, generated = greedy
    ranges = [(source.start, source.stop) for source in generated.sources]
    assert ranges == [(4, 8), (8, 12), (12, 16), (16, 17)]
    for number, source in enumerate(generated.sources, 1):
        np.testing.assert_array_equal(source.chunk_ids_N, [number, -1])
        np.testing.assert_array_equal(source.distances_N, [number / 2, -0.5])


def test_sources_of_a_padded_prompt_count_from_its_first_token():
    generated = _generate(PROMPT[:5], FakeRetriever(), num_tokens=5)
    ranges = [(source.start, source.stop) for source in generated.sources]
    assert ranges == [(1, 5), (5, 9), (9, 10)]


def test_the_end_of_the_document_ends_it(greedy):
    _, generated = greedy
    tokens = generated.tokens.tolist()
    eod_id = tokens[4]
    stopped = _generate(PROMPT, FakeRetriever(), eod_id=eod_id)
    assert stopped.tokens.tolist() == tokens[: tokens.index(eod_id)]


def test_no_tokens_are_asked_for():
    generated = _generate(PROMPT, None, num_tokens=0)
    assert len(generated.tokens) == 0 and generated.sources == []


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        _generate([], None)


def test_the_same_seed_draws_the_same_text():
    one, again, other = (
        _generate(PROMPT, None, temperature=5.0, top_p=1.0, seed=seed).tokens.tolist()
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_second_text_of_the_same_model_is_not_compiled_again(monkeypatch):
    calls = []
    rebuild = generation.parameters.rebuild
    monkeypatch.setattr(
        generation.parameters, "rebuild", lambda *a: calls.append(1) or rebuild(*a)
    )
    _generate(PROMPT[:-1], FakeRetriever(), num_tokens=2, window_chunks=3)
    _generate(PROMPT, FakeRetriever(), num_tokens=2, window_chunks=3)
    assert len(calls) == 1  # traced once


logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12).map(
    lambda values: np.array(values, np.float32)
)


@given(logits, st.floats(0.1, 4), st.floats(0, 1), st.integers(0, 99))
def test_a_token_is_drawn_from_the_smallest_likely_set(
    logits_V, temperature, top_p, seed
):
    token = sample_token(logits_V, temperature, top_p, np.random.default_rng(seed))
    probabilities = np.exp(logits_V.astype(np.float64) / temperature)
    probabilities /= probabilities.sum()
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert likelier < max(top_p, 1e-9) + 1e-9


@given(logits, st.integers(0, 99))
def test_the_likeliest_token_without_temperature_or_nucleus(logits_V, seed):
    rng = np.random.default_rng(seed)
    best = logits_V.max()
    assert logits_V[sample_token(logits_V, 0.0, 0.95, rng)] == best
    assert logits_V[sample_token(logits_V, 1.0, 0.0, rng)] >= best - 1e-6
    assert logits_V[sample_token(logits_V, 1e-9, 0.3, rng)] >= best - 1e-6


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = np.array([0.5, 0.05, 0.3, 0.15])
    logits_V = np.log(probabilities).astype(np.float32)
    rng = np.random.default_rng(0)
    draws = [sample_token(logits_V, 1.0, 1.0, rng) for _ in range(4000)]
    shares = np.bincount(draws, minlength=4) / 4000
    np.testing.assert_allclose(shares, probabilities, atol=0.03)
    draws = [sample_token(logits_V, 1.0, 0.8, rng) for _ in range(2000)]
    shares = np.bincount(draws, minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.625, 0.0, 0.375, 0.0], atol=0.04)
