"""Ports for servers that a test starts in other processes."""

import random
import socket

_BELOW_EPHEMERAL = range(20_000, 32_000)  # which no outgoing connection takes meanwhile


def free_port() -> int:
    """A port that nobody listens at just now."""
    draw = random.SystemRandom()  # other workers of the tests draw at the same time
    while True:
        port = draw.choice(_BELOW_EPHEMERAL)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
