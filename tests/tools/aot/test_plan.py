"""What a run would take: the committed table is what the settings give, and hours follow steps."""

import json

from experiments.configs import retro
from tools.aot import plan, roofline
from tools.benchmark import result


def test_the_committed_table_is_what_the_settings_give():
    committed = result.read_result(result.ROOT / "docs" / "results" / "pods.json")
    assert committed.rows == plan.rows()


def test_hours_and_what_a_kill_costs_follow_the_compiled_step(tmp_path):
    rows = [
        {"part": "steps", "topology": "v5p:4x4x4", "retrieval": "on", "step (s)": s}
        for s in ("1.80 to 3.60",)
    ]
    made = {"name": "aot", "conditions": {}, "rows": rows, "notes": []}
    (tmp_path / "aot-7.5b.json").write_text(json.dumps(made))
    by_place = {
        row["place"]: row for row in plan.rows(tmp_path) if row["model"] == "7.5b"
    }
    row = by_place["v5p:4x4x4"]
    assert row["hours"] == "100 to 200"  # 200,000 steps
    assert row["chip-hours"] == "6,400 to 12,800"
    assert row["a kill costs at most (chip-hours)"] == "32 to 64"  # 1,000 steps
    assert by_place["v5e:16x16"]["hours"] == result.UNKNOWN


def test_every_place_can_have_its_model():
    for size, places in plan.PLACES.items():
        for place in places:
            cfg = retro.get_config(f"{size},{place}")
            groups = retro.num_devices(place) // cfg.mesh.model
            assert cfg.train.batch_size % (groups * cfg.train.accumulation) == 0
            if place.partition(":")[0] in roofline.CHIPS:
                assert roofline.parse_slice(place).num_chips == retro.num_devices(place)
