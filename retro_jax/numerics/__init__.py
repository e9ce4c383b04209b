"""Products and losses with gradients of our own."""
