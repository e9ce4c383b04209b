"""Results are printed, written whole and read back."""

from tools.benchmark import result


def test_results_are_written_whole_and_read_back(tmp_path, capsys):
    rows: list[result.Row] = [{"a": 1, "long name": "x"}, {"a": 2.5, "other": "y"}]
    written = result.Result(name="n", conditions={"c": 1}, rows=rows, notes=["so"])
    path = tmp_path / "result.json"
    result.write_result(written, path)
    assert result.read_result(path) == written
    assert list(tmp_path.iterdir()) == [path]
    result.print_result(written)
    assert capsys.readouterr().out.splitlines() == [
        "  a  long name  other",
        "  1          x      -",
        "2.5          -      y",
        "c: 1",
        "so",
    ]
    rows[0] |= {f"column {number}": number for number in range(20)}
    result.print_result(written)
    assert " column 3   3    -" in capsys.readouterr().out
    rows[1]["why"] = "a sentence " * 20
    result.print_result(written)
    lines = capsys.readouterr().out.splitlines()
    assert "column 3: 3" in lines and f"why: {'a sentence ' * 20}" in lines
