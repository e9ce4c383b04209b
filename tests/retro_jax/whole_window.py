"""Generation that keeps nothing: the whole window is run again for every token."""

import functools

import jax
import numpy as np

from retro_jax.model import parameters


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(cfg, params, batch):
    logits_BLV = parameters.rebuild(cfg, params)(
        batch["inputs_BL"],
        batch.get("neighbours_BCNR"),
        batch.get("neighbour_lengths_BCN"),
        batch["segments_BL"],
    )
    return jax.nn.log_softmax(logits_BLV)


def log_probs(cfg, params, prompt, new, window_chunks, neighbours_of=None):
    """Log-probabilities of all tokens at each place of `new`, that follow a prompt.

    Args:
        neighbours_of: gives tokens [N R] and lengths [N] of a chunk's real tokens.
    """
    chunk_len = cfg.chunk_len
    padding = -len(prompt) % chunk_len
    whole = [0] * padding + [*prompt] + [*new]
    found: list = []
    rows = []
    for end in range(padding + len(prompt), len(whole)):
        text = whole[:end]
        while neighbours_of and (len(found) + 1) * chunk_len <= end:
            start = len(found) * chunk_len
            found.append(neighbours_of(text[max(start, padding) : start + chunk_len]))
        batch, place = _window(cfg, text, padding, window_chunks, found)
        rows.append(np.asarray(_log_probs(cfg, params, batch)[0, place]))
    return np.stack(rows)


def _window(cfg, text, padding, window_chunks, found):
    """The window of a text as a batch of one, and the place of its last token.

    Whenever it is too long half a window leaves.
    """
    chunk_len, first = cfg.chunk_len, 0
    while len(text) > (first + window_chunks) * chunk_len:
        first += max(window_chunks // 2, 1)
    seen = text[first * chunk_len :]
    length = window_chunks * chunk_len
    inputs_BL, segments_BL = np.zeros((2, 1, length), np.int32)
    inputs_BL[0, : len(seen)], segments_BL[0, : len(seen)] = seen, 1
    segments_BL[0, : max(padding - first * chunk_len, 0)] = 0
    batch = {"inputs_BL": inputs_BL, "segments_BL": segments_BL}
    if found:
        num_neighbours = len(found[0][1])
        shape = (1, window_chunks, num_neighbours)
        tokens_BCNR = np.zeros((*shape, cfg.neighbour_len), np.int32)
        lengths_BCN = np.zeros(shape, np.int32)
        for place, (tokens_NR, lengths_N) in enumerate(found[first:]):
            tokens_BCNR[0, place], lengths_BCN[0, place] = tokens_NR, lengths_N
        batch |= {"neighbours_BCNR": tokens_BCNR, "neighbour_lengths_BCN": lengths_BCN}
    return batch, len(seen) - 1
