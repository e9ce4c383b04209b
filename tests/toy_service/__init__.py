"""The commands of `data_pipeline.service` with the toy embedder in place of every other."""
