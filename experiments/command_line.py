"""The beginning and the end of commands: flags, --help, mistakes and Ctrl-C in one line.

Exit statuses: 0 done; 2 a mistake or an error that says what to do; 75 stopped by SIGTERM
with everything saved: start the same command again; 130 stopped by Ctrl-C.
"""

import argparse
import atexit
import contextlib
import copy
import dataclasses
import difflib
import errno
import gc
import os
import re
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from data_pipeline.storage.extras import explained
from data_pipeline.storage.printing import printable_line, protect_streams
from experiments import config, workdirs
from experiments.interrupts import INTERRUPTED, end_at_interrupt
from retro_jax.runs.preemption import Preempted

__all__ = ["INTERRUPTED", "end_at_interrupt", "run", "start"]

USER_ERROR = 2
PREEMPTED = os.EX_TEMPFAIL  # 75; in sysexits.h: no error, try again later

# Errors that say what the user can do about them. All others are faults of this project
# and keep their traceback.
_EXPLAINED = (ValueError, FloatingPointError, OSError, ImportError)
# What parsing raises for a mistake in flags, settings or a config file.
_WRONG = (flags.Error, KeyError, TypeError, *_EXPLAINED)
_HELP = {"--help", "-help", "-h", "-?"}
_CORPUS = "config.data.corpus"  # the setting that --corpus is short for
_CONFIGS = Path(__file__).parent / "configs"
_HELP_COLUMN = 44  # where in a line of help the meanings begin
_LITTLE_BYTES = 100_000  # a folder with less holds records of a beginning, and no work
_FULL_DISK = "the disk is full. Make room and start the same command again"


def run(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Runs a command and gives its exit status.

    `RETRO_TRACEBACK=1` shows the traceback of every error.
    """
    logging.set_verbosity(logging.WARNING)  # of libraries: this project prints
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
        print(f"error: {printable_line(_message(error))}", file=sys.stderr, flush=True)
        return USER_ERROR
    return 0


def _mute_orbax() -> None:
    """Silences what Orbax logs of a failed save or restore: `run` prints its error.

    `retro_jax.runs.quiet_orbax` silences what such a failure leaves behind.
    """
    logging.get_absl_logger().addFilter(
        lambda record: "orbax" not in record.pathname + record.getMessage()
    )
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _message(error: Exception) -> str:
    """The error in one line, which calls a full disk by its name."""
    # numpy says no more than this when the disk is full.
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return f"an array could not be written ({error}): {_FULL_DISK}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{error.filename}: {_FULL_DISK if is_full else error.strerror}"
    return explained(error)


def start(command: Callable[[list[str]], None]) -> None:
    """Parses the flags, runs the command and ends the process with its exit status."""
    protect_streams()
    end_at_interrupt()
    # As it ends Python looks for cycles among all that JAX has traced: a second or two, in
    # a process that gives its memory back anyway.
    atexit.register(gc.freeze)
    app.run(lambda argv: sys.exit(run(command, argv)), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; answers --help; explains wrong settings and config files."""
    end = argv.index("--") if "--" in argv else len(argv)
    argv, texts = argv[:end], argv[end + 1 :]
    with _explained(argv):
        if "workdir" in flags.FLAGS:
            argv = _with_config(argv)
        sys.argv = argv  # where ml_collections looks for settings, also among texts
        if _HELP.intersection(argv):
            print(_help(argv))
            sys.exit(0)
        arguments = flags.FLAGS(argv) + texts
        if "config" in flags.FLAGS:
            # A file that could not be read raises its error only here.
            flags.FLAGS.config.validate()
        return arguments
    raise AssertionError("mistakes end the process")


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with what is wrong and where to look."""
        raise ValueError(f"{message} ({self.prog} --help)")


def print_settings(words: list[str]) -> None:
    """Prints every setting, as the flags in `words` choose and change them."""
    argv = ["settings", *words]
    places = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    workdirs.add_arguments(places)  # settings have them no more than they need them
    with _explained(argv):
        for word in places.parse_known_args(words)[1]:
            name = word.lstrip("-").partition("=")[0]
            if word.startswith("-") and name.partition(".")[0] != "config":
                raise flags.UnrecognizedFlagError(name)
        print(settings(_with_config(argv)))


@contextlib.contextmanager
def _explained(argv: list[str]) -> Iterator[None]:
    """Ends the process with one line for flags, settings and config files that are wrong."""
    try:
        yield
    except _WRONG as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        message = _explanation(error, argv)
        print(f"error: {printable_line(message)}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _explanation(error: Exception, argv: list[str]) -> str:
    """What is wrong with flags, settings or a config file, in one line."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error.flagname)
    # A config file's error comes as the text of a traceback or of every path that was
    # tried: what happened stands in the last line.
    message = str((error.args or ("",))[-1]).strip() or type(error).__name__
    message = re.sub(r"^ValueError: ", "", message.splitlines()[-1].strip())
    return _unknown_setting(message, argv) or message


def experiment(words: list[str]) -> config.Experiment:
    """The experiment of `--config=`, `--corpus=` and `--config.a.b=`, checked.

    Raises:
        ValueError: in one line, for any other word and for what is wrong in these.
    """
    argv = ["", *words]
    with _raised(argv):
        argv = _with_config(argv)
        given = flags.FlagValues()
        config_flags.DEFINE_config_file(
            "config", None, flag_values=given, sys_argv=argv
        )
        return _checked(given, argv)


def changed(cfg: config.Experiment, settings: list[str]) -> config.Experiment:
    """An experiment with other settings, of flags `--config.a.b=`, checked as `experiment`."""
    argv, given = ["", *settings], flags.FlagValues()
    with _raised(argv):
        config_flags.DEFINE_config_dataclass(
            "config", copy.deepcopy(cfg), flag_values=given, sys_argv=argv
        )
        return _checked(given, argv)


def _checked(given: flags.FlagValues, argv: list[str]) -> config.Experiment:
    no_arguments(given(argv))
    # A file that could not be read raises its error only here.
    cfg: config.Experiment = given.config
    cfg.validate()
    return with_whole_paths(cfg)


@contextlib.contextmanager
def _raised(argv: list[str]) -> Iterator[None]:
    """Raises ValueError with one line for what `_explained` ends the process for."""
    try:
        yield
    except _WRONG as error:
        if os.environ.get("RETRO_TRACEBACK"):
            raise
        raise ValueError(_explanation(error, argv)) from error


def with_whole_paths(cfg: config.Experiment) -> config.Experiment:
    """The settings, in which every path means the same wherever the next command starts."""
    cfg.data.corpus = workdirs.corpus_identity(cfg.data.corpus)
    if cfg.evaluation.held_out:
        cfg.evaluation.held_out = workdirs.corpus_identity(cfg.evaluation.held_out)
    embedder = workdirs.expanded(cfg.data.embedder)
    if os.path.isdir(embedder):  # else it is a name
        cfg.data.embedder = os.path.abspath(embedder)
    for part, name in ((cfg.data, "tokenizer"), (cfg, "init_from")):
        if path := getattr(part, name):
            setattr(part, name, os.path.abspath(workdirs.expanded(path)))
    return cfg


def config_of(words: Sequence[str]) -> str:
    """The path of the config file that the words choose, with its argument."""
    return _with_config(["", *words])[1].removeprefix("--config=")


def _with_config(argv: list[str]) -> list[str]:
    """The command line with --config, a path, and --workdir; --corpus is the setting's name.

    Without a --config it is the one that the run's folder keeps, or else the retrofit.
    """
    given, names = flags.FlagValues(), ("config", "corpus", "workdir", _CORPUS)
    for name in names:
        flags.DEFINE_string(name, None, "", flag_values=given)
    given(argv, known_only=True)
    corpora = {given[name].value for name in ("corpus", _CORPUS)} - {None}
    if len(corpora) > 1:
        raise ValueError(f"--corpus and --{_CORPUS} are one setting: give one of them")
    corpus = corpora.pop() if corpora else None
    workdir = given["workdir"].value
    places = [] if corpus is None else [f"--{_CORPUS}={corpus}"]
    chosen = given["config"].value or workdirs.DEFAULT_CONFIG
    if workdir is None:
        workdir = str(workdirs.default_workdir(corpus or "", chosen))
        if "workdir" in flags.FLAGS:
            places.append(f"--workdir={workdir}")
    workdir = workdirs.expanded(workdir)
    if not given["config"].value and workdirs.has_settings(Path(workdir)):
        chosen = f"run:{workdir}"
    others = iter(argv[1:])
    left = []
    for word in others:
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in ("config", "corpus"):
            left.append(word)
        elif not equals:
            next(others, None)
    return [argv[0], f"--config={config_file(chosen)}", *places, *left]


def config_file(name: str) -> str:
    """The path of a config file, with its argument: of one that is known, or of a user's.

    Raises:
        ValueError: naming those that are known, if there is no such file.
    """
    stem, colon, argument = name.partition(":")
    known = {path.stem: str(path) for path in sorted(_CONFIGS.glob("[a-z]*.py"))}
    path = known.get(stem, workdirs.expanded(stem))
    if not os.path.isfile(path):
        raise ValueError(
            f"no configuration {stem!r}: there are {', '.join(known)}, or give the path "
            "of a file"
        )
    return path + colon + argument


def _unknown_flag(name: str) -> str:
    """Names the flags, or the settings, that one which does not exist may have meant."""
    by_last_part: dict[str, list[str]] = {}
    for setting in config.setting_names():
        last = setting.rpartition(".")[2]
        by_last_part.setdefault(last, []).append(f"--config.{setting}")
    for flag in flags.FLAGS:
        by_last_part.setdefault(flag, []).append(f"--{flag}")
    close = [name] if name in by_last_part else []
    close = close or difflib.get_close_matches(name, by_last_part, n=1)
    meant = " or ".join(by_last_part[close[0]]) if close else ""
    return f"there is no flag --{name}" + (
        f"; did you mean {meant}?" if meant else " (--help lists all of them)"
    )


def _unknown_setting(message: str, argv: list[str]) -> str | None:
    """Names the flag that is no setting, and the settings that it may have meant.

    ml_collections' own message has only the last part of the name and a class.
    """
    found = re.match(r"Field (\w+) not found on dataclass", message)
    given = [
        flag.removeprefix("--config.")
        for flag in (argument.partition("=")[0] for argument in argv)
        if found and flag.startswith("--config.") and found[1] in flag.split(".")
    ]
    if not given:
        return None
    close = difflib.get_close_matches(given[0], config.setting_names(), cutoff=0.75)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"there is no setting {given[0]}{meant} (--help lists all of them)"


def _help(argv: list[str]) -> str:
    """The command's own text and flags, then every setting, as they are typed."""
    lines = [str(sys.modules["__main__"].__doc__).rstrip(), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(argv[0]):
        values = "|".join(getattr(flag.parser, "enum_values", None) or ["..."])
        meaning = str(flag.help).removeprefix(f"<{values}>: ")
        default = "" if flag.default in (None, "") else f" [{flag.default}]"
        equals = "" if flag.boolean else f"={values}"
        lines += _entry(f"--{flag.name}{equals}", meaning + default)
    lines += ["", settings(argv), "", "--helpfull also lists the flags of libraries."]
    return "\n".join(lines)


def settings(argv: list[str]) -> str:
    """Every setting as it is typed, with its type and meaning, in lines for people.

    A setting has the value that the command line gives it, or else its default.
    """
    # Parsed apart: --help also answers a command line that lacks a required flag.
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=given, sys_argv=argv)
    given(argv, known_only=True)
    cfg, part = given["config"].value, None
    lines = [
        f"Settings of {config_flags.get_config_filename(given['config'])}:"
        if cfg
        else "Settings:"
    ]
    for setting in config.settings(cfg):
        if part != (part := setting.name.rpartition(".")[0]):
            lines.append("")
        is_open = setting.value is dataclasses.MISSING
        value = "..." if is_open else _quoted(str(setting.value))
        name = f"--config.{setting.name}={value}"
        lines += _entry(name, f"{setting.type}; {setting.meaning}")
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """The value as one types it in a shell, with the fewest signs."""
    if "'" in value and not set(value) & set('"$`!\\'):
        return f'"{value}"'
    return shlex.quote(value)


def _entry(flag: str, meaning: str) -> list[str]:
    """A flag and, from a fixed column on, what it means, in lines of 96 characters."""
    first, *others = textwrap.wrap(
        meaning or "-", 96 - _HELP_COLUMN, break_on_hyphens=False
    )
    lines = [f"  {flag:<{_HELP_COLUMN - 3}} {first}"]
    if len(flag) > _HELP_COLUMN - 3:
        lines = [f"  {flag}", " " * _HELP_COLUMN + first]
    return lines + [" " * _HELP_COLUMN + line for line in others]


def is_given(name: str) -> bool:
    """Whether the command line itself has the flag or the setting."""
    return name in flags.FLAGS and bool(flags.FLAGS[name].present)


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


def folder(path: str | Path) -> Path:
    """The folder, made if need be.

    Raises:
        ValueError: if it can't be written to.
    """
    if not str(path):
        raise ValueError("the name of a folder is empty")
    made = Path(workdirs.expanded(str(path))).absolute()
    try:
        made.mkdir(parents=True, exist_ok=True)
        probe = made / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # hosts that share the folder may share the name
    except OSError as error:
        raise ValueError(f"can't write to {made}: {error.strerror}") from error
    return made


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to build in; one that was new goes again if a mistake ends the work at once.

    What took time to make stays, for the same command to go on from.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    made = folder(path)
    try:
        yield made
    except _EXPLAINED:
        files = [file for file in made.rglob("*") if file.is_file()]
        if missing and sum(file.stat().st_size for file in files) < _LITTLE_BYTES:
            shutil.rmtree(made)
            for place in missing[1:]:
                place.rmdir()
        raise
