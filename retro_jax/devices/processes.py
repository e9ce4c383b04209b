"""One run in several processes: how they join, and which of them speaks.

Every process runs the same program on its own devices; JAX makes one machine of them. So
they must be joined before JAX looks at its devices, and if one is lost all must end: the
others stop when its heartbeat has been missing for a while, and the run goes on from its
newest checkpoint when all are started again, in whatever number.
"""

import dataclasses
import os
import re
import socket
import sys
import threading
import traceback
from types import TracebackType

JOIN_ERROR = 2  # exit status, as of any mistake that the user can mend
LOST = os.EX_TEMPFAIL  # 75, after another process was lost: start all again
# What JAX says when another process no longer answers, in words of gloo, gRPC and its service.
_OF_A_LOST_PROCESS = re.compile(
    r"closed by peer|connection (?:reset|refused|closed)|broken pipe|heartbeat|UNAVAILABLE"
    r"|DEADLINE_EXCEEDED|coordination service|timed out waiting",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """How this process finds the others: told by hand, or by the cluster itself."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    automatic: bool = False  # all three from a TPU pod, GKE, Slurm or Open MPI
    heartbeat_s: int = 60  # without one for so long, a process counts as lost
    join_timeout_s: int = 300  # for all processes to be there

    def validate(self) -> None:
        """Raises ValueError, naming the flag, if these can't name a process."""
        by_hand = {
            "coordinator": self.coordinator,
            "num_processes": self.num_processes,
            "process_id": self.process_id,
        }
        missing = [name for name, value in by_hand.items() if value is None]
        if self.automatic and len(missing) < 3:
            given = next(name for name in by_hand if name not in missing)
            raise ValueError(
                f"--distributed finds the processes by itself: leave out --{given}"
            )
        if not self.automatic and missing:
            raise ValueError(
                "several processes need --coordinator=HOST:PORT, --num_processes=N and "
                f"--process_id=I; missing: {', '.join('--' + name for name in missing)}"
            )
        for name in ("heartbeat_s", "join_timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, is {getattr(self, name)}"
                )
        if not self.automatic:
            self._address()
            self._check_number()

    def _address(self) -> tuple[str, int]:
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(f"--coordinator={self.coordinator} is not HOST:PORT")
        return host, int(port)

    def _check_number(self) -> None:
        number, count = self.process_id or 0, self.num_processes or 0
        if count < 1:
            raise ValueError(f"--num_processes must be at least 1, is {count}")
        if not 0 <= number < count:
            raise ValueError(
                f"--process_id must lie in 0..{count - 1}, as --num_processes={count}; "
                f"is {number}"
            )

    def join(self) -> None:
        """Waits until all processes are there; then JAX sees the devices of them all.

        Ends the process with a line that says why, if they are not there in time: JAX
        itself would abort it from within.

        Raises:
            ValueError: for settings that don't fit, no cluster, or a port that is taken.
        """
        import jax

        self.validate()
        if self.process_id == 0:
            _check_port_is_free(self._address()[1])
        timer = threading.Timer(self.join_timeout_s, self._give_up)
        timer.daemon = True
        timer.start()
        patience_s = self.join_timeout_s + 60  # so that it is we who give up
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                cluster_detection_method=None if self.automatic else "deactivate",
                initialization_timeout=patience_s,
                heartbeat_timeout_seconds=self.heartbeat_s,
            )
        except ValueError as error:
            raise ValueError(
                f"--distributed finds no cluster ({error}): give --coordinator, "
                "--num_processes and --process_id"
            ) from error
        jax.devices()  # also waits for all: they tell one another what devices they have
        timer.cancel()

    def _give_up(self) -> None:
        who = f"process {self.process_id} of {self.num_processes}"
        if self.automatic:
            missing = "not all processes of the cluster came; see their logs"
        elif self.process_id == 0:
            missing = (
                f"{who} waited at {self.coordinator}, and not all others came: start "
                "them all, with the same --coordinator and --num_processes"
            )
        else:
            missing = (
                f"{who} did not get together with the others at {self.coordinator}: is "
                "process 0 running there, is the port open, and is --num_processes the "
                "same for all?"
            )
        line = f"error: {missing} (--join_timeout_s={self.join_timeout_s})"
        print(line, file=sys.stderr, flush=True)
        os._exit(JOIN_ERROR)


def _check_port_is_free(port: int) -> None:
    """Raises ValueError for a port in use, on which JAX's coordinator would crash."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise ValueError(
            f"process 0 can't listen on port {port} of --coordinator "
            f"({error.strerror}): choose another"
        ) from error


class JoinedProcesses:
    """A block that processes run together, joined at its start.

    In it only process 0 speaks. An error ends its process at once: at a usual exit it
    would wait for the others, which wait for it.
    """

    def __init__(self, cluster: Cluster):
        self._cluster = cluster

    def __enter__(self) -> None:
        self._cluster.join()
        _silence(speaks=is_first())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        status = error.code if isinstance(error, SystemExit) else 1
        if line := _of_a_lost_process(error):
            print(f"error: {line}", file=sys.stderr)
            status = LOST
        elif not isinstance(error, SystemExit):
            traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _of_a_lost_process(error: BaseException) -> str | None:
    """One line for what JAX raises when another process is gone; None for other errors."""
    import jax

    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if not (found := _OF_A_LOST_PROCESS.search(text)):
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} has lost another one "
        f"({found[0]}), whose log says why: start all again, and the run goes on from its "
        "newest checkpoint"
    )


def _silence(*, speaks: bool) -> None:
    """Keeps native code, such as gloo, and all but one process off standard output."""
    ours, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    os.dup2(nowhere, 1)
    sys.stdout = os.fdopen(ours if speaks else nowhere, "w", buffering=1)


def is_first() -> bool:
    """Whether this is process 0, the one that speaks and writes files."""
    import jax

    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns once every process is here; at once if there is but one."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(where)
