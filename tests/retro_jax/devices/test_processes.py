"""Several processes do what one does; and what is said when they can't find each other."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from retro_jax import evaluation
from retro_jax.devices import processes
from retro_jax.devices.processes import Cluster
from retro_jax.runs.metrics import read_metrics
from tests import tiny_model, tiny_training
from tests.forked import Program
from tests.patience import PATIENT
from tests.ports import free_port

_ROOT = Path(__file__).parents[3]
_RTOL = 1e-5  # of losses and gradients' norms; what was seen is below 2e-6


def _environment(num_devices: int, cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices} "
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1 " + PATIENT,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }


def _start(
    arguments: list[str], environment: dict[str, str]
) -> subprocess.Popen | Program:
    if arguments[0] == "-m":
        return Program(*arguments[1:], env=environment)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _ended(
    started: list[subprocess.Popen | Program],
) -> list[tuple[subprocess.Popen | Program, str]]:
    """Each, with its errors, once it has ended; all are killed if one does not."""
    try:
        return [(process, process.communicate(timeout=100)[1]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _finish(started: list[subprocess.Popen | Program]) -> list[tuple[str, str]]:
    """What each said; all are ended, whatever happens."""
    try:
        said = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return said


def _train(cache: Path, count: int, folder: Path):
    """Trains in `count` processes with four devices, as 2 x 2; gives what each said."""
    where = f"localhost:{free_port()}"
    what = ["2", "2", str(folder)]
    return _finish(
        [
            _start(
                ["-m", "tests.joined", "train", where, str(count), str(number), *what],
                _environment(4 // count, cache),
            )
            for number in range(count)
        ]
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process of four devices, undisturbed: what it measured, and chunks' losses."""
    workdir, mesh = tmp_path_factory.mktemp("alone"), tiny_model.mesh(2, 2)
    state = tiny_training.run(workdir, mesh)
    batch = tiny_training.batch(0) | {"documents_BC": np.zeros((16, 4), np.int32)}
    losses = evaluation.chunk_losses(
        tiny_training.CFG, state["params"], mesh, [batch], retrieval=True
    )
    return tiny_training.measured(workdir), losses.loss_nats_X


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, cache):
    """A folder of two processes of two devices; what each said."""
    folder = tmp_path_factory.mktemp("two")
    return folder, _train(cache, 2, folder)


@pytest.fixture(scope="module")
def by_four(by_two, tmp_path_factory, cache):
    """As `by_two`: four of one device, 'model' over pairs, went on from its step 5."""
    folder = tmp_path_factory.mktemp("four")
    _as_of_step_five(by_two[0], folder)
    return folder, _train(cache, 4, folder)


def _assert_same(got: dict, wanted: dict) -> None:
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=_RTOL)


@pytest.mark.parametrize("name", ["by_two", "by_four"])
def test_several_processes_learn_and_measure_what_one_does(request, name, alone):
    folder, said = request.getfixturevalue(name)
    measured, losses_X = alone
    assert list(measured) == list(range(1, 9))
    _assert_same(tiny_training.measured(folder / "run"), measured)
    for number in range(len(said)):
        got_X = np.load(folder / f"losses-{number}.npy")
        np.testing.assert_allclose(got_X, losses_X, rtol=1e-4, err_msg=str(number))


@pytest.mark.parametrize(
    "name, rows",
    [("by_two", [(0, 8), (8, 16)]), ("by_four", [(0, 8)] * 2 + [(8, 16)] * 2)],
)
def test_each_process_reads_the_rows_of_its_devices(request, name, rows):
    folder, _ = request.getfixturevalue(name)
    for number, (start, stop) in enumerate(rows):
        text = (folder / f"rows-{number}.txt").read_text()
        assert text == str(list(range(start, stop)))


@pytest.mark.parametrize("name", ["by_two", "by_four"])
def test_only_the_first_process_speaks_and_writes(request, name):
    folder, said = request.getfixturevalue(name)
    for number, (spoken, errors) in enumerate(said):
        if number:
            assert not spoken and not errors, number
        else:
            assert "step 8/8" in spoken and spoken.endswith("done\n")
            assert "[Gloo]" not in spoken
    runs = {"by_two": 1, "by_four": 2}[name]
    assert len(list((folder / "run" / "metrics").glob("events*"))) == runs


def test_what_two_processes_saved_goes_on_in_one(by_two, alone, tmp_path):
    """On another mesh, too."""
    run = _as_of_step_five(by_two[0], tmp_path)
    tiny_training.run(run, tiny_model.mesh(4, 1))
    _assert_same(tiny_training.measured(run), alone[0])


def test_what_two_processes_saved_goes_on_in_four(by_four):
    """What they then measure is compared above."""
    assert "going on from step 5 to step 8" in by_four[1][0][0]


def _as_of_step_five(folder: Path, new: Path) -> Path:
    """The run of a folder, as it was when it had saved step 5."""
    run = new / "run"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "checkpoints" / "8")
    return run


_CONFIG = """
from tests.tiny_run import experiment

def get_config(arg):
    cfg = experiment(arg, steps=4, depth=1, cca_layers=(1,), encoder_depth=1)
    cfg.train.log_every = 2
    cfg.mesh.model = 2
    cfg.evaluation.num_samples, cfg.evaluation.max_sequences = 1, 16
    return cfg
"""


def test_the_whole_run_in_two_processes(
    tiny_corpus_folder, tiny_database, cache, tmp_path
):
    config = tmp_path / "config.py"
    config.write_text(_CONFIG)
    flags = [
        f"--config={config}:{tiny_corpus_folder}",
        f"--workdir={tmp_path / 'run'}",
        f"--database={tiny_database.folder}",
        f"--coordinator=localhost:{free_port()}",
        "--num_processes=2",
        "--heartbeat_s=20",
    ]
    said = _finish(
        [
            _start(
                ["-m", "tests.joined", "jobs", *flags, f"--process_id={number}"],
                _environment(2, cache),
            )
            for number in range(2)
        ]
    )
    assert "retrieval on, test split" in said[0][0] and not said[1][0]
    rows = read_metrics(tmp_path / "run" / "metrics" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made >= {"settings.json", "run.json", "report.html", "evaluation"}


def _cluster(**changes) -> Cluster:
    settings = {"coordinator": "localhost:1234", "num_processes": 2, "process_id": 1}
    return Cluster(**(settings | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_processes": None}, "missing: --num_processes$"),
        ({"coordinator": None, "process_id": None}, "--coordinator, --process_id$"),
        ({"process_id": 2}, r"--process_id must lie in 0..1, .*; is 2"),
        ({"process_id": -1}, r"--process_id must lie in 0..1, .*; is -1"),
        ({"num_processes": 0}, "--num_processes must be at least 1, is 0"),
        ({"coordinator": "localhost"}, "--coordinator=localhost is not HOST:PORT"),
        ({"coordinator": ":80"}, "--coordinator=:80 is not HOST:PORT"),
        ({"coordinator": "a:99999"}, "--coordinator=a:99999 is not HOST:PORT"),
        ({"automatic": True}, "by itself: leave out --coordinator"),
        ({"heartbeat_s": 0}, "--heartbeat_s must be at least 1, is 0"),
        ({"join_timeout_s": 0}, "--join_timeout_s must be at least 1, is 0"),
    ],
)
def test_flags_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        _cluster(**changes).validate()


def test_flags_that_fit_pass():
    _cluster().validate()
    Cluster(automatic=True).validate()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"can't listen on port {port} .* another"):
            _cluster(coordinator=f"localhost:{port}", process_id=0).join()


def test_in_one_process_nobody_waits():
    assert processes.is_first()
    processes.wait_for_all("nowhere")


_TINY = [
    "-m",
    "experiments.main",
    "--config=experiments/configs/tiny.py",
    "--job=train",
]


def test_a_process_that_finds_nobody_says_so(tmp_path):
    """The first and the second, at once: each waits for another that does not come."""
    flags = ["--num_processes=2", "--join_timeout_s=3", f"--workdir={tmp_path}"]
    ports = [free_port() for _ in range(2)]
    started = [
        _start(
            [*_TINY, *flags, f"--process_id={each}", f"--coordinator=localhost:{port}"],
            dict(os.environ),
        )
        for each, port in enumerate(ports)
    ]
    says = ["not all others came", "is process 0"]
    for number, (process, errors) in enumerate(_ended(started)):
        assert process.returncode == processes.JOIN_ERROR
        (line,) = errors.strip().splitlines()
        assert line.startswith(f"error: process {number} of 2")
        assert says[number] in line


@pytest.mark.parametrize(
    "text",
    [
        "FAILED_PRECONDITION: Gloo AllReduce failed: Connection closed by peer [::1]:12",
        "UNAVAILABLE: failed to connect to all addresses",
        "DEADLINE_EXCEEDED: Barrier timed out",
    ],
)
def test_a_lost_process_is_told_of_in_one_line(text):
    line = processes._of_a_lost_process(jax.errors.JaxRuntimeError(text + "\nand more"))
    assert line.startswith("process 0 of 1 has lost another one (") and "\n" not in line
    assert line.endswith(
        "start all again, and the run goes on from its newest checkpoint"
    )


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
        RuntimeError("the connection closed by peer is another library's"),
    ],
)
def test_other_errors_are_not_taken_for_a_lost_process(error):
    assert processes._of_a_lost_process(error) is None


_FAILS = """
import sys, time
from retro_jax.devices.processes import Cluster, JoinedProcesses, wait_for_all
cluster = Cluster(coordinator=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]),
                  heartbeat_s=4)
with JoinedProcesses(cluster):
    wait_for_all("both are there")
    if cluster.process_id == int(sys.argv[3]):
        raise RuntimeError("the disk is gone")
    wait_for_all("never")
"""


def test_an_error_in_one_process_ends_both(cache):
    """Two pairs at once, which mostly wait: in one the first fails, in one the second."""
    environment, began_s = _environment(1, cache), time.monotonic()
    pairs = [(f"localhost:{free_port()}", number) for number in range(2)]
    started = [
        _start(["-c", _FAILS, where, str(each), str(number)], environment)
        for where, number in pairs
        for each in range(2)
    ]
    ended = _ended(started)
    assert time.monotonic() - began_s < 50
    for number, pair in enumerate((ended[:2], ended[2:])):
        failed, other = pair[number], pair[1 - number]
        assert failed[0].returncode == 1
        assert "RuntimeError: the disk is gone" in failed[1]
        assert other[0].returncode != 0
