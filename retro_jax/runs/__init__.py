"""What a run keeps: checkpoints, metrics, and its answer to being stopped."""
