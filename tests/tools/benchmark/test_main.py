"""The command line of all benchmarks."""

import pytest

from tools.benchmark import __main__, result


def test_make_bench_names_parts_that_there_are():
    lines = (result.ROOT / "Makefile").read_text().splitlines()
    parts = [
        line.split("tools.benchmark ")[1].split()[0]
        for line in lines
        if line.startswith("\t") and "tools.benchmark " in line
    ]
    assert parts == ["embed", "index", "input", "train"]
    for part in parts:
        with pytest.raises(SystemExit) as ended:
            __main__.main([part, "--help"])
        assert ended.value.code == 0
