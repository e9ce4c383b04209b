"""The command `data_pipeline.service.serve_local`, with the toy embedder."""

import sys

from data_pipeline.service import serve_local

if __name__ == "__main__":
    serve_local._PACKAGE = "tests.toy_service"
    sys.exit(serve_local.main())
