"""What a server of a model sends: its page."""
