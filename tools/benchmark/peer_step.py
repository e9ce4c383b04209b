"""A whole step of RETRO-pytorch or of ours, as a contestant of `peer.py`.

    python -m tools.benchmark.peer_step torch --mode=float32 --retrieval=on \
        --batch_size=2 --cores=2

The peer runs in an environment of its own: Python 3.11, torch==2.13.0,
retro-pytorch==0.3.9 and what its import needs but does not pin: numpy<2 and pyarrow<20.
Its optimizer is its own (AdamW, 3e-4, decay 0.1 of matrices).
"""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tools.benchmark import contestant

# Layers, widths and tables of `sizes.model("peer")`.
_MODEL: dict[str, Any] = {
    "num_tokens": 32_000,
    "max_seq_len": 512,
    "enc_dim": 512,
    "enc_depth": 2,
    "dec_dim": 512,
    "dec_depth": 12,
    "dec_cross_attn_layers": (6, 9, 12),
    "heads": 8,
    "dim_head": 64,
    "chunk_size": 64,
}
_NEIGHBOURS, _NEIGHBOUR_LEN = 2, 128


def _torch_step(args: argparse.Namespace) -> tuple[dict, Callable[[], float]]:
    """Builds RETRO-pytorch's step; all but its shape is at its defaults."""
    import torch
    from retro_pytorch import RETRO
    from retro_pytorch.optimizer import get_optimizer

    torch.set_num_threads(args.cores)
    torch.manual_seed(0)
    model = RETRO(**_MODEL).train()
    optimizer = get_optimizer(model.parameters())
    chunks = _MODEL["max_seq_len"] // _MODEL["chunk_size"]
    # 0 is its padding.
    tokens = torch.randint(1, 32_000, (args.batch_size, _MODEL["max_seq_len"] + 1))
    neighbours = torch.randint(
        1, 32_000, (args.batch_size, chunks, _NEIGHBOURS, _NEIGHBOUR_LEN)
    )

    def loss_of_batch():
        if args.retrieval == "on":
            return model(tokens, retrieved=neighbours, return_loss=True)
        logits = model(tokens[:, :-1])
        return torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], ignore_index=0
        )

    def step() -> float:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        with autocast if args.mode == "bfloat16" else nullcontext():
            loss = loss_of_batch()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return {"parameters": sum(p.numel() for p in model.parameters())}, step


def _jax_step(args: argparse.Namespace) -> tuple[dict, Callable[[], float]]:
    """Builds our step at the peer's shape."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # where the peer runs

    from retro_jax.config import MeshConfig, OptimizerConfig
    from retro_jax.devices import sharding
    from tools.benchmark import sizes
    from tools.benchmark.step import Step

    cfg = sizes.override(sizes.model("peer"), args.mode)
    usual = sizes.LOADS["peer"]
    batch = sizes.synthetic_batch(
        cfg, sizes.Load(sequence_len=usual.sequence_len, batch_size=args.batch_size)
    )
    if args.retrieval == "off":
        cfg = sizes.without_retrieval(cfg)
    # As the peer's: it does not clip, and its rate is 3e-4 from the first step.
    optimizer = OptimizerConfig(
        learning_rate=3e-4, learning_rate_start=3e-4, clip_norm=0.0
    )
    step = Step(cfg, optimizer, batch, sharding.make_mesh(MeshConfig()))
    step.start()

    def whole_step() -> float:
        step.run(1)
        return step.last_loss_nats

    about = {"parameters": step.num_parameters, "compile_s": step.compile_s}
    return about, whole_step


if __name__ == "__main__":
    contestant.serve({"torch": _torch_step, "jax": _jax_step})
