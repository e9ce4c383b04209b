"""Benchmarks measure what they say, anywhere: no TensorFlow, no torch, not enough memory."""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from retro_jax.config import OptimizerConfig
from retro_jax.model import flops, parameters
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import initial_state
from tests import tiny_model
from tools.benchmark import (
    __main__,
    device,
    peer,
    result,
    sizes,
    train,
    train_size,
    turns,
)
from tools.benchmark.step import Step

_ROOT = pathlib.Path(__file__).parents[3]
_SMALL = "--model=depth=1,cca_layers=(1,),vocab_size=128"
_FLAGS = (_SMALL, "--sequence_len=128", "--batch_size=8", "--steps=1", "--rounds=1")
_FLAGS += ("--product_side=64",)
# What a machine that only trains need not have.
_BLOCKED = {
    *("tensorflow", "tensorflow_datasets", "torch", "scann", "grpc", "ray"),
    *("sentencepiece", "tokenizers", "safetensors", "sentence_transformers"),
    *("transformers", "pyarrow", "datasketch", "zstandard", "tensorboardX"),
    *("matplotlib", "jinja2"),
}


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    parser.add_argument("--rounds", type=int)
    return parser.parse_args([*_FLAGS, *flags])


def test_train_needs_no_data_pipeline(tmp_path):
    """What is blocked raises at import, as where it is not installed."""
    program = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {_BLOCKED}:
                    raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

        sys.meta_path.insert(0, Blocker())
        from tools.benchmark.__main__ import main
        sys.exit(main(["train", "--in_process", *sys.argv[1:]]))
    """
    out = tmp_path / "train.json"
    flags = [*_FLAGS, "--absent", f"--out={out}"]
    command = [sys.executable, "-c", textwrap.dedent(program), *flags]
    quickly = "--xla_backend_optimization_level=0"
    done = subprocess.run(
        command,
        cwd=_ROOT,
        env=os.environ | {"XLA_FLAGS": quickly},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    off, on, absent = result.read_result(out).rows
    assert off["state"] == on["state"] == absent["state"] == "measured"
    assert "not measured on a GPU" in done.stdout
    cfg = sizes.override(sizes.model("tiny"), _SMALL.partition("=")[2])
    for row, retrieval in ((off, False), (on, True), (absent, False)):
        step_flops = 8 * flops.train_flops(cfg, 128, 2, retrieval=retrieval)
        assert row["GFLOP/step"] == pytest.approx(step_flops / 1e9, rel=1e-3)
        rate = step_flops / row["step s"] / 1e9
        assert row["GFLOP/s"] == pytest.approx(rate, rel=2e-3)
        assert row["tokens/s"] == pytest.approx(8 * 128 / row["step s"], rel=2e-3)
        assert row["MFU of product"] > 0
        assert row["MFU of data sheet"] == "-"
        assert row["peak MB"] > 50 and row["compile s"] > 0
    for row in (on, absent):
        assert row["FLOP / off"] == pytest.approx(
            row["GFLOP/step"] / off["GFLOP/step"], rel=1e-2
        )
    # Blocks of causal attention leave out nothing that cross-attention would.
    assert on["compiled FLOP / off"] > on["FLOP / off"] > 1
    assert absent["compiled FLOP / off"] == pytest.approx(1, rel=0.1)
    assert on["parameters M"] == absent["parameters M"] > off["parameters M"]


def test_a_size_that_fails_is_a_row_and_the_others_are_measured(monkeypatch, capfd):
    """Wrong, killed and measured; children are called in this process."""

    def measure(args):
        sizes.model(args.sizes)
        asked = (args.steps, args.rounds, args.batch_size, args.model, args.dtype)
        rows = [{"size": args.sizes, "retrieval": "on", "state": str(asked)}]
        conditions = {"device": "this one"}
        return result.Result(
            name="train", conditions=conditions, rows=rows, notes=["n"]
        )

    def run(command, **_):
        if "--sizes=1.5b" in command:
            return subprocess.CompletedProcess(command, -signal.SIGKILL)
        assert command[:3] == [sys.executable, "-m", "tools.benchmark"]
        return subprocess.CompletedProcess(command, __main__.main(command[3:]))

    monkeypatch.setattr(train_size, "measure", measure)
    monkeypatch.setattr(subprocess, "run", run)
    found = train.run(arguments("--sizes=giant,tiny,1.5b", "--dtype=float32"))
    model = _SMALL.partition("=")[2]
    assert [(row["size"], row["retrieval"], row["state"]) for row in found.rows] == [
        ("giant", "-", "failed with exit status 2: see its message"),
        ("tiny", "on", str((1, 1, 8, model, "float32"))),
        ("1.5b", "-", "killed, as the system does when memory runs out"),
    ]
    assert "no size 'giant'; there are tiny" in capfd.readouterr().err
    assert found.conditions == {"device": "this one"} and found.notes == ["n"]


def test_a_size_without_room_is_not_begun():
    args = arguments("--in_process", "--model=vocab_size=2000000000")
    for row in train.run(args).rows:
        assert row["state"].startswith("does not fit: needs ")


def test_a_load_that_does_not_fit_the_mesh_or_the_chunks_is_refused():
    with pytest.raises(ValueError, match="7 sequences can't be split over 8 devices"):
        train.run(arguments("--in_process", "--batch_size=7"))
    with pytest.raises(ValueError, match="100 is no multiple of the model's chunks of"):
        train.run(arguments("--in_process", "--sequence_len=100"))
    with pytest.raises(SystemExit):
        arguments("--steps=0")


def test_memory_that_runs_out_underway_ends_that_variant_alone():
    def run_out(variant):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def fail(variant):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    variant = train_size._Variant(tiny_model.config())
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        variant.attempt(fail)
    variant.attempt(run_out)
    assert variant.problem.startswith("does not fit: RESOURCE_EXHAUSTED")
    variant.attempt(fail)  # not tried any more


def test_a_step_is_that_of_training():
    """Three steps (one of them the first, which is not measured) give training's loss."""
    cfg = sizes.without_retrieval(tiny_model.small_config())
    load = sizes.Load(sequence_len=8, batch_size=2)
    batch = sizes.synthetic_batch(cfg, load)
    mesh = tiny_model.mesh(2, 1)
    step = Step(cfg, OptimizerConfig(), batch, mesh)
    step.start()
    assert step.run(2) > 0
    optimizer = make_optimizer(OptimizerConfig(), 10_000)
    update = jax.jit(functools.partial(train_step, cfg, optimizer, 1))
    train_state = jax.jit(functools.partial(initial_state, cfg, optimizer, 0))()
    for _ in range(3):
        train_state, sums = update(train_state, batch)
    wanted = float(sums["loss_nats"] / sums["tokens"])
    assert step.last_loss_nats == pytest.approx(wanted, rel=1e-5)
    step.stop()
    with pytest.raises(ValueError, match="call start first"):
        step.run(1)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("TPU v4", 275.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
    ],
)
def test_data_sheets(kind, tflops):
    assert device.data_sheet_flops(kind) == tflops * 1e12
    assert device.data_sheet_flops("cpu") is None


def test_utilisation_of_the_product_and_the_data_sheet(monkeypatch):
    monkeypatch.setattr(device, "data_sheet_flops", lambda kind: 1000e12)
    product = device.Product("bfloat16", best_flops=800e12)
    row = train_size._utilisation(400e12, product)
    assert row == {"MFU of product": 0.5, "MFU of data sheet": 0.4}
    product = device.Product("float32", best_flops=800e12)
    assert train_size._utilisation(400e12, product)["MFU of data sheet"] == "-"


def test_the_best_run_of_a_product_is_kept():
    product = device.Product("float32", side=64)
    rates = [product.run() for _ in range(3)]
    assert product.best_flops == max(rates) > 0


def test_settings_by_name():
    cfg = sizes.override(sizes.model("172m"), "dtype=bfloat16,cca_layers=(3,),depth=4")
    assert (cfg.dtype, cfg.cca_layers, cfg.depth) == ("bfloat16", (3,), 4)
    assert sizes.override(cfg, "") == cfg
    with pytest.raises(ValueError, match="no setting 'widht'"):
        sizes.override(cfg, "widht=4")
    with pytest.raises(ValueError, match="depth must be int, is '3.5'"):
        sizes.override(cfg, "depth=3.5")
    with pytest.raises(ValueError, match="model.depth must be int, is 'abc'"):
        sizes.override(cfg, "depth=abc")


def test_the_peer_shape_has_the_peers_parameters():
    """82.67 M there, of which 0.3 M are positions and biases that ours has not."""
    shapes = jax.eval_shape(
        lambda: parameters.initial_parameters(sizes.model("peer"), 0)
    )
    theirs = 82_674_432
    assert parameters.num_parameters(shapes) == pytest.approx(theirs, rel=0.06)


def test_saved_batches(tmp_path):
    cfg = tiny_model.config()
    load = sizes.Load(sequence_len=12, batch_size=3, num_neighbours=1)
    batch = sizes.synthetic_batch(cfg, load)
    path = tmp_path / "batch.npz"
    np.savez(path, **batch, documents_BC=np.zeros(3))
    found = sizes.saved_batch(cfg, path)
    assert found.keys() == batch.keys() and sizes.load_of(found) == load
    small = dataclasses.replace(cfg, vocab_size=4)
    with pytest.raises(ValueError, match="vocabulary has 4 tokens"):
        sizes.saved_batch(small, path)
    with pytest.raises(ValueError, match="neighbours of 8 tokens"):
        sizes.saved_batch(dataclasses.replace(cfg, neighbour_len=4), path)
    del batch["segments_BL"]
    np.savez(path, **batch)
    with pytest.raises(ValueError, match="lacks segments_BL"):
        sizes.saved_batch(cfg, path)


_CONTESTANT = """
import time
from tools.benchmark import turns
answers = turns.private_output()
print("a library speaks")
turns.take_turns(answers, {{"parameters": 7}}, lambda: time.sleep({step_s}) or 2.5)
"""


def contestant_command(step_s: float) -> list[str]:
    return [sys.executable, "-c", _CONTESTANT.format(step_s=step_s)]


def test_contestants_take_turns():
    contestant = turns.Contestant("one", contestant_command(0.01))
    contestant.ready()
    contestant.turn(2)
    contestant.turn(1)
    contestant.end()
    assert contestant.about == {"parameters": 7}
    assert len(contestant.step_s) == 3 and min(contestant.step_s) >= 0.01
    assert contestant.loss_nats == 2.5 and contestant.peak_bytes > 1_000_000
    assert contestant._process.returncode == 0


def test_a_contestant_that_ends_is_named():
    contestant = turns.Contestant("one", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="one ended with exit status 3"):
        contestant.ready()
    contestant.end()


def peer_arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    peer.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args(flags)


def test_the_peer_is_compared_by_dtype_and_by_the_fastest(monkeypatch):
    """Contestants that sleep: theirs in bfloat16 is the fastest, our remat=dots is."""

    def command(args, entry, retrieval):
        step_s = {"float32": 0.08, "bfloat16": 0.02}.get(entry.mode, 0.04)
        return contestant_command(step_s * (2 if entry.mode.endswith("none") else 1))

    monkeypatch.setattr(peer, "_command", command)
    monkeypatch.setattr(peer, "_peer_version", lambda python: "9.9")
    monkeypatch.setattr(peer, "_ROOM_BYTES", 1)
    found = peer.run(peer_arguments("--ours", "dtype=float32", "--rounds", "5"))
    assert [(row["who"][:5], row["mode"]) for row in found.rows[:3]] == [
        ("RETRO", "float32"),
        ("RETRO", "bfloat16"),
        ("retro", "dtype=float32,remat=dots"),
    ]
    same_dtype, fastest, *_ = found.notes
    assert "float32,remat=dots / RETRO-pytorch 0.3.9 float32: tokens/s " in same_dtype
    assert "0.3.9 bfloat16 (the fastest of each): tokens/s 0." in fastest
    ratio = float(same_dtype.partition("tokens/s ")[2].split()[0])
    assert 1.2 < ratio < 2.5
    assert len(found.rows) == 6 and len(found.notes) == 4


def test_the_peers_environment_is_asked_for(monkeypatch, capsys):
    assert __main__.main(["peer"]) == 2
    assert "--peer_python is None, which is not there: make its" in (
        capsys.readouterr().err
    )
    assert __main__.main(["peer", f"--peer_python={sys.executable}"]) == 2
    assert "No module named 'retro_pytorch'" in capsys.readouterr().err
    monkeypatch.setattr(peer, "_peer_version", lambda python: "9.9")
    monkeypatch.setattr(peer.memory, "free_bytes", lambda: 3_000_000_000)
    with pytest.raises(ValueError, match="may take 8 GB and 3 GB are free"):
        peer.run(peer_arguments())


def test_the_input_pipeline_beside_a_step(monkeypatch, tmp_path):
    """Random tokens, written as a database's sequences are."""
    from tools.benchmark import input as input_benchmark

    row = {"size": "tiny", "retrieval": "on", "sequences/s": 0.5}
    measured = result.Result(name="train", conditions={}, rows=[row], notes=[])
    monkeypatch.setattr(input_benchmark.train, "run", lambda args: measured)
    saved, out = tmp_path / "batch.npz", tmp_path / "input.json"
    flags = ["--sequences=12", "--batch_size=4", "--batches=5", "--rounds=2"]
    flags += [f"--save_batch={saved}", f"--out={out}"]
    assert __main__.main(["input", *flags]) == 0
    (found,) = json.loads(out.read_text())["rows"]
    assert (found["length"], found["neighbours"]) == (2048, 2)
    assert found["input/step"] == pytest.approx(found["sequences/s"] / 0.5, rel=0.01)
    cfg = dataclasses.replace(sizes.model("tiny"), vocab_size=128_000)
    batch = sizes.saved_batch(cfg, saved)
    assert sizes.load_of(batch) == sizes.Load(sequence_len=2048, batch_size=4)
    assert batch["neighbour_lengths_BCN"].max() == 128
    assert len(np.unique(batch["inputs_BL"])) > 1000


def test_results_are_written_whole_and_read_back(tmp_path, capsys):
    rows: list[result.Row] = [{"a": 1, "long name": "x"}, {"a": 2.5, "other": "y"}]
    written = result.Result(name="n", conditions={"c": 1}, rows=rows, notes=["so"])
    path = tmp_path / "result.json"
    result.write_result(written, path)
    assert result.read_result(path) == written
    assert list(tmp_path.iterdir()) == [path]
    result.print_result(written)
    assert capsys.readouterr().out.splitlines() == [
        "  a  long name  other",
        "  1          x      -",
        "2.5          -      y",
        "c: 1",
        "so",
    ]
    rows[0] |= {f"column {number}": number for number in range(20)}
    result.print_result(written)
    assert " column 3   3    -" in capsys.readouterr().out


def test_a_database_is_measured(tiny_database, toy_embedder, capsys):
    folder = str(tiny_database.folder)
    assert __main__.main(["database", "--database", folder, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    for what in ("open, once", "load the index, once", "64 vectors", "passages"):
        assert what in out
    assert f"chunks: {len(tiny_database.searchable)}" in out
    assert __main__.main(["database", "--database", "nowhere"]) == 2
    assert "nowhere holds no finished database" in capsys.readouterr().err


def test_make_bench_names_parts_that_there_are():
    lines = (_ROOT / "Makefile").read_text().splitlines()
    parts = [
        line.split("tools.benchmark ")[1].split()[0]
        for line in lines
        if line.startswith("\t") and "tools.benchmark " in line
    ]
    assert parts == ["embed", "index", "input", "train"]
    for part in parts:
        with pytest.raises(SystemExit) as ended:
            __main__.main([part, "--help"])
        assert ended.value.code == 0
