"""The tools that assistants get, as the protocol's own client sees them."""

import asyncio

import mcp
import pytest

from experiments.serving import tools
from experiments.serving.passages import Passages
from tests import tiny_corpus
from tests.experiments.serving.test_clients import listening


async def _use(server, document_id: str) -> tuple:
    async with mcp.Client(server) as client:
        listed = await client.list_tools()
        found = await client.call_tool("search", {"query": tiny_corpus.PLANTED})
        fetched = await client.call_tool("fetch", {"id": document_id})
        empty = await client.call_tool("search", {"query": ""})
        missing = await client.call_tool("fetch", {"id": "nobody"})
    return listed, found, fetched, empty, missing


@pytest.fixture(scope="module")
def server(tiny_database):
    return tools.server(Passages(tiny_database), "tiny")


def _check(used, nearest: str) -> None:
    listed, found, fetched, empty, missing = used
    assert [tool.name for tool in listed.tools] == ["search", "fetch"]
    results = found.structured_content["results"]
    assert results[0]["id"] == nearest and results[0]["url"]
    assert len({each["id"] for each in results}) == len(results)
    document = fetched.structured_content
    texts = tiny_corpus.texts()
    assert document["text"] == texts[document["id"]] and document["title"]
    assert results[0]["text"].strip() in document["text"]
    assert empty.is_error and missing.is_error
    assert "there is no document 'nobody'" in missing.content[0].text


def test_a_client_in_this_process_finds_and_fetches(
    server, tiny_database, toy_embedder
):
    (first,) = tiny_database.search([tiny_corpus.PLANTED], 1)[0]
    _check(asyncio.run(_use(server, first.document_id)), first.document_id)


def test_a_client_over_http_finds_and_fetches(server, tiny_database, toy_embedder):
    (first,) = tiny_database.search([tiny_corpus.PLANTED], 1)[0]
    with listening(server.streamable_http_app(), lifespan="on") as address:
        used = asyncio.run(_use(f"{address}/mcp", first.document_id))
    _check(used, first.document_id)
