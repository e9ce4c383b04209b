"""The command that serves a model: what it refuses before anything large is loaded."""

import pytest

from tests.commands import TINY, check_mistake

_SERVER = ("experiments.server", TINY, "--workdir={tmp}")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "holds no trained model: train one first"),
        (("--tls_cert=cert.pem",), "--tls_cert and --tls_key belong together"),
        (("--port=0",), "port"),
    ],
)
def test_mistakes_are_one_line(more, expected, tmp_path):
    check_mistake((*_SERVER, *more), expected, tmp_path)
