r"""A control for the retrofit: the same decoder, trained as a whole on the same tokens, reads nothing.

    retro launch --config=finetuned --sweep --out=work/finetuned --parallel=1

The sweep has the retrofit over five seeds, and beside it the decoder fine-tuned on the same
batches, as often, at three learning rates: none of its chunks has a neighbour. Its bits per byte
stand beside those of the retrofit that reads, on the same seeds and documents. Whoever
takes the best of the three rates favours the control. The argument is that of `retrofit`.
"""

from collections.abc import Callable

from experiments.config import Experiment
from experiments.configs import retrofit

_RATES = (3e-5, 1e-4, 3e-4)
_SEEDS = 5


def get_config(arg: str = "smollm2") -> Experiment:
    """Gives the experiment of the retrofit; raises as that one's."""
    return retrofit.get_config(arg)


def sweep(add: Callable[..., None]) -> None:
    """Gives the retrofit over seeds, then the decoder without passages at each rate."""
    for seed in range(_SEEDS):
        add(**{"train.seed": seed})
    for rate in _RATES:
        for seed in range(_SEEDS):
            add(
                **{
                    "train.seed": seed,
                    "train.freeze": False,
                    "optimizer.learning_rate": rate,
                    "retrofit.absent_share": 1.0,
                    "retrofit.unrelated_share": 0.0,
                    "retrofit.other_numbers_share": 0.0,  # it is told the true ones
                    "retrofit.limit_sequences": 0,
                    "evaluation.conditions": ("off",),
                    "evaluation.prompt_sequences": 0,
                    "evaluation.num_facts": 0,
                    "evaluation.num_samples": 0,
                }
            )
