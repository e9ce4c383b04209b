"""Sequences a second of the input pipeline, beside those that a training step consumes.

python -m tools.benchmark input --database=work/tiny/database
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from tools.benchmark import train
from tools.benchmark.result import (
    UNKNOWN,
    Result,
    Row,
    describe_machine,
    positive,
    significant,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `input`."""
    command.add_argument("--database", type=Path, help="whose training split is read")
    command.add_argument("--batch_size", type=positive, default=8, help="sequences")
    command.add_argument("--batches", type=positive, default=100, help="of a round")
    command.add_argument("--sequences", type=positive, default=512, help="if random")
    command.add_argument("--consumer", default="tiny", help="size of the step")


def run(args: argparse.Namespace) -> Result:
    """Gives sequences a second of the tf.data pipeline, from files to numpy batches.

    Raises:
        ValueError: if there is no dataset in the database.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from data_pipeline.config import DataConfig
    from data_pipeline.sequences.batches import Sequences
    from tools.benchmark import synthetic

    cfg = DataConfig(sequence_chunks=2048 // 64, num_neighbours=2)
    with tempfile.TemporaryDirectory() as folder:
        opened = {}
        if args.database is not None:
            opened[str(args.database)] = Sequences(
                args.database / "dataset" / "all", "train"
            )
        random_tokens = synthetic.write_dataset(Path(folder), cfg, args.sequences)
        opened["random tokens"] = Sequences(random_tokens, "train")
        rates: dict[str, list[float]] = {name: [] for name in opened}
        for number in range(args.rounds):
            for name, sequences in opened.items():
                rates[name].append(_sequences_per_s(args, sequences, number))
        rows = [_row(args, name, opened[name], rates[name]) for name in opened]
    conditions = describe_machine(("tensorflow-cpu", "tensorflow", "numpy")) | {
        "batches of a round": args.batches,
        "rounds": args.rounds,
        "random tokens": f"{args.sequences} sequences by the project's own writer",
        "step": f"of size {args.consumer}, retrieval on, measured alone after the input",
    }
    return Result(name="input", conditions=conditions, rows=rows, notes=[])


def _sequences_per_s(args: argparse.Namespace, sequences, seed: int) -> float:
    """Reads batches from the second on: files and threads are opened once a run."""
    batches = sequences.shuffled(args.batch_size, seed=seed, num_steps=1 + args.batches)
    next(batches)
    start_s = time.perf_counter()
    count = sum(len(batch["inputs_BL"]) for batch in batches)
    return count / (time.perf_counter() - start_s)


def _row(args: argparse.Namespace, name: str, sequences, rates: list[float]) -> Row:
    batch = next(sequences.shuffled(args.batch_size, seed=0, num_steps=1))
    length = batch["inputs_BL"].shape[1]
    num_neighbours = batch["neighbours_BCNR"].shape[2]
    rate = statistics.median(rates)
    row: Row = {
        "dataset": name,
        "length": length,
        "neighbours": num_neighbours,
        "batch": args.batch_size,
        "sequences/s": significant(rate),
        "min": significant(min(rates)),
        "max": significant(max(rates)),
    }
    consumed = _consumed_per_s(args.consumer, length, num_neighbours)
    row["step sequences/s"] = consumed or UNKNOWN
    row["input/step"] = significant(rate / consumed, 3) if consumed else UNKNOWN
    return row


def _consumed_per_s(size: str, length: int, num_neighbours: int) -> float | None:
    """Measures sequences a second of a step of this size; None if it could not be measured."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=3)
    flags = [f"--sizes={size}", f"--sequence_len={length}", "--steps=3"]
    args = parser.parse_args([*flags, f"--num_neighbours={num_neighbours}"])
    rows = [row for row in train.run(args).rows if row["retrieval"] == "on"]
    rates = [float(row["sequences/s"]) for row in rows if "sequences/s" in row]
    return rates[0] if rates else None
