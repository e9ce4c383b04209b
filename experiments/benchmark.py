"""Measures the parts that others also have, beside what others do.

    python -m experiments.benchmark embed --out=embed.json
    python -m experiments.benchmark index --rows=50000

One sub-command a part: a function from its arguments to a `Result`, added in `main`.
Contestants take turns round by round, so a busy machine slows all of them alike.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline import embedder, index

Row = dict[str, str | int | float]


@dataclasses.dataclass(kw_only=True, slots=True)
class Result:
    """A table, the conditions it holds under, and sentences drawn from it."""

    name: str
    conditions: dict[str, str | int | float]
    rows: list[Row]
    notes: list[str]


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Runs all contestants `rounds` times in turn; gives the seconds of each run.

    A first run of each, not counted, compiles and fills caches.
    """
    for run in contestants.values():
        run()
    elapsed_s: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start_s = time.perf_counter()
            run()
            elapsed_s[name].append(time.perf_counter() - start_s)
    return elapsed_s


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


def benchmark_embed(args: argparse.Namespace) -> Result:
    """Chunks a second: the BERT in JAX, and sentence-transformers at its defaults."""
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
    exact_QW = embedder.load_embedder("minilm", precision="float32").embed(texts)
    rows: list[Row] = []
    for name, run in contestants.items():
        cosine_Q = np.sum(np.asarray(run()) * exact_QW, axis=1)
        rate = len(texts) / statistics.median(elapsed_s[name])
        rows.append(
            {
                "embedder": name,
                "chunks/s": round(rate, 1),
                "cosine min": round(float(cosine_Q.min()), 6),
                "cosine mean": round(float(cosine_Q.mean()), 6),
            }
        )
    if len(contestants) == 2:
        ratios = np.divide(elapsed_s["sentence-transformers"], elapsed_s["retro-jax"])
        notes.append(
            f"retro-jax / sentence-transformers: median {np.median(ratios):.2f}, "
            f"rounds {ratios.min():.2f} to {ratios.max():.2f}"
        )
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


def benchmark_index(args: argparse.Namespace) -> Result:
    """Build time, recall and queries a second of exact search and of ScaNN."""
    vectors_TW, queries_QW = _index_vectors(args)
    rows: list[Row] = []
    built: dict[str, index.Index] = {}
    build_s: dict[str, float] = {}
    for kind in ("exact", "scann"):
        start_s = time.perf_counter()
        built[kind] = index.build_index(vectors_TW, kind)
        build_s[kind] = time.perf_counter() - start_s
    elapsed_s = alternate(
        {kind: _searching(found, queries_QW) for kind, found in built.items()},
        args.rounds,
    )
    for kind, found in built.items():
        rows.append(
            {
                "index": kind,
                "build s": round(build_s[kind], 2),
                "recall@2": round(
                    index.measure_recall(found, vectors_TW, queries_QW, 2), 4
                ),
                "recall@10": round(
                    index.measure_recall(found, vectors_TW, queries_QW, 10), 4
                ),
                "queries/s": round(
                    len(queries_QW) / statistics.median(elapsed_s[kind])
                ),
                "MB on disk": round(_saved_bytes(found) / 1e6, 1),
            }
        )
    conditions = describe_machine(("numpy", "scann")) | {
        "rows": len(vectors_TW),
        "queries": len(queries_QW),
        "width": vectors_TW.shape[1],
        "vectors": "MiniLM of Python's library" if args.real else "clusters of 50",
        "rounds": args.rounds,
    }
    return Result(name="index", conditions=conditions, rows=rows, notes=[])


def _searching(found: index.Index, queries_QW: np.ndarray) -> Callable[[], object]:
    return lambda: found.search(queries_QW, 10)


def _saved_bytes(found: index.Index) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found.save(pathlib.Path(folder) / "index")
        return sum(
            path.stat().st_size for path in (pathlib.Path(folder) / "index").iterdir()
        )


def _index_vectors(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Database and queries, disjoint draws of one distribution."""
    total = args.rows + args.queries
    rng = np.random.default_rng(0)
    if args.real:
        texts = code_chunks(total)
        vectors_TW = embedder.load_embedder("minilm").embed(texts)
        vectors_TW = vectors_TW[rng.permutation(total)]
    else:
        centres = rng.standard_normal((max(1, total // 50), args.width), np.float32)
        vectors_TW = rng.standard_normal((total, args.width), np.float32) * 0.5
        vectors_TW += centres[rng.integers(len(centres), size=total)]
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    return vectors_TW[: args.rows], vectors_TW[args.rows :]


def describe_machine(packages: Sequence[str]) -> dict[str, str | int | float]:
    """Cores, load and versions: what a rate means nothing without."""
    found: dict[str, str | int | float] = {
        "processor": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load when done": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    for name in packages:
        if name in installed:
            found[name] = importlib.metadata.version(name)
    return found


def print_result(result: Result) -> None:
    """Prints the table, then the conditions and notes."""
    header = list(result.rows[0])
    cells = [header, *([str(row[name]) for name in header] for row in result.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded))
    print(", ".join(f"{name}: {value}" for name, value in result.conditions.items()))
    for note in result.notes:
        print(note)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command in `argv`, prints its table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    embed = commands.add_parser("embed", help=benchmark_embed.__doc__)
    embed.set_defaults(run=benchmark_embed)
    embed.add_argument("--chunks", type=int, default=1500)
    search = commands.add_parser("index", help=benchmark_index.__doc__)
    search.set_defaults(run=benchmark_index)
    search.add_argument("--rows", type=int, default=50_000)
    search.add_argument("--queries", type=int, default=2_000)
    search.add_argument("--width", type=int, default=384)
    search.add_argument("--real", action="store_true", help="embed text instead")
    for command in (embed, search):
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--out", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    result = args.run(args)
    print_result(result)
    if args.out is not None:
        text = json.dumps(dataclasses.asdict(result), indent=2) + "\n"
        temporary = args.out.with_name(f"{args.out.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
