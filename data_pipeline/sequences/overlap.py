"""How much of a chunk stands word for word in what was retrieved for it.

Letters here: X chunks.
"""

import numpy as np
from jaxtyping import Int


def longest_common_run(
    chunks_XM: Int[np.ndarray, "X M"],
    passages_XNR: Int[np.ndarray, "X N R"],
    chunk_lengths_X: Int[np.ndarray, " X"],
    passage_lengths_XN: Int[np.ndarray, "X N"],
) -> Int[np.ndarray, " X"]:
    """Tokens of the longest run that a chunk shares with one of its passages.

    Padding matches nothing. Over M, it is the paper's r(C).
    Source: Borgeaud et al. 2022, section 2.6.
    """
    num_chunks, num_passages, passage_len = passages_XNR.shape
    real_XNR = np.arange(passage_len) < passage_lengths_XN[..., None]
    run_XNR = np.zeros(passages_XNR.shape, np.int16)
    longest_X = np.zeros(num_chunks, np.int32)
    for place in range(chunks_XM.shape[1]):
        token_X11 = chunks_XM[:, place, None, None]
        same = (passages_XNR == token_X11) & real_XNR
        same &= (place < chunk_lengths_X)[:, None, None]
        longer = np.zeros_like(run_XNR)
        longer[..., 1:] = run_XNR[..., :-1]
        run_XNR = np.where(same, longer + 1, 0).astype(np.int16)
        if num_passages:
            longest_X = np.maximum(longest_X, run_XNR.max(axis=(1, 2)))
    return longest_X
