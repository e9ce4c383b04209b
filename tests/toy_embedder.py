"""The toy embedder, which benchmarks use too."""

from tools.faults.toy_embedder import ToyEmbedder, in_place_of_all

__all__ = ["ToyEmbedder", "in_place_of_all"]
