"""The rows of a result that compilations make: steps, and the cost of retrieval.

Nothing in them was run on a TPU. *Model FLOPs* are counted from the settings
(`retro_jax/model/flops.py`), *program FLOPs* in the compiled program, with what it
recomputes. *HBM traffic* is what the program's instructions read and write. *Sent over
ICI* is what a chip sends in the collectives, over rings. Times are those at the chip's
published peaks (`tools/aot/roofline.py`): a step takes the longest of the three, if they
overlap perfectly, to their sum, if not at all. MFU is given for both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.benchmark.result import Row

_GIB, _GB = 2**30, 1e9


def table_rows(compiled: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Gives a row a compilation, then one a topology of on beside off."""
    return [*map(_step, compiled), *_on_beside_off(compiled)]


def _step(one: Mapping[str, Any]) -> Row:
    row: Row = {"part": "steps", "topology": one["topology"]}
    row |= {"retrieval": "on" if one["retrieval"] else "off", "status": one["status"]}
    if "mesh" not in one:  # it failed before anything was known
        return row
    mesh = " x ".join(map(str, one["mesh"]))
    hbm = f"{one['hbm_bytes'] / _GIB:.0f}"
    row |= {
        "mesh, micro-batches": f"{mesh}, {one['accumulation']}",
        "parameters/chip (M)": round(one["parameters_per_chip"] / 1e6, 1),
        "model TFLOP/chip": round(one["model_flops"] / 1e12, 1),
        "compile (s)": round(one["compile_s"]),
        "compile peak (GiB)": round(one["compile_peak_bytes"] / _GIB, 1),
    }
    if one["status"] != "ok":
        return row | {"HBM peak / there (GiB)": f"- / {hbm}"}
    return row | {
        "state and batch (GiB)": round(one["argument_bytes"] / _GIB, 2),
        "HBM peak / there (GiB)": f"{one['peak_bytes'] / _GIB:.1f} / {hbm}",
        "program TFLOP/chip": round(one["program_flops"] / 1e12, 1),
        "HBM traffic (GB)": round(one["traffic_bytes"] / _GB),
        "sent over ICI (GB)": round(one["sent_bytes"] / _GB, 1),
        "compute / HBM / ICI (s)": (
            f"{one['compute_s']:.2f} / {one['hbm_s']:.2f} / {one['ici_s']:.2f}"
        ),
        "step (s)": _step_s(one),
        "MFU": _mfu(one),
        "limited by": one["limit"],
    }


def _step_s(one: Mapping[str, Any]) -> str:
    return f"{one['longest_s']:.2f} to {one['sum_s']:.2f}"


def _mfu(one: Mapping[str, Any]) -> str:
    return f"{one['mfu_longest']:.0%} to {one['mfu_sum']:.0%}"


def _on_beside_off(compiled: Sequence[Mapping[str, Any]]) -> list[Row]:
    done = {
        (one["topology"], one["retrieval"]): one
        for one in compiled
        if one["status"] == "ok"
    }
    rows: list[Row] = []
    for (topology, retrieval), on in done.items():
        off = done.get((topology, False))
        if not retrieval or off is None:
            continue
        flops, longest, total = (
            on[name] / off[name] for name in ("model_flops", "longest_s", "sum_s")
        )
        rows.append(
            {
                "part": "on / off",
                "topology": topology,
                "on (s)": _step_s(on),
                "off (s)": _step_s(off),
                "FLOPs ratio": round(flops, 2),
                "step ratio": f"{longest:.2f} (overlapped) to {total:.2f}",
                "MFU on": _mfu(on),
                "limited by": on["limit"],
                "HBM on (GiB)": (
                    f"{on['peak_bytes'] / _GIB:.1f} / {on['hbm_bytes'] / _GIB:.0f}"
                ),
            }
        )
    return rows
