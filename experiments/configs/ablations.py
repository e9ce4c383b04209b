r"""The paper's ablations (Table 13) and what it does not vary: one setting at a time.

    retro launch --config=ablations:smoke --sweep \
        --out=work/ablations-smoke
    retro train --config=ablations:no_cca_positions \
        --workdir=DIR --database=DIR

The argument is a row of `ROWS`, a scale of `SCALES`, or both (`match_only,small`); without a
scale it is `paper`, without a row `default`. The sweep of a scale has all rows, as often as
the scale has seeds. `smoke` shows that each row runs and no more; `small` is the laptop's
model, `gpu` one of twelve layers for half an hour, `paper` the 172m for pods.

CCA starts at random, as in the paper, but in the row `copier`.
"""

import dataclasses
from collections.abc import Callable, Mapping

from experiments.config import Experiment
from experiments.configs import retro, tiny

Settings = dict[str, object]  # of an experiment, as a sweep has them

_ABLATION_TOKENS = 157_000_000_000  # the paper's schedule for this table
_BASELINE = "no_retrieval"
_RETROFIT_SHARE = (
    4  # a retrofit trains a quarter of the steps that its baseline has had
)


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """What a row changes, and how often it is trained."""

    base: Callable[[], Experiment]
    seeds: int
    has_retrofits: bool = True  # they wait for a unit of the same launch


def get_config(arg: str = "default") -> Experiment:
    """Gives the experiment of `ROW`, `SCALE` or `ROW,SCALE`.

    Raises:
        ValueError: naming the rows and the scales, for another word.
    """
    row, scale = _named(arg)
    cfg = SCALES[scale].base()
    settings = ROWS[row](cfg)
    if "init_from" in settings:
        raise ValueError(
            f"{row} starts from the baseline of its sweep: launch with --sweep, or take "
            "tiny:retrofit or retro:172m,retrofit and name the baseline by init_from"
        )
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        setattr(getattr(cfg, part), field, value)
    return cfg


def _named(arg: str) -> tuple[str, str]:
    """The row and the scale that an argument names."""
    words = [word for word in arg.split(",") if word]
    rows = [word for word in words if word in ROWS]
    scales = [word for word in words if word in SCALES]
    unknown = [word for word in words if word not in (*rows, *scales)]
    if unknown or len(rows) > 1 or len(scales) > 1:
        raise ValueError(
            f"ablations:{arg} is not ROW, SCALE or ROW,SCALE; rows: {', '.join(ROWS)}; "
            f"scales: {', '.join(SCALES)}"
        )
    return (rows or ["default"])[0], (scales or ["paper"])[0]


def sweep(add: Callable[..., None], arg: str) -> None:
    """Gives a work unit for each row and seed of a scale."""
    _, scale = _named(arg)
    rows = rows_of(scale)
    for seed in range(SCALES[scale].seeds):
        for settings in rows.values():
            add(**settings, **{"train.seed": seed})


def rows_of(scale: str) -> Mapping[str, Settings]:
    """What each row of a scale's sweep changes, in their order."""
    cfg, found = SCALES[scale].base(), {}
    for row, change in ROWS.items():
        settings = change(cfg)
        if "init_from" not in settings or SCALES[scale].has_retrofits:
            found[row] = settings
    return found


def _paper() -> Experiment:
    cfg = retro.get_config("172m")
    tokens_of_a_step = (
        cfg.train.batch_size * cfg.data.sequence_chunks * cfg.data.chunk_len
    )
    cfg.train.steps = _ABLATION_TOKENS // tokens_of_a_step
    return cfg


def _small() -> Experiment:
    """The laptop's model, without the copier's start and what it needs."""
    cfg = tiny.get_config()
    cfg.model.copy_init = cfg.model.share_embeddings = False
    cfg.evaluation.num_samples = 0
    return cfg


def _gpu() -> Experiment:
    """Twelve layers, so that the heights of CCA are the paper's."""
    cfg = _small()
    model = cfg.model
    model.depth, model.cca_layers = 12, (6, 9, 12)
    model.width, model.ffw_width, model.num_heads = 256, 1024, 4
    model.encoder_depth, model.encoder_width, model.encoder_ffw_width = 2, 256, 512
    model.encoder_cca_layers = (1,)
    model.encoder_heads = 4
    cfg.optimizer.learning_rate = 1e-3
    cfg.train.steps, cfg.train.batch_size = 600, 32
    return cfg


def _smoke() -> Experiment:
    """Enough to see that a row runs, and far too little to say what it gives."""
    cfg = _small()
    data, model = cfg.data, cfg.model
    data.embedded_size_bytes = 100_000
    data.validation_share, data.test_share = 0.05, 0.25
    data.vocab_size = model.vocab_size = 512
    model.width, model.ffw_width = 64, 128
    model.encoder_width, model.encoder_ffw_width = 64, 128
    model.head_size = model.encoder_head_size = 32
    cfg.optimizer.warmup_steps = 2
    cfg.train.steps = cfg.train.checkpoint_every = 8
    cfg.train.log_every = 4
    cfg.evaluation.max_sequences = 16
    return cfg


def _change(**settings: object) -> Callable[[Experiment], Settings]:
    """The same settings for every scale; `model__depth` is `model.depth`."""
    named: Settings = {
        name.replace("__", "."): value for name, value in settings.items()
    }
    return lambda cfg: named


def _cca_at(*twelfths: int) -> Callable[[Experiment], Settings]:
    """CCA in these of 12 layers; in a model of another depth, at the same heights."""

    def change(cfg: Experiment) -> Settings:
        depth = cfg.model.depth
        layers = {max(1, twelfth * depth // 12) for twelfth in twelfths}
        return {"model.cca_layers": tuple(sorted(layers))}

    return change


def _shared_embeddings(cfg: Experiment) -> Settings:
    """One table needs one width, as they have at 172m."""
    return {"model.share_embeddings": True, "model.encoder_width": cfg.model.width}


def _chunks_of(tokens: int) -> Callable[[Experiment], Settings]:
    """Chunks of another length, neighbours of two of them, sequences as long as before."""

    def change(cfg: Experiment) -> Settings:
        length = cfg.data.sequence_chunks * cfg.data.chunk_len
        both = {"chunk_len": tokens, "neighbour_len": 2 * tokens}
        return {
            "data.sequence_chunks": length // tokens,
            **{f"data.{name}": value for name, value in both.items()},
            **{f"model.{name}": value for name, value in both.items()},
        }

    return change


def _copier(cfg: Experiment) -> Settings:
    return {"model.copy_init": True, **_shared_embeddings(cfg)}


def _retrofit(freeze: bool) -> Callable[[Experiment], Settings]:
    """The baseline of the same seed, with CCA that is trained a while longer."""

    def change(cfg: Experiment) -> Settings:
        (baseline,) = ROWS[_BASELINE](cfg).items()
        return {
            "init_from": "unit:{}={}".format(*baseline),
            "train.freeze": freeze,
            "train.steps": cfg.train.steps // _RETROFIT_SHARE,
        }

    return change


# Table 13 in its order, then what it does not have; the names are ours.
ROWS: dict[str, Callable[[Experiment], Settings]] = {
    "default": _change(),
    "no_query_conditioning": _change(model__encoder_cca_layers=()),
    "no_cca_positions": _change(model__cca_positions=False),
    "shared_embeddings": _shared_embeddings,
    "encoder_6_layers": _change(model__encoder_depth=6),
    "match_only": _change(model__neighbour_part="match"),
    "continuation_only": _change(model__neighbour_part="continuation"),
    "no_retrieval": _change(model__cca_layers=()),
    "neighbours_1": _change(data__num_neighbours=1),
    "neighbours_4": _change(data__num_neighbours=4),
    "cca_1": _cca_at(1),
    "cca_6": _cca_at(6),
    "cca_12": _cca_at(12),
    "cca_all": _cca_at(*range(1, 13)),
    "cca_every_3_from_1": _cca_at(1, 4, 7, 10),
    "cca_every_9": _cca_at(9),
    "chunks_of_32": _chunks_of(32),
    "chunks_of_128": _chunks_of(128),
    "copier": _copier,
    "copy_warm_up": _change(train__oracle_shares=(0.5, 0.1)),
    "retrofit_frozen": _retrofit(freeze=True),
    "retrofit_unfrozen": _retrofit(freeze=False),
}
TABLE_13 = tuple(ROWS)[:15]

SCALES = {
    "smoke": Scale(_smoke, seeds=1),
    "small": Scale(_small, seeds=5),
    "gpu": Scale(_gpu, seeds=1),
    "paper": Scale(_paper, seeds=1, has_retrofits=False),
}
