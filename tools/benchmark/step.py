"""An optimizer step, compiled and run as `retro_jax.training.loop.train` does."""

import functools
import time

import jax
import numpy as np
from jax.sharding import Mesh

from retro_jax.config import ModelConfig, OptimizerConfig
from retro_jax.devices import sharding
from retro_jax.devices.compiled import compiled, give_back_memory
from retro_jax.model import parameters
from retro_jax.runs import checkpoints
from retro_jax.training.batch import to_devices
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import TrainState, initial_state
from tools.benchmark import device
from tools.benchmark.sizes import Batch

_SCHEDULE_STEPS = 10_000  # of the learning rate, which costs nothing


class Step:
    """A compiled step: the loss, its gradients and the update, over the mesh.

    The state is made by `start` and given up by `stop`, so that steps that are measured
    in turn need the memory of one.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        optimizer_cfg: OptimizerConfig,
        batch: Batch,
        mesh: Mesh,
    ):
        """Compiles the step.

        Raises:
            MemoryError: if it would not fit into the memory that is free.
        """
        self._cfg, self._mesh, self._batch = cfg, mesh, batch
        optimizer = make_optimizer(optimizer_cfg, _SCHEDULE_STEPS)
        make_state = functools.partial(initial_state, cfg, optimizer, 0)
        shapes = jax.eval_shape(make_state)
        shardings = sharding.state_shardings(shapes, mesh)
        self.num_parameters = parameters.num_parameters(shapes["params"])
        # Parameters, gradients and two slots, before minutes go into compiling.
        _check_fits(4 * 4 * self.num_parameters // mesh.size)
        self._make_state = jax.jit(make_state, out_shardings=shardings)
        update = jax.jit(
            functools.partial(train_step, cfg, optimizer, 1),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        start_s = time.perf_counter()
        with jax.set_mesh(mesh):
            self._update = compiled(
                update,
                checkpoints.abstract(shapes, shardings),
                to_devices(cfg, batch, mesh),
            )
        self.compile_s = time.perf_counter() - start_s
        self.needs_bytes = _needs_bytes(self._update)
        # None for a loop over layers, whose body the compiler counts once.
        counted = self._update.cost_analysis() or {}
        self.compiled_flops = None if cfg.scan_layers else counted.get("flops")
        give_back_memory()  # training does not ask; that took a hundred megabytes
        _check_fits(self.needs_bytes)
        self._state: TrainState | None = None
        self.last_loss_nats = float("nan")  # a token

    def start(self) -> None:
        """Makes the state anew and takes a first step, which is not measured."""
        with jax.set_mesh(self._mesh):
            self._state = jax.block_until_ready(self._make_state())
        give_back_memory()  # training makes the state before it compiles, and then does
        self.run(1)

    def run(self, steps: int) -> float:
        """Takes steps one after the other, as the training loop; gives seconds a step.

        Each step's batch goes to the devices, and the sums of a step are read once the
        next one has been started.
        """
        if self._state is None:
            raise ValueError("no state: call start first")
        start_s = time.perf_counter()
        pending = None
        with jax.set_mesh(self._mesh):
            for _ in range(steps):
                on_devices = to_devices(self._cfg, self._batch, self._mesh)
                self._state, sums = self._update(self._state, on_devices)
                if pending is not None:
                    jax.device_get(pending)
                pending = sums
        values = jax.device_get(pending)
        jax.block_until_ready(self._state)
        elapsed_s = time.perf_counter() - start_s
        self.last_loss_nats = float(values["loss_nats"] / values["tokens"])
        if not np.isfinite(self.last_loss_nats):
            raise FloatingPointError(f"the loss is {self.last_loss_nats}")
        return elapsed_s / steps

    def stop(self) -> None:
        """Gives up the state, and so its memory."""
        self._state = None


def _needs_bytes(compiled) -> int:
    """Adds up what the compiled step needs of a device; the state, donated, counts once."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def _check_fits(needs_bytes: int) -> None:
    free_bytes = device.free_bytes_per_device()
    if needs_bytes > free_bytes:
        raise MemoryError(f"needs {needs_bytes / 1e9:.1f} of {free_bytes / 1e9:.1f} GB")
