"""A tiny pretrained decoder as a folder, a corpus that states facts, and a run of both."""

import json
from pathlib import Path

import numpy as np

from data_pipeline.config import DataConfig
from experiments.config import EvaluationConfig, Experiment
from retro_jax import pretrained
from retro_jax.config import OptimizerConfig, RetrofitConfig, TrainConfig
from tests import fast_tokenizers
from tests.retro_jax.pretrained.tiny_decoders import CONFIGS, write_folder

CHUNK_LEN, NEIGHBOUR_LEN = 16, 32
_NUM_COUNTRIES = 40


def decoder(folder: Path, **changes) -> Path:
    """Writes a decoder of the Llama family with a tokenizer of its own."""
    config = CONFIGS["llama"] | {"vocab_size": 400, "bos_token_id": 0, **changes}
    write_folder(folder, config)
    (folder / "tokenizer.json").write_text(json.dumps(fast_tokenizers.byte_level()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    )
    return folder


def corpus(folder: Path) -> str:
    """Writes texts of the Factbook's form, each about a country of its own."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(_NUM_COUNTRIES):
        name = "".join(rng.choice(list("abdegiklmnoprstu"), 5)).capitalize()
        text = (
            f"{name}\n\nPopulation of {name}: total: {rng.integers(10_000, 99_999):,} (2025 est.)\n"
            f"Area of {name}: total: {rng.integers(1_000, 9_999):,} sq km\n"
            f"{name} has {rng.integers(2, 9)} rivers and the sea of {name}.\n"
        )
        lines.append(json.dumps({"id": f"{number}.txt", "title": name, "text": text}))
    (folder / "countries.jsonl").write_text("\n".join(lines))
    return str(folder)


def experiment(decoder: Path, corpus: str, *, steps: int = 3, **model) -> Experiment:
    """Three steps on one sequence for each of the eight simulated devices."""
    made = pretrained.config_of(decoder).model
    made.encoder, made.bos_id, made.dtype = "decoder", 0, "float32"
    made.chunk_len, made.neighbour_len, made.remat = CHUNK_LEN, NEIGHBOUR_LEN, "none"
    for name, value in model.items():
        setattr(made, name, value)
    return Experiment(
        data=DataConfig(
            corpus=corpus,
            tokenizer=str(decoder),
            validation_share=0.15,
            test_share=0.25,
            chunk_len=CHUNK_LEN,
            neighbour_len=NEIGHBOUR_LEN,
            embedder="toy",
            index="exact",
            sequence_chunks=4,
        ),
        model=made,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1, gate_rate=10.0),
        train=TrainConfig(steps=steps, batch_size=8, log_every=1, checkpoint_every=3),
        # The heads of random weights copy little, and some less than others.
        retrofit=RetrofitConfig(
            num_cca_layers=1,
            copying_score=0.0,
            open_score=0.0,
            distinct_steps=2,
            unrelated_target="off",
        ),
        evaluation=EvaluationConfig(
            batch_size=8,
            prompt_sequences=8,
            num_facts=8,
            num_samples=1,
            sample_tokens=5,
            prompt="The population of",
        ),
        init_from=str(decoder),
    )
