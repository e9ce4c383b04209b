"""Servers for the tests of the service: some of a test's own, and three that all share."""

import shutil

import grpc
import pytest

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire.stubs import stub_of
from tests.served import NUM_SERVERS, servers


@pytest.fixture
def running():
    """Servers that a test starts and that end with it."""
    with servers() as made:
        yield made


@pytest.fixture
def folder(sharded_database, tmp_path):
    """A copy of the database, to be changed."""
    without = shutil.ignore_patterns("dataset")
    return shutil.copytree(sharded_database.folder, tmp_path / "copy", ignore=without)


@pytest.fixture(scope="package")
def service(sharded_database):
    """A router before three shard servers, and a channel to it; not to be stopped."""
    with servers() as running:
        shards = [
            running.shard(sharded_database, shard, NUM_SERVERS)
            for shard in range(NUM_SERVERS)
        ]
        addresses = ",".join(shard.address for shard in shards)
        router = running.router(sharded_database, addresses)
        with grpc.insecure_channel(router.address) as channel:
            yield running, router, shards, channel


@pytest.fixture(scope="package")
def client(service):
    """A client of the router that all share."""
    with RetrievalClient(f"grpc://{service[1].address}") as made:
        yield made


@pytest.fixture(scope="package")
def stub(service):
    """The methods of the router that all share."""
    return stub_of(service[3], "Retrieval")
