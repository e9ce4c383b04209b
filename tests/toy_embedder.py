"""The toy embedder, which benchmarks use too."""

from experiments.benchmark.toy_embedder import ToyEmbedder, in_place_of_all

__all__ = ["ToyEmbedder", "in_place_of_all"]
