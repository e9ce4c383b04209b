"""A tiny experiment on the tiny corpus: a run of it takes seconds."""

from experiments.config import EvaluationConfig, Experiment
from retro_jax.config import OptimizerConfig, TrainConfig
from tests import tiny_corpus, tiny_model


def experiment(corpus: str, *, steps: int = 20, **model) -> Experiment:
    """Chunks of 8 tokens, two layers, CCA in the second; `model` changes the model."""
    cfg = tiny_model.config(depth=2, cca_layers=(2,), encoder_depth=1)
    cfg.chunk_len, cfg.neighbour_len = 8, 16
    cfg.share_embeddings = cfg.tie_output = True
    cfg.encoder_width = cfg.width
    for name, value in model.items():
        setattr(cfg, name, value)
    return Experiment(
        data=tiny_corpus.config(corpus),
        model=cfg,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        # One sequence for each of the eight simulated devices.
        train=TrainConfig(steps=steps, batch_size=8, log_every=5, checkpoint_every=10),
        evaluation=EvaluationConfig(num_samples=1, sample_tokens=5, batch_size=8),
    )
