r"""A pretrained decoder becomes a RETRO: what `make train` runs.

    retro database --config=retrofit \
        --database=work/retrofit/database
    retro train --config=retrofit \
        --workdir=work/retrofit

The argument names the decoder: `smollm2` (SmolLM2-135M-Instruct, which `make install`
brings), a folder, a .gguf file or OWNER/NAME of the Hugging Face hub:

    retro train --config=retrofit:HuggingFaceTB/SmolLM2-360M \
        --workdir=work/360m --corpus=NOTES

The decoder stays as it is. Layers whose heads copy get CCA that starts as a copy of their
own attention, and only that is trained (`retro_jax/model/inherited_cca.py`).
"""

from collections.abc import Callable

from data_pipeline.config import DataConfig
from data_pipeline.text.tokenizer import Tokenizer
from experiments import decoders
from experiments.config import EvaluationConfig, Experiment
from retro_jax import pretrained
from retro_jax.config import OptimizerConfig, RetrofitConfig, TrainConfig


def get_config(arg: str = "smollm2") -> Experiment:
    """Gives the experiment of a decoder.

    Raises:
        ValueError: if there is no such decoder, or the model can't express it.
    """
    path = decoders.resolve(arg)
    found = pretrained.config_of(path)
    model = found.model
    model.encoder = "decoder"
    model.bos_id = Tokenizer.load(path).bos_id
    model.remat = "none"
    return Experiment(
        data=DataConfig(
            corpus="factbook",
            tokenizer=str(path),
            sequence_chunks=4,
            shard_size_bytes=1_000_000,
        ),
        model=model,
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=5, gate_rate=30.0, final_share=0.1
        ),
        train=TrainConfig(
            steps=48,
            batch_size=4,
            log_every=4,
            checkpoint_every=24,
            oracle_shares=(0.9, 0.4),
        ),
        retrofit=RetrofitConfig(
            # SmolLM2's heads that find a number are in its fourth layer that copies.
            num_cca_layers=4,
            copying_score=0.2,
            # Three passes over what is read once: reading is the dearest part on a CPU.
            distinct_steps=16,
            limit_sequences=16,
            other_numbers_share=0.5,
            unrelated_target="off",
        ),
        evaluation=EvaluationConfig(
            batch_size=4,
            max_sequences=80,
            prompt_sequences=16,
            # In the Factbook about 60 of them have a passage that states the answer.
            num_facts=112,
            num_samples=3,
            sample_tokens=32,
        ),
        init_from=str(path),
    )


def sweep(add: Callable[..., None]) -> None:
    """Gives five work units, a seed each: how much of the gain is the seed's?"""
    for seed in range(5):
        add(**{"train.seed": seed})
