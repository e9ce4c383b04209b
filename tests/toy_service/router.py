"""The command `data_pipeline.service.router`, with the toy embedder."""

import sys

from data_pipeline.embedding import embedder
from data_pipeline.service import router
from tests.toy_embedder import ToyEmbedder

if __name__ == "__main__":
    embedder.load_embedder = lambda name: ToyEmbedder()
    sys.exit(router.main())
