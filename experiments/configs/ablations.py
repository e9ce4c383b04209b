r"""The paper's ablations (Table 13): one setting changed at a time.

    retro train --config=ablations:no_cca_positions \
        --workdir=DIR --database=DIR

The argument is a variant of `VARIANTS`; `VARIANT,tiny` changes the laptop's model (tiny.py)
in place of the paper's 172m. A variant `neighbours_N` needs a dataset with as many
neighbours: build the database with the same `--config`.
"""

from collections.abc import Callable

from experiments.config import Experiment
from experiments.configs import retro, tiny

_ABLATION_TOKENS = 157_000_000_000  # the paper's schedule for this table


def get_config(arg: str = "default") -> Experiment:
    """Gives the experiment of `VARIANT` or `VARIANT,tiny`."""
    variant, *options = arg.split(",")
    if options not in ([], ["tiny"]):
        raise ValueError(f"ablations.py knows VARIANT and VARIANT,tiny, not {arg!r}")
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ValueError(f"no ablation {variant!r}; there are {known}")
    cfg = tiny.get_config() if options else retro.get_config("172m")
    if options:
        # A copier's start would need what some variants take away.
        cfg.model.copy_init = cfg.model.share_embeddings = False
    else:
        tokens_of_a_step = cfg.train.batch_size * cfg.data.sequence_chunks * 64
        cfg.train.steps = _ABLATION_TOKENS // tokens_of_a_step
    VARIANTS[variant](cfg)
    return cfg


def _default(cfg: Experiment) -> None:
    pass


def _no_query_conditioning(cfg: Experiment) -> None:
    cfg.model.encoder_cca_layers = ()


def _no_cca_positions(cfg: Experiment) -> None:
    cfg.model.cca_positions = False


def _shared_embeddings(cfg: Experiment) -> None:
    cfg.model.share_embeddings = True
    cfg.model.encoder_width = cfg.model.width  # as they are at 172m


def _encoder_6_layers(cfg: Experiment) -> None:
    cfg.model.encoder_depth = 6


def _match_only(cfg: Experiment) -> None:
    cfg.model.neighbour_part = "match"


def _continuation_only(cfg: Experiment) -> None:
    cfg.model.neighbour_part = "continuation"


def _no_retrieval(cfg: Experiment) -> None:
    cfg.model.cca_layers = ()


def _neighbours(number: int) -> Callable[[Experiment], None]:
    def change(cfg: Experiment) -> None:
        cfg.data.num_neighbours = number

    return change


def _cca_at(*twelfths: int) -> Callable[[Experiment], None]:
    """CCA in these of 12 layers; in a model of another depth, at the same heights."""

    def change(cfg: Experiment) -> None:
        depth = cfg.model.depth
        layers = {max(1, twelfth * depth // 12) for twelfth in twelfths}
        cfg.model.cca_layers = tuple(sorted(layers))

    return change


# Table 13, in its order; the names are ours.
VARIANTS: dict[str, Callable[[Experiment], None]] = {
    "default": _default,
    "no_query_conditioning": _no_query_conditioning,
    "no_cca_positions": _no_cca_positions,
    "shared_embeddings": _shared_embeddings,
    "encoder_6_layers": _encoder_6_layers,
    "match_only": _match_only,
    "continuation_only": _continuation_only,
    "no_retrieval": _no_retrieval,
    "neighbours_1": _neighbours(1),
    "neighbours_4": _neighbours(4),
    "cca_1": _cca_at(1),
    "cca_6": _cca_at(6),
    "cca_12": _cca_at(12),
    "cca_all": _cca_at(*range(1, 13)),
    "cca_every_3_from_1": _cca_at(1, 4, 7, 10),
}
