"""The command that assistants start."""

import asyncio
import sys
import threading

import mcp
import pytest

from experiments import mcp_server
from tests import tiny_corpus
from tests.commands import ROOT

_SERVER = """
import sys
from tests import tiny_corpus
from experiments import mcp_server
with tiny_corpus.toy_embedder():
    sys.exit(mcp_server.main(sys.argv[1:]))
"""


def test_a_client_starts_the_command_and_finds_what_is_there(
    tiny_database, toy_embedder
):
    (nearest,) = tiny_database.search([tiny_corpus.PLANTED], 1)[0]

    async def use() -> list[dict]:
        server = mcp.StdioServerParameters(
            command=sys.executable,
            args=["-c", _SERVER, f"--database={tiny_database.folder}"],
            cwd=ROOT,
        )
        async with mcp.Client(server) as client:
            found = await client.call_tool("search", {"query": tiny_corpus.PLANTED})
        # The client kills a server that is slow to end, and leaves it to others to wait.
        while any(each.name.startswith("waitpid-") for each in threading.enumerate()):
            await asyncio.sleep(0.05)
        return found.structured_content["results"]

    assert asyncio.run(use())[0]["id"] == nearest.document_id


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--database=grpc://localhost:1"], "needs the database's folder"),
        (["--database=nowhere"], "nowhere"),
        (["--database=nowhere", "--port=0"], "--port must be in 1..65535"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, problem, capsys):
    assert mcp_server.main(flags) == 2
    said = capsys.readouterr().err
    assert problem in said and said.count("\n") == 1
