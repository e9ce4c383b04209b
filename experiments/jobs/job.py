"""A run's jobs: to train a model, to evaluate it and to generate text with it."""

from collections.abc import Callable
from pathlib import Path

from data_pipeline.database import Database
from data_pipeline.storage.files import read_json
from data_pipeline.storage.progress import say
from data_pipeline.text.tokenizer import Tokenizer
from experiments.config import Experiment
from experiments.jobs import continuations, reading, run
from experiments.jobs.evaluation import Evaluation
from experiments.jobs.remote_database import NoDatabase, RemoteDatabase
from experiments.jobs.training import Training
from retro_jax.devices import sharding
from retro_jax.model import parameters


class Job:
    """What can be done with one run."""

    def __init__(self, cfg: Experiment, workdir: Path, database: Path):
        """Raises ValueError if there is no database or it was made for other settings."""
        self.run = run.Run(cfg, workdir, database)

    @property
    def database(self) -> Database:
        """The database that the run reads."""
        return self.run.database

    def train(
        self, *, restart: bool, saved: Callable[[int], None] = lambda step: None
    ) -> None:
        """Trains to the last step; see `Training.train`."""
        Training(self.run).train(restart=restart, saved=saved)

    def evaluate(self) -> None:
        """Measures retrieval on, off and random on held-out text; writes the report."""
        Evaluation(self.run).evaluate()

    def trained(self) -> parameters.Parameters:
        """The parameters of the newest whole checkpoint."""
        _, params = self.run.restored()
        return params

    def generate(self) -> None:
        """Continues the prompt and prints the text with its sources."""
        params = self.trained()
        _generate(self.run.cfg, params, self.database, self.run.workdir)


def trained_with(
    cfg: Experiment, workdir: Path, database: RemoteDatabase
) -> parameters.Parameters:
    """The parameters of a run, for which a service finds passages.

    Raises:
        ValueError: if the model in the workdir was not trained with the tokenizer and the
            chunk length of the service's database, or with other settings.
    """
    run.check_chunk_len(cfg, database.address, database.chunk_len)
    trained = read_json(workdir / "run.json") or {}
    database.check_trained_with(trained.get("tokenizer"), workdir)
    cfg.set_vocab_size(database.tokenizer.vocab_size)
    identity = {**cfg.model_identity(), "tokenizer": database.tokenizer.fingerprint}
    mesh = sharding.make_mesh(cfg.mesh)
    _, params = run.restore(cfg, mesh, workdir, identity)
    return params


def generate_from_service(
    cfg: Experiment, workdir: Path, database: RemoteDatabase
) -> None:
    """Continues the prompt, as `Job.generate` does, with passages that a service finds.

    Raises as `trained_with`.
    """
    params = trained_with(cfg, workdir, database)
    _generate(cfg, params, database, workdir)


def trained_model(
    cfg: Experiment, workdir: Path
) -> tuple[Tokenizer, parameters.Parameters]:
    """The tokenizer and the parameters of a run, for which no database is needed.

    Raises:
        ValueError: if the workdir holds no model, or no tokenizer.
    """
    path = workdir / run.TOKENIZER
    if not path.exists():  # a run of before this file was written
        path = workdir / "database" / "tokenizer" / "all" / run.TOKENIZER
    if not path.exists():
        raise ValueError(
            f"{workdir} has no {run.TOKENIZER}, without which there is no text: copy the "
            "database's tokenizer/all/tokenizer.model there"
        )
    tokenizer = Tokenizer.load(path)
    cfg.set_vocab_size(tokenizer.vocab_size)
    identity = {**cfg.model_identity(), "tokenizer": tokenizer.fingerprint}
    _, params = run.restore(cfg, sharding.make_mesh(cfg.mesh), workdir, identity)
    return tokenizer, params


def generate_without_retrieval(cfg: Experiment, workdir: Path) -> None:
    """Continues the prompt with no passages: needs neither a database nor a service.

    Raises:
        ValueError: if the workdir holds no model, or no tokenizer.
    """
    tokenizer, params = trained_model(cfg, workdir)
    say("retrieval is off: the model reads no passages")
    _generate(cfg, params, NoDatabase(tokenizer), workdir)


def _generate(
    cfg: Experiment,
    params: parameters.Parameters,
    database: Database | RemoteDatabase | NoDatabase,
    workdir: Path,
) -> None:
    limits = reading.limits(cfg, workdir)
    prompt = cfg.evaluation.prompt
    sample = continuations.continuation(cfg, params, database, prompt, limits)
    continuations.print_continuation(sample, say)
