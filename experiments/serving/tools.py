"""The database as tools of assistants, by the Model Context Protocol.

The tools have the names and the results that assistants look for: `search` gives documents,
`fetch` the whole text of one.
"""

import math

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from typing_extensions import TypedDict

from experiments.serving.passages import Passages
from experiments.serving.refusals import RefusalError

_NUM_PASSAGES = 10


class Result(TypedDict):
    """A document that was found, and the passage by which it was."""

    id: str
    title: str
    url: str
    text: str


class Results(TypedDict):
    """What a search has found, the nearest first."""

    results: list[Result]


class Fetched(TypedDict):
    """A document."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, str]


def server(passages: Passages, name: str) -> MCPServer:
    """Serves both tools; `run` and `streamable_http_app` of what is given begin."""
    made = MCPServer(name, log_level="WARNING")

    @made.tool()
    def search(query: str) -> Results:
        """Finds the documents whose passages are nearest to a text."""
        try:
            found = passages.search(query, _NUM_PASSAGES, "dense", math.inf)
        except RefusalError as error:
            raise ToolError(str(error)) from error
        nearest: dict[str, Result] = {}
        for each in found:
            nearest.setdefault(
                each["document_id"],
                {
                    "id": each["document_id"],
                    "title": each["title"] or each["document_id"],
                    "url": each["uri"],
                    "text": each["text"] + each["continuation"],
                },
            )
        return {"results": list(nearest.values())}

    @made.tool()
    def fetch(id: str) -> Fetched:
        """Gives the whole text of a document that was found."""
        try:
            told = passages.document(id)
        except RefusalError as error:
            raise ToolError(str(error)) from error
        return {
            "id": told["id"],
            "title": told["title"] or told["id"],
            "text": told["text"],
            "url": told["uri"],
            "metadata": {
                "licence": told["licence"],
                "version": str(told["version"]),
            },
        }

    return made
