"""Whole steps are measured anywhere: without TensorFlow, torch or enough memory."""

import argparse
import os
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from retro_jax.model import flops
from tests import tiny_model
from tools.benchmark import __main__, result, sizes, train, train_size

_SMALL = "--model=depth=1,cca_layers=(1,),vocab_size=128"
_FLAGS = (_SMALL, "--sequence_len=128", "--batch_size=8", "--steps=1", "--rounds=1")
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
        cwd=result.ROOT,
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
    assert found.conditions["device"] == "this one" and found.notes == ["n"]


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
