"""What starts units elsewhere is the same text each time, and what its tool accepts."""

import json
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from experiments.launching import clusters, host
from experiments.launching.work_units import Unit

_GOLDEN = Path(__file__).parent / "golden"
_PLACES = {
    "slurm": {"accelerator": "h100:8", "partition": "gpu"},
    "gke": {"accelerator": "v5p:2x2x2", "image": "r/retro:1", "claim": "nfs"},
    "skypilot": {"accelerator": "h200:8", "image": "r/retro:1"},
}


def _unit(hosts: int = 2) -> Unit:
    return Unit(Path("/share/sweep/unit-000"), {"train.seed": "0"}, [], hosts)


def _place(executor: str, **changes) -> clusters.Place:
    place = clusters.Place(
        **{"volume": "/share", **_PLACES.get(executor, {}), **changes}
    )
    place.validate(executor, 2)
    return place


@pytest.mark.parametrize("executor", _PLACES)
def test_rendered_files_are_those_that_were_reviewed(executor):
    place = _place(executor)
    ((name, text),) = clusters.rendered(executor, [_unit()], place).items()
    assert text == (_GOLDEN / f"{executor}-{name}").read_text()
    assert clusters.submitted(executor, f"/o/{name}").endswith(f" /o/{name}")


def test_every_host_has_a_command():
    place = _place("print", coordinator="node0:1234", python="/venv/bin/python")
    assert clusters.rendered("print", [_unit()], place) == {}
    found = clusters.commands([_unit(), _unit(hosts=1)], place)
    run = "/venv/bin/python -m experiments.launching.host /share/sweep/unit-000"
    pair = f"{run} --coordinator=node0:1234 --num_processes=2 --process_id="
    assert found == [f"{pair}0", f"{pair}1", run]


def test_a_batch_script_is_queued_again_after_preemption_and_after_nothing_else(
    tmp_path,
):
    """The script runs in a shell, with stand-ins for Slurm's own programs."""
    script = clusters.batch_script(_unit(), _place("slurm", restarts=2))
    stand_ins = 'srun() { return "$ENDS"; }\nscontrol() { echo "$@"; }\n'
    for ends, restarted, queued in (
        (host.PREEMPTED, 0, "requeue 7\n"),
        (host.PREEMPTED, 2, ""),
        (2, 0, ""),
        (0, 0, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", stand_ins + script],
            env={
                "ENDS": str(ends),
                "SLURM_JOB_ID": "7",
                "SLURM_RESTART_COUNT": str(restarted),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (ends, queued, "")


def test_directives_are_those_of_submitit():
    slurm = pytest.importorskip("submitit.slurm.slurm")
    theirs = slurm._make_sbatch_string(
        command="",
        folder="/share/sweep/unit-000",
        job_name="retro-sweep-unit-000",
        nodes=2,
        ntasks_per_node=1,
        gpus_per_node=8,
        partition="gpu",
        time=1440,
        signal_delay_s=120,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},
    )
    script = clusters.batch_script(_unit(), _place("slurm"))
    assert _directives(script) == _directives(theirs)


def _directives(script: str) -> dict[str, str]:
    """The options of a batch script, but for the names of log and accounting."""
    lines = [
        shlex.split(line.removeprefix("#SBATCH "))[0]
        for line in script.splitlines()
        if line.startswith("#SBATCH ")
    ]
    pairs = (line.removeprefix("--").partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name not in ("output", "wckey")}


@pytest.mark.parametrize("accelerator", ["v5p:2x2x2", "h100:8", ""])
def test_a_job_set_holds_a_job_that_kubernetes_accepts(accelerator):
    made = clusters.job_set(_unit(), _place("gke", accelerator=accelerator))
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = made["spec"]["replicatedJobs"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "hosts"},
        **replicated["template"],
    }
    kubernetes_validate.validate(job, "1.31", strict=True)
    pod = job["spec"]["template"]["spec"]
    limits = pod["containers"][0].get("resources", {}).get("limits", {})
    chips = {"v5p:2x2x2": {"google.com/tpu": "4"}, "h100:8": {"nvidia.com/gpu": "8"}}
    assert limits == chips.get(accelerator, {})
    assert pod["containers"][0]["command"][-1] == "--distributed"


def test_a_job_set_asks_for_what_xpk_asks_for():
    ours = clusters.job_set(_unit(), _place("gke", restarts=0, grace_s=30))
    theirs = yaml.safe_load((_GOLDEN / "xpk-v5p-16.yaml").read_text())
    assert {name: ours[name] for name in ("apiVersion", "kind")} == {
        name: theirs[name] for name in ("apiVersion", "kind")
    }
    assert ours["metadata"]["annotations"] == theirs["metadata"]["annotations"]
    assert ours["spec"]["failurePolicy"] == theirs["spec"]["failurePolicy"]
    jobs = [
        made["spec"]["replicatedJobs"][0]["template"]["spec"] for made in (ours, theirs)
    ]
    pods = [job["template"]["spec"] for job in jobs]
    for name in ("parallelism", "completions", "backoffLimit"):
        assert jobs[0][name] == jobs[1][name]
    for name in ("restartPolicy", "nodeSelector", "terminationGracePeriodSeconds"):
        assert pods[0][name] == pods[1][name]
    assert pods[0]["tolerations"] == pods[1]["tolerations"]
    limits = [
        {
            name: int(value)
            for name, value in pod["containers"][0]["resources"]["limits"].items()
        }
        for pod in pods
    ]
    assert limits[0] == limits[1]
    # Both start again after a preemption and a kill, and not after a mistake.
    own, restarted = (
        job["podFailurePolicy"]["rules"][0]["onExitCodes"] for job in jobs
    )
    for status, again in ((2, False), (host.PREEMPTED, True), (137, True)):
        assert (status not in own["values"]) == again
        assert (status in restarted["values"]) == again


def test_a_task_is_what_skypilot_parses(tmp_path):
    for accelerator, asked in (
        ("h200:8", "H200:8"),
        ("v5p:2x2x2", "tpu-v5p-16"),
        ("v6e:2x4", "tpu-v6e-8"),
    ):
        made = clusters.sky_task(_unit(), _place("skypilot", accelerator=accelerator))
        assert made["resources"]["accelerators"] == asked
    assert made["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    sky = pytest.importorskip("sky")
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps(made))
    task = sky.Task.from_yaml(str(path))
    assert task.name == "retro-sweep-unit-000"


@pytest.mark.parametrize(
    ("executor", "changes", "message"),
    [
        ("gke", {"image": ""}, "--executor=gke needs --image=IMAGE"),
        ("gke", {"claim": ""}, "--executor=gke needs --claim=NAME"),
        ("gke", {"volume": ""}, "--executor=gke needs --volume=PATH"),
        ("gke", {"accelerator": "v9:2x2"}, "v9:2x2 is not KIND:SHAPE.*kinds are v4"),
        ("gke", {"accelerator": "v5p:2xa"}, "v5p:2xa is not KIND:SHAPE"),
        ("gke", {"accelerator": "v5p"}, "v5p is not KIND:SHAPE"),
        ("gke", {"accelerator": "v5p:3x3"}, "has 9 chips, of which --hosts=2 can't"),
        ("skypilot", {"accelerator": ""}, "needs --accelerator, such as h100:8"),
        ("slurm", {"time_min": 0}, "--time_min must be at least 1"),
        ("print", {}, "name it by --coordinator=HOST:PORT"),
    ],
)
def test_what_an_executor_lacks_is_named(executor, changes, message):
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        _place(executor, **changes)
