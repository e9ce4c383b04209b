"""Bounds on a step's time, from the data sheets of TPU chips."""

import dataclasses
import math
import re
from collections.abc import Iterable

from tools.aot.hlo import Collective


@dataclasses.dataclass(frozen=True, slots=True)
class Chip:
    """The published peaks of one chip.

    Attributes:
        flops_per_s: bfloat16 matrix products.
        hbm_bytes: main memory.
        hbm_bytes_per_s: to and from main memory.
        ici_bytes_per_s: sent over all links to other chips together, in one direction.
        torus_axes: of the network between chips, two links an axis.
        megacore: its two cores make one device.
        slices: shapes that are offered, a choice.
    """

    flops_per_s: float
    hbm_bytes: float
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    torus_axes: int
    megacore: bool
    slices: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x8", "8x8x16")

# Source: Google Cloud's pages of each version (cloud.google.com/tpu/docs/v4, v5e, v5p,
# v6e). They give the interconnect in both directions together, or, older ones, in Gbps of
# one: v4 2400 Gbps; v5e 1600 Gbps = 400 GB/s both ways; v5p 4800 Gbps = 1200 GB/s both
# ways; v6e 800 GB/s both ways.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, 3, True, _CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 2, False, _FLAT),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3, True, _CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 2, False, _FLAT),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """The chips of one kind in a torus, such as 'v5p:4x4x4'."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape)

    def ici_bytes_per_s(self, group_size: int) -> float:
        """Gives the bytes a second that a chip can send to a group of this size.

        A group lies along as few axes of the torus as hold it, and uses their links alone.
        """
        axes, held = 0, 1
        for size in sorted(self.shape, reverse=True):
            if held < group_size and size > 1:
                axes, held = axes + 1, held * size
        return self.chip.ici_bytes_per_s * max(axes, 1) / self.chip.torus_axes


def parse_slice(name: str) -> Slice:
    """Reads the name of a slice such as 'v5p:4x4x4'.

    Raises:
        ValueError: for an unknown chip or a shape that its network can't have; names
            those that are known.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    chip = CHIPS.get(found[1]) if found else None
    shape = tuple(map(int, found[2].split("x"))) if found else ()
    if chip is None or len(shape) != chip.torus_axes or min(shape) < 1:
        known = "; ".join(
            f"{kind}: {' '.join(chip.slices)}" for kind, chip in CHIPS.items()
        )
        raise ValueError(f"no topology {name!r}; there are, for example, {known}")
    return Slice(name, chip, shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """The least time that each part of a step can take on a chip."""

    compute_s: float
    hbm_s: float
    ici_s: float

    @property
    def longest_s(self) -> float:
        """Gives the step's time if all three overlap: the roofline."""
        return max(self.compute_s, self.hbm_s, self.ici_s)

    @property
    def sum_s(self) -> float:
        """Gives the step's time if nothing overlaps."""
        return self.compute_s + self.hbm_s + self.ici_s

    @property
    def limit(self) -> str:
        """Names the part that takes longest: 'compute', 'HBM' or 'ICI'."""
        parts = {"compute": self.compute_s, "HBM": self.hbm_s, "ICI": self.ici_s}
        return max(parts, key=lambda name: parts[name])


def times(
    where: Slice, flops: float, memory_bytes: float, collectives: Iterable[Collective]
) -> Times:
    """Bounds the times of one chip's work in a step by the chip's published peaks."""
    return Times(
        compute_s=flops / where.chip.flops_per_s,
        hbm_s=memory_bytes / where.chip.hbm_bytes_per_s,
        ici_s=sum(
            collective.sent_bytes / where.ici_bytes_per_s(collective.group_size)
            for collective in collectives
        ),
    )
