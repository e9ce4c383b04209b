"""What each stage of a build costs as text grows, and what a larger database would take.

    python -m tools.benchmark growth --corpus=DIR --files=1,3,9 --work=work/growth

Builds a database of the first so many files of a folder, for each number, stage by stage,
each stage in a process of its own. Sizes share a tokenizer, the first's. Costs are those
that the builds recorded (`data_pipeline/storage/costs.py`), so whoever runs this again reads them
and builds nothing.

Embedding takes most of the time and costs each chunk the same, so `--layers=1` embeds with
the first of MiniLM's six layers: all other stages see real vectors of the same width.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from data_pipeline.build import pipeline
from data_pipeline.config import DataConfig
from data_pipeline.embedding import embedder
from data_pipeline.storage.files import write_json
from tools.benchmark import plan
from tools.benchmark.result import Result, describe_machine, progress

_CONFIG = "experiments/configs/tiny.py"
# For text of this size; the same for every size.
_SETTINGS = {"vocab_size": 32_000, "validation_share": 0.005, "test_share": 0.005}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The flags of `growth`."""
    command.add_argument("--corpus", type=Path, required=True, help="folder of files")
    command.add_argument("--work", type=Path, required=True, help="for the databases")
    command.add_argument("--files", type=_numbers, required=True, help="as 1,3,9")
    command.add_argument("--layers", type=int, default=0, help="of MiniLM; 0: all")
    command.add_argument(
        "--index_shard_rows", type=int, default=DataConfig().index_shard_rows
    )
    command.add_argument("--plan", type=_numbers, default=[10**8, 28 * 10**9])
    command.add_argument("--cores", type=int, default=64, help="of a planned machine")
    command.add_argument("--memory_gb", type=int, default=256, help="of such a machine")


def run(args: argparse.Namespace) -> Result:
    """Costs per million chunks of each stage at each size, then the plan."""
    settings = _SETTINGS | {
        "index_shard_rows": args.index_shard_rows,
        "embedder": _embedder(args.work, args.layers),
    }
    databases = []
    for count in args.files:
        databases.append(_built(args, count, settings))
        settings["tokenizer"] = databases[0] / "tokenizer" / "all" / "tokenizer.model"
    measured = [plan.measure(folder) for folder in databases]
    rows = plan.growth_rows(measured)
    notes = plan.plan_lines(
        measured[-1], args.plan, cores=args.cores, memory_gb=args.memory_gb
    )
    conditions = describe_machine(("numpy", "scann", "jax", "sentencepiece")) | {
        "corpus": args.corpus.name,
        "layers of the embedder": args.layers or "all",
        "index shard rows": args.index_shard_rows,
    }
    return Result(name="growth", conditions=conditions, rows=rows, notes=notes)


def _embedder(work: Path, layers: int) -> str:
    """MiniLM, or a folder of it that says it has so many layers."""
    if not layers:
        return "minilm"
    folder = work / f"minilm-{layers}"
    if not folder.exists():
        source = embedder.minilm_folder()
        shutil.copytree(source, folder, dirs_exist_ok=True)
        config = json.loads((source / "config.json").read_text())
        write_json(folder / "config.json", config | {"num_hidden_layers": layers})
    return str(folder)


def _built(args: argparse.Namespace, count: int, settings: dict) -> Path:
    """The database of the first `count` files; what is there of it is used."""
    files = sorted(path for path in args.corpus.iterdir() if path.is_file())
    if not 0 < count <= len(files):
        raise ValueError(f"--files: {args.corpus} has {len(files)} files, not {count}")
    folder = args.work / f"files-{count}"
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for file in files[:count]:
        link = folder / "corpus" / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    settings = {**settings, "corpus": folder / "corpus"}
    for stage in pipeline.STAGES:
        progress(f"{count} files: {stage}")
        command = [
            *(sys.executable, "-m", "experiments.build_database"),
            f"--config={_CONFIG}",
            f"--database={folder / 'database'}",
            f"--stage={stage}",
            *(f"--config.data.{name}={value}" for name, value in settings.items()),
        ]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise ValueError(f"the stage {stage} of {folder} failed: see above")
    return folder / "database"


def _numbers(text: str) -> list[int]:
    return [int(float(part)) for part in text.split(",")]
