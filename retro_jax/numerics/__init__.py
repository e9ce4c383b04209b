"""Products, activations and losses whose gradients or precision are our own."""
