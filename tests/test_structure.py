"""The rules that the tree keeps, read from its sources: rooms, sizes, names, pages."""

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.commands import COMMANDS
from experiments.config import setting_names
from tests.documented_commands import commands_of

_ROOT = Path(__file__).parent.parent
# Each room imports only those before it; imports for types count.
_ROOMS = {
    "retro_jax": (
        "config devices numerics model pretrained runs training evaluation knn_lm generation "
        "continuous_batching"
    ),
    "data_pipeline": (
        "config storage text embedding index database sequences build service"
    ),
    "data_pipeline.text": (
        "documents document_store words long_documents readers corpora copies tokenizers "
        "tokenizer chunks"
    ),
    "data_pipeline.service": (
        "wire server shards routing client shard_server router serve_local"
    ),
    "experiments": (
        "interrupts modules config workdirs decoders command_line configs report jobs "
        "build_database database main serving mcp_server server launching copy_stored launch "
        "launch_xm "
        "commands retro"
    ),
    "tools": "fact_bank benchmark faults aot",
}
_PACKAGES = [name for name in _ROOMS if "." not in name]
_FORBIDDEN = {
    "retro_jax": {"data_pipeline", "experiments", "tools", "tests", "tensorflow"},
    "data_pipeline": {"retro_jax", "experiments", "tools", "tests"},
    "experiments": {"tools", "tests"},
    "tools": {"tests"},
}
# The only modules of data_pipeline that may import a library.
_ALONE = {
    "jax": {"bert", "exact_jax"},
    "tensorflow": {"dataset", "batches"},
    "torch": set(),
}
_MAX_FUNCTION_LINES, _MAX_PUBLIC_METHODS, _MAX_TOOLS_SHARE = 60, 15, 0.2


@dataclasses.dataclass(frozen=True)
class Source:
    """A module of the project: its dotted name, its text and its syntax tree."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Dotted names of modules, and of what is taken out of them."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _sources() -> dict[str, Source]:
    found = {}
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            if path.stem.endswith("_pb2"):  # generated
                continue
            parts = path.relative_to(_ROOT).with_suffix("").parts
            module = ".".join(parts).removesuffix(".__init__")
            text = path.read_text()
            found[module] = Source(path, module, text, ast.parse(text))
    return found


_SOURCES = _sources()
_PAGES = [_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md")] + [
    path for path in sorted((_ROOT / "docs").glob("*.md")) if path.stem != "history"
]
_each_source = pytest.mark.parametrize("source", _SOURCES.values(), ids=list(_SOURCES))
_each_page = pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)


@_each_source
def test_imports_go_one_way(source):
    package = source.module.split(".")[0]
    libraries = {name.split(".")[0] for name in source.imports()}
    assert not libraries & _FORBIDDEN[package]
    if package == "data_pipeline":
        for library, modules in _ALONE.items():
            if library in libraries:
                assert source.path.stem in modules, f"{library}: {modules or 'nobody'}"


@pytest.mark.parametrize("house", _ROOMS)
def test_each_room_imports_only_those_before_it(house):
    order = _ROOMS[house].split()
    for source in _SOURCES.values():
        if not source.module.startswith(f"{house}."):
            continue
        room = source.module.removeprefix(f"{house}.").split(".")[0]
        if room == "__main__":  # the command of a whole house
            continue
        assert room in order, f"{house} has no room {room}"
        for name in source.imports():
            if name.startswith(f"{house}."):
                other = name.removeprefix(f"{house}.").split(".")[0]
                if other in order:
                    assert order.index(other) <= order.index(room), (
                        f"{source.module} takes {name}, a later room's"
                    )


def test_no_module_is_in_a_circle_of_imports():
    """Kept by taking away, again and again, what imports nothing that is left."""
    needs = {
        source.module: {
            name
            for name in source.imports()
            if name in _SOURCES
            and name != source.module
            # The face of a folder imports the modules in it, not the reverse.
            and not source.module.startswith(f"{name}.")
        }
        for source in _SOURCES.values()
    }
    while free := [module for module, others in needs.items() if not others]:
        for module in free:
            del needs[module]
        for others in needs.values():
            others.difference_update(free)
    assert not needs


@_each_source
def test_functions_are_short_and_classes_have_few_doors(source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= _MAX_FUNCTION_LINES, f"{node.name}: {lines} lines"
        if isinstance(node, ast.ClassDef):
            public = [
                member.name
                for member in node.body
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
                and not member.name.startswith("_")
            ]
            assert len(public) <= _MAX_PUBLIC_METHODS, f"{node.name}: {public}"


@_each_source
def test_what_is_public_has_a_docstring_that_stands_alone(source):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(source.tree):
        if not isinstance(node, documented):
            continue
        name = getattr(node, "name", source.module)
        said = ast.get_docstring(node)
        if said is None:
            is_long = getattr(node, "end_lineno", 13) - getattr(node, "lineno", 0) >= 12
            assert name.startswith("_") or not is_long, f"{name} has no docstring"
            continue
        # The rest of a sentence whose subject stands elsewhere says nothing in a hover.
        assert not re.match(r"(Of|As|By|With|For|See|In their) ", said), (
            f"{name}: {said}"
        )


def test_no_catch_all_modules_and_nothing_of_nnx_but_the_subset():
    assert not {"utils", "common", "misc", "helpers"} & {
        source.path.stem for source in _SOURCES.values()
    }
    used = {
        node.attr
        for source in _SOURCES.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "nnx"
    }
    assert used <= {"Module", "Param", "List", "Rngs"}


@_each_source
def test_no_pickle_anywhere(source):
    assert "pickle" not in {name.split(".")[0] for name in source.imports()}
    assert "allow_pickle=True" not in source.text


def test_what_measures_is_a_small_part():
    lines = {
        package: sum(
            source.text.count("\n")
            for source in _SOURCES.values()
            if source.module.split(".")[0] == package
        )
        for package in _PACKAGES
    }
    assert lines["tools"] < _MAX_TOOLS_SHARE * sum(lines.values()), lines


def _table_of_letters() -> set[str]:
    said = ast.get_docstring(_SOURCES["retro_jax"].tree)
    return set(re.findall(r"(?<![\w`])([A-Z]) {2,}\w", said))


def _letters_declared(source: Source) -> set[str]:
    """The letters that a file gives a meaning of its own, in one line."""
    said = ast.get_docstring(source.tree) or ""
    lines = [line for line in said.splitlines() if line.startswith("Letters here: ")]
    return set(re.findall(r"(?<!\w)([A-Z]) [a-z]", "".join(lines)))


def _suffixes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of arrays with the letters at their ends; a digit is an axis of that length."""
    for node in ast.walk(tree):
        field = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr"}.get(type(node))
        name = getattr(node, field) if field else ""
        stem, _, suffix = name.rpartition("_")
        if re.fullmatch("[A-Z0-9]*[A-Z][A-Z0-9]*", suffix) and stem != stem.upper():
            yield name, re.sub(r"\d", "", suffix)


@_each_source
def test_letters_of_arrays_are_those_of_the_table(source):
    known = _table_of_letters() | _letters_declared(source)
    assert len(_table_of_letters()) >= 16, "the table could not be read"
    for name, letters in _suffixes(source.tree):
        assert set(letters) <= known, f"{name}: {set(letters) - known} has no meaning"


@_each_source
def test_a_module_has_its_tests_where_one_looks_for_them(source):
    package, *rooms = source.module.split(".")
    if package == "tools":  # a test file a folder: these are run, not built upon
        folder = source.path.parent.relative_to(_ROOT)
        assert folder == Path("tools") or list(
            (_ROOT / "tests" / folder).glob("test_*")
        )
        return
    if source.path.stem == "__init__" or "configs" in rooms:
        return
    test = f"test_{source.path.name}"
    assert (_ROOT / "tests" / source.path.parent.relative_to(_ROOT) / test).exists()


def _known_flags() -> set[str]:
    text = "\n".join(source.text for source in _SOURCES.values())
    text += "\n".join(path.read_text() for path in (_ROOT / "deploy").glob("*.py"))
    absl = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)
    return {*absl, *re.findall(r'"--(\w+)"', text), "config", "help"}


def _commands(text: str) -> Iterator[str]:
    """Command lines of a page, those that go on in the next line joined."""
    yield from commands_of(text)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        yield from re.findall(r"`([^`]+)`", line)
        if line.startswith("    "):
            yield line.strip().removeprefix("$ ")


def problems_of(text: str) -> list[str]:
    """What a page names that is not there: targets, variables, flags, settings, modules."""
    makefile = (_ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+)\s*\??[:?]?=", makefile, re.MULTILINE))
    flags, settings, found = _known_flags(), set(setting_names()), []
    for command in _commands(text):
        command = re.sub(r"\s+#.*", "", command)
        if re.match(r"make [a-z]", command):
            words = re.sub(r"=('[^']*'|\"[^\"]*\"|\S*)", "=", command).split()[1:]
            found += [
                f"make knows no {word}"
                for word in words
                if word.rstrip("=") not in (variables if "=" in word else targets)
            ]
        for module in re.findall(r"python -m ([a-z_][\w.]+)", command):
            if module.split(".")[0] in _PACKAGES and not {
                module,
                f"{module}.__main__",
            } & set(_SOURCES):
                found.append(f"there is no module {module}")
        if word := re.match(r"retro ([a-z]\w*)", command):
            found += [f"retro knows no {word[1]}"] * (word[1] not in COMMANDS)
        if not re.match(r"(make|retro|python|\.?/?\S*python) |--", command):
            continue
        for flag in re.findall(r"--([a-z][\w.-]*)", command):
            part, _, setting = flag.partition(".")
            is_known = setting in settings if part == "config" and setting else None
            if is_known is False or (is_known is None and part not in flags):
                found.append(f"there is no flag --{flag}")
    return found


@_each_page
def test_commands_flags_and_settings_of_a_page_exist(page):
    assert not problems_of(page.read_text())


@pytest.mark.parametrize(
    "wrong",
    [
        "    make nosuchtarget ARGS=--config.model.depth=1",
        "    make train NOSUCH=1",
        "    make train ARGS=--config.no.such=1",
        "    make train ARGS='--nosuch'",
        "as `--config.model.no_such=3` does",
        "    python -m experiments.nosuch --config=FILE",
        "    retro nosuch --config=FILE",
        "    retro train --config.no.such=1",
        "    python -m experiments.main --nosuch=FILE",
    ],
)
def test_a_page_that_names_what_is_not_there_is_noticed(wrong):
    assert len(problems_of(wrong)) == 1
    right = "    make train ARGS='--config.model.depth=1' CORPUS=x  # a note"
    assert not problems_of(right)


@_each_page
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text):
        made_by_a_run = page.stem == "formats" or path.startswith(
            ("work/", "versions/", "deltas/")
        )
        assert made_by_a_run or (_ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_the_four_walks_do_not_turn_back():
    """Within a process a walk goes through the rooms of a package in one direction."""
    text = (_ROOT / "DESIGN.md").read_text().split("## Four walks", 1)[1]
    walks = re.split(r"\n\d\. ", text.split("\n## ", 1)[0])[1:]
    assert len(walks) == 4
    for walk in walks:
        for part in walk.split(";"):
            modules = [
                path.removesuffix(".py").replace("/", ".")
                for path in re.findall(r"`([\w/]+\.py)`", part)
            ]
            assert set(modules) <= set(_SOURCES), set(modules) - set(_SOURCES)
            for house, rooms in _ROOMS.items():
                order = rooms.split()
                places = [
                    order.index(room)
                    for module in modules
                    if module.startswith(f"{house}.")
                    for room in [module.removeprefix(f"{house}.").split(".")[0]]
                    if room in order
                ]
                assert places in (sorted(places), sorted(places, reverse=True)), part


def test_the_tree_in_the_design_has_a_line_a_folder():
    tree = (_ROOT / "DESIGN.md").read_text().split("## The tree", 1)[1]
    tree = tree.split("\n## ", 1)[0]
    named = set(re.findall(r"^ +((?:\w+/)+) ", tree, re.MULTILINE))
    folders = {
        f"{path.parent.relative_to(_ROOT).as_posix()}/"
        for source in _SOURCES.values()
        for path in [source.path]
        if len(path.relative_to(_ROOT).parts) <= 3
    }
    assert not folders - named, f"not in DESIGN.md: {folders - named}"
    assert not {name for name in named if not (_ROOT / name).is_dir()}


def test_faces_of_packages_give_what_users_import():
    for name in ("data_pipeline.database:Database", "retro_jax.model:Retro"):
        module, attribute = name.split(":")
        assert hasattr(importlib.import_module(module), attribute)
