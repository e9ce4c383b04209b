"""The paper's Table 13 beside what a sweep of `ablations` has found.

Borgeaud et al. 2022, "Improving language models by retrieving from trillions of tokens", table
13: bits per byte on C4, one run a row, no intervals.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.configs import ablations
from experiments.report import verdict

_PAPER = (
    *(0.822, 0.829, 0.826, 0.823, 0.821, 0.950, 0.895, 0.987),
    *(0.858, 0.847, 0.827, 0.823, 0.831, 0.860, 0.823),
)
PAPER_BITS_PER_BYTE = dict(zip(ablations.TABLE_13, _PAPER, strict=True))
SEEDS_OF_A_CLAIM = 5

SAME_SIGN, WITHIN_NOISE, DIFFERS = "same sign", "within noise", "differs"
TOO_FEW_SEEDS, NOT_IN_PAPER = "too few seeds", "not in the paper"
MEANINGS = {
    "default": "the row that all others are compared with",
    "no_query_conditioning": "the encoder does not look at the chunk that asked",
    "no_cca_positions": "cross-attention without relative positions",
    "shared_embeddings": "decoder and encoder share an embedding table",
    "encoder_6_layers": "six layers of encoder",
    "match_only": "of a neighbour only the chunk that matched",
    "continuation_only": "of a neighbour only what follows the chunk that matched",
    "no_retrieval": "the decoder alone",
    "neighbours_1": "one neighbour a chunk, in training and when it is measured",
    "neighbours_4": "four neighbours a chunk",
    "cca_1": "cross-attention in the lowest layer alone",
    "cca_6": "cross-attention at half of the height alone",
    "cca_12": "cross-attention in the highest layer alone",
    "cca_all": "cross-attention in every layer",
    "cca_every_3_from_1": "cross-attention in every third layer, from the lowest on",
    "cca_every_9": "cross-attention at nine twelfths of the height alone",
    "chunks_of_32": "chunks of 32 tokens, neighbours of 64",
    "chunks_of_128": "chunks of 128 tokens, neighbours of 256",
    "copier": "cross-attention starts as a copier, with shared embeddings",
    "copy_warm_up": "at first every second chunk reads the text that goes on from it",
    "retrofit_frozen": "the baseline with cross-attention, which alone is trained",
    "retrofit_unfrozen": "the baseline with cross-attention; all of it is trained",
}


class Row(NamedTuple):
    """A row of the table: the paper's difference to its default, and ours."""

    name: str
    bits_per_byte: float
    paper: (
        float | None
    )  # difference to the default; None where the paper has no such row
    ours: float | None  # the same; None for the default itself
    seeds_interval: Sequence[float] | None
    documents_interval: Sequence[float] | None
    seeds: int

    @property
    def judgement(self) -> str:
        """How ours stands beside the paper's."""
        if self.ours is None:
            return ""
        intervals = (self.seeds_interval, self.documents_interval)
        return beside_paper(self.paper, self.ours, intervals, self.seeds)


def beside_paper(
    paper: float | None,
    ours: float,
    intervals: Sequence[Sequence[float] | None],
    seeds: int,
) -> str:
    """Says whether a difference that was measured has the sign of the paper's.

    Args:
        paper: the paper's difference; None if it has none.
        ours: the mean over seeds.
        intervals: of ours, over seeds and over documents; None where one is not known.
        seeds: how many were trained; fewer than `SEEDS_OF_A_CLAIM` say nothing.
    """
    if paper is None:
        return NOT_IN_PAPER
    if seeds < SEEDS_OF_A_CLAIM or intervals[0] is None:
        return TOO_FEW_SEEDS
    if any(ends is not None and ends[0] <= 0 <= ends[1] for ends in intervals):
        return WITHIN_NOISE
    return SAME_SIGN if (ours > 0) == (paper > 0) else DIFFERS


def rows(variants: Mapping[str, Mapping], scale: str) -> list[Row]:
    """The rows of a scale that a summary of its launch has, in the table's order.

    Args:
        variants: of the summary, by what a unit changes.
        scale: of `ablations.SCALES`.
    """
    found, default = [], PAPER_BITS_PER_BYTE["default"]
    for name, settings in ablations.rows_of(scale).items():
        of_row = variants.get(label(settings))
        if of_row is None:
            continue
        read = of_row["conditions"].get("on") or of_row["conditions"]["off"]
        beside = of_row.get("minus_first", {})
        in_paper = PAPER_BITS_PER_BYTE.get(name)
        found.append(
            Row(
                name,
                read["bits_per_byte"],
                None if in_paper is None else in_paper - default,
                beside.get("bits_per_byte"),
                beside.get("interval"),
                beside.get("documents_interval"),
                read["seeds"],
            )
        )
    return found


def label(settings: ablations.Settings) -> str:
    """What a summary calls the units with these settings."""
    return " ".join(f"{setting}={value}" for setting, value in settings.items())


HEADER = (
    *("row", "beside the paper", "paper", "ours", "95 % over seeds"),
    *("95 % over documents", "bits per byte"),
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, under `HEADER`."""
    is_default = row.ours is None
    return (
        f"{row.name}: {MEANINGS[row.name]}",
        row.judgement,
        "none" if row.paper is None else verdict.signed(row.paper, 3),
        "0" if row.ours is None else verdict.signed(row.ours),
        "" if is_default else _ends(row.seeds_interval),
        "" if is_default else _ends(row.documents_interval),
        verdict.number(row.bits_per_byte),
    )


def _ends(ends: Sequence[float] | None) -> str:
    if ends is None:
        return verdict.NOT_KNOWN
    return verdict.interval((ends[0], ends[1]), verdict.signed)
