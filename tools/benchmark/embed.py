"""Chunks a second of the embedder, beside sentence-transformers.

python -m tools.benchmark embed --chunks=1000
"""

import argparse
import importlib
import importlib.util
import pathlib
import statistics
import sysconfig
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.embedding import embedder
from tools.benchmark.result import Result, Row, alternate, describe_machine, ratio


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `embed`."""
    command.add_argument("--chunks", type=int, default=1500)


def code_chunks(count: int, words: int = 25) -> list[str]:
    """Cuts the source of Python's library into chunks of 64 word pieces or so."""
    chunks: list[str] = []
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    for path in sorted([*folder.glob("*.py"), *folder.glob("[a-r]*/*.py")]):
        split = path.read_text(encoding="utf-8", errors="replace").split()
        starts = range(0, len(split) - words, words)
        chunks += [" ".join(split[start : start + words]) for start in starts]
        if len(chunks) >= count:
            return chunks[:count]
    raise ValueError(f"Python's library has {len(chunks)} chunks, not {count}")


def run(args: argparse.Namespace) -> Result:
    """Gives chunks a second of the BERT in JAX, and sentence-transformers at its defaults."""
    texts = code_chunks(args.chunks)
    ours = embedder.load_embedder("minilm")
    contestants: dict[str, Callable[[], object]] = {
        "retro-jax": lambda: ours.embed(texts)
    }
    notes = []
    if importlib.util.find_spec("sentence_transformers") is None:
        notes.append("sentence-transformers is not installed: ours alone")
    else:
        torch_model = _sentence_transformer()
        contestants["sentence-transformers"] = lambda: torch_model.encode(
            texts, show_progress_bar=False
        )
    elapsed_s = alternate(contestants, args.rounds)
    rate = {
        n: round(len(texts) / statistics.median(s), 1) for n, s in elapsed_s.items()
    }
    exact_QW = embedder.load_embedder("minilm", precision="float32").embed(texts)
    rows: list[Row] = []
    for name, embed in contestants.items():
        cosine_Q = np.sum(np.asarray(embed()) * exact_QW, axis=1)
        rows.append(
            {
                "embedder": name,
                "chunks/s": rate[name],
                "cosine min": round(float(cosine_Q.min()), 6),
            }
        )
    if len(contestants) == 2:
        rows[0]["beside chunks/s"] = rate["sentence-transformers"]
        rows[0]["ratio"] = ratio(*(elapsed_s[name] for name in reversed(contestants)))
    packages = ("jax", "numpy", "tokenizers", "sentence-transformers", "torch")
    conditions = describe_machine(packages) | {
        "chunks": len(texts),
        "median characters": int(statistics.median(map(len, texts))),
        "rounds": args.rounds,
    }
    return Result(name="embed", conditions=conditions, rows=rows, notes=notes)


def _sentence_transformer() -> Any:
    module = importlib.import_module("sentence_transformers")
    return module.SentenceTransformer(str(embedder.minilm_folder()), device="cpu")
