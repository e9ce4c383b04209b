"""The gain of retrieval is read from what a run's evaluation left behind."""

import json

from tools.benchmark import __main__, result


def test_runs_are_read(tmp_path, capsys):
    conditions = {
        name: {
            "bits_per_byte": 1.7 + gain,
            "minus_off": gain,
            "minus_off_interval": [gain - 0.02, gain + 0.01],
        }
        for name, gain in (("off", 0.0), ("on", -0.08), ("random", 0.015))
    }
    run, out = tmp_path / "tiny", tmp_path / "retrieval.json"
    (run / "evaluation").mkdir(parents=True)
    found = {"documents": 18, "conditions": conditions}
    (run / "evaluation" / "results.json").write_text(json.dumps(found))
    (run / "settings.json").write_text(json.dumps({"config": {"train": {"seed": 3}}}))
    flags = ["retrieval", "--workdir", str(run), f"--out={out}"]
    assert __main__.main(flags) == 0
    off, on, random = result.read_result(out).rows
    assert on["bits per byte"] == 1.62 and on["off"] == off["bits per byte"] == 1.7
    assert on["less off"] == "-0.0800 (-0.1000 to -0.0700)"
    assert random["less off"] == "+0.0150 (-0.0050 to +0.0250)"
    assert (on["run"], on["seed"], on["documents"]) == ("tiny", 3, 18)
    assert __main__.main(["retrieval", f"--workdir={tmp_path}"]) == 2
    assert "has no evaluation" in capsys.readouterr().err
