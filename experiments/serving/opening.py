"""What a server serves, of a model, its settings and its database."""

import dataclasses
from collections.abc import Collection

from data_pipeline.database import Database
from experiments.config import Experiment
from experiments.jobs import continuations, reading
from experiments.jobs.remote_database import NoDatabase, RemoteDatabase
from experiments.serving import page_files
from experiments.serving.answers import Limits
from experiments.serving.app import Served
from experiments.serving.passages import Passages
from experiments.serving.scheduler import Scheduler
from retro_jax.continuous_batching import ContinuousBatch
from retro_jax.model import parameters

_FEW = (1, 4)  # rows of a step that are compiled beside the most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is served.

    Attributes:
        name: what clients call it.
        key: what they must send as a bearer token.
        hosts: names by which the server may be called; None = all.
        can_change: whether clients may change documents.
        max_tokens, max_time_s: see `Limits`.
        max_waiting: texts that may wait for others.
        max_batch: texts that are written at once.
    """

    name: str
    key: str | None = None
    hosts: Collection[str] | None = None
    can_change: bool = False
    max_tokens: int = 4096
    max_time_s: float = 600.0
    max_waiting: int = 128
    max_batch: int = 8


def served(
    cfg: Experiment,
    params: parameters.Parameters,
    database: Database | RemoteDatabase | NoDatabase,
    settings: Settings,
    limits: reading.Limits = reading.ALL,
) -> Served:
    """What the application serves; the model's thread has begun.

    Args:
        limits: which passages are read.
    """
    passages = None
    if cfg.model.cca_layers and not isinstance(database, NoDatabase):
        passages = Passages(database, limits, can_change=settings.can_change)
    window_chunks, tokenizer = cfg.data.sequence_chunks, database.tokenizer
    most = settings.max_batch
    batch = ContinuousBatch(
        cfg.model,
        params,
        passages,
        window_chunks=window_chunks,
        num_neighbours=cfg.data.num_neighbours,
        vocab_size=tokenizer.vocab_size,
        encodings=continuations.encodings(cfg),
        overlapped=cfg.evaluation.overlapped,
        sizes=[*(size for size in _FEW if size < most), most],
    )
    return Served(
        name=settings.name,
        tokenizer=tokenizer,
        scheduler=Scheduler(batch, most_waiting=settings.max_waiting),
        passages=passages,
        limits=Limits(
            max_prompt_tokens=batch.window_tokens,
            max_tokens=settings.max_tokens,
            max_time_s=settings.max_time_s,
            max_texts=settings.max_waiting,
        ),
        chunk_len=cfg.model.chunk_len,
        window_tokens=batch.window_tokens,
        num_neighbours=cfg.data.num_neighbours if passages is not None else 0,
        page=page_files.files(),
        page_headers=page_files.HEADERS,
        key=settings.key,
        hosts=None if settings.hosts is None else frozenset(settings.hosts),
    )
