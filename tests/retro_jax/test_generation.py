import dataclasses

import numpy as np
import pytest

from retro_jax import generation
from retro_jax.generation import generate
from retro_jax.numerics.sampling import Sampling
from retro_jax.training.encodings import Encodings
from tests import tiny_decoder, tiny_model
from tests.retro_jax import whole_window

CFG = tiny_model.small_config(
    depth=2, cca_layers=(2,), tie_output=False, attention="einsum", remat="none"
)
PARAMS = tiny_model.parameters(CFG)
M, N, R, V = CFG.chunk_len, 2, CFG.neighbour_len, CFG.vocab_size
NEVER = -7  # an end-of-document id that is no token


@dataclasses.dataclass
class Found:
    tokens_QNR: np.ndarray
    lengths_QN: np.ndarray
    chunk_ids_QN: np.ndarray
    distances_QN: np.ndarray


def _neighbours_of(chunk, neighbour_len=R, vocab_size=V):
    """Two neighbours that depend on a chunk's tokens alone, the second a short one."""
    rng = np.random.default_rng([int(token) for token in chunk])
    return (
        rng.integers(1, vocab_size, (N, neighbour_len), np.int32),
        np.array([neighbour_len, 3], np.int32),
    )


class FakeRetriever:
    """Gives `_neighbours_of`; keeps what it is asked, and is away when it is told."""

    def __init__(self, away=(), empty=False, **shape):
        self.asked: list[list[int]] = []
        self._away, self._empty, self._shape = away, empty, shape

    def retrieve(self, tokens_QM, num_neighbours):
        assert tokens_QM.dtype == np.int32 and num_neighbours == N
        each = []
        for chunk in tokens_QM.tolist():
            self.asked.append(chunk)
            if len(self.asked) in self._away:
                raise ConnectionError("the service is away")
            each.append(_neighbours_of(chunk, **self._shape))
        lengths_QN = np.stack([lengths for _, lengths in each])
        ids_QN = np.array([[sum(chunk), -1] for chunk in tokens_QM.tolist()], np.int64)
        return Found(
            np.stack([tokens for tokens, _ in each]),
            lengths_QN * (not self._empty),
            ids_QN,
            ids_QN / 2,
        )


def _generate(
    prompts, retriever, *, cfg=CFG, params=PARAMS, num_tokens=9, window_chunks=8, **kw
):
    return generate(
        cfg,
        params,
        [np.array(prompt, np.int32) for prompt in prompts],
        retriever,
        num_tokens=num_tokens,
        window_chunks=window_chunks,
        num_neighbours=N,
        eod_id=kw.pop("eod_id", NEVER),
        **kw,
    )


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
DRAWN = Sampling(temperature=5.0, seed=1)


@pytest.fixture(scope="module")
def greedy():
    retriever = FakeRetriever()
    return retriever, _generate([PROMPT], retriever)[0]


def test_each_complete_chunk_is_asked_for_once(greedy):
    retriever, generated = greedy
    text = PROMPT + generated.tokens.tolist()
    assert len(text) == 17
    assert retriever.asked == [text[start : start + M] for start in range(0, 16, M)]


def _check(cfg, params, prompt, generated, window_chunks, neighbours_of):
    """Each token is the likeliest of the whole window, as likely as is said."""
    expected_LV = whole_window.log_probs(
        cfg, params, prompt, generated.tokens, window_chunks, neighbours_of
    )
    np.testing.assert_array_equal(generated.tokens, expected_LV.argmax(axis=-1))
    np.testing.assert_allclose(generated.log_probs, expected_LV.max(axis=-1), atol=1e-4)


@pytest.mark.parametrize("window_chunks", [1, 3, 4, 8])
def test_prompts_of_any_length_go_on_as_each_would_alone(window_chunks):
    """The reference keeps nothing; windows are full, become so one by one, or never are."""
    prompts = [PROMPT + PROMPT[:3], PROMPT[:5]]
    together = _generate(prompts, FakeRetriever(), window_chunks=window_chunks)
    for prompt, generated in zip(prompts, together, strict=True):
        _check(CFG, PARAMS, prompt, generated, window_chunks, _neighbours_of)


@pytest.mark.parametrize("window_chunks", [3, 4, 5])
def test_a_text_goes_on_as_it_would_have_without_a_stop(window_chunks):
    """Though by then it is longer than the window, of which half has left."""
    how = {"window_chunks": window_chunks}
    whole = _generate([PROMPT], FakeRetriever(), num_tokens=6 * M, **how)[0]
    for said in (2 * M, 3 * M, 4 * M):
        prompt = PROMPT + whole.tokens[:said].tolist()
        rest = _generate([prompt], FakeRetriever(), num_tokens=6 * M - said, **how)[0]
        np.testing.assert_array_equal(rest.tokens, whole.tokens[said:])
        np.testing.assert_allclose(rest.log_probs, whole.log_probs[said:], atol=1e-4)


def test_only_rows_whose_window_is_full_are_read_anew(monkeypatch):
    sizes, filled = [], generation._filled

    def counted(cfg, num_places, params, batch, num_tokens_B):
        sizes.append(len(batch["inputs_BL"]))
        return filled(cfg, num_places, params, batch, num_tokens_B)

    monkeypatch.setattr(generation, "_filled", counted)
    prompts = [PROMPT[:2], PROMPT + PROMPT[:3], PROMPT[:3]]
    _generate(prompts, None, window_chunks=3, num_tokens=M)
    assert sizes == [3, 1]


def test_a_decoder_that_reads_neighbours_itself_keeps_what_it_read():
    cfg = tiny_decoder.config()
    shape = {"neighbour_len": cfg.neighbour_len, "vocab_size": cfg.vocab_size}
    params, kept = tiny_decoder.whole(), Encodings(cfg, 10**7)
    prompt = list(range(1, 14))
    generated = _generate(
        [prompt],
        FakeRetriever(**shape),
        cfg=cfg,
        params=params,
        num_tokens=12,
        window_chunks=2,
        encodings=kept,
    )[0]
    _check(
        cfg, params, prompt, generated, 2, lambda chunk: _neighbours_of(chunk, **shape)
    )
    assert kept.held_bytes > 0


def test_overlapped_retrieval_reads_what_the_chunk_before_found(greedy):
    """The prompt is looked for before: the first new chunk reads what it always does."""
    retriever = FakeRetriever()
    stale = _generate([PROMPT], retriever, overlapped=True, num_tokens=15)[0]
    text = PROMPT + stale.tokens.tolist()
    chunks = [text[start : start + M] for start in range(0, len(text), M)]
    # Chunk 2 is the first new one: its neighbours are those of chunk 1, once more.
    reads = [sum(chunks[number]) for number in (0, 1, 1, 2, 3)]
    assert [source.chunk_ids_N[0] for source in stale.sources] == reads
    assert retriever.asked[:4] == chunks[:4]

    def neighbours_of(chunk):
        number = chunks.index(chunk)
        return _neighbours_of(chunks[number - 1] if number > 1 else chunk)

    _check(CFG, PARAMS, PROMPT, stale, 8, neighbours_of)
    # The first chunk is that of fresh passages, the next is not.
    fresh, stale_log_probs = greedy[1].log_probs, stale.log_probs[:9]
    np.testing.assert_allclose(stale_log_probs[:M], fresh[:M], atol=1e-5)
    assert not np.allclose(stale_log_probs[M:], fresh[M:], atol=1e-3)


def test_overlapped_retrieval_from_a_service_that_is_away_is_retrieval_off():
    off = _generate([PROMPT], None)[0]
    away = _generate([PROMPT], FakeRetriever(away=range(99)), overlapped=True)[0]
    np.testing.assert_array_equal(away.tokens, off.tokens)
    assert {source.problem for source in away.sources} == {"the service is away"}


def test_retrieval_changes_the_text(greedy):
    without = _generate([PROMPT], None)[0]
    assert without.tokens.tolist() != greedy[1].tokens.tolist()
    assert without.sources == []
    _check(CFG, PARAMS, PROMPT, without, 8, None)


def test_a_prompt_that_is_not_whole_chunks_is_padded_on_the_left():
    retriever = FakeRetriever()
    generated = _generate([PROMPT[:5]], retriever, num_tokens=6)[0]
    text = PROMPT[:5] + generated.tokens.tolist()
    assert retriever.asked == [text[:1], text[1:5], text[5:9]]
    ranges = [(source.start, source.stop) for source in generated.sources]
    assert ranges == [(1, 5), (5, 9), (9, 11)]


def test_what_the_window_does_not_hold_is_not_asked_for():
    retriever = FakeRetriever()
    _generate([PROMPT], retriever, window_chunks=1, num_tokens=1)
    assert retriever.asked == [PROMPT[M:]]


def test_penalties_count_the_tokens_of_this_text_alone():
    """The prompt is none of them: the first token is what it is without."""
    same = _generate([PROMPT], None, num_tokens=12)[0].tokens.tolist()
    more = [Sampling(frequency_penalty=2.0, presence_penalty=2.0)]
    other = _generate([PROMPT], None, num_tokens=12, settings=more)[0].tokens.tolist()
    assert same[0] == other[0]
    assert len(set(other)) > len(set(same))


def test_tokens_that_the_tokenizer_does_not_have_are_never_drawn():
    """A model's vocabulary is rounded up, and its rest is hardly trained."""
    hot = [Sampling(temperature=50.0)]
    drawn = _generate([PROMPT], None, num_tokens=40, settings=hot)[0]
    assert drawn.tokens.max() >= 10
    few = _generate([PROMPT], None, num_tokens=40, settings=hot, vocab_size=10)[0]
    assert few.tokens.max() < 10


def test_a_form_of_attention_that_training_had_is_not_asked_for(greedy):
    """Kernels are for batches: a mesh can't divide one sequence."""
    fused = dataclasses.replace(CFG, attention="cudnn")  # of which a CPU has none
    generated = _generate([PROMPT], FakeRetriever(), cfg=fused)[0]
    np.testing.assert_array_equal(generated.tokens, greedy[1].tokens)


def test_sources_say_which_tokens_could_read_them(greedy):
    _, generated = greedy
    ranges = [(source.start, source.stop) for source in generated.sources]
    assert ranges == [(4, 8), (8, 12), (12, 16), (16, 17)]
    text = PROMPT + generated.tokens.tolist()
    for number, source in enumerate(generated.sources):
        chunk_id = sum(text[number * M : number * M + M])
        np.testing.assert_array_equal(source.chunk_ids_N, [chunk_id, -1])
        np.testing.assert_array_equal(source.distances_N, [chunk_id / 2, -0.5])
        assert source.problem is None


def test_a_text_ends_with_its_document_by_itself(greedy):
    """A row that has ended changes nothing in the others."""
    _, generated = greedy
    tokens = generated.tokens.tolist()
    eod_id = tokens[4]
    kept = tokens[: tokens.index(eod_id)]
    stopped = _generate([PROMPT, PROMPT[:5]], FakeRetriever(), eod_id=eod_id)
    assert stopped[0].tokens.tolist() == kept and stopped[0].finish == "end"
    alone = _generate([PROMPT[:5]], FakeRetriever(), eod_id=eod_id)[0]
    assert stopped[1].tokens.tolist() == alone.tokens.tolist()
    assert len(stopped[0].log_probs) == len(kept)
    assert generated.finish == "length"


def test_the_caller_ends_a_text(greedy):
    tokens = greedy[1].tokens.tolist()
    seen = []

    def stop(tokens):
        seen.append(len(tokens))
        return 5 if len(tokens) > 5 else None

    generated = _generate([PROMPT], FakeRetriever(), stop=stop)[0]
    assert generated.tokens.tolist() == tokens[:5] and generated.finish == "stop"
    assert seen == [4, 8]
    assert generated.sources[-1].stop == len(PROMPT) + 5


def test_no_tokens_are_asked_for():
    generated = _generate([PROMPT], None, num_tokens=0)[0]
    assert len(generated.tokens) == 0 and generated.sources == []


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        _generate([PROMPT, []], None)


def test_a_row_draws_by_its_own_seed():
    seeds = [dataclasses.replace(DRAWN, seed=seed) for seed in (2, 1)]
    other, again = _generate([PROMPT, PROMPT], None, settings=seeds)
    alone = _generate([PROMPT], None, settings=[DRAWN])[0]
    assert alone.tokens.tolist() == again.tokens.tolist() != other.tokens.tolist()
    np.testing.assert_allclose(
        alone.log_probs,
        whole_window.log_probs(CFG, PARAMS, PROMPT, alone.tokens, 8)[
            np.arange(9), alone.tokens
        ],
        atol=1e-4,
    )


@pytest.mark.parametrize("failing", [{"away": range(99)}, {"empty": True}])
def test_without_neighbours_the_text_is_that_of_retrieval_off(failing):
    off = _generate([PROMPT], None, settings=[DRAWN])[0]
    retriever = FakeRetriever(**failing)
    generated = _generate([PROMPT], retriever, settings=[DRAWN], effects=True)[0]
    np.testing.assert_array_equal(generated.tokens, off.tokens)
    np.testing.assert_array_equal(generated.log_probs, off.log_probs)
    problems = {source.problem for source in generated.sources}
    assert problems == {"the service is away" if "away" in failing else None}
    assert all(source.effects_N is None for source in generated.sources)


def test_a_service_that_is_away_for_a_while_is_read_again(greedy):
    generated = _generate([PROMPT], FakeRetriever(away=(2,)), num_tokens=9)[0]
    # Both chunks of the prompt are asked for at once.
    problems = [source.problem for source in generated.sources]
    assert problems == ["the service is away"] * 2 + [None] * 2
    lost = {tuple(PROMPT[:M]), tuple(PROMPT[M:])}

    def neighbours_of(chunk):
        tokens_NR, lengths_N = _neighbours_of(chunk)
        return tokens_NR, lengths_N * (tuple(chunk) not in lost)

    _check(CFG, PARAMS, PROMPT, generated, 8, neighbours_of)


@pytest.mark.parametrize("window_chunks", [2, 8])
def test_the_effect_of_a_neighbour_is_what_is_lost_without_it(window_chunks):
    """The reference runs the whole window with the neighbour absent for one chunk."""
    _, generated = _generate(  # the other one's window is not full yet
        [PROMPT[:2], PROMPT], FakeRetriever(), effects=True, window_chunks=window_chunks
    )
    new = len(PROMPT)
    for source in generated.sources[1:]:
        assert source.attention_N.sum() == pytest.approx(1)
        said = generated.tokens[source.start - new : source.stop - new]
        before = PROMPT + generated.tokens[: source.start - new].tolist()
        chunk = before[-M:]
        log_probs = generated.log_probs[source.start - new : source.stop - new]
        for absent in range(N):

            def neighbours_of(asking, absent=absent, chunk=chunk):
                tokens_NR, lengths_N = _neighbours_of(asking)
                is_left_out = (asking == chunk) & (np.arange(N) == absent)
                return tokens_NR, np.where(is_left_out, 0, lengths_N)

            without_LV = whole_window.log_probs(
                CFG, PARAMS, before, said, window_chunks, neighbours_of
            )
            without = without_LV[np.arange(len(said)), said].sum()
            assert source.effects_N[absent] == pytest.approx(
                log_probs.sum() - without, abs=1e-3
            )


def test_a_second_text_of_the_same_shape_is_not_compiled_again(monkeypatch):
    calls = []
    rebuild = generation.parameters.rebuild
    monkeypatch.setattr(
        generation.parameters, "rebuild", lambda *a: calls.append(1) or rebuild(*a)
    )
    _generate([PROMPT[:-1]], FakeRetriever(), num_tokens=9, window_chunks=5)
    traced = len(calls)
    _generate([PROMPT], FakeRetriever(), num_tokens=9, window_chunks=5)
    assert len(calls) == traced
