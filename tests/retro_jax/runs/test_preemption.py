"""SIGTERM or SIGUSR2 to one of two processes, and to a command: the exit status, and what is saved."""

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

import jax
import pytest

from experiments import command_line
from retro_jax.devices import sharding
from retro_jax.runs import preemption
from retro_jax.runs.checkpoints import Checkpoints, abstract
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import updates_made
from retro_jax.training.train_state import TrainState, initial_state
from tests import preempted_pair, tiny_model
from tests.forked import Program
from tests.patience import PATIENT
from tests.ports import free_port


# Slurm, by way of submitit, announces the end of a job's time by SIGUSR2.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_the_watch_hears_the_signal_and_gives_the_handlers_back(number):
    both = (signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(one) for one in both]
    with preemption.watch() as reached:
        assert not reached(1)
        os.kill(os.getpid(), number)
        assert reached(2)
    assert [signal.getsignal(one) for one in both] == before
    with preemption.watch() as reached:
        assert not reached(3)


def test_the_exit_status_says_start_me_again(capsys):
    def stopped(argv):
        raise preemption.Preempted(12)

    assert command_line.run(stopped, []) == command_line.PREEMPTED == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert "step 12 is saved" in line


def _environment(folder: Path) -> dict[str, str]:
    """One device each, and what is compiled is kept."""
    return os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1 " + PATIENT,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def _pair(folder: Path, steps: int) -> list[Program]:
    address = f"127.0.0.1:{free_port()}"
    return [
        Program(
            "tests.preempted_pair",
            *(address, str(index), str(folder), str(steps)),
            env=_environment(folder),
        )
        for index in range(2)
    ]


def _ended(pair: list[Program]) -> list[tuple[int, str, str]]:
    ends = []
    try:
        for process in pair:
            said, errors = process.communicate(timeout=150)
            ends.append((process.returncode, said, errors))
    finally:
        _end(pair)
    return ends


def _end(processes: list[Program]) -> None:
    """Those that still run, too: nobody waits for them any more."""
    for process in processes:
        process.kill()
        process.wait()


def _restored(folder: Path) -> tuple[int, TrainState]:
    """The newest step, on one device of this process."""
    optimizer = make_optimizer(preempted_pair.OPTIMIZER, 1000)
    shapes = jax.eval_shape(
        functools.partial(initial_state, preempted_pair.CFG, optimizer, 0)
    )
    shardings = sharding.state_shardings(shapes, tiny_model.mesh(1, 1))
    with contextlib.closing(Checkpoints(folder / "checkpoints", keep=2)) as keeper:
        return keeper.restore(abstract(shapes, shardings), preempted_pair.RUN)


def test_two_processes_agree_on_the_step_and_on_what_is_damaged(tmp_path):
    pair = _pair(tmp_path, 1000)
    metrics = tmp_path / "metrics" / "metrics.jsonl"
    deadline_s = time.monotonic() + 150
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        if time.monotonic() > deadline_s or pair[0].poll() is not None:
            break
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGUSR2)  # to JAX's own service it becomes a SIGTERM
    ends = _ended(pair)
    assert [status for status, _, _ in ends] == [75, 75], ends
    # Fingerprints and numbers are the same on one device as on two processes.
    step, state = _restored(tmp_path)
    for _, _, errors in ends:
        assert f"step {step} is saved" in errors
    assert step > 5 and int(updates_made(state)) == step
    # What one process alone reads is damaged: both must go back, to the same step.
    (of_second,) = (tmp_path / "checkpoints" / str(step) / "state").glob("*process_1")
    for path in (of_second / "d").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    ends = _ended(_pair(tmp_path, step + 1))
    assert [status for status, _, _ in ends] == [0, 0], ends
    before = {said.split("going on from step ")[1].split()[0] for _, said, _ in ends}
    assert len(before) == 1 and int(*before) < step
    assert _restored(tmp_path)[0] == step + 1
    for _, said, _ in ends:
        assert f"the checkpoint of step {step}: " in said


@pytest.fixture
def config(tiny_corpus_folder, tmp_path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(
        "from tests import tiny_run\n\n\n"
        "def get_config(steps):\n"
        "    cfg = tiny_run.experiment(\n"
        f"        {tiny_corpus_folder!r}, steps=int(steps), depth=1,\n"
        "        cca_layers=(1,), encoder_depth=1,\n"
        "    )\n"
        "    cfg.train.log_every = 1\n"
        "    return cfg\n"
    )
    return path


def _command(config: Path, steps: int, workdir: Path, database) -> list[str]:
    return [
        "experiments.main",
        f"--config={config}:{steps}",
        f"--workdir={workdir}",
        f"--database={database.folder}",
        "--job=train",
    ]


def test_the_command_goes_on_from_the_step_at_which_it_was_stopped(
    config, tiny_database, tmp_path
):
    command = _command(config, 100_000, tmp_path, tiny_database)
    process = Program(*command, env=_environment(tmp_path))
    try:
        while "\nstep 3/" not in process.said() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=150)
    finally:
        _end([process])
    assert process.returncode == 75
    (line,) = errors.strip().splitlines()
    step = int(line.split("step ")[1].split()[0])
    command = _command(config, step + 1, tmp_path, tiny_database)
    again = Program(*command, env=_environment(tmp_path))
    ((status, said, _),) = _ended([again])
    assert status == 0
    assert f"going on from step {step} to step {step + 1}" in said
