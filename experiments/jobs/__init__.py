"""The jobs of a run: train, evaluate and generate, and what they are made of."""
