"""What `experiments.main` does: train, evaluate, generate."""
