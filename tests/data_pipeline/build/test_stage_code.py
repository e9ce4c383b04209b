"""Edited code is noticed: what depends on it is made again, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.build import stage_code
from data_pipeline.build.pipeline import WITH_STEPS
from data_pipeline.storage import costs

_ROOT = Path(stage_code.__file__).parents[2]


def test_the_golden_file_is_that_of_the_code():
    assert not stage_code.stale(), (
        f"the code of {', '.join(stage_code.stale())} is not what their numbers stand for. "
        "If they make other files now, raise their numbers in "
        "data_pipeline/build/stage_code.py; then, and if their files are the same to the "
        "byte, run `make golden`"
    )


def test_every_stage_has_a_number_and_a_work():
    assert stage_code._STAGES.keys() == {*WITH_STEPS, "lexical"}
    assert stage_code.identity(["chunks"]) == {"chunks": 1}


def test_the_code_of_a_stage_is_what_it_runs():
    files = {stage: set(stage_code._hashes(stage)) for stage in stage_code._STAGES}
    for stage, file in [
        ("texts", "text/readers/document_files.py"),
        ("kept", "text/copies/deduplicate.py"),
        ("tokenizer", "text/tokenizer.py"),
        ("chunks", "text/chunks.py"),
        ("embeddings", "embedding/bert.py"),
        ("index", "index/exact_jax.py"),  # imported where it is used
        ("lexical", "index/lexical.py"),
        ("searches", "database/neighbours.py"),
        ("neighbours", "index/sharded.py"),
        ("sequences", "sequences/packing.py"),
        ("dataset", "sequences/dataset.py"),
    ]:
        assert f"data_pipeline/{file}" in files[stage]
    for found in files.values():
        assert not found & {
            "data_pipeline/build/engine.py",
            "data_pipeline/storage/costs.py",
            "data_pipeline/storage/progress.py",
            "data_pipeline/config.py",
        }
    assert "data_pipeline/text/chunks.py" not in files["texts"] | files["tokenizer"]
    assert "data_pipeline/sequences/packing.py" not in files["searches"]
    # Whoever changes what a database can be asked, or how it is updated, rebuilds nothing.
    for stage in ("searches", "sequences", "dataset"):
        assert "data_pipeline/database/database.py" not in files[stage]
        assert "data_pipeline/database/updates.py" not in files[stage]


_SOURCE = '''"""A module."""
import numpy as np
import math

SIZE = 3  # of all


def work(x: int) -> int:
    """Works."""
    return helper(x) + SIZE


def helper(x):
    return np.abs(x)


def other(x):
    return math.sin(x)
'''


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """Gives the hash of what `work` runs, of a module with some text replaced."""
    monkeypatch.setattr(stage_code, "_ROOT", tmp_path)
    (tmp_path / "data_pipeline").mkdir()

    def hash_with(old="", new=""):
        assert old in _SOURCE
        path = tmp_path / "data_pipeline" / "some.py"
        path.write_text(_SOURCE.replace(old, new) if old else _SOURCE)
        stage_code._module.cache_clear()
        return stage_code._hashes_of_closure([("data_pipeline.some", "work")])

    yield hash_with
    stage_code._module.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # of all", "  # of some"),
        ('"""A module."""', '"""A module that works."""'),
        ('    """Works."""\n', ""),
        ("helper(x) + SIZE", "(\n        helper(x)\n        + SIZE\n    )"),
        ("math.sin", "math.cos"),  # in a function that `work` does not need
        ("import numpy as np\nimport math\n", "import math\n\nimport numpy as np\n"),
    ],
)
def test_what_changes_nothing_that_runs(hash_of, old, new):
    assert hash_of(old, new) == hash_of()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIZE = 3", "SIZE = 4"),
        ("np.abs(x)", "-np.abs(x)"),
        ("helper(x) + SIZE", "helper(x) + None"),
        ("import numpy as np", "import jax.numpy as np"),
        ('"""A module."""\n', '"""A module."""\nprint("imported")\n'),
    ],
)
def test_what_changes_what_runs(hash_of, old, new):
    assert hash_of(old, new) != hash_of()


_SHOW_IDENTITY = """
from data_pipeline.build import stage_code

print(stage_code.__file__, stage_code.identity(["chunks", "index"]))
"""


def test_without_sources_the_number_stands_alone(tmp_path):
    archive = shutil.make_archive(tmp_path / "code", "zip", _ROOT, "data_pipeline")
    done = subprocess.run(
        [sys.executable, "-c", _SHOW_IDENTITY],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": archive},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = {stage: stage_code._STAGES[stage][0] for stage in ("chunks", "index")}
    path = f"{archive}/data_pipeline/build/stage_code.py"
    assert done.stdout.strip() == f"{path} {numbers}"


def test_an_edited_stage_has_a_number_and_a_hash(monkeypatch):
    """Until the golden file is that of the code, whatever the edit was."""
    monkeypatch.setattr(stage_code, "_is_untouched", lambda: False)
    hashes = dict(stage_code._hashes("chunks"))
    numbers = {stage: stage_code._STAGES[stage][0] for stage in ("chunks", "texts")}
    assert stage_code.identity(["chunks", "texts"]) == numbers
    hashes["data_pipeline/text/chunks.py"] = "0123"
    running = stage_code._hashes
    monkeypatch.setattr(
        stage_code,
        "_hashes",
        lambda stage: hashes if stage == "chunks" else running(stage),
    )
    found = stage_code.identity(["chunks", "texts"])
    assert found["texts"] == numbers["texts"]
    number, _, of_code = str(found["chunks"]).partition("+")
    assert number == str(numbers["chunks"]) and len(of_code) == 16
    assert stage_code.edited("chunks") == ["data_pipeline/text/chunks.py"]
    assert "chunks" in stage_code.stale()


_BUILD = """
import sys
from pathlib import Path
from data_pipeline.build import pipeline
from tests import tiny_corpus

assert pipeline.__file__.startswith(sys.argv[1])
with tiny_corpus.toy_embedder():
    pipeline.Build(tiny_corpus.config(sys.argv[2]), Path(sys.argv[3])).run()
"""


@pytest.fixture
def rebuilt(tiny_database, tiny_corpus_folder, tmp_path):
    """Builds the tiny database again with an edited copy of the package."""

    def rebuild(file, old, new):
        code, database = tmp_path / "code", tmp_path / "database"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_ROOT / "data_pipeline", code / "data_pipeline", ignore=ignored)
        path = code / "data_pipeline" / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
        shutil.copytree(tiny_database.folder, database)
        before = (database / costs.FILE).read_text()
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, code, tiny_corpus_folder, database],
            cwd=code,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(code), str(_ROOT)])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = (database / costs.FILE).read_text().removeprefix(before).splitlines()
        made = {json.loads(line)["stage"] for line in lines if line}
        said = [line for line in done.stdout.splitlines() if "code number" in line]
        return made, said

    return rebuild


def test_edited_packing_makes_sequences_again(rebuilt):
    made, said = rebuilt(
        "sequences/packing.py",
        "return stream[starts[:, None]",
        "return stream[::-1][starts[:, None]",
    )
    assert made == {"sequences", "dataset"}
    (line,) = said
    assert line == (
        "packing.py does not match code number 1 of sequences and code number 1 of "
        "dataset: dataset is made again"
    )


def test_edited_cutting_makes_chunks_and_all_after_them_again(rebuilt):
    made, said = rebuilt(
        "text/chunks.py",
        "num_chunks = -(-len(ids) // chunk_len)",
        "ids = np.append(ids, tokenizer.eod_id)\n"
        "    num_chunks = -(-len(ids) // chunk_len)",
    )
    assert made == {*WITH_STEPS[WITH_STEPS.index("chunks") :]}
    assert (
        "chunks.py does not match code number 1 of chunks: chunks is made again" in said
    )


def test_prose_makes_nothing_again(rebuilt):
    made, said = rebuilt(
        "text/chunks.py",
        '"""All chunks of a split, on disk."""',
        '"""All chunks of a split."""  # on disk',
    )
    assert (made, said) == (set(), [])
