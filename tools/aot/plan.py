"""What a run of the paper's models takes on slices of TPUs and on GPUs, before it is started.

    python -m tools.aot.plan [--out=docs/results/pods.json]

Nothing here was run. FLOPs are counted from the settings (`retro_jax/model/flops.py`). "At the
peak" is what they take at the chips' published peaks: no run is faster. Where `docs/results/`
holds what `make aot` said of a slice, its least and greatest step time make the hours. A kill
costs at most the steps since the last checkpoint.
"""

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import command_line
from experiments.config import Experiment
from experiments.configs import retro
from retro_jax.model import flops, parameters
from tools.aot import roofline
from tools.benchmark import result

PLACES = {
    "172m": ("v4:2x2x4", "v5e:4x4", "v5p:2x2x2", "v6e:4x4", "h100:8"),
    "425m": ("v4:2x4x4", "v5e:4x8", "v5p:2x2x4", "v6e:4x4", "h100:16"),
    "1.5b": ("v4:4x4x4", "v5e:8x16", "v5p:2x4x4", "v6e:8x8", "h100:32"),
    "7.5b": ("v4:4x4x4", "v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:128"),
}
# Dense products in bfloat16. Source: NVIDIA's data sheets of the SXM modules.
_GPU_FLOPS_PER_S = {"h100": 989.4e12, "h200": 989.4e12}
_COMPILED = result.ROOT / "docs" / "results"
_SLOT_BYTES = 4  # of a parameter, and of each of the optimizer's two for it
_GIB, _HOUR_S = 2**30, 3600.0


def rows(compiled: Path = _COMPILED) -> list[result.Row]:
    """Gives a row for each size and place.

    Args:
        compiled: the folder with what `make aot` said, as `aot-SIZE.json`.
    """
    return [
        _row(size, place, _steps_s(compiled / f"aot-{size}.json").get(place))
        for size, places in PLACES.items()
        for place in places
    ]


def _row(size: str, place: str, step_s: tuple[float, float] | None) -> result.Row:
    cfg, of_retrofit = retro.get_config(size), retro.get_config(f"{size},retrofit")
    chips, train = retro.num_devices(place), cfg.train
    layout = retro.layout(size, place, train.batch_size)
    kept_bytes = _state_bytes(size)
    row: result.Row = {
        "model": size,
        "place": place,
        "model x micro-batches": f"{layout.model} x {layout.accumulation}",
        "compiled": "no" if step_s is None else "yes",
        "steps": train.steps,
        "ZFLOP": result.significant(_flops(cfg) / 1e21, 3),
        "state (GiB a chip)": result.significant(kept_bytes / chips / _GIB, 3),
        "checkpoint (GB)": result.significant(kept_bytes / 1e9, 3),
        "at the peak (chip-hours)": _at_the_peak(cfg, place),
        "retrofit at the peak (chip-hours)": _at_the_peak(of_retrofit, place),
    }
    bounds: dict[str, str] = dict.fromkeys(
        ("step (s)", "hours", "chip-hours", "a kill costs at most (chip-hours)"),
        result.UNKNOWN,
    )
    if step_s is not None:
        lost_s = train.checkpoint_every * chips
        bounds = {
            "step (s)": _ends(step_s, 1),
            "hours": _ends(step_s, train.steps / _HOUR_S),
            "chip-hours": _ends(step_s, train.steps * chips / _HOUR_S),
            "a kill costs at most (chip-hours)": _ends(step_s, lost_s / _HOUR_S),
        }
    return row | bounds


def _flops(cfg: Experiment) -> int:
    """Model FLOPs of a whole run."""
    of_sequence = flops.train_flops(
        cfg.model,
        cfg.data.sequence_chunks * cfg.data.chunk_len,
        cfg.data.num_neighbours,
        retrieval=True,
        frozen=bool(cfg.init_from and cfg.train.freeze),
    )
    return of_sequence * cfg.train.batch_size * cfg.train.steps


def _at_the_peak(cfg: Experiment, place: str) -> str:
    kind = place.partition(":")[0]
    chip = roofline.CHIPS.get(kind)
    per_s = _GPU_FLOPS_PER_S[kind] if chip is None else chip.flops_per_s
    return f"{result.significant(_flops(cfg) / per_s / _HOUR_S, 3):,.0f}"


@functools.cache
def _state_bytes(size: str) -> int:
    """Parameters and the optimizer's slots: what a chip has its share of, and a checkpoint holds."""
    params = parameters.skeleton(retro.get_config(size).model)
    return 3 * _SLOT_BYTES * parameters.num_parameters(parameters.named(params))


def _steps_s(path: Path) -> Mapping[str, tuple[float, float]]:
    """Least and greatest time of a step with retrieval on each slice that was compiled."""
    if not path.exists():
        return {}
    found = {}
    for row in result.read_result(path).rows:
        if row["part"] == "steps" and row["retrieval"] == "on" and "step (s)" in row:
            least, most = str(row["step (s)"]).split(" to ")
            found[str(row["topology"])] = (float(least), float(most))
    return found


def _ends(ends: Sequence[float], times: float) -> str:
    least, most = (result.significant(end * times, 3) for end in ends)
    return f"{least:,g} to {most:,g}"


def main(words: Sequence[str]) -> None:
    """Prints the table; writes it, if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write")
    out = parser.parse_args(words).out
    conditions = result.describe_machine(("jax",))
    conditions["command"] = result.command_line("tools.aot.plan", words)
    notes = ["nothing was run: counted from the settings, and bounds of compiled steps"]
    made = result.Result(name="pods", conditions=conditions, rows=rows(), notes=notes)
    if out is not None:
        result.write_result(made, out)
    result.print_result(made)


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv[1:]))
