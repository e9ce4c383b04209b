"""Readers of what users have: files of a folder, and two corpora that come as packages."""
