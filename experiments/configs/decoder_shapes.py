r"""Retrofits of decoders by their shapes alone, for planning: no weights are read.

    make aot AOT_CONFIG=experiments/configs/decoder_shapes.py:8b TOPOLOGY=v5e:16x16

compiles the training step of a retrofit of such a decoder, whose backbone is frozen, and
says what it needs. The argument is a shape: 1.7b (SmolLM2), 8b or 70b (Llama 3.1). A real
one is trained by `--config=retrofit:DECODER`, whose shape is read from its files.
"""

from data_pipeline.config import DataConfig
from experiments.config import Experiment
from retro_jax.config import ModelConfig, OptimizerConfig, TrainConfig

# Depth, width, heads, head size, key heads, feed-forward width, vocabulary, base of rotary
# positions, whether the read-out is the embedding table. From the models' config.json.
_SHAPES = {
    "1.7b": (24, 2048, 32, 64, 32, 8192, 49_152, 130_000.0, True),
    "8b": (32, 4096, 32, 128, 8, 14_336, 128_256, 500_000.0, False),
    "70b": (80, 8192, 64, 128, 8, 28_672, 128_256, 500_000.0, False),
}
_SEQUENCE_CHUNKS = 32
_BATCH_SIZE = 256


def get_config(arg: str = "1.7b") -> Experiment:
    """Gives the experiment of a shape; raises ValueError for an unknown one."""
    if arg not in _SHAPES:
        raise ValueError(
            f"decoder_shapes.py has no shape {arg!r}; there are {', '.join(_SHAPES)}"
        )
    depth, width, heads, head_size, key_heads, ffw, vocab, base, tied = _SHAPES[arg]
    # Where the heads of the decoder that was looked at copy: about two thirds up.
    middle = round(0.63 * depth)
    return Experiment(
        data=DataConfig(vocab_size=vocab, sequence_chunks=_SEQUENCE_CHUNKS),
        model=ModelConfig(
            vocab_size=vocab,
            depth=depth,
            width=width,
            num_heads=heads,
            head_size=head_size,
            num_key_heads=key_heads,
            ffw_width=ffw,
            cca_layers=(middle, middle + 1, middle + 3),
            positions="rotary",
            rotary_base=base,
            gated_ffw=True,
            ffw_activation="silu",
            scale_embeddings=False,
            tie_output=tied,
            encoder="decoder",
            bos_id=0,
            scan_layers=True,
            remat="full",
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, gate_rate=30.0),
        train=TrainConfig(
            steps=1000,
            batch_size=_BATCH_SIZE,
            accumulation=_BATCH_SIZE // 64,
            checkpoint_every=100,
        ),
        init_from="DECODER",
    )
