"""Compiling for TPU slices: what is asked for, what comes back, what becomes of failures."""

import importlib.util
import subprocess
import sys

import pytest

from tools.aot import __main__, table

_TINY = "experiments/configs/tiny.py"
_SMALL = (
    "--config.model.depth=1",
    "--config.model.cca_layers=(1,)",
    "--config.model.encoder_depth=1",
    "--config.model.vocab_size=256",
    "--config.data.sequence_chunks=2",
    "--config.train.batch_size=4",
)
_needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not __main__.COMPILER.exists(),
    reason="the TPU compiler is not installed",
)


def _job(*overrides: str, **changes) -> __main__.Job:
    settings = {"config": _TINY, "topology": "v5e:2x2", "retrieval": True}
    return __main__.Job(**(settings | {"overrides": (*_SMALL, *overrides)} | changes))


@_needs_compiler
def test_the_real_step_of_a_tiny_retro_compiles_for_four_chips():
    row = __main__.run_job(_job("--config.mesh.model=2"))
    assert row["status"] == "ok", row
    assert row["chips"] == 4 and row["mesh"] == [2, 2]
    # Two optimizer slots beside each parameter, four bytes each; small arrays are padded.
    least = 12 * row["parameters_per_chip"]
    assert least <= row["argument_bytes"] <= 2 * least
    assert row["parameters_per_chip"] < 0.3 * row["parameters"]
    assert row["argument_bytes"] < row["peak_bytes"] < row["hbm_bytes"]
    # The backward pass computes again what it needs, and every chip the position tables.
    assert row["model_flops"] < row["program_flops"] < 4 * row["model_flops"]
    assert {"all-gather", "all-reduce"} <= set(row["collectives"])
    assert row["sent_bytes"] > 0
    assert 0 < row["mfu_sum"] <= row["mfu_longest"] < 1


@_needs_compiler
def test_too_little_memory_is_a_row_of_the_table():
    row = __main__.run_job(_job("--config.model.ffw_width=33554432"))
    assert row["status"].startswith("does not fit: ")
    assert "15.75G" in row["status"]
    assert table.table_rows([row])[0]["status"] == row["status"]


@_needs_compiler
def test_what_a_slice_can_not_have_is_a_row_and_names_the_setting():
    row = __main__.run_job(_job("--config.mesh.data=3", "--config.mesh.model=1"))
    assert "mesh.data=3 x mesh.model=1 does not make up the 4" in row["status"]
    assert table.table_rows([row])[0]["status"] == row["status"]


def test_a_compilation_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(__main__, "_LIMIT_S", 0.05)
    row = __main__.run_job(_job())
    assert row == {
        "topology": "v5e:2x2",
        "retrieval": True,
        "status": "failed: took longer than 0 s",
    }


def test_without_the_compiler_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(__main__, "COMPILER", tmp_path / "aot")
    with pytest.raises(ImportError, match="make install-aot"):
        __main__.check_compiler()


def test_an_unknown_topology_ends_in_one_line_with_the_known_ones():
    command = [sys.executable, "-m", "tools.aot", f"--config={_TINY}"]
    done = subprocess.run(
        [*command, "--topology=v9:4x4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in ("'v9:4x4'", "v5e: 2x2", "v5p: 2x2x1"):
        assert part in done.stderr


def _jobs(given: dict[str, object]) -> list[__main__.Job]:
    config, slices = "experiments/configs/retro.py:7.5b", ["v5p:4x4x4", "v5e:2x2"]
    return __main__.jobs(config, given, slices, [True, False], effort=0.0)


def test_slices_get_the_layout_of_the_papers_models():
    found = _jobs({"model.depth": 2})
    assert [(job.topology, job.retrieval) for job in found] == [
        ("v5p:4x4x4", True),
        ("v5p:4x4x4", False),
        ("v5e:2x2", True),
        ("v5e:2x2", False),
    ]
    assert found[0].overrides == (
        "--config.model.depth=2",
        "--config.mesh.model=1",
        "--config.train.accumulation=4",
    )
    assert found[2].overrides[1:] == (
        "--config.mesh.model=1",
        "--config.train.accumulation=128",  # two sequences a chip
    )


def test_other_configs_keep_their_own_mesh():
    (found,) = __main__.jobs(_TINY, {}, ["v5e:2x2"], [True], effort=0.0)
    assert found.overrides == ()


def test_a_mesh_of_ones_own_is_left_alone():
    for name in ("mesh.model", "train.accumulation", "train.batch_size"):
        assert _jobs({name: 8})[0].overrides == (f"--config.{name}=8",)
