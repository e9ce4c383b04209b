"""Settings of the model and its training, and the paper's sizes."""

import dataclasses
import math

POSITIONS = ("relative", "rotary", "none")
ACTIVATIONS = ("gelu", "silu")
ENCODERS = ("own", "decoder")
FORMS = ("auto", "einsum", "features", "splash", "cudnn")
REMATS = ("none", "dots", "full")
WANDB_MODES = ("online", "offline")
NEIGHBOUR_PARTS = ("both", "match", "continuation")


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class ModelConfig:
    """Shape of a RETRO. Without CCA layers it is the baseline language model.

    Layers are numbered from 1, as in the paper.
    """

    vocab_size: int  # rows of the embedding table; set by the database's tokenizer
    depth: int  # layers of the decoder
    width: int  # of the decoder's residual stream
    num_heads: int  # of the decoder's attentions
    head_size: int  # width of a head
    ffw_width: int  # inner width of the decoder's feed-forwards
    chunk_len: int = 64  # tokens of a chunk (M); the paper's m
    cca_layers: tuple[
        int, ...
    ] = ()  # decoder layers that read neighbours; the paper's P
    neighbour_len: int = 128  # tokens of a neighbour (R): match and continuation
    encoder_depth: int = 2  # layers of the encoder of neighbours
    encoder_width: int = 896  # of the encoder's residual stream
    encoder_heads: int = 16  # of the encoder's attentions
    encoder_head_size: int = 64  # width of an encoder's head
    encoder_ffw_width: int = 3584  # inner width of the encoder's feed-forwards
    encoder_cca_layers: tuple[int, ...] = (1,)  # encoder layers that read the chunk
    share_embeddings: bool = False  # encoder and decoder use one table
    tie_output: bool = True  # the read-out is the transposed embedding table
    positions: str = "relative"  # Transformer-XL's, as in the paper; or rotary, none
    position_width: int | None = None  # of self-attention's sinusoids; None = width
    cca_positions: bool = True  # cross-attentions see distances
    neighbour_part: str = "both"  # read of a neighbour: both | match | continuation
    num_key_heads: int | None = None  # of the decoder; None = num_heads
    gated_ffw: bool = False  # feed-forwards multiply by a gate, as in today's models
    ffw_activation: str = "gelu"  # of feed-forwards: gelu | silu
    norm_epsilon: float = 1e-6  # added to the mean square that norms divide by
    rotary_base: float = (
        10_000.0  # wavelengths of rotary positions grow up to 2 pi times it
    )
    # Llama 3's stretch of long wavelengths: factor, low and high frequency factor and
    # the length it was trained on; None = none
    rotary_scaling: tuple[float, float, float, float] | None = None
    scale_embeddings: bool = True  # embeddings enter times sqrt(width)
    qkv_biases: bool = False  # queries, keys and values have biases (Qwen2)
    qk_norms: bool = False  # each head's queries and keys are normalised (Qwen3)
    window_len: int | None = (
        None  # of self-attention, itself included; None = all before
    )
    bos_id: int | None = None  # token before every sequence and neighbour; None = none
    # what reads neighbours: own = the paper's encoder; decoder = the decoder's own layers
    # below each CCA layer, which starts as a copy of that layer's self-attention
    encoder: str = "own"
    attention: str = "auto"  # auto | einsum | features | splash | cudnn
    copy_init: bool = False  # CCA starts as a copier, for short runs
    dtype: str = "auto"  # of activations: float32 | bfloat16 | auto, by the device
    scan_layers: bool = False  # a loop over the layers: compiles many times faster
    remat: str = "dots"  # what backward recomputes: none | dots (all but) | full

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the model can't be built."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "bos_id" else 1
            if type(value) is int and value < least:
                raise ValueError(
                    f"model.{field.name} must be at least {least}, is {value}"
                )
        _check_layers("cca_layers", self.cca_layers, self.depth)
        if self.cca_layers and self.encoder == "own":
            layers = self.encoder_cca_layers
            _check_layers("encoder_cca_layers", layers, self.encoder_depth)
            self._check_sharing()
        for name, choices in (
            ("dtype", ("auto", "float32", "bfloat16")),
            ("positions", POSITIONS),
            ("ffw_activation", ACTIVATIONS),
            ("encoder", ENCODERS),
            ("neighbour_part", NEIGHBOUR_PARTS),
            ("attention", FORMS),
            ("remat", REMATS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"model.{name} must be one of {', '.join(choices)}, is "
                    f"{getattr(self, name)!r}"
                )
        halved = ["width", "encoder_width", "position_width", "head_size"]
        if self.positions == "rotary":
            halved.append("encoder_head_size")
        for name in halved:
            if (getattr(self, name) or 0) % 2:
                raise ValueError(
                    f"model.{name} must be even (a sine and a cosine for each "
                    f"frequency), is {getattr(self, name)}"
                )
        if self.num_heads % (self.num_key_heads or self.num_heads):
            raise ValueError(
                f"model.num_heads {self.num_heads} is not a multiple of "
                f"model.num_key_heads {self.num_key_heads}"
            )
        if self.neighbour_part != "both" and self.neighbour_len <= self.chunk_len:
            raise ValueError(
                f"model.neighbour_part={self.neighbour_part} needs neighbours longer "
                f"than a chunk, neighbour_len is {self.neighbour_len}"
            )

    def _check_sharing(self) -> None:
        if self.share_embeddings and self.encoder_width != self.width:
            raise ValueError(
                "model.share_embeddings needs encoder_width == width, "
                f"have {self.encoder_width} and {self.width}"
            )
        if not self.copy_init:
            return
        if not (self.share_embeddings and self.tie_output):
            raise ValueError(
                "model.copy_init needs model.share_embeddings and model.tie_output: "
                "what is copied is an embedding that the read-out knows"
            )
        if self.positions != "relative" or not self.cca_positions or self.num_key_heads:
            raise ValueError(
                "model.copy_init needs model.positions=relative, model.cca_positions and "
                "a key head for every head: it says how these start"
            )

    @property
    def num_openers(self) -> int:
        """Tokens that the model itself puts before a sequence and before a neighbour."""
        return 0 if self.bos_id is None else 1

    @property
    def source_width(self) -> int:
        """Width of what chunked cross-attention reads."""
        return self.width if self.encoder == "decoder" else self.encoder_width

    @property
    def cca_distance(self) -> int:
        """How far the first position that reads a neighbour stands from the first key.

        That position is the chunk's last one, which the paper puts beside the neighbour's
        own. Attention that a decoder has learnt knows queries behind what they read: there
        the whole neighbour lies between.
        """
        first, end = self.neighbour_span
        if self.encoder == "decoder":
            return self.num_openers + end - first
        return self.chunk_len - 1 - first

    @property
    def neighbour_span(self) -> tuple[int, int]:
        """First and last (exclusive) place of a neighbour that is read (Table 13)."""
        match, end = self.chunk_len, self.neighbour_len
        return {"both": (0, end), "match": (0, match), "continuation": (match, end)}[
            self.neighbour_part
        ]


def _check_layers(name: str, layers: tuple[int, ...], depth: int) -> None:
    if any(not 1 <= layer <= depth for layer in layers):
        raise ValueError(f"model.{name} must lie in 1..{depth}, is {layers}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"model.{name} names a layer twice: {layers}")


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay (paper, section 2.4)."""

    learning_rate: float = 2e-4  # at the end of the warm-up
    learning_rate_start: float = 1e-7  # at the first step
    final_share: float = 0.1  # of learning_rate, at the last step
    warmup_steps: int = 750  # in which the learning rate rises
    beta1: float = 0.9  # decay of Adam's mean of gradients
    beta2: float = 0.95  # decay of Adam's mean of squared gradients
    epsilon: float = 1e-8  # added to the root that Adam divides by
    gate_rate: float = 1.0  # learning rate of CCA's gates, times that of all else
    weight_decay: float = 0.1  # of matrices; gains and biases are not decayed
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping

    def validate(self) -> None:
        """Raises ValueError, naming the field, for what would not descend."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            most = 1.0 if field.name in ("beta1", "beta2", "final_share") else math.inf
            is_below = value < most or (field.name == "final_share" and value == 1)
            if not (value >= 0 and is_below):
                raise ValueError(
                    f"optimizer.{field.name} must be at least 0 and "
                    f"{'below 1' if most == 1 else 'finite'}, is {value}"
                )


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class MeshConfig:
    """Devices as a ('data', 'model') grid; -1 takes what is left of the devices.

    With replicas > 1 there are so many such grids, each with all parameters.
    """

    data: int = -1  # devices that share out a batch
    model: int = 1  # devices that share out each layer's parameters
    replicas: int = 1  # grids; on TPUs the number of slices: only gradients cross them


_MAY_BE_ZERO = (
    "seed",
    "max_skipped_steps",
    "encodings_bytes",
    "encodings_folder_bytes",
)


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class TrainConfig:
    """How long to train, on how much at a time, and what to keep."""

    steps: int  # optimizer steps of the whole run
    batch_size: int  # sequences of a step, over all devices and micro-batches
    accumulation: int = 1  # micro-batches of a step
    seed: int = 0  # of initial parameters and of the data's order
    log_every: int = 10  # steps between two lines of the log
    checkpoint_every: int = 100  # steps between two checkpoints
    keep_checkpoints: int = 2  # newest checkpoints that stay on disk
    freeze: bool = True  # of a run with init_from: its baseline's parameters stay
    # memory for neighbours and texts that a frozen decoder has read; 0 = anew in each step
    encodings_bytes: int = 2_000_000_000
    encodings_folder: str = ""  # where they stay on disk for other runs; "" = nowhere
    encodings_folder_bytes: int = 8_000_000_000  # of that folder's files
    # updates in a row that may be left out because the gradient is not finite; 0 = none
    max_skipped_steps: int = 10
    # of the chunks whose first neighbour is the text that goes on from them: at the first
    # step and at the last, geometric between; 0 = none
    oracle_shares: tuple[float, float] = (0.0, 0.0)

    def oracle_share(self, step: int) -> float:
        """The share of oracle neighbours in a step, counted from 0."""
        first, last = self.oracle_shares
        if not first:
            return 0.0
        return first * (last / first) ** (step / max(self.steps - 1, 1))

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the run can't be done."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if type(value) is int and value < least:
                raise ValueError(
                    f"train.{field.name} must be at least {least}, is {value}"
                )
        first, last = self.oracle_shares
        if not (0 < first <= 1 and 0 < last <= 1 or first == last == 0):
            raise ValueError(
                "train.oracle_shares must be two shares above 0, as 0.5, 0.1, or 0, 0 "
                f"for none; they are {first}, {last}"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of "
                f"train.accumulation {self.accumulation}"
            )


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class WatchConfig:
    """What a run shows of itself besides its log, JSON lines and TensorBoard's files."""

    # first and last step of a profiler trace, counted from 1, as 10,15; () = no trace
    profile_steps: tuple[int, ...] = ()
    wandb: str = ""  # project of Weights & Biases that gets the metrics; "" = none
    wandb_mode: str = (
        "online"  # online | offline: kept in the run's folder for `wandb sync`
    )

    def validate(self, steps: int) -> None:
        """Raises ValueError, naming the field, if a run of so many steps can't do so."""
        traced = self.profile_steps
        if traced and not (len(traced) == 2 and 1 <= traced[0] <= traced[1] <= steps):
            raise ValueError(
                "watch.profile_steps must be the first and the last step of a trace, as "
                f"10,15, within the run's {steps} steps; they are "
                f"{','.join(map(str, traced))}"
            )
        if self.wandb_mode not in WANDB_MODES:
            raise ValueError(
                f"watch.wandb_mode must be one of {', '.join(WANDB_MODES)}, is "
                f"{self.wandb_mode!r}"
            )


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class RetrofitConfig:
    """How a pretrained decoder gets its CCA, where it reads neighbours itself.

    `model.cca_layers` names the layers; where it is empty the decoder's heads decide.
    """

    # what is known of heads: copying = how they copy random tokens | gradient = what they
    # would gain from the neighbours of the first training batch, as shares of the best
    chosen_by: str = "copying"
    num_cca_layers: int = 3  # layers with CCA: the lowest that have a head that copies
    copying_score: float = 0.3  # of a layer's best head, from which on the layer counts
    open_score: float = 0.1  # of a head whose gate starts at 1; all others start at 0
    # heads that start open, counted from 0, for each layer of model.cca_layers, lowest
    # first; () = those with open_score
    open_heads: tuple[tuple[int, ...], ...] = ()
    start: str = "attention"  # of CCA: attention = the layer's own | random (paper)
    trained: str = "cca"  # cca | gates; with train.freeze=False the backbone as well
    # batches that are made, and gone over again and again: what a decoder has read of their
    # neighbours is kept; 0 = every step has a new one
    distinct_steps: int = 0
    # sequences of the validation split on which it is chosen what is worth reading; 0 =
    # all is read
    limit_sequences: int = 24
    absent_share: float = 0.05  # of the chunks in training that read no neighbour
    unrelated_share: float = 0.2  # of them that read another sequence's neighbours
    # what those are to predict: text = what comes, as all | off = what retrieval off
    # predicts there, so that they teach nothing but to be left alone
    unrelated_target: str = "text"
    # of the training sequences whose numbers are exchanged, in their neighbours alike
    other_numbers_share: float = 0.0

    def validate(self) -> None:
        """Raises ValueError, naming the field, if a retrofit can't be made so."""
        for name, least in (
            ("num_cca_layers", 1),
            ("distinct_steps", 0),
            ("limit_sequences", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"retrofit.{name} must be at least {least}, is {getattr(self, name)}"
                )
        for name in (
            "copying_score",
            "open_score",
            "absent_share",
            "unrelated_share",
            "other_numbers_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"retrofit.{name} must be in 0..1, is {getattr(self, name)}"
                )
        if self.absent_share + self.unrelated_share > 1:
            raise ValueError(
                "retrofit.absent_share and retrofit.unrelated_share must leave some "
                "neighbours, their sum is "
                f"{self.absent_share + self.unrelated_share}"
            )
        for name, choices in (
            ("chosen_by", ("copying", "gradient")),
            ("start", ("attention", "random")),
            ("trained", ("cca", "gates")),
            ("unrelated_target", ("text", "off")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"retrofit.{name} must be one of {', '.join(choices)}, is "
                    f"{getattr(self, name)!r}"
                )


def modern(cfg: ModelConfig) -> ModelConfig:
    """The same sizes as today's decoders are built: one switch for three changes.

    Rotary positions, which in CCA share the origin that the paper gives query and
    neighbour; a gated feed-forward of 2/3 the width, hence the same parameters; and a key
    head for every four heads. Ours; the paper has none of it.
    """
    return dataclasses.replace(
        cfg,
        positions="rotary",
        gated_ffw=True,
        ffw_width=_two_thirds(cfg.ffw_width),
        encoder_ffw_width=_two_thirds(cfg.encoder_ffw_width),
        num_key_heads=cfg.num_heads // 4 if cfg.num_heads % 4 == 0 else None,
    )


def _two_thirds(ffw_width: int) -> int:
    return max(ffw_width * 2 // 3 // 128, 1) * 128


# Table 2 and Table 10 of the paper: depth, width, heads, head size, feed-forward width.
_PAPER_SIZES = {
    "172m": (12, 896, 16, 64, 3584),
    "425m": (12, 1536, 12, 128, 6144),
    "1.5b": (24, 2048, 16, 128, 8192),
    "7.5b": (32, 4096, 32, 128, 16384),
}


def paper_config(size: str, *, vocab_size: int = 128_000) -> ModelConfig:
    """The paper's RETRO of one size: '172m', '425m', '1.5b' or '7.5b'.

    CCA in every third layer from the sixth, which gives Table 2's parameter counts at
    every size (Table 10 prints a start at 9 for the two larger ones, which does not).
    For the baseline of the same size set `cca_layers=()`.

    Raises:
        ValueError: for another size.
    Source: Borgeaud et al. 2022, sections 2.4 and 2.5, Tables 2 and 10.
    """
    if size not in _PAPER_SIZES:
        raise ValueError(f"no paper size {size!r}; there are {', '.join(_PAPER_SIZES)}")
    depth, width, num_heads, head_size, ffw_width = _PAPER_SIZES[size]
    return ModelConfig(
        vocab_size=vocab_size,
        depth=depth,
        width=width,
        num_heads=num_heads,
        head_size=head_size,
        ffw_width=ffw_width,
        cca_layers=tuple(range(6, depth + 1, 3)),
    )
