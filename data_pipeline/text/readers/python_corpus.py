"""The embedded corpus: source and documentation text of this Python installation.

Real text with natural repetition (the idioms and docstrings of an API recur from file to
file) that is on every machine, so that everything can be tried without a download. It
differs between installations: losses on it compare only on one machine. Its files keep
their packages' licences: read it locally, do not hand it or models of it around as yours.
"""

import hashlib
import itertools
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from data_pipeline.text.documents import Document, Skipped, printable

# Read first, with the standard library: packages with long docstrings in one style each,
# whose functions come in families, so that text recurs between files. Others follow
# only if these do not fill the sample. Names that are not installed do no harm.
PREFERRED = frozenset(
    {"flax", "jax", "keras", "matplotlib", "numpy", "optax", "orbax-checkpoint"}
    | {"pandas", "scipy", "tensorflow", "tensorflow-cpu"}
)

_PROJECT = "retro-jax"  # its own sources would answer questions about themselves
_SUFFIXES = (".py", ".md", ".rst", ".txt")
_MIN_BYTES, _MAX_BYTES = 200, 60_000
_MAX_LINE_CHARS = 1_000
_MIN_LETTER_SHARE = (
    0.55  # of what is not white space; prose .95, code .8, tables below .5
)
_MAX_IMPORT_SHARE = 0.5  # of the lines; above it a file only re-exports names
# Tests repeat what they test, and vendored copies their originals: both would leak.
_LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "internal_test_util", "__pycache__", "ensurepip"}
    | {"_vendor", "_vendored", "vendor", "extern", "externals", "third_party"}
    | {"dist-packages", "site-packages"}  # below the standard library
)
_LEFT_OUT_FILES = re.compile(
    r"test_.*|.*_test\.py|conftest\.py|.*_pb2(_grpc)?\.py|(licen[cs]e|copying|notice"
    r"|authors|requirements|entry_points|top_level|sources|cmakelists).*",
    re.IGNORECASE,
)
_DOCSTRING = re.compile(
    r"(?:[ \t]*(?:#[^\n]*)?\n)*[rRuU]?(\"\"\"|''')\s*([^\n]*?)\s*(?:\n|\1)"
)
_IMPORT = re.compile(r"^[ \t]*(?:from|import)\b|^[ \t]*[\w.]+,?$|^[ \t]*\)$")


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the text is.

    Attributes:
      stdlib: folder of the standard library.
      site_packages: folders that hold packages and their `.dist-info`.
    """

    stdlib: Path
    site_packages: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _File:
    id: str
    uri: str
    path: Path
    licence: str


def read_documents(
    skipped: Skipped,
    *,
    max_size_bytes: int | None = None,
    roots: Installation | None = None,
) -> Iterator[Document]:
    """Reads a sample of the text of the installation, whole files in a fixed order.

    Folders come in the order of the sha256 of their names, a folder's files together:
    files of one folder share more text than files drawn from everywhere (of 15 MB, 13.7 %
    of the 8-grams recur in another file; drawn by file, 7.4 %), and a sample should
    repeat itself as the whole does. Nothing depends on where things are installed.

    Args:
      skipped: receives the files that could not be used, and why.
      max_size_bytes: ends once so many UTF-8 bytes of text were given; None for all.
      roots: the installation to read; that of this interpreter if None.
    Returns:
      Documents with ids such as "numpy/linalg/_linalg.py" and "stdlib/json/decoder.py",
      titles of module name and first docstring line, locations inside the installation
      and the licence that the package declares.
    Source: ours.
    """
    size_bytes = 0
    for file in _files(roots or this_installation()):
        if max_size_bytes is not None and size_bytes >= max_size_bytes:
            return
        if text := _usable_text(file, skipped):
            size_bytes += len(text.encode())
            yield Document(file.id, text, _title(file.id, text), file.uri, file.licence)


def this_installation() -> Installation:
    """The installation of the running interpreter."""
    paths = sysconfig.get_paths()
    site_packages = dict.fromkeys((Path(paths["purelib"]), Path(paths["platlib"])))
    return Installation(Path(paths["stdlib"]), tuple(site_packages))


def _files(roots: Installation) -> Iterator[_File]:
    """The preferred files, then all others, each part in its order and without twins."""
    preferred: list[metadata.Distribution] = []
    others: list[metadata.Distribution] = []
    for distribution in metadata.distributions(path=[*map(str, roots.site_packages)]):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name != _PROJECT:
            (preferred if name in PREFERRED else others).append(distribution)
    first = itertools.chain(
        _stdlib_files(roots.stdlib), *map(_distribution_files, preferred)
    )
    known: set[str] = set()
    for part in (
        first,
        itertools.chain.from_iterable(map(_distribution_files, others)),
    ):
        files = {file.id: file for file in part if file.id not in known}
        known.update(files)
        yield from sorted(files.values(), key=_order)


def _order(file: _File) -> tuple[str, str]:
    folder = PurePosixPath(file.id).parent.as_posix()
    return hashlib.sha256(folder.encode()).hexdigest(), file.id


def _stdlib_files(stdlib: Path) -> Iterator[_File]:
    for path in stdlib.rglob("*"):
        inside = printable(path.relative_to(stdlib))
        if _wanted(PurePosixPath(inside)):
            yield _File(f"stdlib/{inside}", f"stdlib/{inside}", path, "PSF-2.0")


def _distribution_files(distribution: metadata.Distribution) -> Iterator[_File]:
    licence = _licence(distribution)
    for file in distribution.files or []:
        inside = PurePosixPath(file.as_posix())
        path = Path(str(distribution.locate_file(file)))
        if inside.name == "METADATA" and inside.parent.suffix == ".dist-info":
            readme = f"{distribution.metadata['Name']}/README"
            yield _File(readme, f"site-packages/{inside}", path, licence)
        elif _wanted(inside):
            yield _File(str(inside), f"site-packages/{inside}", path, licence)


def _wanted(inside: PurePosixPath) -> bool:
    folders = inside.parts[:-1]
    return (
        inside.suffix in _SUFFIXES
        and not _LEFT_OUT_FILES.fullmatch(inside.name)
        and not _LEFT_OUT_FOLDERS.intersection(folders)
        and not any(f[0] == "." or f.endswith((".dist-info", "-info")) for f in folders)
    )


def _licence(distribution: metadata.Distribution) -> str:
    """The licence by its short name; the full text, which some packages give, is none."""
    fields = distribution.metadata.json
    for field in ("license_expression", "license"):
        value = str(fields.get(field, ""))
        if 0 < len(value) <= 60 and "\n" not in value:
            return value
    classifiers = [str(c) for c in fields.get("classifier", ())]
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
    return " OR ".join(named)


def _usable_text(file: _File, skipped: Skipped) -> str:
    """The text of a file, or "" with the reason counted."""
    try:
        data = file.path.read_bytes()
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except OSError:
        skipped.add("unreadable", file.id)
        return ""
    except UnicodeDecodeError:
        skipped.add("undecodable", file.id)
        return ""
    if file.path.name == "METADATA":
        text = text.partition("\n\n")[2]  # the header fields are no text
    if reason := _why_not(text):
        skipped.add(reason, file.id)
        return ""
    return text


def _why_not(text: str) -> str:
    size_bytes = len(text.encode())
    if size_bytes < _MIN_BYTES:
        return f"under {_MIN_BYTES} bytes"
    if size_bytes > _MAX_BYTES:
        return f"over {_MAX_BYTES} bytes"
    if "\0" in text:
        return "binary"
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "empty"
    dense = "".join(text.split())
    letters = len(re.findall(r"[^\W\d_]", dense))
    if max(map(len, lines)) > _MAX_LINE_CHARS or letters < _MIN_LETTER_SHARE * len(
        dense
    ):
        return "data tables"
    imports = sum(1 for line in lines if _IMPORT.match(line))
    return "lists of imports" if imports > _MAX_IMPORT_SHARE * len(lines) else ""


def _title(file_id: str, text: str) -> str:
    path = PurePosixPath(file_id)
    if path.suffix != ".py":
        return file_id
    module = ".".join(path.with_suffix("").parts).removeprefix("stdlib.")
    module = module.removesuffix(".__init__")
    match = _DOCSTRING.match(text)
    return f"{module}: {match[2]}" if match and match[2] else module
