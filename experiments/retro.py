"""The command `retro`, which answers Ctrl-C before anything that takes a while is imported."""

from data_pipeline.storage.printing import protect_streams
from experiments import interrupts


def main() -> None:
    """Runs what the command line says; ends the process with its exit status."""
    protect_streams()
    interrupts.end_at_interrupt()
    from experiments import commands

    commands.run()


if __name__ == "__main__":
    main()
