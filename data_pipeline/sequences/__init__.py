"""From chunks and their neighbours to batches."""
