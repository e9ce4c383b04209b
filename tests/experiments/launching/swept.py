"""A sweep's folder as its units have left it: finished, running, failed, empty, hostile."""

import json
import math
from pathlib import Path

from retro_jax.runs import goodput
from tests.experiments.launching.units import unit

HOSTILE = (
    "</script><script>alert('x')</script><img src=http://evil.test/a>\u202e\x1b[2J"
)
_STEPS = 200


def write(out: Path) -> None:
    """Eight units: two rates with two seeds each, and four that have nothing to show."""
    for number in range(4):
        rate, seed = (1e-3, 3e-3)[number // 2], number % 2
        point = {"optimizer.learning_rate": repr(rate), "train.seed": str(seed)}
        made = unit(out, number=number, **point)
        done = number == 3
        made.record(state="running" if done else "finished", attempts=1 + number % 2)
        steps = _STEPS // 2 if done else _STEPS
        _metrics(made.folder, rate, seed, steps)
        _time(made.folder, steps, restarts=number % 2)
        if not done:
            measured = {"off": 2.31, "on": 2.31 - 0.02 * (1 + number)}
            (made.folder / "evaluation").mkdir()
            (made.folder / "evaluation" / "results.json").write_text(
                json.dumps(
                    {
                        "conditions": {
                            name: {"bits_per_byte": value}
                            for name, value in measured.items()
                        }
                    }
                )
            )
    failed = unit(out, number=4, **{"optimizer.learning_rate": "100.0"})
    failed.record(state="failed", attempts=1, last_line="error: the loss is nan")
    unit(out, number=5, **{"optimizer.learning_rate": "0.01"})
    hostile = unit(out, number=6, **{"optimizer.learning_rate": HOSTILE})
    hostile.record(state="failed", attempts=HOSTILE, last_line=HOSTILE, pid=[])
    (hostile.folder / "metrics").mkdir()
    (hostile.folder / "metrics" / "metrics.jsonl").write_text(
        '{"step": 1, "bits_per_byte": 1e400, "tokens_per_s": "many"}\n'
        '{"step": 2, "bits_per_byte": NaN, "gradient_norm": 1e308}\n'
        f'{{"step": 1{"0" * 400}, "bits_per_byte": 2}}\n[]\n'
    )
    (hostile.folder / "metrics" / goodput.FILE).write_text(
        '{"attempts": [{"step": {}}]}'
    )
    (hostile.folder / "settings.json").write_text('{"train": [], "data": 3}')
    (hostile.folder / "evaluation").mkdir()
    (hostile.folder / "evaluation" / "results.json").write_text(
        json.dumps({"conditions": {HOSTILE: {"bits_per_byte": HOSTILE}, "x": 3}})
    )
    alien = out / "unit-007"
    alien.mkdir()
    (alien / "unit.json").write_text('{"point": {"a": 1}, "jobs": [3], "hosts": "x"}')


def _metrics(folder: Path, rate: float, seed: int, steps: int) -> None:
    (folder / "metrics").mkdir()
    rows = [
        {
            "step": step,
            "loss_nats_per_token": 3 + 4 * math.exp(-step * rate * 10),
            "bits_per_byte": 2.2
            + 3 * math.exp(-step * rate * 20)
            + 0.05 * math.sin(step / 7 + seed),
            "tokens_per_s": 9000 + 400 * math.sin(step / 30 + seed) - 2e5 * rate,
            "gradient_norm": 0.4
            + 2 * math.exp(-step / 30)
            + 0.1 * math.cos(step + seed),
            "learning_rate": rate * min(1, step / 50),
        }
        for step in range(5, steps + 1, 5)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics" / "metrics.jsonl").write_text(text)


def _time(folder: Path, steps: int, *, restarts: int) -> None:
    attempts = []
    for number in range(restarts + 1):
        seconds = dict.fromkeys(goodput.PARTS, 0.0)
        seconds |= {"start": 9.0, "compile": 14.0, "data": 3.0, "checkpoint": 2.0}
        attempts.append(
            {
                "began_s": 1000.0 + 150 * number,
                "now_s": 1128.0 + 150 * number,
                "first_step": 80 * number,
                "step": steps if number == restarts else 100,
                "ended": "finished" if number == restarts else None,
                "seconds": seconds | {"steps": 100.0},
            }
        )
    path = folder / "metrics" / goodput.FILE
    path.write_text(json.dumps({"attempts": attempts}))
