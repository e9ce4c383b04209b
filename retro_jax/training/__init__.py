"""The loss, the step and the loop."""
