"""Files and commands that start work units elsewhere: a batch script, a JobSet, a task file.

All of them start `experiments.launching.host` on every host of a unit, in the same Python
packages, with the folder of the launch and the database at the same paths. They are rendered,
reviewed and submitted by hand: nothing here talks to a cluster. Exit status 75 (preempted)
and kills are to start a unit again, a mistake (2) is not.
"""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Sequence

from experiments.launching.host import PREEMPTED
from experiments.launching.work_units import Unit

EXECUTORS = ("print", "slurm", "gke", "skypilot")
_PORT = 12355
_MISTAKE = 2
# Slices by the names that `tools.aot` knows them by; chips of a host: at most four.
_TPU_NODES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_GPU_NODES = {"h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where units are to run, as far as an executor has to know it."""

    accelerator: str = ""  # v5p:2x2x2, h100:8 on each host, or none
    coordinator: str = ""  # HOST:PORT of a unit's first host, to be printed
    partition: str = ""  # of Slurm
    time_min: int = 24 * 60  # after which Slurm ends a unit, which is then queued again
    image: str = ""  # of containers, with this project in it
    claim: str = ""  # volume that has the folders of launch and database
    volume: str = ""  # the path at which it is mounted
    python: str = "python"
    restarts: int = 10
    grace_s: int = 120

    def validate(self, executor: str, hosts: int) -> None:
        """Raises ValueError, naming the flag that an executor lacks or can't use."""
        if self.time_min < 1:
            raise ValueError(f"--time_min must be at least 1, is {self.time_min}")
        if executor == "print" and hosts > 1 and not self.coordinator:
            raise ValueError(
                "several hosts find each other at the first one: name it by "
                "--coordinator=HOST:PORT"
            )
        if executor == "gke":
            for name, what in (
                ("image", "IMAGE"),
                ("claim", "NAME"),
                ("volume", "PATH"),
            ):
                if not getattr(self, name):
                    raise ValueError(f"--executor=gke needs --{name}={what}")
        if executor == "skypilot" and not self.accelerator:
            raise ValueError("--executor=skypilot needs --accelerator, such as h100:8")
        if self.accelerator:
            _chips_of_host(self.accelerator, hosts)


def _chips_of_host(accelerator: str, hosts: int) -> int:
    """The chips of each host; ValueError for a kind or a shape that nobody knows."""
    kind, _, shape = accelerator.partition(":")
    sizes = shape.split("x")
    if kind not in {**_TPU_NODES, **_GPU_NODES} or not all(
        size.isdigit() and int(size) for size in sizes
    ):
        known = ", ".join([*_TPU_NODES, *_GPU_NODES])
        raise ValueError(
            f"--accelerator={accelerator} is not KIND:SHAPE, such as v5p:2x2x2 or h100:8; "
            f"kinds are {known}"
        )
    chips = math.prod(map(int, sizes))
    if kind in _GPU_NODES:
        return chips
    if chips % hosts or chips // hosts not in (1, 4, 8):
        raise ValueError(
            f"--accelerator={accelerator} has {chips} chips, of which --hosts={hosts} can't "
            "have 1, 4 or 8 each"
        )
    return chips // hosts


def rendered(executor: str, units: Sequence[Unit], place: Place) -> dict[str, str]:
    """The text of each file by its name; none to print."""
    if executor == "slurm":
        return {f"{unit.name}.sh": batch_script(unit, place) for unit in units}
    if executor == "gke":
        return {f"{unit.name}.json": _json(job_set(unit, place)) for unit in units}
    if executor == "skypilot":
        return {f"{unit.name}.json": _json(sky_task(unit, place)) for unit in units}
    return {}


def submitted(executor: str, file: str) -> str:
    """The command that hands a rendered file to its cluster."""
    name = shlex.quote(file)
    return {
        "slurm": f"sbatch {name}",
        "gke": f"kubectl apply -f {name}",  # JSON is YAML, too
        "skypilot": f"sky jobs launch --yes {name}",
    }[executor]


def commands(units: Sequence[Unit], place: Place) -> list[str]:
    """The exact command of every host of every unit."""
    found = []
    for unit in units:
        for number in range(unit.hosts):
            flags = [
                f"--coordinator={place.coordinator}",
                f"--num_processes={unit.hosts}",
                f"--process_id={number}",
            ]
            found.append(_command(unit, place, *flags * (unit.hosts > 1)))
    return found


def _command(unit: Unit, place: Place, *flags: str) -> str:
    words = [place.python, "-m", "experiments.launching.host", str(unit.folder), *flags]
    return shlex.join(words)


def batch_script(unit: Unit, place: Place) -> str:
    """A unit's sbatch file; Slurm sends SIGUSR2 before time is up, and the unit is queued again.

    The lines are those that submitit writes, but for the last: submitit keeps a pickled
    function, and a command needs none.
    """
    log = unit.folder / "slurm-%j.log"
    gpus = (
        [f"--gpus-per-node={_chips_of_host(place.accelerator, unit.hosts)}"]
        if place.accelerator.partition(":")[0] in _GPU_NODES
        else []
    )
    options = [
        f"--job-name={_name(unit)}",
        f"--nodes={unit.hosts}",
        "--ntasks-per-node=1",
        *gpus,
        *([f"--partition={place.partition}"] if place.partition else []),
        f"--time={place.time_min}",
        f"--signal=USR2@{place.grace_s}",
        "--open-mode=append",
        "--requeue",
        f"--output={log}",
    ]
    flags = ["--distributed"] if unit.hosts > 1 else []
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(option)}" for option in options),
        "",
        f"srun --unbuffered {_command(unit, place, *flags)}",
        "status=$?",
        f'if [ "$status" -eq {PREEMPTED} ] &&',
        f'    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {place.restarts} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"


def job_set(unit: Unit, place: Place) -> dict:
    """A unit as a JobSet of GKE, whose pods start again together, but not after a mistake."""
    mistake = {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": "retro",
            "operator": "In",
            "values": [_MISTAKE],
        },
    }
    job = {
        "parallelism": unit.hosts,
        "completions": unit.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [mistake]},
        "template": {"spec": _pod(unit, place)},
    }
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    # A slice is one pool of nodes, which no other unit may enter.
    exclusive = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": _name(unit), "annotations": exclusive},
        "spec": {
            "failurePolicy": {"maxRestarts": place.restarts, "rules": [rule]},
            "replicatedJobs": [
                {"name": "hosts", "replicas": 1, "template": {"spec": job}}
            ],
        },
    }


def _pod(unit: Unit, place: Place) -> dict:
    """One host of a unit, on the nodes that have its accelerators."""
    kind, _, shape = place.accelerator.partition(":")
    selector, resource, tolerations = {}, "", []
    if kind in _TPU_NODES:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": _TPU_NODES[kind],
            "cloud.google.com/gke-tpu-topology": shape,
        }
        resource = "google.com/tpu"
        tolerations = [{"key": resource, "operator": "Exists"}]
    elif kind:
        selector = {"cloud.google.com/gke-accelerator": _GPU_NODES[kind]}
        resource = "nvidia.com/gpu"
    flags = ["--distributed"] if unit.hosts > 1 else []
    container: dict = {
        "name": "retro",
        "image": place.image,
        "command": shlex.split(_command(unit, place, *flags)),
        "volumeMounts": [{"name": "work", "mountPath": place.volume}],
    }
    if resource:
        chips = str(_chips_of_host(place.accelerator, unit.hosts))
        container["resources"] = {"limits": {resource: chips}}
    claim = {"claimName": place.claim}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": place.grace_s,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": claim}],
    }


def sky_task(unit: Unit, place: Place) -> dict:
    """A unit as a managed job of SkyPilot, on storage that is mounted by its image or setup."""
    kind, _, shape = place.accelerator.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    # A v5p is named by its cores, of which a chip has two.
    of_tpu = {"v4": f"tpu-v4-{chips * 2}", "v5p": f"tpu-v5p-{chips * 2}"}
    of_tpu |= {"v5e": f"tpu-v5litepod-{chips}", "v6e": f"tpu-v6e-{chips}"}
    accelerators = of_tpu.get(kind, f"{kind.upper()}:{chips}")
    flags = (
        f' --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{_PORT}"'
        f' --num_processes={unit.hosts} --process_id="$SKYPILOT_NODE_RANK"'
    )
    resources = {
        "accelerators": accelerators,
        "use_spot": True,
        "job_recovery": {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [PREEMPTED],
        },
    }
    if place.image:
        resources["image_id"] = f"docker:{place.image}"
    return {
        "name": _name(unit),
        "num_nodes": 1 if kind in _TPU_NODES else unit.hosts,
        "resources": resources,
        "run": _command(unit, place) + flags * (unit.hosts > 1),
    }


def _name(unit: Unit) -> str:
    """A name of a unit that clusters take: short, of small letters, digits and hyphens."""
    launch = re.sub("[^a-z0-9]+", "-", unit.folder.parent.name.lower()).strip("-")[:24]
    return f"retro-{launch}-{unit.name}"


def _json(value: dict) -> str:
    return json.dumps(value, indent=2) + "\n"
