"""Texts that share steps say what they say alone, whenever they come and go."""

import dataclasses

import numpy as np
import pytest

from retro_jax.continuous_batching import NEVER, ContinuousBatch, Wanted
from retro_jax.generation import generate
from retro_jax.numerics.sampling import Sampling
from tests.retro_jax.test_generation import CFG, DRAWN, PARAMS, PROMPT, M, N, V
from tests.retro_jax.test_generation import FakeRetriever as Retriever

WINDOW_CHUNKS = 8
PROMPTS = {"a": PROMPT, "b": PROMPT[:3], "c": [*PROMPT, 5, 3]}


def _batch(
    retriever=None, sizes=(1, 4), step_tokens=2, overlapped=False
) -> ContinuousBatch:
    return ContinuousBatch(
        CFG,
        PARAMS,
        retriever or Retriever(),
        window_chunks=WINDOW_CHUNKS,
        num_neighbours=N,
        vocab_size=V,
        sizes=sizes,
        step_tokens=step_tokens,
        overlapped=overlapped,
    )


def _wanted(name: str, **more) -> Wanted:
    given = {"num_tokens": 2 * M + 1, "sampling": DRAWN} | more
    return Wanted(prompt=np.array(PROMPTS[name], np.int32), **given)


def _alone(name: str, *, num_tokens=2 * M + 1, retriever=None, eod_id=NEVER, **more):
    (made,) = generate(
        CFG,
        PARAMS,
        [np.array(PROMPTS[name], np.int32)],
        retriever,
        num_tokens=num_tokens,
        window_chunks=WINDOW_CHUNKS,
        num_neighbours=N,
        eod_id=eod_id,
        settings=[DRAWN],
        **more,
    )
    return made


def _step(batch: ContinuousBatch, said: dict[str, list]) -> None:
    """Takes a step, and asks what each chunk read when it ends."""
    for name, piece in batch.step().items():
        source = piece.source() if piece.ends_chunk else None
        kept = dataclasses.replace(piece, source=lambda source=source: source)
        said.setdefault(name, []).append(kept)


def _chunk_said(batch: ContinuousBatch, said=None) -> dict[str, list]:
    """Goes on to the end of the chunk."""
    said = {} if said is None else said
    _step(batch, said)
    while batch.num_texts and not batch.num_free:
        _step(batch, said)
    return said


def _all_said(batch: ContinuousBatch, said=None) -> dict[str, list]:
    said = {} if said is None else said
    while batch.num_texts:
        _step(batch, said)
    return said


def _sources(pieces) -> list:
    return [piece.source() for piece in pieces if piece.ends_chunk]


def _tokens(pieces) -> list[int]:
    return np.concatenate([piece.tokens for piece in pieces]).tolist()


@pytest.mark.parametrize("step_tokens", [1, 3, 8])
def test_texts_that_join_midway_say_what_they_say_alone(step_tokens):
    batch, said = _batch(step_tokens=step_tokens), {}
    batch.join("a", _wanted("a"))
    _chunk_said(batch, said)
    batch.join("b", _wanted("b"))
    batch.join("c", _wanted("c", num_neighbours=0))
    _all_said(batch, said)
    for name in PROMPTS:
        alone = _alone(name, retriever=None if name == "c" else Retriever())
        assert _tokens(said[name]) == alone.tokens.tolist()
        log_probs = np.concatenate([piece.log_probs for piece in said[name]])
        np.testing.assert_allclose(log_probs, alone.log_probs, atol=1e-4)
        *before, last = [piece.finish for piece in said[name]]
        assert set(before) == {""} and last == "length"
        sizes = [len(piece.tokens) for piece in said[name]]
        assert sizes[0] == 1 < max(sizes) + (step_tokens == 1)
        assert max(sizes) <= step_tokens
        assert sum(piece.ends_chunk for piece in said[name]) == 3
    assert set(_sources(said["c"])) == {None}


def test_the_first_token_of_a_text_does_not_wait_for_a_chunk():
    batch = _batch(step_tokens=8)
    batch.join("a", _wanted("a"))
    (piece,) = batch.step().values()
    assert len(piece.tokens) == 1 and not piece.ends_chunk
    assert batch.num_free == 0  # others wait for the end of the chunk
    with pytest.raises(ValueError, match="no row is free"):
        batch.join("b", _wanted("b"))
    _chunk_said(batch)
    assert batch.num_free == 3


def test_a_text_that_leaves_makes_room_and_changes_no_other():
    batch = _batch(sizes=(1, 2))
    batch.join("a", _wanted("a"))
    batch.join("b", _wanted("b"))
    said = {}
    _step(batch, said)
    batch.leave("a")
    batch.leave("a")  # it is gone already
    assert batch.num_texts == 1
    _chunk_said(batch, said)
    batch.join("c", _wanted("c"))
    _all_said(batch, said)
    for name in "bc":
        assert (
            _tokens(said[name]) == _alone(name, retriever=Retriever()).tokens.tolist()
        )
    assert len(said["a"]) == 1


def test_where_all_have_left_midway_others_begin_at_once():
    batch = _batch()
    batch.join("a", _wanted("a"))
    batch.step()
    batch.leave("a")
    assert batch.num_free == batch.most_texts
    batch.join("b", _wanted("b"))
    said = _all_said(batch)["b"]
    assert _tokens(said) == _alone("b", retriever=Retriever()).tokens.tolist()


def test_each_text_ends_by_its_own_token_and_length():
    whole = _alone("a", retriever=Retriever()).tokens
    end = int(whole[M])
    kept = list(whole).index(end)
    batch = _batch()
    batch.join("a", _wanted("a", eod_id=end))
    batch.join("b", _wanted("b", num_tokens=3))
    said = _all_said(batch)
    assert _tokens(said["a"]) == whole[:kept].tolist()
    assert said["a"][-1].finish == "end"
    assert len(_tokens(said["b"])) == 3 and said["b"][-1].finish == "length"


def test_sources_and_effects_are_those_of_generation():
    batch = _batch()
    batch.join("a", _wanted("a", effects=True))
    batch.join("b", _wanted("b", num_neighbours=1))
    said = _all_said(batch)
    alone = _alone("a", retriever=Retriever(), effects=True)
    sources = [source for source in alone.sources if source.stop > len(PROMPTS["a"])]
    assert len(sources) > 1
    for told, source in zip(_sources(said["a"]), sources, strict=True):
        assert (told.start, told.stop) == (source.start, source.stop)
        assert told.chunk_ids_N.tolist() == source.chunk_ids_N.tolist()
        np.testing.assert_allclose(told.attention_N, source.attention_N, atol=1e-5)
        np.testing.assert_allclose(told.effects_N, source.effects_N, atol=1e-4)
    for told in _sources(said["b"]):
        assert (told.chunk_ids_N[1:] == -1).all() and told.effects_N is None


def test_what_a_text_read_that_ends_midway_is_known_so_far():
    """A stop string may end it, or its time."""
    batch = _batch()
    batch.join("a", _wanted("a", effects=True))
    batch.step()
    (piece,) = batch.step().values()
    assert not piece.ends_chunk
    told = piece.source()
    alone = _alone("a", num_tokens=3, retriever=Retriever(), effects=True)
    assert (told.start, told.stop) == (M * 2, M * 2 + 3)
    np.testing.assert_allclose(told.effects_N, alone.sources[-1].effects_N, atol=1e-4)
    np.testing.assert_allclose(
        told.attention_N, alone.sources[-1].attention_N, atol=1e-5
    )


def test_overlapped_texts_read_what_each_reads_alone():
    batch = _batch(overlapped=True)
    batch.join("a", _wanted("a", num_tokens=3 * M))
    said = _chunk_said(batch)
    batch.join("b", _wanted("b", num_tokens=3 * M))
    _all_said(batch, said)
    for name in "ab":
        alone = _alone(name, num_tokens=3 * M, retriever=Retriever(), overlapped=True)
        assert _tokens(said[name]) == alone.tokens.tolist()
        told = [source.chunk_ids_N[0] for source in _sources(said[name])]
        assert told == [source.chunk_ids_N[0] for source in alone.sources][-3:]
        assert told[0] == told[1] != told[2]


def test_a_database_that_is_away_ends_no_text_and_is_told():
    batch = _batch(Retriever(away=range(100)))
    batch.join("a", _wanted("a"))
    said = _all_said(batch)
    assert _tokens(said["a"]) == _alone("a").tokens.tolist()
    assert {told.problem for told in _sources(said["a"])} == {"the service is away"}


def test_likeliest_tokens_begin_with_the_one_that_greed_takes():
    batch = _batch()
    batch.join("a", _wanted("a", likeliest=True, sampling=Sampling(temperature=0.0)))
    batch.join("b", _wanted("b"))
    said = _all_said(batch)
    for piece in said["a"]:
        assert piece.likeliest_tokens_LA[:, 0].tolist() == piece.tokens.tolist()
        np.testing.assert_allclose(
            piece.likeliest_log_probs_LA[:, 0], piece.log_probs, atol=1e-5
        )
    assert all(piece.likeliest_tokens_LA is None for piece in said["b"])


@pytest.mark.parametrize("num_neighbours", [0, None])
def test_scores_are_what_generation_says_of_the_same_tokens(num_neighbours):
    """A prompt of whole chunks is read in the same chunks, whatever is new in it."""
    batch = _batch()
    settings = Sampling(temperature=0.0)
    first = _wanted("a", sampling=settings, num_neighbours=num_neighbours)
    batch.join("a", first)
    (*_, last) = said = _all_said(batch)["a"]
    tokens = np.concatenate([first.prompt, _tokens(said)]).astype(np.int32)
    scores = batch.scores(tokens, num_neighbours)
    made = np.concatenate([piece.log_probs for piece in said])
    assert scores.log_probs_L[0] == 0 and last.finish == "length"
    np.testing.assert_allclose(scores.log_probs_L[-len(made) :], made, atol=1e-4)
    assert scores.likeliest_tokens_LA[len(first.prompt)][0] == said[0].tokens[0]
    assert len(scores.likeliest_tokens_LA) == len(tokens) + 1
