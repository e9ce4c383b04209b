"""Every module can be imported, every command starts, and users' imports give what they did."""

import concurrent.futures
import importlib
import importlib.util
import json
import re
import subprocess
import sys

import pytest

from tests.commands import ROOT, run

_PACKAGES = ("retro_jax", "data_pipeline", "experiments", "tools")
_DATABASE = [
    "search",
    "show",
    "stats",
    "verify",
    "add",
    "delete",
    "compact",
    "versions",
]
_COMMANDS = [
    "experiments.retro",
    "experiments.build_database",
    "experiments.copy_stored",
    "experiments.main",
    "experiments.database",
    "experiments.launch",
    "experiments.mcp_server",
    "experiments.server",
    *(f"experiments.database {name}" for name in _DATABASE),
    "data_pipeline.service.shard_server",
    "data_pipeline.service.router",
    "data_pipeline.service.serve_local",
    "tools.benchmark",
    "tools.aot",
]
# What an extra installs: without it a module may fail, by saying that this is missing.
_OPTIONAL = {
    *("ray", "torch", "sentence_transformers", "retro_pytorch", "libtpu"),
    "langchain_core",
}
# Imports one module after another: commands define flags of the same names, and of them
# each is started by itself.
_IMPORT = """
import importlib, json, sys
failed = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except Exception as error:
        missing = getattr(error, "name", None) or ""
        failed[module] = [f"{type(error).__name__}: {error}", missing.split(".")[0]]
print(json.dumps(failed))
"""


def _modules() -> dict[str, str]:
    """Dotted name -> source, of every module of the project."""
    found = {}
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text()
    return found


@pytest.fixture(scope="module")
def started() -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command with --help, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(run, *command.split(), "--help") for command in _COMMANDS]
        return {c: a.result() for c, a in zip(_COMMANDS, asked, strict=True)}


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_says_how_it_is_used(started, command):
    done = started[command]
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"(?m)^ +(-h, )?--\w+", done.stdout)  # a flag of its own


def test_no_command_is_left_out(started):
    subcommands = re.findall(
        r"(?m)^    (\w+) {2,}", started["experiments.database"].stdout
    )
    assert subcommands == _DATABASE
    public = re.compile(r"experiments\.\w+|data_pipeline\.service\.\w+|.*\.__main__")
    for name, source in _modules().items():
        if public.fullmatch(name) and '__name__ == "__main__"' in source:
            assert name.removesuffix(".__main__") in _COMMANDS


def test_every_module_can_be_imported():
    modules = [name for name, source in _modules().items() if ".DEFINE_" not in source]
    assert len(modules) > 100
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for module, (error, missing) in json.loads(done.stdout.splitlines()[-1]).items():
        is_excused = missing in _OPTIONAL and importlib.util.find_spec(missing) is None
        assert is_excused, f"{module}: {error}"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("retro_jax", "Retro ModelConfig paper_config __version__"),
        ("retro_jax.config", "ModelConfig OptimizerConfig TrainConfig MeshConfig"),
        ("retro_jax.config", "paper_config modern"),
        ("retro_jax.model", "Retro"),
        ("data_pipeline.config", "DataConfig"),
        ("data_pipeline.database", "Database Found"),
        ("data_pipeline.database.database", "Database"),
        ("experiments.config", "Experiment EvaluationConfig"),
        ("experiments.configs.tiny", "get_config"),
        ("experiments.configs.retro", "get_config"),
        ("experiments.configs.ablations", "get_config"),
    ],
)
def test_users_find_what_they_import(module, names):
    imported = importlib.import_module(module)
    for name in names.split():
        assert hasattr(imported, name)


def test_methods_that_users_call_are_there():
    from data_pipeline.database import Database, Found
    from retro_jax.model import Retro

    for name in ("open", "search", "add", "delete", "retrieve", "compact"):
        assert callable(getattr(Database, name))
    told = set(Found.__dataclass_fields__)
    assert told >= {"text", "continuation", "document_id", "title", "uri", "licence"}
    assert told >= {"offset", "distance", "chunk_id"}
    parameters = Retro.__call__.__annotations__.keys()
    assert parameters >= {"inputs_BL", "neighbours_BCNR", "neighbour_lengths_BCN"}
