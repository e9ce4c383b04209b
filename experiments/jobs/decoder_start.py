"""The start of a run whose pretrained decoder reads neighbours itself.

The decoder's weights are read, its heads are looked at, and CCA inherits those that copy.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from data_pipeline.storage.progress import say
from experiments.config import Experiment
from retro_jax import pretrained
from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.model import copying_heads, inherited_cca
from retro_jax.model.parameters import Parameters
from retro_jax.training import head_gains, retrofit

# What a run may choose without its decoder becoming another.
_FREE = {
    *(
        "cca_layers",
        "chunk_len",
        "neighbour_len",
        "neighbour_part",
        "encoder",
        "bos_id",
    ),
    *("attention", "dtype", "remat", "scan_layers", "cca_positions"),
}


def start(
    cfg: Experiment,
    mesh: jax.sharding.Mesh,
    first_batch: Callable[[], Mapping[str, jax.Array]],
) -> retrofit.Baseline:
    """Gives the parameters of step 0: the decoder's, and those that CCA inherits.

    Layers and heads that `cfg` leaves open are chosen, and written into it.

    Args:
        first_batch: gives what training begins with, on the mesh; called where heads are
            chosen by it.

    Raises:
        ValueError: if the decoder can't be read, is not the one of `cfg.model`, or copies
            with no head.
    """
    path = Path(cfg.init_from)
    say(f"decoder: reading {path}")
    found = pretrained.load(path)
    _check(cfg, found)
    decoder = dataclasses.replace(cfg.model, cca_layers=())
    backbone = _on_mesh(found.params, mesh)
    with jax.set_mesh(mesh):
        _choose(cfg, decoder, backbone, first_batch)
    return retrofit.Baseline(0, with_cca(cfg, backbone, mesh), found.fingerprint)


def with_cca(
    cfg: Experiment, backbone: Parameters, mesh: jax.sharding.Mesh
) -> Parameters:
    """The decoder's parameters and those that CCA starts with."""
    with jax.set_mesh(mesh):
        new = inherited_cca.cca_parameters(
            dataclasses.replace(cfg.model),
            cfg.retrofit,
            backbone,
            cfg.retrofit.open_heads,
            cfg.train.seed,
        )
    return {**backbone, **_on_mesh(new, mesh)}


def _choose(
    cfg: Experiment,
    decoder: ModelConfig,
    backbone: Parameters,
    first_batch: Callable[[], Mapping[str, jax.Array]],
) -> None:
    """Decides what `cfg` leaves open by what the decoder's heads do."""
    if cfg.model.cca_layers and cfg.retrofit.open_heads:
        return
    if cfg.retrofit.chosen_by == "gradient":
        scores_TH = head_gains.head_gains(decoder, backbone, first_batch())
    else:
        scores_TH = copying_heads.copying_scores(decoder, backbone, seed=cfg.train.seed)
    if not cfg.model.cca_layers:
        cfg.model.cca_layers = copying_heads.layers_that_copy(cfg.retrofit, scores_TH)
    if cfg.retrofit.open_heads:  # by hand: they are checked where they are used
        say(f"layers that get CCA: {', '.join(map(str, cfg.model.cca_layers))}")
        return
    cfg.retrofit.open_heads = copying_heads.heads_that_copy(
        cfg.retrofit, scores_TH, cfg.model.cca_layers
    )
    what = {"copying": "copy", "gradient": "gain"}[cfg.retrofit.chosen_by]
    for layer, heads in zip(
        sorted(cfg.model.cca_layers), cfg.retrofit.open_heads, strict=True
    ):
        of_heads = ", ".join(
            f"{head} ({scores_TH[layer - 1, head]:.2f})" for head in heads
        )
        say(
            f"layer {layer} gets CCA; heads that {what}, and how much: "
            f"{of_heads or 'none'}"
        )


def _on_mesh(params: Mapping, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Puts each array where its letters say; one that lies elsewhere is let go."""
    placed = {}
    for name, array in params.items():
        shardings = sharding.state_shardings({name: array}, mesh)
        placed[name] = jax.device_put(np.asarray(array), shardings[name])
    return placed


def _check(cfg: Experiment, found: pretrained.Pretrained) -> None:
    """Raises ValueError, naming a field, if the decoder is not the one of the settings."""
    for field in dataclasses.fields(found.model):
        there, here = getattr(found.model, field.name), getattr(cfg.model, field.name)
        of_encoder = field.name.startswith("encoder")
        if field.name not in _FREE and not of_encoder and there != here:
            raise ValueError(
                f"{cfg.init_from} has model.{field.name} = {there!r}, this run has "
                f"{here!r}: leave to the decoder what belongs to it"
            )
