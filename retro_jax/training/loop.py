"""The training loop: from the newest checkpoint to the last step.

The caller gives a mesh, an iterator of host batches for a range of steps, and a folder.
Data must depend on (seed, step) alone: then a run that was stopped goes on bit for bit.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax

from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from retro_jax.devices import sharding
from retro_jax.devices.compiled import compiled
from retro_jax.model import parameters
from retro_jax.model.parameters import Parameters
from retro_jax.runs import checkpoints, metrics, preemption
from retro_jax.training.batch import Batch, to_devices
from retro_jax.training.encodings import Encodings
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import TrainState, first_state, initial_state
from retro_jax.training.training_log import TrainingLog


def train(
    model_cfg: ModelConfig,
    optimizer_cfg: OptimizerConfig,
    cfg: TrainConfig,
    mesh,
    batches_from: Callable[[int], Iterator[Batch]],
    workdir: Path,
    run: dict,
    *,
    told: Mapping = MappingProxyType({}),
    trained: frozenset[str] | None = None,
    backbone: Parameters | None = None,
    encodings: Encodings | None = None,
    saved: Callable[[int], None] = lambda step: None,
) -> TrainState:
    """Trains to `cfg.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        batches_from: batches from a step on, the rows of this process.
        workdir: gets `checkpoints/` and `metrics/`.
        run: JSON that a checkpoint must agree with to be gone on from.
        told: JSON that checkpoints also keep, and that may be another by then.
        trained: names of the parameters that are trained; all, if not given.
        backbone: parameters to begin with (`retrofit.py`); used up.
        encodings: what texts and neighbours are read as, where CCA alone is trained.
        saved: is told of each step in every process, once its checkpoint is whole.
    Raises:
        ValueError: for another run's checkpoint, or a batch that the mesh can't split.
        FloatingPointError: for more than `cfg.max_skipped_steps` steps that are not finite.
        preemption.Preempted: after SIGTERM, once the checkpoint is on disk.
        OSError: if a checkpoint can't be written.
    """
    sharding.check_batch("train.batch_size", cfg.batch_size, mesh, cfg.accumulation)
    optimizer = make_optimizer(optimizer_cfg, cfg.steps)
    new = functools.partial(initial_state, model_cfg, optimizer, cfg.seed, trained)
    shardings = sharding.state_shardings(jax.eval_shape(new), mesh)
    keeper = _keeper(workdir, cfg, saved)
    with contextlib.closing(keeper), jax.set_mesh(mesh):
        step, train_state = _begin_or_go_on(new, shardings, keeper, run, backbone, cfg)
        update = _update(model_cfg, optimizer, cfg, trained, shardings)
        log = TrainingLog(workdir / "metrics", optimizer_cfg, cfg, step)
        with contextlib.closing(log), preemption.watch() as reached:
            batches = batches_from(step)
            while step < cfg.steps:
                batch = log.timed(lambda: next(batches))
                if encodings is not None:
                    batch = encodings.added_to(train_state["params"], batch)
                on_devices = to_devices(model_cfg, batch, mesh)
                train_state, sums = update(train_state, on_devices)
                step += 1
                log.after_step(step, sums)
                keeper.check()
                stop = reached(step)
                if stop or step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    log.flush()  # stops here if too many steps were not finite
                    keeper.save(step, train_state, {**run, **told, "step": step})
                if stop and step < cfg.steps:
                    keeper.wait()
                    raise preemption.Preempted(step)
    return train_state


def _keeper(
    workdir: Path, cfg: TrainConfig, saved: Callable[[int], None]
) -> checkpoints.Checkpoints:
    return checkpoints.Checkpoints(
        workdir / "checkpoints", keep=cfg.keep_checkpoints, saved=saved
    )


def _begin_or_go_on(make_state, shardings, keeper, run, backbone, cfg: TrainConfig):
    """The step that was reached before, and its state."""
    if keeper.latest_step() is None:
        step, train_state = 0, first_state(make_state, shardings, backbone)
    else:
        shapes = jax.eval_shape(make_state)
        step, train_state = keeper.restore(checkpoints.abstract(shapes, shardings), run)
    metrics.say(_opening_line(train_state, step, cfg.steps))
    return step, train_state


def _update(model_cfg, optimizer, cfg: TrainConfig, trained, shardings):
    """Gives the update, which is compiled once for each kind of batch."""
    step_fn = functools.partial(
        train_step, model_cfg, optimizer, cfg.accumulation, trained=trained
    )
    jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))
    known: dict = {}  # for batches with neighbours, with what is kept and without

    def update(train_state: TrainState, batch):
        names = frozenset(batch)
        if names not in known:
            known[names] = compiled(jitted, train_state, batch)
        return known[names](train_state, batch)

    return update


def _opening_line(train_state: TrainState, step: int, steps: int) -> str:
    params = train_state["params"]
    millions = parameters.num_parameters(params) / 1e6
    doing = "training" if step == 0 else f"going on from step {step}"
    return f"{millions:.1f}M parameters; {doing} to step {steps}"
