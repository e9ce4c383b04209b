"""The service while its database changes: nothing is lost, nothing is mixed."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

from data_pipeline.build.pipeline import Build
from data_pipeline.database import Database, integrity, versions
from data_pipeline.index import scann
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.shards import held_versions
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from tests import tiny_corpus
from tests.served import FOLLOW_S, eventually, following, version_of

pytestmark = pytest.mark.usefixtures("toy_embedder")

_ROOT = Path(__file__).parents[4]
_NEWS = "nine violet tortoises rehearsed an opera inside the marble lighthouse"
_QUERIES = [_NEWS, tiny_corpus.PLANTED]
# What another process does to the database, with the toy embedder.
_CHANGE = f"""
import sys
from data_pipeline.database import Database
from data_pipeline.embedding import embedder
from tests.toy_embedder import ToyEmbedder
embedder.load_embedder = lambda name: ToyEmbedder()
opened = Database.open(sys.argv[1])
for line in sys.stdin:
    if line == "add\\n":
        opened.add([dict(id="news", text={_NEWS!r}), dict(id="x", text="A b c.")])
    elif line == "delete\\n":
        opened.delete([{tiny_corpus.PLANTED_IN!r}, "x"])
    else:
        opened.compact()
    print(opened.version, flush=True)
"""


@pytest.fixture
def scann_folder(tiny_corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scann, "MIN_ROWS", 100)
    changes = {"index": "scann", "index_shard_rows": 600, "shard_size_bytes": 1500}
    cfg = tiny_corpus.config(tiny_corpus_folder, **changes)
    Build(cfg, tmp_path / "scann").run("neighbours")
    opened = Database.open(tmp_path / "scann")
    assert (
        opened.snapshot.num_shards > 1
        and opened.manifest["index"]["kind"] == "ScannIndex"
    )
    return tmp_path / "scann"


def answer(found) -> list:
    """What tells the answers of two versions apart."""
    return [[(p.document_id, p.chunk_id, p.text, p.distance) for p in f] for f in found]


class Load:
    """Threads that search all the time, and what they were answered."""

    def __init__(self, address: str):
        # The version, what was found, and when it was asked for.
        self.seen: list[tuple[str, list, float]] = []
        self._address, self._until = address, threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(3)
        self._runs = [self._pool.submit(self._search) for _ in range(3)]

    def _search(self) -> None:
        texts = pb.Texts(texts=_QUERIES)
        request = pb.SearchRequest(texts=texts, k=6)
        with grpc.insecure_channel(self._address) as channel:
            stub = stub_of(channel, "Retrieval")
            while not self._until.wait(0.003):
                began_s = time.monotonic()
                response = stub.Search(request, timeout=10)
                assert not response.partial, response.missing_shards
                passages = {p.chunk_id: p for p in response.passages}
                found = [
                    [
                        messages.found_of(passages[chunk_id], distance)
                        for chunk_id, distance in zip(
                            row.chunk_ids, row.distances, strict=True
                        )
                    ]
                    for row in response.results
                ]
                self.seen.append(
                    (response.database.fingerprint, answer(found), began_s)
                )

    def stop(self) -> None:
        self._until.set()
        self._pool.shutdown()
        for run in self._runs:
            run.result()  # raises what went wrong


@pytest.mark.parametrize("database", ["folder", "scann_folder"])
def test_nothing_fails_or_is_mixed_while_the_database_changes(
    running, database, request
):
    """Two routers, each with its own moment of the switch."""
    folder = request.getfixturevalue(database)
    shards, first = following(running, folder)
    addresses = ",".join(shard.address for shard in shards)
    second = running.router(Database.open(folder), addresses, follow_s=2 * FOLLOW_S)
    routers, loads = (first, second), (Load(first.address), Load(second.address))
    known = Database.open(folder)
    expected = {known.fingerprint: answer(known.search(_QUERIES, 6))}
    writer = subprocess.Popen(
        [sys.executable, "-c", _CHANGE, str(folder)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for change in ("add", "delete", "compact"):
            writer.stdin.write(f"{change}\n")
            writer.stdin.flush()
            number = int(writer.stdout.readline())
            known.refresh()
            expected[known.fingerprint] = answer(known.search(_QUERIES, 6))
            for router, load in zip(routers, loads, strict=True):
                eventually(lambda r=router, n=number: version_of(r) == n)
                until = len(load.seen) + 10
                eventually(lambda seen=load.seen, n=until: len(seen) > n)
    finally:
        writer.communicate()
        for load in loads:
            load.stop()
    assert len(expected) == 4
    for load in loads:
        assert {fingerprint for fingerprint, _, _ in load.seen} == expected.keys()
        for fingerprint, found, _ in load.seen:
            assert found == expected[fingerprint]
        found_last = load.seen[-1]
        assert found_last[0] == known.fingerprint
        assert "news" in str(found_last)
        assert tiny_corpus.PLANTED_IN not in str(found_last)
    assert not (folder / "deltas" / "000001").exists()  # compacted while it was served
    events = [json.loads(line)["event"] for line in running.said]
    assert "missing_shards" not in events
    assert events.count("version_served") == 2 * 3
    for shard in shards:
        assert version_of(shard) == 3
        assert shard.metrics.value("retro_version_failures_total") == 0


def test_a_damaged_version_leaves_the_old_one_serving(running, folder):
    shards, router = following(running, folder)
    known = Database.open(folder)
    expected = known.search(_QUERIES, 6)
    eventually(lambda: shards[0].service.versions._leases)  # the router is there
    # What a version consists of is there before it is in force.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "_switch", lambda folder, number: None)
        known.add([{"id": "news", "text": _NEWS}])
    tokens = folder / "deltas" / "000001" / "tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with RetrievalClient(f"grpc://{router.address}") as client:
        versions.put_in_force(folder, 1)
        failures = "retro_version_failures_total"
        leading = shards[0].metrics
        eventually(lambda: leading.value(failures) >= 2)
        assert client.search(_QUERIES, 6) == expected
        assert [version_of(server) for server in (*shards, router)] == [0, 0, 0]
        said = [json.loads(line) for line in running.said if "version_failed" in line]
        assert len(said) == 1  # it says it once
        assert {line["error"].split(" ")[0] for line in said} == {str(tokens)}
        tokens.write_bytes(whole)
        eventually(lambda: version_of(router) == 1)
        known.refresh()
        assert client.search(_QUERIES, 6) == known.search(_QUERIES, 6)
        # A broken pointer is not the build.
        pointer = folder / "versions" / "current.json"
        pointer.write_text("{")
        seen = leading.value(failures)
        eventually(lambda: leading.value(failures) > seen + 1)
        assert client.describe().database.version == 1
    assert any("current.json is damaged" in line for line in running.said)


def test_what_is_opened_beside_a_version_is_checked_too(folder):
    database = Database.open(folder)
    Database.open(folder).add([{"id": "news", "text": _NEWS}])
    assert database.version == 0
    beside = database.beside()
    assert beside.version == 1
    assert beside.beside() is beside
    delta = folder / "deltas" / "000001" / "offsets.npy"
    whole = delta.read_bytes()
    delta.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(ValueError, match="offsets.npy is damaged"):
        database.beside()
    delta.unlink()
    with pytest.raises(ValueError, match="offsets.npy is missing"):
        database.beside()
    other = dataclasses.replace(database.snapshot.state, number=9, base="another")
    with pytest.raises(ValueError, match="built again with other text"):
        integrity.check_quickly(folder, database.snapshot.state, since=other)


def _holds_deleted_files(folder: Path) -> bool:
    opened = Path("/proc/self/maps").read_text().splitlines()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.append(os.readlink(link))
    return any(str(folder) in x and x.endswith("(deleted)") for x in opened)


def test_what_was_deleted_is_in_no_server_after_a_while(running, folder, monkeypatch):
    """Neither answered with, nor held as a version or as an open file."""
    monkeypatch.setattr(held_versions, "_UNHELD_S", 0.5)
    shards, router = following(running, folder)
    known = Database.open(folder)
    old, chunk_id = messages.state_of(known), known.search(_QUERIES, 1)[1][0].chunk_id
    asked = pb.PassagesRequest(database=old, chunk_ids=[chunk_id])

    def ask(server) -> pb.PassagesResponse:
        with grpc.insecure_channel(server.address) as channel:
            return stub_of(channel, "Shard").Passages(asked, timeout=5)

    assert ask(shards[0]).passages[0].document_id == tiny_corpus.PLANTED_IN
    known.delete([tiny_corpus.PLANTED_IN])
    known.compact()
    new = messages.state_of(known)
    del known
    gc.collect()
    for shard in shards:
        held = shard.service.versions
        eventually(lambda held=held: held.states == [new])
        with pytest.raises(grpc.RpcError, match="this server has database"):
            ask(shard)
    eventually(lambda: not router.service.switch._former)
    assert not _holds_deleted_files(folder)


def test_a_change_every_third_of_a_second(running, folder):
    """No answer is partial or mixed, and none is older than the bound that is promised."""
    _, router = following(running, folder)
    known = Database.open(folder)
    expected = {known.fingerprint: answer(known.search(_QUERIES, 6))}
    order, published_s = [known.fingerprint], [time.monotonic()]
    load = Load(router.address)
    try:
        for number in range(12):
            if number % 3 < 2:
                known.add([{"id": f"news {number}", "text": f"{_NEWS} {number}"}])
            else:
                known.delete([f"news {number - 1}"])
            published_s.append(time.monotonic())
            order.append(known.fingerprint)
            expected[known.fingerprint] = answer(known.search(_QUERIES, 6))
            time.sleep(max(0.0, published_s[-1] + 0.3 - time.monotonic()))
        eventually(lambda: version_of(router) == known.version)
    finally:
        load.stop()
    took_s = [
        line["took_s"] for line in map(json.loads, running.said) if "took_s" in line
    ]
    # Twice for each switch: here one process does the work of all servers.
    bound_s = FOLLOW_S + 2 * (2 * max(took_s) + 1)
    until_s = [*published_s[1:], math.inf]  # when a version's successor was published
    stale_s = []
    for fingerprint, found, began_s in load.seen:
        assert found == expected[fingerprint]
        stale_s.append(began_s - until_s[order.index(fingerprint)])
    assert max(stale_s) < bound_s
    # Few were passed over, or it would have stood still until the changes ended.
    assert len({fingerprint for fingerprint, _, _ in load.seen}) > 3
