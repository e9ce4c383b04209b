"""Lines of progress, as a log has them and as a terminal has them."""

import io
import sys

from data_pipeline.storage.progress import Progress, say


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(total, amounts, step_s):
    clock = Clock()
    with Progress("chunks", total, "shards", clock) as progress:
        for amount in amounts:
            clock.now_s += step_s
            progress.advance(amount)


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(capsys):
    work(10, [1] * 10, 4.0)
    lines = capsys.readouterr().out.split("\n")
    assert [line.strip() for line in lines] == [
        "chunks:  30%  3 shards  0.25/s  28 s left",
        "chunks:  60%  6 shards  0.25/s  16 s left",
        "chunks:  90%  9 shards  0.25/s  4 s left",
        "chunks: 10 shards in 40.0 s (0.25/s)",
        "",
    ]


def test_short_work_is_one_line(capsys):
    work(2000, [1000, 1000], 0.5)
    out = capsys.readouterr().out
    assert out.strip() == "chunks: 2,000 shards in 1.0 s (2,000/s)"
    assert "\r" not in out


def test_unknown_total_has_no_time_left(capsys):
    work(None, [5], 20.0)
    first, _, _ = capsys.readouterr().out.split("\n")
    assert first.strip() == "chunks: 5 shards  0.25/s"


def test_nothing_done_says_nothing(capsys):
    work(10, [], 1.0)
    assert capsys.readouterr().out == ""


def test_an_error_says_nothing_more(capsys):
    try:
        with Progress("chunks", 3, "shards", Clock()) as progress:
            progress.advance(1)
            raise KeyError
    except KeyError:
        pass
    assert capsys.readouterr().out == ""


def test_no_time_passed_and_more_than_the_total(capsys):
    work(0, [1, 1], 0.0)
    work(1, [2], 11.0)
    assert "in 0.0 s" in capsys.readouterr().out


def test_a_terminal_gets_one_line_that_changes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    work(4, [1] * 4, 0.25)
    out = sys.stdout.getvalue()
    assert out.count("\r") == 4
    assert out.count("\n") == 1
    # The last line covers what stood there before.
    *changing, last = out.split("\r")
    assert len(last.rstrip("\n")) >= max(map(len, changing))


def test_say_is_one_line(capsys):
    say("done")
    assert capsys.readouterr().out == "done\n"
