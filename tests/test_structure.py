"""The architecture that DESIGN.md promises, read from the source."""

import ast
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("retro_jax", "data_pipeline", "experiments")
_FILES = sorted(
    path
    for name in _PACKAGES
    for path in (_ROOT / name).rglob("*.py")
    if not path.stem.endswith("_pb2")  # generated
)
_MAX_FILE_LINES, _MAX_FUNCTION_LINES = 350, 60
_FORBIDDEN = {
    "retro_jax": {"data_pipeline", "experiments", "tensorflow", "sentencepiece"},
    "data_pipeline": {"retro_jax", "experiments"},
    "experiments": {"tests"},
}
# Who alone may import what.
_ALONE = {
    "jax": {"bert.py", "exact_jax.py"},
    "tensorflow": {"dataset.py", "batches.py"},
    "torch": set(),
}


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_imports_go_one_way(path):
    package = path.relative_to(_ROOT).parts[0]
    assert not _imports(path) & _FORBIDDEN[package]
    if package == "data_pipeline":
        for library, files in _ALONE.items():
            if library in _imports(path):
                assert path.name in files, f"{library} is for {files or 'nobody'}"


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_files_and_functions_are_short_and_documented(path):
    text = path.read_text()
    assert text.count("\n") <= _MAX_FILE_LINES
    tree = ast.parse(text)
    assert path.name == "__init__.py" or ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            lines = node.end_lineno - node.lineno + 1
            is_class = isinstance(node, ast.ClassDef)
            assert is_class or lines <= _MAX_FUNCTION_LINES, node.name
            if lines > 12 and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} is public"


def test_no_catch_all_modules_and_nothing_of_nnx_but_the_subset():
    assert not {"utils.py", "common.py", "misc.py", "helpers.py"} & {
        path.name for path in _FILES
    }
    used = {
        node.attr
        for path in _FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "nnx"
    }
    assert used <= {"Module", "Param", "List", "Rngs"}


def test_no_pickle_anywhere():
    for path in _FILES:
        assert "pickle" not in _imports(path)
        assert "allow_pickle=True" not in path.read_text()


def test_the_readme_names_every_file():
    readme = (_ROOT / "README.md").read_text()
    for path in _FILES:
        if path.name != "__init__.py":
            assert path.name in readme, _name(path)


def test_every_flag_and_target_that_the_readme_names_exists():
    makefile = (_ROOT / "Makefile").read_text()
    readme = (_ROOT / "README.md").read_text()
    targets = {
        word.rstrip(".,;:)`")
        for line in readme.splitlines()
        if "make " in line
        for word in line.split("make ")[1:]
        for word in [word.split()[0]]
    }
    known = {line.split(":")[0] for line in makefile.splitlines() if "##" in line}
    names = {t for t in targets if t.replace("-", "").isalpha() and t.islower()}
    assert names & known, "the README shows no command at all"
    assert {"train", "test"} <= names
