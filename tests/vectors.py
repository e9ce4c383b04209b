"""Vectors that lie in clusters, and naive search among them."""

import numpy as np

WIDTH = 64


def clustered(size, *, seed=0, unit=True):
    """Clusters of fifty, as the chunks of a subject are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(500, WIDTH))
    vectors_TW = centres[rng.integers(len(centres), size=size)]
    vectors_TW = vectors_TW + 0.5 * rng.normal(size=vectors_TW.shape)
    if unit:
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    return vectors_TW.astype(np.float32)


def naive(vectors_TW, queries_QW, k):
    """All distances in float64, sorted stably."""
    difference = queries_QW[:, None].astype(np.float64) - vectors_TW[None]
    distances_QT = np.square(difference).sum(-1).astype(np.float32)
    ids_QN = np.argsort(distances_QT, axis=1, kind="stable")[:, :k]
    distances_QN = np.take_along_axis(distances_QT, ids_QN, axis=1)
    missing = ((0, 0), (0, k - ids_QN.shape[1]))
    return (
        np.pad(ids_QN, missing, constant_values=-1),
        np.pad(distances_QN, missing, constant_values=np.inf),
    )
