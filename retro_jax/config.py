"""Settings of the model and its training, and the paper's sizes."""

import dataclasses


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class ModelConfig:
    """Shape of a RETRO. Without CCA layers it is the baseline language model.

    Layers are numbered from 1, as in the paper.
    """

    vocab_size: int
    depth: int
    width: int
    num_heads: int
    head_size: int
    ffw_width: int
    chunk_len: int = 64  # tokens of a chunk (M); the paper's m
    cca_layers: tuple[int, ...] = ()  # decoder layers that read neighbours; P
    neighbour_len: int = 128  # tokens of a neighbour (R): match and continuation
    encoder_depth: int = 2
    encoder_width: int = 896
    encoder_heads: int = 16
    encoder_head_size: int = 64
    encoder_ffw_width: int = 3584
    encoder_cca_layers: tuple[int, ...] = (1,)  # encoder layers that read the chunk
    share_embeddings: bool = False  # encoder and decoder use one table
    tie_output: bool = True  # the read-out is the transposed embedding table
    copy_init: bool = False  # CCA starts as a copier (mimetic.py); for short runs
    dtype: str = "auto"  # of activations: float32 | bfloat16 | auto, by the device
    remat: bool = True  # recompute all but matrix products in the backward pass

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the model can't be built."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ValueError(f"model.{field.name} must be at least 1, is {value}")
        _check_layers("cca_layers", self.cca_layers, self.depth)
        if self.cca_layers:
            layers = self.encoder_cca_layers
            _check_layers("encoder_cca_layers", layers, self.encoder_depth)
            if self.copy_init and not (self.share_embeddings and self.tie_output):
                raise ValueError(
                    "model.copy_init needs model.share_embeddings and model.tie_output: "
                    "what is copied is an embedding that the read-out knows"
                )
            if self.share_embeddings and self.encoder_width != self.width:
                raise ValueError(
                    "model.share_embeddings needs encoder_width == width, "
                    f"have {self.encoder_width} and {self.width}"
                )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(
                f"model.dtype must be auto, float32 or bfloat16, is {self.dtype!r}"
            )
        if self.width % 2 or self.encoder_width % 2:
            raise ValueError(
                "model.width and encoder_width must be even (a sine and a cosine for "
                f"each frequency), are {self.width} and {self.encoder_width}"
            )


def _check_layers(name: str, layers: tuple[int, ...], depth: int) -> None:
    if any(not 1 <= layer <= depth for layer in layers):
        raise ValueError(f"model.{name} must lie in 1..{depth}, is {layers}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"model.{name} names a layer twice: {layers}")


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay (paper, section 2.4)."""

    learning_rate: float = 2e-4  # at the end of the warm-up
    learning_rate_start: float = 1e-7
    final_share: float = 0.1  # of learning_rate, at the last step
    warmup_steps: int = 750
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices; gains and biases are not decayed
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class MeshConfig:
    """Devices as a ('data', 'model') grid; -1 takes what is left of the devices."""

    data: int = -1
    model: int = 1


@dataclasses.dataclass(kw_only=True, slots=True, unsafe_hash=True)
class TrainConfig:
    """How long to train, on how much at a time, and what to keep."""

    steps: int
    batch_size: int  # sequences of a step, over all devices and micro-batches
    accumulation: int = 1  # micro-batches of a step
    seed: int = 0  # of initial parameters and of the data's order
    log_every: int = 10  # steps
    checkpoint_every: int = 100  # steps
    keep_checkpoints: int = 2
    # Updates in a row that may be left out because the gradient is not finite; 0 = none.
    max_skipped_steps: int = 10

    def validate(self) -> None:
        """Raises ValueError, naming the field, if the run can't be done."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_skipped_steps" else 1
            if field.name != "seed" and value < least:
                raise ValueError(
                    f"train.{field.name} must be at least {least}, is {value}"
                )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of "
                f"train.accumulation {self.accumulation}"
            )


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
