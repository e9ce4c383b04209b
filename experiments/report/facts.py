"""Facts of a run for its report: database, model, training, how to repeat it."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.report.verdict import counted, number, percent


class Fact(NamedTuple):
    """A line of a list of facts: words and numbers of ours, then others' text."""

    name: str
    value: str = ""
    code: tuple[str, ...] = ()  # names of files, paths: shown verbatim


def database(manifest: Mapping) -> list[Fact]:
    """What can be retrieved, what was held out, and what was left out and why."""
    documents, index = manifest["documents"], manifest["index"]
    found = [Fact("corpus", code=(manifest["corpus"],))]
    for split, use in (
        ("train", "searched, and trained on"),
        ("validation", "held out"),
        ("test", "held out"),
    ):
        value = (
            f"{counted(documents[split]['documents'], 'document')}, "
            f"{counted(manifest['chunks'][split], 'chunk')}, "
            f"{megabytes(documents[split]['size_bytes'])}"
        )
        found.append(Fact(f"{split} ({use})", value))
    near, tokenizer = documents["near_duplicates"], manifest["tokenizer_fingerprint"]
    vocabulary = f"vocabulary of {manifest['vocab_size']:,}, fingerprint"
    width = f"{manifest['embedding_width']} dimensions"
    return [
        *found,
        Fact("exact duplicates dropped", f"{documents['exact_duplicates']:,}"),
        Fact("dropped as near copies of held-out documents", f"{near:,}"),
        *_left_out(documents["skipped"]),
        Fact("embedder", width, (manifest["embedder"],)),
        Fact("tokenizer", vocabulary, (tokenizer,)),
        Fact("chunk", f"{manifest['chunk_len']} tokens"),
        Fact("index", code=(index["kind"],)),
        Fact("recall against exact search", _recall(index)),
        Fact("database fingerprint", code=(manifest["fingerprint"],)),
    ]


def _left_out(skipped: Mapping) -> list[Fact]:
    if not skipped:
        return [Fact("left out", "nothing")]
    return [
        Fact(
            f"left out: {reason}",
            f"{entry['count']:,}{', such as' if entry['names'] else ''}",
            tuple(entry["names"][:3]),
        )
        for reason, entry in sorted(skipped.items())
    ]


def _recall(index: Mapping) -> str:
    names = [name for name in ("recall@2", "recall@10") if name in index]
    recalls = ", ".join(f"{name} {number(index[name], 3)}" for name in names)
    queries, speed = counted(index["queries"], "chunk"), index.get("queries_per_s")
    told = f"{recalls or 'not measured'} over {queries} as queries"
    return f"{told}, {speed:,.0f} queries/s when it was built" if speed else told


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
        own = (
            f"the decoder's own layers, up to layer {max(cfg['cca_layers']) - 1}: each "
            "layer with CCA reads what the layer below it made of a passage"
        )
        encoder = (
            f"{counted(cfg['encoder_depth'], 'layer')}, width {cfg['encoder_width']}, "
            f"{cfg['encoder_heads']} heads of {cfg['encoder_head_size']}, "
            f"feed-forward {cfg['encoder_ffw_width']}"
        )
        passages = counted(settings["config"]["data"]["num_neighbours"], "passage")
        read = f"{passages} of {cfg['neighbour_len']} tokens"
        by_decoder = cfg.get("encoder") == "decoder"
        found += [
            Fact("encoder", own if by_decoder else encoder),
            Fact("read for each chunk", read),
        ]
    if layers and cfg.get("copy_init"):
        start = (
            "cross-attention starts as a copier of what its passages say, not at "
            "random (model.copy_init)"
        )
        found.append(Fact("start", start))
    start_from = settings["config"].get("init_from")
    if start_from and cfg.get("encoder") == "decoder":
        start = "cross-attention began as a copy of its layers' own attention"
        if settings["config"].get("retrofit", {}).get("start") == "random":
            start = "cross-attention began at random, with an output of zero"
        found += [
            Fact("pretrained decoder", code=(Path(start_from).name,)),
            Fact("start", start),
        ]
    elif start_from:
        start = (
            "the decoder began as a trained baseline (init_from), to which "
            "cross-attention added nothing at first"
        )
        found.append(Fact("retrofit", start))
    return [*found, Fact("numbers", code=(cfg["dtype"],))]


def _parameters(cfg: Mapping) -> str:
    from retro_jax.config import ModelConfig
    from retro_jax.model import parameters

    # JSON has no tuples.
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in cfg.items()
    }
    shapes = parameters.named(parameters.skeleton(ModelConfig(**fields)))
    bare = parameters.num_parameters(shapes, embeddings=False)
    return f"{parameters.num_parameters(shapes):,}, without embeddings {bare:,}"


def training(
    settings: Mapping, manifest: Mapping, rows: Sequence[Mapping]
) -> list[Fact]:
    """How long, on how much, how fast, and how much of the time it waited for data."""
    found = []
    if "config" in settings:
        cfg, data = settings["config"]["train"], settings["config"]["data"]
        chunks = cfg["steps"] * cfg["batch_size"] * data["sequence_chunks"]
        passes = chunks / max(manifest["chunks"]["train"], 1)
        sequences = counted(cfg["batch_size"], "sequence")
        length = data["sequence_chunks"] * data["chunk_len"]
        tokens = f"{chunks * data['chunk_len']:,}"
        rate = settings["config"]["optimizer"]["learning_rate"]
        found += [
            Fact("steps asked for", f"{cfg['steps']:,}"),
            Fact("batch", f"{sequences} of {length:,} tokens"),
            Fact("tokens", f"about {tokens}, {passes:.2g} passes over the text"),
            Fact("peak learning rate", f"{rate:g}"),
            Fact("seed", str(cfg["seed"])),
        ]
    if not rows:
        return [*found, Fact("metrics", "none were found")]
    speed = statistics.median(row["tokens_per_s"] for row in rows)
    loss = f"{number(rows[-1]['bits_per_byte'])} bits per byte"
    return [
        *found,
        Fact("last step logged", f"{rows[-1]['step']:,}"),
        Fact("last training loss", loss),
        Fact("speed, median", f"{speed:,.0f} tokens/s"),
        Fact("time spent waiting for data", percent(waiting_share(rows), 1)),
    ]


def waiting_share(rows: Sequence[Mapping]) -> float:
    """The share of a run's time that went by waiting for data.

    Rows hold about as many tokens each, so a row's time is one over its speed.
    """
    times = [1 / max(row["tokens_per_s"], 1e-9) for row in rows]
    shares = [row["waiting_for_data_share"] for row in rows]
    waited = sum(time * share for time, share in zip(times, shares, strict=True))
    return waited / sum(times)


def evaluation(results: Mapping) -> list[Fact]:
    """What the conditions were measured on."""
    documents = counted(results["documents"], "document")
    tokens = counted(results["tokens"], "token")
    other, searched = results.get("held_out"), results.get("database")
    text = Fact("text", code=(other,)) if other else Fact("split", results["split"])
    found = [text]
    if searched:
        chunks = f"{counted(searched['chunks'], 'chunk')}, fingerprint"
        found.append(Fact("searched", chunks, (searched["fingerprint"],)))
    return [
        *found,
        Fact("scored", f"{documents}, {tokens}, {megabytes(results['bytes'])}"),
        Fact("checkpoint", f"of step {results['step']:,}"),
    ]


def repeat(settings: Mapping) -> list[str]:
    """Commands that make this run again, as they are typed."""
    if "workdir" not in settings:
        return []
    commit, workdir = settings.get("commit", "unknown"), settings["workdir"]
    again = ["retro", "train", f"--config=run:{workdir}", f"--workdir={workdir}-again"]
    return [*([] if commit == "unknown" else [_checkout(commit)]), shlex.join(again)]


def _checkout(commit: str) -> str:
    clean = commit.removesuffix("-dirty")
    note = "" if clean == commit else "  # plus changes that were not committed"
    return f"git checkout {clean.split('-g')[-1]}{note}"


def megabytes(size_bytes: float) -> str:
    """Writes '7.80 MB', or kilobytes below a tenth of a megabyte."""
    if size_bytes < 100_000:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB"
