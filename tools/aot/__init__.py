"""Compiles the training step for TPUs that are not there."""
