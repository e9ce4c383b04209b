"""What a report says about its database, model, training and how to repeat it."""

import dataclasses
import functools
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.verdict import counted, number, percent


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """A line of a list of facts.

    Attributes:
        name: what is told.
        value: words and numbers of ours.
        code: text of others' (names of files, paths), shown verbatim.
    """

    name: str
    value: str = ""
    code: tuple[str, ...] = ()


def database(manifest: Mapping) -> list[Fact]:
    """What can be retrieved, what was held out, and what was left out and why."""
    documents, chunks = manifest["documents"], manifest["chunks"]
    found = [Fact("corpus", code=(manifest["corpus"],))]
    for split, what in (
        ("train", "searched, and trained on"),
        ("validation", "held out"),
        ("test", "held out"),
    ):
        sizes = documents[split]
        value = (
            f"{counted(sizes['documents'], 'document')}, "
            f"{counted(chunks[split], 'chunk')}, {megabytes(sizes['size_bytes'])}"
        )
        found.append(Fact(f"{split} ({what})", value))
    found += [
        Fact("exact duplicates dropped", f"{documents['exact_duplicates']:,}"),
        Fact(
            "dropped as near copies of held-out documents",
            f"{documents['near_duplicates']:,}",
        ),
    ]
    found += _left_out(documents["skipped"])
    return found + _retrieval(manifest)


def _left_out(skipped: Mapping) -> list[Fact]:
    if not skipped:
        return [Fact("left out", "nothing")]
    return [
        Fact(
            f"left out: {reason}",
            f"{entry['count']:,}, such as" if entry["names"] else f"{entry['count']:,}",
            tuple(entry["names"][:3]),
        )
        for reason, entry in sorted(skipped.items())
    ]


def _retrieval(manifest: Mapping) -> list[Fact]:
    index = manifest["index"]
    recalls = [
        f"{name} {number(index[name], 3)}"
        for name in ("recall@2", "recall@10")
        if name in index
    ]
    speed = ""
    if index.get("queries_per_s"):  # a database of before has none
        speed = f", {index['queries_per_s']:,.0f} queries/s when it was built"
    width = manifest["embedding_width"]
    tokenizer = f"vocabulary of {manifest['vocab_size']:,}, fingerprint"
    return [
        Fact("embedder", f"{width} dimensions", (manifest["embedder"],)),
        Fact("tokenizer", tokenizer, (manifest["tokenizer_fingerprint"],)),
        Fact("chunk", f"{manifest['chunk_len']} tokens"),
        Fact("index", code=(index["kind"],)),
        Fact(
            "recall against exact search",
            f"{', '.join(recalls) or 'not measured'} over "
            f"{counted(index['queries'], 'chunk')} as queries{speed}",
        ),
        Fact("database fingerprint", code=(manifest["fingerprint"],)),
    ]


def model(settings: Mapping) -> list[Fact]:
    """Sizes of the model, its parameters counted from its settings."""
    if "config" not in settings:
        return [Fact("settings", "not recorded")]
    cfg = settings["config"]["model"]
    layers = ", ".join(map(str, cfg["cca_layers"]))
    found = [
        Fact("parameters", _parameters(cfg)),
        Fact(
            "decoder",
            f"{counted(cfg['depth'], 'layer')}, width {cfg['width']}, {cfg['num_heads']} "
            f"heads of {cfg['head_size']}, feed-forward {cfg['ffw_width']}",
        ),
        Fact("layers with CCA", layers or "none: the baseline, without retrieval"),
    ]
    if layers:
        neighbours = settings["config"]["data"]["num_neighbours"]
        found += [
            Fact(
                "encoder",
                f"{counted(cfg['encoder_depth'], 'layer')}, width {cfg['encoder_width']},"
                f" {cfg['encoder_heads']} heads of {cfg['encoder_head_size']}, "
                f"feed-forward {cfg['encoder_ffw_width']}",
            ),
            Fact(
                "read for each chunk",
                f"{counted(neighbours, 'passage')} of {cfg['neighbour_len']} tokens",
            ),
        ]
    if layers and cfg.get("copy_init"):
        found.append(
            Fact(
                "start",
                "cross-attention starts as a copier of what its passages say, not at "
                "random (model.copy_init)",
            )
        )
    if settings["config"].get("init_from"):
        found.append(
            Fact(
                "retrofit",
                "the decoder began as a trained baseline (init_from), to which "
                "cross-attention added nothing at first",
            )
        )
    return [*found, Fact("numbers", code=(cfg["dtype"],))]


def _parameters(cfg: Mapping) -> str:
    from retro_jax.config import ModelConfig
    from retro_jax.model import parameters

    tuples: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items()
    }
    shapes = parameters.named(parameters.skeleton(ModelConfig(**tuples)))
    count = functools.partial(parameters.num_parameters, shapes)
    return f"{count():,}, without embeddings {count(embeddings=False):,}"


def training(settings: Mapping, manifest: Mapping, rows: Sequence[Mapping]):
    """How long, on how much, how fast, and how much of the time it waited for data."""
    found = []
    if "config" in settings:
        cfg, data = settings["config"]["train"], settings["config"]["data"]
        chunks = cfg["steps"] * cfg["batch_size"] * data["sequence_chunks"]
        tokens = chunks * data["chunk_len"]
        passes = chunks / max(manifest["chunks"]["train"], 1)
        optimizer = settings["config"]["optimizer"]
        found += [
            Fact("steps asked for", f"{cfg['steps']:,}"),
            Fact(
                "batch",
                f"{counted(cfg['batch_size'], 'sequence')} of "
                f"{data['sequence_chunks'] * data['chunk_len']:,} tokens",
            ),
            Fact("tokens", f"about {tokens:,}, {passes:.2g} passes over the text"),
            Fact("peak learning rate", f"{optimizer['learning_rate']:g}"),
            Fact("seed", str(cfg["seed"])),
        ]
    if not rows:
        return [*found, Fact("metrics", "none were found")]
    speed = statistics.median(row["tokens_per_s"] for row in rows)
    return [
        *found,
        Fact("last step logged", f"{rows[-1]['step']:,}"),
        Fact(
            "last training loss", f"{number(rows[-1]['bits_per_byte'])} bits per byte"
        ),
        Fact("speed, median", f"{speed:,.0f} tokens/s"),
        Fact("time spent waiting for data", percent(waiting_share(rows), 1)),
    ]


def waiting_share(rows: Sequence[Mapping]) -> float:
    """Over the whole run: rows hold about as many tokens each, so slow ones weigh more."""
    times = [1 / max(row["tokens_per_s"], 1e-9) for row in rows]
    shares = [row["waiting_for_data_share"] for row in rows]
    waited = sum(time * share for time, share in zip(times, shares, strict=True))
    return waited / sum(times)


def evaluation(results: Mapping) -> list[Fact]:
    """What the conditions were measured on."""
    text = (
        f"{counted(results['documents'], 'document')}, "
        f"{counted(results['tokens'], 'token')}, {megabytes(results['bytes'])}"
    )
    return [
        Fact("split", results["split"]),
        Fact("scored", text),
        Fact("checkpoint", f"of step {results['step']:,}"),
    ]


def repeat(settings: Mapping) -> list[str]:
    """Commands that make this run again, as they are typed."""
    if "command" not in settings:
        return []
    flags = _flags(settings["command"])
    commit = settings.get("commit", "unknown")
    of_run = [f for f in flags if not f.startswith(("--job=", "--on_other_run="))]
    shared = [f for f in of_run if not f.startswith("--workdir=")]
    workdir = next((f for f in flags if f.startswith("--workdir=")), None)
    if workdir and not any(f.startswith("--database=") for f in shared):
        shared.append(f"--database={workdir.removeprefix('--workdir=')}/database")
    commands = [] if commit == "unknown" else [_checkout(commit)]
    commands.append(_command("experiments.build_database", shared))
    for job in ("train", "evaluate"):
        commands.append(_command("experiments.main", [*of_run, f"--job={job}"]))
    return commands


def _checkout(commit: str) -> str:
    clean = commit.removesuffix("-dirty")
    note = "" if clean == commit else "  # plus changes that were not committed"
    return f"git checkout {clean.split('-g')[-1]}{note}"


def _flags(command: str) -> list[str]:
    """The flags of a recorded command, whose quotes are lost, each as --name=value."""
    parts = re.split(r"\s+(?=--\w)", command)[1:]
    return [re.sub(r"^(--[\w.]+) ", r"\1=", part) for part in parts]


def _command(module: str, flags: Sequence[str]) -> str:
    return " ".join(["python -m", module, *map(shlex.quote, flags)])


def megabytes(size_bytes: float) -> str:
    """'7.80 MB'; kilobytes below a tenth of that unit."""
    if size_bytes < 100_000:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB"
