"""The code of each stage, as a part of the stage's fingerprint: a number, maybe a hash.

A stage has a number, and `stage_code.json` has the hashes of the code that the number stands
for. While the code is that code the number alone counts. Edited code counts by its hash too,
so that the stage, and what depends on it, is made again without anybody's doing.

The code of a stage is what its work refers to, found from the sources: definitions of this
package, and all that they refer to in turn. Comments, docstrings, formatting and definitions
that the work does not need change nothing. Versions of libraries are no part of it.

    python -m data_pipeline.build.stage_code

writes `stage_code.json` anew. Whoever changed what a stage makes raises its number first; for
whoever left all files the same to the byte this command alone is right.
"""

import ast
import functools
import gc
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.build import documents_stage, shard_work
from data_pipeline.storage.files import fingerprint, read_json, sha256_of, write_json

_PACKAGE = "data_pipeline"
_ROOT = Path(__file__).parents[2]
_GOLDEN = Path(__file__).with_name("stage_code.json")

# Number of each stage, and what makes it: its work, and what divides the work into shards if
# the names of the shards do not tell.
_STAGES: dict[str, tuple[int, tuple[Callable, ...]]] = {
    "texts": (2, (documents_stage.TextsWork,)),
    "kept": (2, (documents_stage.KeptWork,)),
    "tables": (1, (documents_stage.TablesWork,)),
    "documents": (1, (documents_stage.DocumentsWork,)),
    "tokenizer": (1, (shard_work.TokenizerWork,)),
    "chunks": (1, (shard_work.ChunksWork,)),
    "embeddings": (1, (shard_work.EmbeddingsWork,)),
    "index": (2, (shard_work.IndexWork, shard_work.index_parts)),
    "lexical": (2, (shard_work.LexicalWork, shard_work.index_parts)),
    "searches": (3, (shard_work.SearchesWork,)),
    "neighbours": (2, (shard_work.NeighboursWork,)),
    "sequences": (1, (shard_work.SequencesWork,)),
    "dataset": (1, (shard_work.DatasetWork,)),
}
# No file of a stage depends on these. Engines, which dispatch work, are not reached by it.
_NO_PART = {
    f"{_PACKAGE}.config",  # what a stage depends on is in its settings, by value
    f"{_PACKAGE}.storage.costs",  # measures
    f"{_PACKAGE}.storage.progress",  # prints
}


def identity(stages: Collection[str]) -> dict[str, int | str]:
    """What stands for the code of stages in a fingerprint; the same on any machine.

    The number of each, with a hash where its code is not what the number stands for.
    """
    return {
        stage: f"{number}+{fingerprint(_hashes(stage))}" if edited(stage) else number
        for stage, (number, _) in _STAGES.items()
        if stage in stages
    }


def edited(stage: str) -> list[str]:
    """Files in which a stage's code is not what its number stands for.

    There are none where the sources can't be read, as in a zip.
    """
    running = None if _is_untouched() else _hashes(stage)
    if running is None:
        return []
    golden = _golden()["stages"].get(stage, {}).get("files", {})
    names = sorted(running.keys() | golden.keys())
    return [name for name in names if running.get(name) != golden.get(name)]


def describe_edits(stages: Collection[str]) -> str:
    """Which files differ from the code that numbers of stages stand for; '' if none does."""
    found = {stage: files for stage in stages if (files := edited(stage))}
    names = {Path(file).name for files in found.values() for file in files}
    numbers = [f"code number {_STAGES[stage][0]} of {stage}" for stage in found]
    verb = "does" if len(names) == 1 else "do"
    said = f"{', '.join(sorted(names))} {verb} not match {' and '.join(numbers)}"
    return said if found else ""


def stale() -> list[str]:
    """Stages whose number or hashes in `stage_code.json` are not those of the code."""
    golden, running = _golden()["stages"], _running()
    stages = sorted(golden.keys() | running.keys())
    return [stage for stage in stages if golden.get(stage) != running.get(stage)]


def accept() -> None:
    """Writes `stage_code.json`: numbers stand for the code as it is from now on."""
    stages = _running()
    write_json(_GOLDEN, {"stages": stages, "sources": _sources(stages)})


def _running() -> dict[str, dict]:
    return {
        stage: {"number": number, "files": _hashes(stage)}
        for stage, (number, _) in _STAGES.items()
    }


@functools.cache
def _golden() -> dict:
    return read_json(_GOLDEN) or {"stages": {}, "sources": None}


@functools.cache
def _is_untouched() -> bool:
    """Whether sources are what they were to the byte: then there is nothing to parse."""
    try:
        return _golden()["sources"] == _sources(_golden()["stages"])
    except OSError:
        return False


def _sources(stages: Mapping[str, Mapping]) -> str:
    """One hash of all files that stages run, and of this one, as they are."""
    files = {file for stage in stages.values() for file in stage["files"]}
    paths = [Path(__file__), *(_ROOT / file for file in sorted(files))]
    return fingerprint([sha256_of(path) for path in paths])


@functools.cache
def _hashes(stage: str) -> dict[str, str] | None:
    """A hash of what a stage runs of each file; None if the sources can't be read."""
    # Syntax trees are many small objects. The collector would look through all of them again
    # and again, which doubles the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _hashes_of_closure(
            [(work.__module__, work.__qualname__) for work in _STAGES[stage][1]]
        )
    except OSError:
        return None
    finally:
        if collects:
            gc.enable()


# A name in a module: the module's, then its own. "" is what runs when the module is imported.
_Name = tuple[str, str]


def _hashes_of_closure(roots: Sequence[_Name]) -> dict[str, str]:
    waiting, reached = list(roots), set(roots)
    while waiting:
        module, name = waiting.pop()
        found = {other for other in _module(module).needs(name) if other not in reached}
        found = {other for other in found if other[0] not in _NO_PART}
        reached |= found
        waiting += found
    hashes: dict[str, list[str]] = {}
    for module, name in sorted(reached):
        source = _module(module)
        if name in source.definitions:
            hashes.setdefault(source.file, []).append(source.hash_of(name))
    return {file: fingerprint(each) for file, each in hashes.items()}


class _Module:
    """The source of a module: what its names are bound to, and what that refers to."""

    def __init__(self, module: str):
        """Reads the source; raises OSError if there is none."""
        path = _path(module)
        self.file = path.relative_to(_ROOT).as_posix()
        self.definitions: dict[str, list[ast.stmt]] = {"": []}
        self._module = module
        self._imports: dict[str, _Name] = {}
        self._read: dict[str, tuple[str, frozenset[_Name]]] = {}
        for statement in ast.parse(path.read_bytes()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._imports |= _imported(statement)
            elif _is_for_people_or_tools(statement):
                continue
            elif names := _bound_by(statement):
                for name in names:
                    self.definitions.setdefault(name, []).append(statement)
            else:  # as an import within `try`
                self.definitions[""].append(statement)
                for node in ast.walk(statement):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        self._imports |= _imported(node)

    @property
    def names(self) -> set[str]:
        """All names that the module binds, and "" for what runs at import."""
        return self.definitions.keys() | self._imports.keys()

    def hash_of(self, name: str) -> str:
        """A hash of the code that a name is bound to."""
        return self._read_once(name)[0]

    def needs(self, name: str) -> frozenset[_Name]:
        """Names of this package that a name refers to, as far as they are used by code."""
        return self._read_once(name)[1]

    def _read_once(self, name: str) -> tuple[str, frozenset[_Name]]:
        if name not in self._read:
            reader = _Reader()
            for statement in self.definitions.get(name, []):
                reader.read(statement)
            self._read[name] = self._followed(name, reader)
        return self._read[name]

    def _followed(self, name: str, reader: "_Reader") -> tuple[str, frozenset[_Name]]:
        needs, libraries = {(self._module, "")}, set()
        if name in self._imports:  # others take from here what is imported here
            needs.update(_resolved(self._imports[name], ""))
        for other, attribute in reader.names:
            target = reader.imports.get(other) or self._imports.get(other)
            if target and _is_ours(target[0]):
                needs.update(_resolved(target, attribute))
            elif target:
                libraries.add(target)
            elif other in self.definitions:
                needs.add((self._module, other))
        words = [*reader.words, *map(str, sorted(libraries))]
        text = " ".join(words)
        return hashlib.sha256(text.encode()).hexdigest()[:16], frozenset(needs)


class _Reader:
    """Reads syntax trees: their words, and the names in them that code uses.

    Attributes:
        words: the trees without docstrings. Empty fields are left out, so that a Python whose
            trees have more fields gives the same.
        names: each with the attribute that is taken of it, "" for the thing itself.
        imports: for names that are imported within, the module and the name there.
    """

    def __init__(self) -> None:
        self.words: list[str] = []
        self.names: set[tuple[str, str]] = set()
        self.imports: dict[str, _Name] = {}

    def read(self, node, *, is_used: bool = True) -> None:
        """Reads a tree, a list of trees or a leaf; `is_used` is False in annotations."""
        if isinstance(node, list):
            self.words.append("[")
            for each in node:
                self.read(each, is_used=is_used)
            self.words.append("]")
        elif not isinstance(node, ast.AST):
            self.words.append(repr(node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports |= _imported(node)
        elif isinstance(node, ast.Name):
            self.words.append(node.id)
            if is_used:
                self.names.add((node.id, ""))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            self.words += [node.value.id, ".", node.attr]
            if is_used:
                self.names.add((node.value.id, node.attr))
        else:
            self._read_fields(node, is_used)

    def _read_fields(self, node: ast.AST, is_used: bool) -> None:
        self.words.append(type(node).__name__)
        for field, value in ast.iter_fields(node):
            if value is None or value == [] or field == "ctx":
                continue
            if (
                field == "body"
                and isinstance(node, _DEFINES)
                and ast.get_docstring(node)
            ):
                value = value[1:]
            self.words.append(field)
            # When code runs nothing is done with an annotation.
            self.read(value, is_used=is_used and field not in ("annotation", "returns"))


_module = functools.cache(_Module)


def _path(module: str) -> Path:
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == _PACKAGE


def _resolved(target: _Name, attribute: str) -> Iterator[_Name]:
    """What an import, or an attribute of what is imported, refers to in this package."""
    module, name = target
    if not _is_ours(module):
        return
    inner = f"{module}.{name}" if name else module
    if name and not _path(inner).exists():
        yield target  # of a module, not a module
    elif attribute in _module(inner).names:
        yield inner, attribute
    else:  # the module itself is handed on: anything of it may be used
        yield from ((inner, each) for each in _module(inner).names)


def _imported(statement: ast.Import | ast.ImportFrom) -> dict[str, _Name]:
    """Names that a statement binds: of each the module, and the name there or ""."""
    if isinstance(statement, ast.ImportFrom):
        names = statement.names
        return {a.asname or a.name: (statement.module or "", a.name) for a in names}
    return {
        alias.asname or alias.name.split(".")[0]: (alias.name, "")
        for alias in statement.names
    }


def _is_for_people_or_tools(statement: ast.stmt) -> bool:
    """Whether it is a docstring, or for the type checker or the command line alone."""
    if isinstance(statement, ast.If):
        tested = {
            node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)
        }
        return bool(tested & {"TYPE_CHECKING", "__name__"})
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _bound_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, _DEFINES):
        return [statement.name]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    return [
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


if __name__ == "__main__":
    accept()
