"""One experiment: its data, its model, how it is trained and how it is judged."""

import dataclasses
import json
import math

from data_pipeline.config import DataConfig
from retro_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class EvaluationConfig:
    """What is measured on held-out documents, and what is generated."""

    split: str = "test"  # validation | test
    batch_size: int = 8  # sequences
    max_sequences: int = 0  # of the split; 0 = all
    num_samples: int = 3  # continuations of held-out documents in the report
    sample_tokens: int = 64
    prompt: str = ""  # what --job=generate continues
    temperature: float = 0.0  # 0 = the likeliest token
    top_p: float = 0.95
    seed: int = 0  # of random neighbours, of the bootstrap and of sampling

    def validate(self) -> None:
        """Raises ValueError, naming the field, if it can't be measured so."""
        if self.split not in ("validation", "test"):
            raise ValueError(
                f"evaluation.split must be validation or test, is {self.split!r}"
            )
        counts = ("max_sequences", "num_samples", "sample_tokens", "seed")
        for name, least in {"batch_size": 1, **dict.fromkeys(counts, 0)}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"evaluation.{name} must be at least {least}, is "
                    f"{getattr(self, name)}"
                )
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"evaluation.temperature must be at least 0, is {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"evaluation.top_p must be in (0, 1], is {self.top_p}")


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class Experiment:
    """All settings of a run. A config file's `get_config(arg)` returns one."""

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    init_from: str = ""  # a baseline's workdir or checkpoint, to retrofit (retrofit.py)

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the parts do not fit together."""
        self.data.validate()
        self.model.validate()
        self.optimizer.validate()
        self.train.validate()
        self.evaluation.validate()
        for name in ("chunk_len", "neighbour_len"):
            of_data, of_model = getattr(self.data, name), getattr(self.model, name)
            if of_data != of_model:
                raise ValueError(
                    f"data.{name} is {of_data} and model.{name} is {of_model}: they "
                    "must be equal"
                )
        if self.init_from and not self.model.cca_layers:
            raise ValueError(
                f"init_from is {self.init_from!r}, but model.cca_layers is empty: it "
                "starts a RETRO from a baseline, and this model is a baseline itself"
            )

    def set_vocab_size(self, vocab_size: int) -> None:
        """Fits the model to a tokenizer; rounded up, so that a mesh can divide it."""
        self.model.vocab_size = -(-vocab_size // 128) * 128

    def identity(self) -> dict:
        """What a checkpoint must agree with to be gone on from, as JSON.

        Not the number of steps, so that a run can be made longer, nor what only says how
        often something is written or when to give up. What a retrofit starts from is
        added when it is known (`Job.train`).
        """
        settings = dataclasses.asdict(self)
        for name in (
            "steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "freeze",
            "max_skipped_steps",
        ):
            del settings["train"][name]
        kept = {part: settings[part] for part in ("model", "optimizer", "train")}
        return json.loads(json.dumps(kept))

    def model_identity(self) -> dict:
        """What a checkpoint must agree with to be evaluated, as JSON.

        Its parameters' shapes and meaning: neither how they were trained, nor with which
        neighbours, nor what only makes the model faster.
        """
        kept = self.identity()["model"]
        for name in ("attention", "copy_init", "dtype", "remat", "scan_layers"):
            del kept[name]
        return {"model": kept}


def setting_names() -> list[str]:
    """All settings of an experiment, as "model.depth"."""
    names = []
    for part in dataclasses.fields(Experiment):
        if dataclasses.is_dataclass(part.type):
            names += [f"{part.name}.{f.name}" for f in dataclasses.fields(part.type)]
        else:
            names.append(part.name)
    return names
