"""A retrofit: a trained baseline becomes a RETRO, whose encoder and CCA are new.

The baseline's parameters become the decoder's, under the same names; what a baseline lacks
starts at random, but for CCA's output projection, which starts at zero. So step 0 is the
baseline, bit for bit, with retrieval as without. (In float32. Where XLA fuses bfloat16
operations it keeps more digits than were asked for, and with CCA between them others are
fused; XLA_FLAGS=--xla_allow_excess_precision=false makes that exact as well.) While the
backbone is frozen the model without retrieval stays the baseline for ever, in any dtype:
no gradient of a frozen parameter is computed, none has optimizer slots or decays.

With `copy_init` CCA starts as the copier of `mimetic.py` that has yet to be switched on:
it looks at the right token and carries its embedding, and the first thing that is learnt
is how much of it to add. Finding the token is the hard part, adding it is linear.

Source: Borgeaud et al. 2022, section 4.2; zero output projections are ours.
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import jax

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters
from retro_jax.runs import checkpoints, fingerprints

# Fields that say nothing about a baseline, or only how it is computed.
_NOT_OF_THE_BACKBONE = {
    *("cca_layers", "chunk_len", "neighbour_len", "share_embeddings", "copy_init"),
    *("cca_positions", "neighbour_part", "attention", "dtype", "remat"),
    "scan_layers",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """A trained baseline that a RETRO starts from.

    Attributes:
        step: of its checkpoint.
        params: its parameters, on the devices.
        fingerprint: of their names, shapes and bits, wherever they are stored.
    """

    step: int
    params: parameters.Parameters
    fingerprint: str


def new_names(cfg: ModelConfig) -> frozenset[str]:
    """The parameters that a RETRO has and its baseline lacks: encoder and CCA."""
    return frozenset(_shapes(cfg).keys() - _shapes(_baseline(cfg)).keys())


def _baseline(cfg: ModelConfig) -> ModelConfig:
    return dataclasses.replace(cfg, cca_layers=())


def _shapes(cfg: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return parameters.named(parameters.skeleton(dataclasses.replace(cfg)))


def load(path: Path, cfg: ModelConfig, mesh, run: dict) -> Baseline:
    """Reads a baseline's parameters, once it is sure that they fit.

    Args:
        path: a run's folder, its `checkpoints`, or one numbered checkpoint in there; the
            newest, if none is named. Nothing in it is changed.
        cfg: of the RETRO.
        run: of the RETRO; the checkpoint must have the same 'tokenizer'.
    Raises:
        ValueError: if there is no checkpoint, or it does not fit; names what differs
            first. Nothing has been compiled by then.
    """
    folder, step = find(path)
    keeper = checkpoints.Checkpoints(folder, keep=None)
    with contextlib.closing(keeper) as saved:
        name = f"init_from {folder}/{step}"
        _check_run(name, saved.run_of(step), cfg, run)
        shapes = _shapes(_baseline(cfg))
        _check_shapes(name, saved.shapes(step), shapes)
        wanted = checkpoints.abstract(shapes, sharding.state_shardings(shapes, mesh))
        _, restored = saved.restore({"params": wanted}, {}, step=step, part=True)
    params = restored["params"]
    return Baseline(step, params, fingerprint(params))


def find(path: Path) -> tuple[Path, int]:
    """The folder of checkpoints that a path means, and the step.

    Raises:
        ValueError: if there is no folder or no finished checkpoint in it.
    """
    what = "give the folder of a trained baseline by --config.init_from=WORKDIR"
    if not path.is_dir():
        raise ValueError(f"init_from: there is no folder {path}; {what}")
    if path.name.isdigit() and (path / "state").is_dir():
        return path.parent, int(path.name)
    inner = path / "checkpoints"
    folder = inner if inner.is_dir() else path
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
    if not steps:
        raise ValueError(f"init_from: no checkpoint in {folder}; {what}")
    return folder, max(steps)


def _check_run(name: str, saved: dict, cfg: ModelConfig, run: dict) -> None:
    """Raises ValueError, naming the first thing by which a checkpoint does not fit."""
    model = saved.get("model", {})
    if model.get("cca_layers"):
        raise ValueError(
            f"{name} is a RETRO (model.cca_layers = {model['cca_layers']}): init_from "
            "takes a baseline, trained with cca_layers=()"
        )
    there, here = saved.get("tokenizer"), run.get("tokenizer")
    if there != here:
        raise ValueError(
            f"{name} was trained with tokenizer {there}, this run has {here}: "
            "the same tokens must mean the same text. Build the database with "
            "the baseline's tokenizer (--config.data.tokenizer=FILE)"
        )
    defaults = {field.name: field.default for field in dataclasses.fields(cfg)}
    for field, value in json.loads(json.dumps(dataclasses.asdict(cfg))).items():
        there = model.get(field, defaults[field])
        of_backbone = field not in _NOT_OF_THE_BACKBONE and "encoder" not in field
        if model and of_backbone and there != value:
            raise ValueError(
                f"{name} has model.{field} = {there!r}, this run has {value!r}: a "
                "RETRO's decoder is its baseline's"
            )


def _check_shapes(name: str, shapes: dict, wanted: dict) -> None:
    for parameter in sorted(shapes.keys() ^ wanted.keys()):
        has = "lacks" if parameter in wanted else "is no baseline of this model: it has"
        raise ValueError(f"{name} {has} {parameter}")
    for parameter, array in wanted.items():
        if shapes[parameter] != array.shape:
            raise ValueError(
                f"{name} has {parameter} {shapes[parameter]}, this run's model "
                f"{array.shape}"
            )


def fingerprint(params: parameters.Parameters) -> str:
    """Gives 16 hexadecimal digits that change with any bit, the same on any mesh.

    Against mix-ups, not against malice.
    """
    found, _ = fingerprints.examine(params)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
