"""Launching: one run or a whole sweep of them, on this machine or on a cluster."""
