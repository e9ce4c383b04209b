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

from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig, WatchConfig
from retro_jax.devices import sharding
from retro_jax.devices.compiled import compiled
from retro_jax.model import parameters
from retro_jax.model.parameters import Parameters
from retro_jax.runs import checkpoints, goodput, metrics, preemption
from retro_jax.training.batch import Batch, to_devices
from retro_jax.training.encodings import Encodings
from retro_jax.training.optimizer import make_optimizer
from retro_jax.training.step import train_step
from retro_jax.training.train_state import TrainState, first_state, initial_state
from retro_jax.training.training_log import TrainingLog

_NO_MORE = WatchConfig()


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
    watch: WatchConfig = _NO_MORE,
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
        watch: what else is shown of the run.
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
    step_fn = functools.partial(
        train_step, model_cfg, optimizer, cfg.accumulation, trained=trained
    )
    folder, kept = workdir / "metrics", workdir / "checkpoints"
    keeper = checkpoints.Checkpoints(kept, keep=cfg.keep_checkpoints, saved=saved)
    with (
        goodput.measured(folder, writes=jax.process_index() == 0) as stopwatch,
        _closing_in("checkpoint", stopwatch, keeper),
        jax.set_mesh(mesh),
    ):
        step, train_state = _begin_or_go_on(new, shardings, keeper, run, backbone, cfg)
        stopwatch.resumed(step)
        log = TrainingLog(folder, optimizer_cfg, cfg, step, stopwatch, watch, run)
        inputs = functools.partial(_inputs, model_cfg, mesh, encodings)
        update = _update(step_fn, shardings, inputs, stopwatch)
        batches, told = batches_from(step), {**run, **told}
        with contextlib.closing(log), preemption.watch() as reached:
            stopwatch.enter("steps")
            return _to_the_end(
                step, train_state, update, batches, cfg, keeper, told, log, reached
            )


def _to_the_end(
    step: int,
    train_state: TrainState,
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    batches: Iterator[Batch],
    cfg: TrainConfig,
    keeper: checkpoints.Checkpoints,
    told: dict,
    log: TrainingLog,
    reached: Callable[[int], bool],
) -> TrainState:
    """Takes the steps that are left, and saves where the settings or a signal say so.

    Args:
        update: gives the state after a step, and the step's sums.
        told: JSON that checkpoints keep.
        reached: is told of each step, and says whether to stop there.
    """
    while step < cfg.steps:
        with log.step(step + 1):
            train_state, sums = update(train_state, log.timed(lambda: next(batches)))
        step += 1
        log.after_step(step, sums)
        keeper.check()
        stop = reached(step)
        if stop or step % cfg.checkpoint_every == 0 or step == cfg.steps:
            log.flush()  # stops here if too many steps were not finite
            with log.stopwatch.part("checkpoint"):
                keeper.save(step, train_state, {**told, "step": step})
        if stop and step < cfg.steps:
            with log.stopwatch.part("checkpoint"):
                keeper.wait()
            raise preemption.Preempted(step)
    return train_state


@contextlib.contextmanager
def _closing_in(part: str, stopwatch: goodput.Stopwatch, closed) -> Iterator[None]:
    """Closes something at the end of the block, and counts how long that takes."""
    try:
        yield
    finally:
        with stopwatch.part(part):
            closed.close()


def _begin_or_go_on(make_state, shardings, keeper, run, backbone, cfg: TrainConfig):
    """The step that was reached before, and its state."""
    if keeper.latest_step() is None:
        step, train_state = 0, first_state(make_state, shardings, backbone)
    else:
        shapes = jax.eval_shape(make_state)
        step, train_state = keeper.restore(checkpoints.abstract(shapes, shardings), run)
    metrics.say(_opening_line(train_state, step, cfg.steps))
    return step, train_state


def _inputs(
    model_cfg: ModelConfig, mesh, encodings: Encodings | None, params: Parameters, batch
):
    """What a step reads of a batch, on the devices."""
    if encodings is not None:
        batch = encodings.added_to(params, batch)
    return to_devices(model_cfg, batch, mesh)


def _update(step_fn, shardings, inputs, stopwatch: goodput.Stopwatch):
    """Gives the update, which is compiled once for each kind of batch."""
    jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))
    known: dict = {}  # for batches with neighbours, with what is kept and without

    def update(train_state: TrainState, batch: Batch):
        read = inputs(train_state["params"], batch)
        names = frozenset(read)
        if names not in known:
            with stopwatch.part("compile"):
                known[names] = compiled(jitted, train_state, read)
        return known[names](train_state, read)

    return update


def _opening_line(train_state: TrainState, step: int, steps: int) -> str:
    params = train_state["params"]
    millions = parameters.num_parameters(params) / 1e6
    doing = "training" if step == 0 else f"going on from step {step}"
    return f"{millions:.1f}M parameters; {doing} to step {steps}"
