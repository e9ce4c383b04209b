"""The command line of the benchmark of faults."""

import pytest

from tools.benchmark import __main__


def test_parts_that_there_are(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["faults", "--parts=kills,fire"])
    said = capsys.readouterr().err
    assert "no part 'fire'; there are kills, service, damage" in said
