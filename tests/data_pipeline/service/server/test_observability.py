"""A log is one JSON object a line; metrics are scraped as they stand."""

import json
import socket
import urllib.request

import pytest

from data_pipeline.service.server import observability
from data_pipeline.service.server.observability import Log, Metrics
from tests.ports import free_port


def test_an_event_is_one_line_whatever_is_in_it():
    lines: list[str] = []
    Log("shard-0", lines.append)("version_failed", error="a\nb ü", version=2)
    (line,) = lines
    assert line.endswith("\n") and line.count("\n") == 1
    event = json.loads(line)
    assert event.pop("time_s") > 0
    expected = {"server": "shard-0", "event": "version_failed"}
    assert event == expected | {"error": "a\nb ü", "version": 2}


def test_metrics_are_scraped_until_that_is_ended():
    metrics, port = Metrics(), free_port()
    assert metrics.value("retro_missing_shards_total", shard="1") == 0
    metrics.missing.labels("1").inc()
    assert metrics.value("retro_missing_shards_total", shard="1") == 1
    end = metrics.expose("127.0.0.1", port)
    try:
        address = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(address, timeout=5) as scrape:
            assert b'retro_missing_shards_total{shard="1"} 1.0' in scrape.read()
        with pytest.raises(ValueError, match=f"metrics_port {port} of 127.0.0.1 can't"):
            Metrics().expose("127.0.0.1", port)
    finally:
        end()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_silent_connection_keeps_no_thread(monkeypatch, capsys):
    monkeypatch.setattr(observability, "_SCRAPE_S", 0.1)
    port = free_port()
    end = Metrics().expose("127.0.0.1", port)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
            silent.sendall(b"GET /met")
            assert silent.recv(1000) == b""
    finally:
        end()
    assert capsys.readouterr().err == ""
