"""Folders in an object store, `gs://` or `s3://`: whole or not there, and checked when they come back.

A stored folder keeps its files under their own names. Its last object is `complete.json`, with the
size and the sha256 of all others: a folder without it was never finished. What is read is written
to a local folder that appears by one rename, after every file was found to be what was stored.
"""

import contextlib
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.storage.extras import install_command
from data_pipeline.storage.files import (
    fingerprint,
    new_folder,
    remove_temporaries,
    sha256_of,
    write_sealed,
)
from data_pipeline.storage.locks import locked
from data_pipeline.storage.progress import say

SCHEMES = ("gs://", "s3://")
COMPLETE = "complete.json"
STREAMED = "streamed.json"  # of a copy that lacks files: which ones, and where they are
_AT_ONCE = 8  # files on their way
_SLOWEST_BYTES_PER_S = 1e6  # of one of them
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "`gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS, or the "
    "machine's service account",
}
# By name: neither library is there for certain, and each has classes of its own.
_OF_CREDENTIALS = {
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
}


class StoreError(OSError):
    """A store that can't be read or written: names the address and says what to do."""


def is_url(place: str) -> bool:
    """Whether this names a place in an object store."""
    return place.startswith(SCHEMES)


class ObjectStore:
    """The folders below one address."""

    def __init__(self, url: str, *, timeout_s: float = 60, attempts: int = 4):
        """Contacts nobody yet.

        Args:
            timeout_s: a request that takes longer is tried again; files also get a second
                a megabyte.
            attempts: of every request, with growing pauses in between.
        Raises:
            ValueError: if the address has no bucket, or the library is missing.
        """
        self.url = url.rstrip("/")
        self._scheme, _, path = self.url.partition("://")
        self._attempts, self._timeout_s = attempts, timeout_s
        if not is_url(url) or not path.partition("/")[0]:
            raise ValueError(f"{url} is no address of a store, as s3://BUCKET/FOLDER")
        self._root = path
        self._files = _file_system(self._scheme, timeout_s)

    def put(self, name: str, files: Mapping[str, Path]) -> None:
        """Stores files as a folder, in place of an older one of this name.

        Args:
            name: of the folder; empty for the address itself.
            files: local files by their paths in the folder.
        Raises:
            StoreError: if the store can't be written; the folder is then not whole.
        """
        self._remove_object(self._key(name, COMPLETE))
        described = {}

        def send(file: str) -> tuple[str, dict]:
            path, key = files[file], self._key(name, file)
            size_bytes = path.stat().st_size
            self._tried(f"write {file}", "put_file", str(path), key, moves=size_bytes)
            return file, {"size_bytes": size_bytes, "sha256": sha256_of(path)}

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            described = dict(pool.map(send, sorted(files)))
        made = {"files": described}
        marker = json.dumps({**made, "checksum": fingerprint(made)}, indent=1).encode()
        self._tried(f"write {COMPLETE}", "pipe_file", self._key(name, COMPLETE), marker)

    def get(
        self,
        name: str,
        folder: Path,
        wanted: Callable[[str], bool] = lambda file: True,
    ) -> None:
        """Makes a local copy of a folder, which appears once every file is right.

        Args:
            wanted: whether a file is copied; the copy says which of them it lacks
                (`streamed_files`).
        Raises:
            StoreError: if the store can't be read.
            ValueError: if the folder is not whole, or an object is not what was stored.
        """
        described = self.described(name)
        files = [file for file in described if wanted(file)]
        with new_folder(folder) as temporary:
            for file in files:
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)

            def receive(file: str) -> None:
                self.receive(name, file, described[file], temporary / file)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(receive, files))
            left = {f: entry for f, entry in described.items() if f not in set(files)}
            if left:
                write_sealed(temporary / STREAMED, {"url": self.url, "files": left})

    def receive(self, name: str, file: str, entry: Mapping, path: Path) -> None:
        """Makes a local copy of a file, whose size and checksum an entry tells.

        Raises:
            StoreError: if the store can't be read.
            ValueError: if the object is not there, or is not what was stored.
        """
        key = self._key(name, file)
        with self._missing_is_damage(key):
            moves = entry["size_bytes"]
            self._tried(f"read {file}", "get_file", key, str(path), moves=moves)
        found = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for part, value in found.items():
            if value != entry[part]:
                raise ValueError(
                    f"{self._scheme}://{key} is damaged: its {part} is {value}, not "
                    f"{entry[part]}; store the folder again"
                )

    def described(self, name: str) -> dict[str, dict]:
        """Size and checksum of every file of a whole folder.

        Raises:
            StoreError: if the store can't be read.
            ValueError: if the folder is not whole, or its `complete.json` is damaged.
        """
        key = self._key(name, COMPLETE)
        with self._missing_is_damage(key):
            text = self._tried(f"read {COMPLETE}", "cat_file", key)
        try:
            made = json.loads(text)
            checksum = made.pop("checksum")
            is_whole = checksum == fingerprint(made) and _is_confined(made["files"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{self._scheme}://{key} is damaged: store the folder again"
            )
        return made["files"]

    def whole(self) -> list[str]:
        """Names of the folders that were stored whole.

        Raises:
            StoreError: if the store can't be read.
        """
        found = self._tried("list it", "find", self._root)
        names = [key.removeprefix(self._root).strip("/").split("/") for key in found]
        return sorted(
            urllib.parse.unquote(parts[0])
            for parts in names
            if len(parts) == 2 and parts[1] == COMPLETE
        )

    def remove(self, name: str) -> None:
        """Removes a folder: its `complete.json` first, so that it never looks whole."""
        self._remove_object(self._key(name, COMPLETE))
        below = self._key(name, "")
        for key in self._tried("list it", "find", below):
            self._remove_object(key)

    def check(self) -> None:
        """Writes and removes a small object, so that a wrong store is told of at once.

        Raises:
            StoreError: if the store can't be written.
        """
        key = self._key("", ".write-test")
        self._tried("write", "pipe_file", key, b"retro")
        self._remove_object(key)

    def _remove_object(self, key: str) -> None:
        if self._tried("look for an object", "exists", key):
            self._tried("remove an object", "rm_file", key)

    def _key(self, name: str, file: str) -> str:
        """An object's name, in which a file's odd characters are written as %XX."""
        parts = [urllib.parse.quote(os.fsencode(part), "/ ") for part in (name, file)]
        return "/".join([self._root, *filter(None, parts)])

    @contextlib.contextmanager
    def _missing_is_damage(self, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise ValueError(
                f"{self._scheme}://{key} is not there: the folder was not stored whole, "
                "or the address is another"
            ) from error

    def _tried(self, doing: str, method: str, *args, moves: int = 0) -> Any:
        """What a method of the file system gives; asked again, with pauses, if that may help.

        Args:
            doing: what is done, for the error.
            moves: bytes, for which the store gets time.
        """
        # Ours, of the whole request: the libraries' own don't count while a store that was
        # asked whether it will take a file says nothing.
        limit_s = self._timeout_s + moves / _SLOWEST_BYTES_PER_S
        pause_s = 0.5
        for attempt in range(1, self._attempts + 1):
            try:
                return getattr(self._files, method)(*args, timeout=limit_s)
            # Each library raises what it likes, also Exception itself.
            except Exception as error:
                advice = self._advice(error)
                if advice is None and attempt < self._attempts:
                    time.sleep(pause_s)
                    pause_s *= 2
                    continue
                tried = "" if advice else f" ({attempt} attempts)"
                said = " ".join(str(error).split())[:200] or "no answer in time"
                raise StoreError(
                    f"{self.url}: can't {doing}{tried}: {type(error).__name__}: {said}; "
                    + (advice or "is the store there, and is there a way to it?")
                ) from error
        raise AssertionError("the last attempt returns or raises")

    def _advice(self, error: Exception) -> str | None:
        """What to do about an error; None if another attempt may be enough."""
        if type(error).__name__ in _OF_CREDENTIALS:
            return f"give credentials: {_CREDENTIALS[self._scheme]}"
        if isinstance(error, PermissionError):
            return (
                f"ask for the permission, or use others: {_CREDENTIALS[self._scheme]}"
            )
        if isinstance(error, FileNotFoundError):
            return "make the bucket, or correct the address"
        return None


def fetched(url: str, wanted: Callable[[str], bool] = lambda file: True) -> Path:
    """A checked local copy of a stored folder, in `$RETRO_CACHE` or `~/.cache/retro-jax`.

    A folder that is stored anew is copied anew, beside the older copy. Processes that want
    the same wait for the one that copies.

    Args:
        wanted: whether a file is copied; all by default.
    Raises:
        StoreError: if the store can't be read.
        ValueError: if the folder is not whole, or an object is not what was stored.
    """
    store = ObjectStore(url)
    described = store.described("")
    chosen = os.environ.get("RETRO_CACHE") or "~/.cache/retro-jax"
    cache = Path(chosen).expanduser().absolute()
    kept = {file: entry for file, entry in described.items() if wanted(file)}
    lacks = [] if kept == described else [sorted(kept)]
    cache = cache / fingerprint([store.url, described, *lacks])
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / (store.url.rpartition("/")[2] or "folder")
    with locked(cache / ".copying", "copying to", waits=True):
        remove_temporaries(cache)
        if not copy.exists():
            size_gb = sum(entry["size_bytes"] for entry in kept.values()) / 1e9
            say(f"copying {store.url} ({size_gb:.3f} GB) to {copy}")
            store.get("", copy, wanted)
        _check_sizes(copy, kept)
    return copy


def _check_sizes(copy: Path, described: Mapping[str, Mapping]) -> None:
    """Raises ValueError if a copy from before has lost something."""
    for file, entry in described.items():
        path = copy / file
        if not path.is_file() or path.stat().st_size != entry["size_bytes"]:
            raise ValueError(f"{path} is damaged: remove {copy}, it is copied again")


def files_below(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it; hidden ones, as locks, are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not is_hidden:
            found[inside.as_posix()] = path
    return found


def _is_confined(files: Mapping) -> bool:
    """Whether all files of a record stay in the folder and are described."""
    return all(
        not any(part in ("", ".", "..") or "\0" in part for part in file.split("/"))
        and type(entry["size_bytes"]) is int
        and type(entry["sha256"]) is str
        for file, entry in files.items()
    )


def _file_system(scheme: str, timeout_s: float):
    """The store's file system of fsspec, which asks the store anew every time."""
    known: dict[str, tuple[str, dict]] = {
        "s3": (
            "s3fs",
            {
                "config_kwargs": {
                    "connect_timeout": timeout_s,
                    "read_timeout": timeout_s,
                    "retries": {"max_attempts": 0},  # we count attempts
                }
            },
        ),
        "gs": ("gcsfs", {"requests_timeout": timeout_s}),
    }
    library, options = known[scheme]
    try:
        import fsspec

        return fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs {library}: {install_command('storage')}"
        ) from error
