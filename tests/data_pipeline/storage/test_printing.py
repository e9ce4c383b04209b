"""Text of others does no harm to a terminal, and standard output decides about nothing."""

import os
import re
import signal
import subprocess
import sys

import pytest

from data_pipeline.storage.printing import counted, printable, printable_line

PAYLOADS = [
    "\x1b[2K\x1b[1A",
    "\x1b]0;title\x07",
    "\x1b]52;c;aGk=\x1b\\",
    "\x9b31m",
    "a\rb",
    "a\x08b",
    "\u202eright\u202c",
    "\u2066left\u2069",
    "\ud800",
    "nul\0",
]
HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_nothing_is_left_that_a_terminal_obeys(payload):
    for clean in (printable, printable_line):
        assert not HARMFUL.search(clean(f"text {payload} text"))


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\n  c\n",
        "\u0645\u0631\u062d\u0628\u0627\u200c\u0647\u0627",
        "\u05e9\u05dc\u05d5\u05dd\u200f 1",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "caf\u00e9 \u2014 \u2212",
    ],
)
def test_text_stays_as_it_is(text):
    assert printable(text) == text


def test_a_line_stays_one_line():
    assert printable_line("a\r\nb\u2028c\td\n\n e") == "a b c d e"
    assert printable_line("two  spaces") == "two  spaces"


PROGRAM = r"""
from data_pipeline.storage.printing import check_output, protect_streams
protect_streams(outlives_readers={outlives})
for number in range(20_000):
    print("a line \u2212 \ud800", number)
check_output()
"""


def run(shell: str, outlives: bool = False) -> subprocess.CompletedProcess:
    program = PROGRAM.format(outlives=outlives)
    command = shell.replace("PY", f'{sys.executable} -c "$PROGRAM"')
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={"PROGRAM": program, "PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
    )


def test_what_the_encoding_lacks_is_escaped():
    done = run("PY | tail -n 1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a line \\u2212 \\ud800 19999\n"


def test_a_reader_that_leaves_ends_a_command_quietly_and_no_server():
    left = "PY | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}"
    done = run(left)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert "standard output" in run(left, outlives=True).stderr  # check_output came


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_a_pipe_gets_each_line_of_an_error_at_once(unbuffered):
    program = (
        "import sys; from data_pipeline.storage.printing import protect_streams\n"
        "protect_streams(); sys.stderr.write('a line\\n'); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stderr.readline() == "a line\n"
        process.stdin.close()


def test_output_that_is_closed_or_can_t_be_written():
    assert run("PY >&-").returncode == 0
    full = run("PY >/dev/full")
    assert full.returncode == 1 and "standard output" in full.stderr


def test_numbers_of_things_are_said_as_one_says_them():
    assert counted(1, "document") == "1 document"
    assert counted(0, "document") == "0 documents"
    assert counted(2000, "document") == "2,000 documents"
