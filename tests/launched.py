"""A job that does what its words say, in place of training: `python -m tests.launched WORD ...`.

A word `once:...` counts for the first start in a folder alone.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> None:
    """Does the words in their order; a word that starts with -- is a flag of a host."""
    for word in words:
        kind, _, value = word.partition(":")
        if kind == "once":
            folder, _, word = value.partition(":")
            marker = Path(folder) / "was-here"
            if marker.exists():
                continue
            marker.touch()
            kind, _, value = word.partition(":")
        if kind == "say":
            print(value, flush=True)
        elif kind == "exit":
            sys.exit(int(value))
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "kill-host":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        elif kind == "touch":
            Path(value).touch()
        elif kind == "wait":  # until it is asked to save
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
            Path(value).touch()
            time.sleep(60)
        elif kind == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(value).touch()
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
