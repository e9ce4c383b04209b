"""The server's benchmark, against a server of a scripted model."""

import argparse
import contextlib
import os
import urllib.parse

import pytest

from experiments.serving.passages import Passages
from tests import served_model
from tests.experiments.serving.test_clients import listening
from tools.benchmark import serving

_ARGS = argparse.Namespace(
    workdir="work/scripted",
    prompt_tokens=12,
    tokens=6,
    clients=[1, 3],
    crowd=24,
    soak_s=1,
    rounds=1,
)


@pytest.fixture(scope="module")
def rows(tiny_database):
    """Each part's rows, where both servers are the same one."""

    @contextlib.contextmanager
    def there(workdir, *flags):
        yield serving.Client(port, os.getpid())

    passages = Passages(tiny_database)
    with (
        served_model.served(passages, most_waiting=4) as stub,
        listening(stub.application) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        port = urllib.parse.urlsplit(address).port
        stub.model.step_s = 0.01
        patch.setattr(serving, "_serving", there)
        client, wrong = serving.Client(port, os.getpid()), {"prompt": "a", "n": "x"}
        found = {"refused": (client.stream(wrong)[0], client.leave_early(wrong))}
        for part in ("first", "rates", "scores", "crowd", "soak"):
            _ARGS.parts = part
            found[part] = serving.run(_ARGS).rows
            if part == "rates":
                found["most at once"] = stub.model.most_at_once
    return found


def test_a_status_is_the_server_s_also_of_a_stream(rows):
    assert rows["refused"] == (400, 400)


def test_first_pieces_are_timed_on_and_off(rows):
    off, on = rows["first"]
    assert off["retrieval"] == "off" and on["retrieval"] == "on"
    assert 0 < on["first piece, ms"] <= on["p95, ms"]
    assert off["by off"] == "1.00 (1.00 to 1.00)"


def test_clients_at_once_share_steps(rows):
    alone, _, three, _ = rows["rates"]
    assert (alone["clients"], three["clients"]) == (1, 3)
    assert rows["most at once"] > 1
    assert alone["by 1 client"] == "1.00 (1.00 to 1.00)"


def test_prompts_are_scored_without_a_new_token(rows):
    for row in rows["scores"]:
        assert row["tokens of a prompt"] == served_model.WINDOW
        assert row["scored tokens/s"] > 0


def test_a_crowd_is_served_or_told_when_to_come_again(rows):
    for row in rows["crowd"]:
        assert row["answered"] >= 4 and row["told to come again"] > 0
        assert row["answered"] + row["told to come again"] == 24
        assert row["anything else"] == 0 and row["health after"] == 200


def test_a_soak_counts_answers_and_watches_the_process(rows):
    (row,) = rows["soak"]
    assert row["requests"] >= serving._WARM_UP
    assert "200:" in row["statuses"] and "400:" in row["statuses"]
    assert "500" not in row["statuses"]
    assert row["memory, MB, first quarter"] > 0 < row["open files, last quarter"]


def test_other_parts_and_servers_that_do_not_start_are_named(tmp_path):
    with pytest.raises(ValueError, match="no part 'speed': there are first, rates"):
        serving.run(argparse.Namespace(parts="speed", workdir=""))
    with (
        pytest.raises(ValueError, match=r"did not start: error: .*nothing"),
        serving._serving(str(tmp_path / "nothing")),
    ):
        pass
