"""Near copies of held-out text among training text, and text that stands in another."""
