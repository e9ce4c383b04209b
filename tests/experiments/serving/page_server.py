"""A server with the page and answers of a few lines: what a browser is tested against.

It holds documents in memory and "writes" by copying what it finds, in chunks, so that a
text changes with the documents, with retrieval and with the number of passages.
"""

import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

from experiments.serving import page_files

_DOCUMENTS = "/v1/documents/"
_CHUNK = 60  # characters


class Documents:
    """Documents by id, and a version that every change raises."""

    def __init__(self, documents: list[dict]):
        self.by_id = {document["id"]: document for document in documents}
        self.version = 0
        self.refusal: tuple[int, str] | None = None  # of the next completion
        self.problem: str | None = None  # of the next completion's retrieval
        self.asked: list[dict] = []

    def found(self, query: str, k: int) -> list[dict]:
        """The passages that share most words with a query."""
        words = set(query.lower().split())
        scored = [
            (-len(words & set(each["text"].lower().split())), place, each)
            for place, each in enumerate(self.by_id.values())
        ]
        return [
            self._passage(place, each, -score)
            for score, place, each in sorted(scored, key=lambda one: one[:2])[:k]
        ]

    def _passage(self, place: int, document: dict, score: int) -> dict:
        text = document["text"]
        return {
            "chunk_id": place,
            "document_id": document["id"],
            "title": document.get("title", ""),
            "uri": document.get("uri", ""),
            "licence": document.get("licence", ""),
            "offset": 0,
            "distance": 1 / (1 + score),
            "version": self.version,
            "text": text[: len(text) // 2],
            "continuation": text[len(text) // 2 :],
        }

    def events(self, body: dict) -> Iterator[dict]:
        """The chunks of a stream: pieces of text, then the span that they complete."""
        k = body["num_neighbours"] if body.get("retrieval") else 0
        passages = [] if self.problem else self.found(body["prompt"], k)
        text = " of this country is not known to me. " + "I was not told of it. " * 4
        if passages:
            text = "".join(each["text"] + each["continuation"] for each in passages[:1])
        text = text[: body["max_tokens"] * 4]
        for start in range(0, len(text), _CHUNK):
            piece = text[start : start + _CHUNK]
            yield {"choices": [_choice(piece[:20])]}
            yield {"choices": [_choice(piece[20:])]}
            end = start + len(piece)
            read = [
                each
                | {
                    "attention": [0.72, 0.2, 0.08][min(place, 2)],
                    "effect": [5.4, -0.7, 0.0][min(place, 2)],
                    "verbatim": piece if place == 0 else "",
                }
                for place, each in enumerate(passages)
            ]
            span = {
                "start": start,
                "end": end,
                "problem": self.problem,
                "passages": read,
            }
            sources = {"sources": [span]} if body.get("retrieval") else {}
            yield {"choices": [_choice("") | sources]}
        yield {"choices": [_choice("", "stop")]}


def _choice(text: str, finish: str | None = None) -> dict:
    return {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}


def _handler(documents: Documents) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            """Says nothing."""

        def _send(self, status: int, media_type: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            for name, value in page_files.HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _json(self, value: dict, status: int = 200) -> None:
            self._send(status, "application/json", json.dumps(value).encode())

        def do_GET(self):
            """Files of the page, documents, and what the server says of itself."""
            if self.path == "/health":
                shown = {
                    "documents_enabled": True,
                    "num_neighbours": 2,
                    "retrieval": True,
                }
                database = {
                    "version": documents.version,
                    "documents": len(documents.by_id),
                }
                said = {"status": "ok", "model": "retrofit", "database": database}
                self._json(said | shown)
            elif self.path.startswith(_DOCUMENTS):
                self._json(documents.by_id[self._name()])
            elif self.path in (files := page_files.files()):
                self._send(200, *files[self.path])
            else:
                self._json({"error": {"message": "no such path"}}, 404)

        def do_POST(self):
            """Completions, searches and documents that are added."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            documents.asked.append({"path": self.path, **body})
            if self.path == "/v1/search":
                self._json({"data": documents.found(body["query"], body["k"])})
            elif self.path == "/v1/documents":
                for each in body["documents"]:
                    documents.by_id[each["id"]] = each
                self._changed()
            elif documents.refusal is not None:
                (status, message), documents.refusal = documents.refusal, None
                self._json({"error": {"message": message}}, status)
            else:
                lines = [json.dumps(event) for event in documents.events(body)]
                said = ": \n\n" + "".join(f"data: {line}\n\n" for line in lines)
                said += "data: [DONE]\n\n"
                self._send(200, "text/event-stream", said.encode())

        def do_PUT(self):
            """A document takes another's place."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            documents.by_id[self._name()] |= body
            self._changed()

        def do_DELETE(self):
            """A document goes."""
            if documents.by_id.pop(self._name(), None) is None:
                said = f"there is no {self._name()}"
                self._json({"error": {"message": said}}, 404)
            else:
                self._changed()

        def _name(self) -> str:
            return urllib.parse.unquote(self.path.removeprefix(_DOCUMENTS))

        def _changed(self):
            documents.version += 1
            self._json({"version": documents.version})

    return Handler


@contextlib.contextmanager
def serving(documents: Documents) -> Iterator[str]:
    """The address of a server that answers while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(documents))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
