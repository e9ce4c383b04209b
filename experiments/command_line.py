"""What the command lines share: mistakes and Ctrl-C end in one line, not in a traceback.

Exit statuses: 0 done; 2 a mistake or an error that says what to do; 75 stopped by SIGTERM
with everything saved: start the same command again; 130 stopped by Ctrl-C.
"""

import difflib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from experiments import config
from retro_jax.runs.preemption import Preempted

INTERRUPTED = 130  # as a shell reports Ctrl-C
USER_ERROR = 2
# As sysexits.h has it: not an error, try again later.
PREEMPTED = os.EX_TEMPFAIL  # 75

# Errors that say what the user can do about them; all others are ours and keep their
# traceback.
_EXPLAINED = (ValueError, FloatingPointError, OSError, ImportError)
_FULL_DISK = "the disk is full. Make room and start the same command again"


def run(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs a command and gives its exit status.

    `RETRO_TRACEBACK=1` shows the traceback of every error.
    """
    logging.set_verbosity(logging.WARNING)  # libraries'; ours speaks through print
    if not os.environ.get("RETRO_TRACEBACK"):
        _mute_orbax()
    try:
        command(argv)
    except Preempted as asked:
        print(asked, file=sys.stderr, flush=True)
        return PREEMPTED
    except _EXPLAINED as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        print(f"error: {_in_words(error)}", file=sys.stderr, flush=True)
        return USER_ERROR
    return 0


def _mute_orbax() -> None:
    """Leaves one line of a save or restore that failed: ours, made of what Orbax raises.

    Orbax also logs it. What it leaves behind is kept quiet in `orbax_echoes`.
    """
    logging.get_absl_logger().addFilter(
        lambda record: "orbax" not in record.pathname + record.getMessage()
    )
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _in_words(error: Exception) -> str:
    # All that numpy says of a full disk.
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return f"an array could not be written ({error}): {_FULL_DISK}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{error.filename}: {_FULL_DISK if is_full else error.strerror}"
    return str(error)


def start(command: Callable[[list[str]], None]) -> None:
    """Parses the flags, runs the command and ends the process with its exit status."""
    end_at_interrupt()
    app.run(lambda argv: sys.exit(run(command, argv)), flags_parser=_parse_flags)


def end_at_interrupt() -> None:
    """Makes Ctrl-C end the process with one line."""
    signal.signal(signal.SIGINT, _stop)


def _stop(signum: int, frame: object) -> None:
    """Ends the process at Ctrl-C, which nothing half-written outlives.

    Not by an exception: native code that calls Python back may swallow one, and work
    still under way in native threads crashes Python's own end.
    """
    print("\nstopped; the same command goes on from here", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _parse_flags(argv: list[str]) -> list[str]:
    """Also explains wrong settings and a config file that can't be used."""
    try:
        arguments = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # A file that could not be read also says so only now.
            flags.FLAGS.config.validate()
        return arguments
    except (flags.Error, KeyError, TypeError, *_EXPLAINED) as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        # A config file's error comes as the text of a traceback or of every path that
        # was tried: what happened stands in the last line.
        said = str(error.args[-1]).strip().splitlines()[-1].strip()
        said = _unknown_setting(said, argv) or said
        print(f"error: {said}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _unknown_setting(said: str, argv: list[str]) -> str | None:
    """The flag that names no setting, and those that it may have meant.

    ml_collections says its last part and the path of a class.
    """
    found = re.match(r"Field (\w+) not found on dataclass", said)
    given = [
        flag.removeprefix("--config.")
        for flag in (argument.partition("=")[0] for argument in argv)
        if found and flag.startswith("--config.") and found[1] in flag.split(".")
    ]
    if not given:
        return None
    close = difflib.get_close_matches(given[0], config.setting_names(), cutoff=0.75)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"there is no setting {given[0]}{meant} (all of them: experiments/config.py)"


def no_arguments(argv: list[str]) -> None:
    """Raises ValueError for what is neither a flag nor a flag's value."""
    if len(argv) > 1:
        raise ValueError(
            f"unknown argument {argv[1]!r}; flags are written --name=value"
        )


def output_file(path: Path) -> None:
    """Raises ValueError if a file can't be written there; makes its folder if need be."""
    if path.is_dir():
        raise ValueError(f"can't write to {path}: it is a folder, name a file in it")
    folder(str(path.parent))
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"can't write to {path}: {os.strerror(errno.EACCES)}")


def folder(path: str | None) -> Path:
    """The folder, made if need be.

    Raises:
        ValueError: if it can't be written to.
    """
    if not path:
        raise ValueError("the name of a folder is empty")
    made = Path(path).expanduser().absolute()
    try:
        made.mkdir(parents=True, exist_ok=True)
        probe = made / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # hosts that share the folder may share the name
    except OSError as error:
        raise ValueError(f"can't write to {made}: {error.strerror}") from error
    return made
