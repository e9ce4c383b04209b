"""The card of an exported model: what it is, what it scored, how to load it.

All numbers are those of the run. What a card tells others of a corpus is how much of it
there was: a path of this machine stays here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import retro_jax
from experiments.report import facts, markdown, retrofit, verdict


def text(
    name: str,
    about: Mapping[str, Mapping[str, Any]],
    results: Mapping,
    settings: Mapping,
) -> str:
    """The card, in Markdown with the header that the Hugging Face hub reads.

    Args:
        name: of the folder.
        about: how the model generates, and which tokenizer and database it belongs to.
        results: the run's `evaluation/results.json`; empty if it was not evaluated.
        settings: the run's settings, as they are kept.
    """
    is_a = (
        "A RETRO: a language model that reads passages which are retrieved from a database "
        "of text for every chunk of what it writes, by chunked cross-attention "
        "(Borgeaud et al. 2022)."
    )
    parts = [
        "---\nlibrary_name: retro-jax\ntags:\n- retro\n- retrieval\n---",
        f"# {markdown.escape(name)}",
        is_a,
        *_measured(results, settings),
        *_model(settings),
        *_database(about["database"]),
        *_use(name, about),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(results: Mapping, settings: Mapping) -> list[str]:
    """What the run's evaluation found, with what must be known before."""
    if "conditions" not in results:
        return ["## Measured\n\nThe run was not evaluated: nothing is known of it."]
    summary = retrofit.summary(results) if retrofit.is_one(results) else []
    header = (
        "retrieval",
        "bits per byte",
        "95 % interval",
        "difference to off",
        "its 95 % interval",
    )
    rows = [
        f"| {row.label} | {' | '.join(row.cells[:4])} |"
        for row in verdict.table(results)
    ]
    return [
        "## Measured",
        *verdict.caveats(results, {"config": settings}),
        f"**{verdict.headline(results)}**",
        *(f"- {sentence}" for sentence in summary),
        verdict.UNIT,
        "\n".join(
            [
                f"| {' | '.join(header)} |",
                "|---|--:|--:|--:|--:|",
                *rows,
            ]
        ),
    ]


def _model(settings: Mapping) -> list[str]:
    """The sizes of the model."""
    if "model" not in settings:
        return []
    lines = []
    for fact in facts.model({"config": settings}):
        told = [markdown.escape(fact.value)] if fact.value else []
        lines.append(
            f"- {fact.name}: {' '.join([*told, *map(markdown.code, fact.code)])}"
        )
    decoder = settings.get("init_from")
    made_of = (
        f"\n\nIt was made of {markdown.code(Path(decoder).name)}; what its licence says "
        "holds for this model, too."
        if decoder and settings["model"].get("encoder") == "decoder"
        else ""
    )
    return ["## Model", "\n".join(lines) + made_of]


def _database(database: Mapping[str, Any]) -> list[str]:
    """Which database the model belongs to; it is no part of the folder."""
    if not database:
        return ["## Database", "Its database was not there when this was written."]
    of_which = (
        "The model reads passages of a database of "
        f"{verdict.counted(database['documents'], 'document')} "
        f"({verdict.counted(database['chunks'], 'chunk')} of {database['chunk_len']} "
        f"tokens), version {database['version']}, with the fingerprint "
        f"{markdown.code(database['fingerprint'])}. The database is not in this folder. "
        "Any other of the same tokenizer and chunk length can take its place."
    )
    return ["## Database", of_which]


def _use(name: str, about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How to load the model, and with what it generates."""
    kept = about["generation"]
    said = ", ".join(
        f"{key} {value}"
        for key, value in kept.items()
        if value not in (None, [], 0) or key == "temperature"
    )
    return [
        "## Use",
        markdown.block(
            "from retro_jax import Retro\n\n"
            f"model = Retro.from_pretrained({name!r})\n"
            "logits_BLV = model(inputs_BL, neighbours_BCNR, neighbour_lengths_BCN)",
            "python",
        ).rstrip(),
        f"It generates with: {markdown.escape(said)}.",
        "Written by retro-jax " + markdown.escape(retro_jax.__version__) + ".",
    ]
