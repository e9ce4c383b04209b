"""What every server of the service does: admission, deadlines, health, versions."""
