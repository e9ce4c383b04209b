"""Nearest neighbours of vectors by squared Euclidean distance.

One protocol, and one file a kind of index: `exact.py` (numpy), `scann.py` and `faiss.py`.
An index knows rows 0..T-1 and nothing of chunks; `sharded.py` makes one of several and
knows whose rows they are. Words are searched by `lexical.py`.
"""

from data_pipeline.index.kinds import build_index, load_index

__all__ = ["build_index", "load_index"]
