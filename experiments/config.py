"""One experiment: its data, its model, how it is trained and how it is judged."""

import ast
import dataclasses
import inspect
import io
import json
import math
import re
import tokenize
from typing import Any

from data_pipeline.config import DataConfig
from retro_jax.config import (
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RetrofitConfig,
    TrainConfig,
    WatchConfig,
)

# Ways to read a text and a database: `experiments/jobs/measurement.py`.
CONDITIONS = (
    "off",
    "on",
    "untrained",
    "random",
    "shuffled",
    "match",
    "continuation",
    "oracle",
    "stale",
    "knn",
)


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class EvaluationConfig:
    """What is measured on held-out documents, and what is generated."""

    split: str = "test"  # what is measured: validation | test
    # other text that is measured instead, a corpus as data.corpus names one: any text
    # against any --database
    held_out: str = ""
    # the file in the run's folder evaluation/ that gets the results; '' = results, which
    # the report shows, or the name of the held-out text
    name: str = ""
    # what is measured: off, on, untrained (a retrofit before training), random (passages),
    # shuffled (those of other sequences), match or continuation (that part of a passage
    # alone), oracle (the true text), stale (those of the chunk before), knn (kNN-LM)
    conditions: tuple[str, ...] = ("off", "on", "untrained", "random")
    # retrieval on with so many neighbours, a number after the other: "(0, 1, 2, 10)"
    neighbours: tuple[int, ...] = ()
    # retrieval on with these shares of the database's documents: "(0.1, 0.5, 1.0)"
    database_shares: tuple[float, ...] = ()
    # chunks of the database, of whole documents, among whose tokens knn looks; 0 = all
    knn_chunks: int = 0
    # chunks from one window of held-out text to the next; 0 = half a window
    stride_chunks: int = 0
    # measure also on the chunks of which no 13 tokens in a row stand in the database
    decontaminate: bool = False
    detokenise: bool = (
        False  # held_out is WikiText: score it as it was before its tokens
    )
    batch_size: int = 8  # sequences measured at once, over all devices
    # sequences that are measured, from all over the split; 0 = all
    max_sequences: int = 0
    # of them, how many are measured with the passages in the prompt instead; 0 = none
    prompt_sequences: int = 0
    # squared distance above which a passage counts as absent; 0 = as chosen on the
    # validation split
    max_distance: float = 0.0
    # of a chunk; what fewer have found counts as absent; 0 = as chosen
    least_tokens: int = 0
    num_facts: int = 0  # questions that documents of the Factbook's form answer
    num_samples: int = 3  # continuations of held-out documents in the report
    sample_tokens: int = 64  # tokens of a continuation
    prompt: str = ""  # what --job=generate continues
    chat: bool = False  # the prompt is a question to an instruction model
    retrieval: bool = True  # for continuations; off, they need no database or service
    temperature: float = 0.0  # of sampling; 0 = always the likeliest token
    top_p: float = 0.95  # the likeliest tokens that have this share are sampled from
    top_k: int = 0  # so many likeliest tokens are sampled from; 0 = all
    min_p: float = 0.0  # tokens with this share of the likeliest one's are sampled from
    repetition_penalty: float = (
        1.0  # divides the logits of tokens that stand in the text
    )
    presence_penalty: float = 0.0  # less for the logits of tokens that were generated
    frequency_penalty: float = 0.0  # the same, for each time that they were
    # passages are looked for while a chunk is written, and read one chunk later
    overlapped: bool = False
    stop: tuple[str, ...] = ()  # texts that end a continuation, and are not shown
    # how much likelier each passage made what was said; a pass more for each
    effects: bool = False
    seed: int = 0  # of random neighbours, of the bootstrap and of sampling

    def validate(self) -> None:
        """Raises ValueError, naming the field, if it can't be measured so."""
        if self.split not in ("validation", "test"):
            raise ValueError(
                f"evaluation.split must be validation or test, is {self.split!r}"
            )
        counts = (
            "max_sequences",
            "prompt_sequences",
            "num_samples",
            "sample_tokens",
            "top_k",
            "seed",
            "stride_chunks",
            "knn_chunks",
        )
        for name, least in {"batch_size": 1, **dict.fromkeys(counts, 0)}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"evaluation.{name} must be at least {least}, is "
                    f"{getattr(self, name)}"
                )
        self._validate_conditions()
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"evaluation.temperature must be at least 0, is {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"evaluation.top_p must be in (0, 1], is {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"evaluation.min_p must be in 0..1, is {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                "evaluation.repetition_penalty must be above 0, is "
                f"{self.repetition_penalty}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(
                    f"evaluation.{name} must be in -2..2, is {getattr(self, name)}"
                )
        if "" in self.stop:
            raise ValueError("evaluation.stop must hold texts, one of them is empty")

    def _validate_conditions(self) -> None:
        for name in self.conditions:
            if name not in CONDITIONS:
                raise ValueError(
                    f"evaluation.conditions must be of {', '.join(CONDITIONS)}; one is "
                    f"{name!r}"
                )
        if not all(type(count) is int and count >= 0 for count in self.neighbours):
            raise ValueError(
                "evaluation.neighbours must be whole numbers from 0, are "
                f"{self.neighbours}"
            )
        if not all(0 < share <= 1 for share in self.database_shares):
            raise ValueError(
                f"evaluation.database_shares must be in (0, 1], are {self.database_shares}"
            )
        if self.name in (".", "..") or not re.fullmatch(r"[\w.-]*", self.name):
            raise ValueError(
                "evaluation.name must be letters, digits and _.- alone, is "
                f"{self.name!r}"
            )


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class Experiment:
    """All settings of a run. A config file's `get_config(arg)` returns one."""

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    retrofit: RetrofitConfig = dataclasses.field(default_factory=RetrofitConfig)
    watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)
    # workdir or checkpoint of a baseline to retrofit; or, where the decoder reads
    # neighbours itself, a pretrained decoder: a folder or a .gguf file
    init_from: str = ""

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the parts do not fit together."""
        self.data.validate()
        self.model.validate()
        self.optimizer.validate()
        self.train.validate()
        self.evaluation.validate()
        self.retrofit.validate()
        self.watch.validate(self.train.steps)
        for name in ("chunk_len", "neighbour_len"):
            of_data, of_model = getattr(self.data, name), getattr(self.model, name)
            if of_data != of_model:
                raise ValueError(
                    f"data.{name} is {of_data} and model.{name} is {of_model}: they "
                    "must be equal"
                )
        if self.model.encoder == "decoder" and not self.init_from:
            raise ValueError(
                "model.encoder=decoder starts from a pretrained decoder: name one by "
                "--config.init_from"
            )
        if self.init_from and not self.has_cca:
            raise ValueError(
                f"init_from is {self.init_from!r}, but model.cca_layers is empty: it "
                "starts a RETRO from a baseline, and this model is a baseline itself"
            )

    @property
    def has_cca(self) -> bool:
        """Whether the model reads neighbours; a decoder's layers may yet be to be chosen."""
        return bool(self.model.cca_layers) or self.model.encoder == "decoder"

    def set_vocab_size(self, vocab_size: int) -> None:
        """Fits the model to a tokenizer; rounded up, so that a mesh can divide it.

        Raises:
            ValueError: if a pretrained decoder knows fewer tokens than the tokenizer.
        """
        if self.model.encoder == "decoder":
            if vocab_size > self.model.vocab_size:
                raise ValueError(
                    f"the database's tokenizer has {vocab_size} tokens and the decoder "
                    f"{self.init_from} knows {self.model.vocab_size}: build the database "
                    "with the decoder's own (data.tokenizer)"
                )
            return
        self.model.vocab_size = -(-vocab_size // 128) * 128

    def identity(self) -> dict:
        """What a checkpoint must agree with to be gone on from, as JSON.

        Not the number of steps, so that a run can be made longer, nor what only says how
        often something is written or when to give up. What a retrofit starts from is
        added when it is known (`Run.begin`).
        """
        settings = dataclasses.asdict(self)
        for name in (
            "steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "freeze",
            "max_skipped_steps",
            "encodings_bytes",
            "encodings_folder",
            "encodings_folder_bytes",
        ):
            del settings["train"][name]
        parts = ["model", "optimizer", "train"]
        if self.model.encoder == "decoder":
            parts.append("retrofit")
        kept = {part: settings[part] for part in parts}
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


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A field of an experiment, as a command's help shows it."""

    name: str  # "model.depth"
    type: str
    value: object  # dataclasses.MISSING where only a config file gives one
    meaning: str  # the comment that stands beside the field


def settings(cfg: Experiment | None = None) -> list[Setting]:
    """All settings, with their values in `cfg`, or else with their defaults."""
    parts = {
        field.name: field.type
        for field in dataclasses.fields(Experiment)
        if dataclasses.is_dataclass(field.type)
    }
    found = [
        setting
        for name, part in parts.items()
        for setting in _fields(part, f"{name}.", cfg and getattr(cfg, name))
    ]
    return found + [s for s in _fields(Experiment, "", cfg) if s.name not in parts]


def _fields(part: Any, prefix: str, values: object | None) -> list[Setting]:
    comments = _comments(part)
    return [
        Setting(
            prefix + field.name,
            inspect.formatannotation(field.type),
            field.default if values is None else getattr(values, field.name),
            comments.get(field.name, ""),
        )
        for field in dataclasses.fields(part)
    ]


def _comments(part: type) -> dict[str, str]:
    """The comment beside each field of a dataclass, or in the lines right above it.

    Python keeps no comments: they are read from the source of the class.
    """
    source = inspect.getsource(part)
    comments = {
        token.start[0]: token.string.strip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    tree: Any = ast.parse(source).body[0]
    found, before = {}, 0
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            # Whatever stands after the field before is this one's.
            lines = range(before + 1, (node.end_lineno or 0) + 1)
            beside = [comments[line] for line in lines if line in comments]
            found[ast.unparse(node.target)] = " ".join(beside)
        before = node.end_lineno
    return found


def setting_names() -> list[str]:
    """All settings of an experiment, as "model.depth"."""
    return [setting.name for setting in settings()]
