"""The command `retro`, which answers Ctrl-C before anything that takes a while is imported."""

import sys

from data_pipeline.storage.extras import explained
from data_pipeline.storage.printing import protect_streams
from experiments import interrupts


def main() -> None:
    """Runs what the command line says; ends the process with its exit status."""
    protect_streams()
    interrupts.end_at_interrupt()
    try:
        from experiments import commands

        commands.run()
    except ModuleNotFoundError as error:  # of a command that needs an extra
        sys.exit(f"error: {explained(error)}")


if __name__ == "__main__":
    main()
