"""The command `data_pipeline.service.shard_server`, which needs no embedder."""

import sys

from data_pipeline.service import shard_server

if __name__ == "__main__":
    sys.exit(shard_server.main())
