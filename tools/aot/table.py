"""The table of compilations, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

_GIB, _GB = 2**30, 1e9

_COLUMNS = (
    "topology",
    "retrieval",
    "mesh, micro-batches, remat",
    "parameters/chip (M)",
    "state and batch (GiB)",
    "HBM peak / there (GiB)",
    "model TFLOP/chip",
    "program TFLOP/chip",
    "HBM traffic (GB)",
    "sent over ICI (GB)",
    "compute / HBM / ICI (s)",
    "step (s)",
    "MFU",
    "limited by",
    "compile (s), peak (GiB)",
)

_CAPTION = """\
Nothing here was run on a TPU. *Model FLOPs* are counted from the settings
(`retro_jax/model/flops.py`), *program FLOPs* in the compiled program, with what it recomputes.
*HBM traffic* is what the program's instructions read and write. *Sent over ICI* is what a
chip sends in the collectives, over rings. Times are those at the chip's published peaks
(`tools/aot/roofline.py`). The step takes the longest of the three, if they overlap
perfectly, to their sum, if not at all; MFU is given for both. Real steps are slower.
"""


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, what each collective moves, and the cost of retrieval beside its FLOPs."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(_cells(row)) for row in rows]
    lines += ["", _CAPTION]
    moved = [line for row in rows for line in _collectives(row)]
    if moved:
        names = (
            "topology",
            "retrieval",
            "collective",
            "chips",
            "a step",
            "payload (GB)",
            "a chip sends (GB)",
        )
        lines += [_line(names), _line(["---"] * len(names)), *moved, ""]
    lines += [*_ratios(rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _on(row: Mapping[str, Any]) -> str:
    return "on" if row["retrieval"] else "off"


def _cells(row: Mapping[str, Any]) -> list[str]:
    opening = [row["topology"], _on(row)]
    if "mesh" not in row:  # it failed before anything was known
        return [*opening, row["status"], *[""] * (len(_COLUMNS) - 3)]
    opening += [
        f"{' x '.join(map(str, row['mesh']))}, {row['accumulation']}, {row['remat']}",
        f"{row['parameters_per_chip'] / 1e6:.1f}",
    ]
    closing = [f"{row['compile_s']:.0f}, {row['compile_peak_bytes'] / _GIB:.1f}"]
    hbm = f"{row['hbm_bytes'] / _GIB:.0f}"
    model_flops = f"{row['model_flops'] / 1e12:.1f}"
    if row["status"] != "ok":
        middle = ["", f"**{row['status']}** / {hbm}", model_flops, *[""] * 7]
        return [*opening, *middle, *closing]
    sent_bytes = sum(one["sent_bytes"] for one in row["collectives"])
    return [
        *opening,
        f"{row['argument_bytes'] / _GIB:.2f}",
        f"{row['peak_bytes'] / _GIB:.1f} / {hbm}",
        model_flops,
        f"{row['program_flops'] / 1e12:.1f}",
        f"{row['traffic_bytes'] / _GB:,.0f}",
        f"{sent_bytes / _GB:.1f}",
        f"{row['compute_s']:.2f} / {row['hbm_s']:.2f} / {row['ici_s']:.2f}",
        f"{row['longest_s']:.2f} to {row['sum_s']:.2f}",
        f"{row['mfu_longest']:.0%} to {row['mfu_sum']:.0%}",
        row["limit"],
        *closing,
    ]


def _collectives(row: Mapping[str, Any]) -> list[str]:
    return [
        _line(
            [
                row["topology"],
                _on(row),
                one["kind"],
                str(one["group_size"]),
                f"{one['executions']:,}",
                f"{one['payload_bytes'] / _GB:.2f}",
                f"{one['sent_bytes'] / _GB:.2f}",
            ]
        )
        for one in row.get("collectives", [])
    ]


def _ratios(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    done = {
        (row["topology"], row["retrieval"]): row
        for row in rows
        if row["status"] == "ok"
    }
    lines = []
    for (topology, retrieval), on in done.items():
        off = done.get((topology, False))
        if retrieval and off is not None:
            flops, longest, total = (
                on[name] / off[name] for name in ("model_flops", "longest_s", "sum_s")
            )
            lines.append(
                f"- {topology}: retrieval costs {flops:.2f} times the FLOPs, "
                f"{longest:.2f} (all overlaps) to {total:.2f} (nothing does) times the "
                "step"
            )
    return [*lines, ""] if lines else []
