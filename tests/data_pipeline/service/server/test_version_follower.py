"""The service while its database changes: nothing is lost, nothing is mixed."""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from data_pipeline.build.pipeline import Build
from data_pipeline.database import Database, integrity, versions
from data_pipeline.index import scann
from data_pipeline.service.client import RetrievalClient
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
        self.seen: list[tuple[str, list]] = []
        self._address, self._until = address, threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(3)
        self._runs = [self._pool.submit(self._search) for _ in range(3)]

    def _search(self) -> None:
        texts = pb.Texts(texts=_QUERIES)
        request = pb.SearchRequest(texts=texts, k=6)
        with grpc.insecure_channel(self._address) as channel:
            stub = stub_of(channel, "Retrieval")
            while not self._until.wait(0.003):
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
                self.seen.append((response.database.fingerprint, answer(found)))

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
        assert {fingerprint for fingerprint, _ in load.seen} == expected.keys()
        for fingerprint, found in load.seen:
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
        for server in (*shards, router):
            eventually(lambda server=server: server.metrics.value(failures) >= 2)
        assert client.search(_QUERIES, 6) == expected
        assert [version_of(server) for server in (*shards, router)] == [0, 0, 0]
        said = [json.loads(line) for line in running.said if "version_failed" in line]
        assert len(said) == 3  # each says it once
        assert {line["error"].split(" ")[0] for line in said} == {str(tokens)}
        tokens.write_bytes(whole)
        eventually(lambda: version_of(router) == 1)
        known.refresh()
        assert client.search(_QUERIES, 6) == known.search(_QUERIES, 6)
        # A broken pointer is not the build.
        pointer = folder / "versions" / "current.json"
        pointer.write_text("{")
        for server in (*shards, router):
            seen = server.metrics.value(failures)
            eventually(lambda s=server, n=seen: s.metrics.value(failures) > n + 1)
        assert client.describe().database.version == 1
    assert any("current.json is damaged" in line for line in running.said)


def test_what_is_opened_beside_a_version_is_checked_too(folder):
    database = Database.open(folder)
    Database.open(folder).add([{"id": "news", "text": _NEWS}])
    assert database.version == 0
    beside = database.newest()
    assert beside.version == 1
    assert beside.newest() is beside
    delta = folder / "deltas" / "000001" / "offsets.npy"
    whole = delta.read_bytes()
    delta.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(ValueError, match="offsets.npy is damaged"):
        database.newest()
    delta.unlink()
    with pytest.raises(ValueError, match="offsets.npy is missing"):
        database.newest()
    other = dataclasses.replace(database.snapshot.state, number=9, base="another")
    with pytest.raises(ValueError, match="built again with other text"):
        integrity.check_quickly(folder, database.snapshot.state, since=other)
