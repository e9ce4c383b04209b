"""Measures speeds, beside others' where there are others: `python -m tools.benchmark`."""
