"""Breaks databases and services on purpose, and counts what is left."""
