"""The JSON of answers: completions and chats, whole and as the chunks of a stream.

Besides what OpenAI's have, each choice has `sources`: spans of its text, in characters, with
the passages that were read for them. `citations` are the places of all of them.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from experiments.serving.answers import Answer, Piece, TokenLogProb


class Shape(Protocol):
    """How an answer is written."""

    def whole(self, answer: Answer, texts: Sequence[list[Piece]]) -> dict: ...
    def opening(self, answer: Answer) -> list[dict]: ...
    def chunk(self, answer: Answer, piece: Piece) -> dict: ...
    def usage(self, answer: Answer) -> dict: ...


class CompletionShape:
    """Objects of the kind `text_completion`."""

    def __init__(self, model: str, *, has_logprobs: bool):
        """Names the model that answers."""
        self._model, self._has_logprobs = model, has_logprobs

    def whole(self, answer: Answer, texts: Sequence[list[Piece]]) -> dict:
        """The whole answer, from the pieces of each text."""
        choices = [
            {
                "index": index,
                "text": "".join(piece.text for piece in pieces),
                "logprobs": self._logprobs(_tokens(pieces)),
                "finish_reason": pieces[-1].finish,
                "sources": _spans(pieces),
            }
            for index, pieces in enumerate(texts)
        ]
        return self._head(answer) | {
            "choices": choices,
            "usage": answer.usage,
            "citations": citations(span for pieces in texts for span in _spans(pieces)),
        }

    def opening(self, answer: Answer) -> list[dict]:
        """The chunks that come before all text: none."""
        return []

    def chunk(self, answer: Answer, piece: Piece) -> dict:
        """A piece of a text as a chunk of a stream."""
        choice = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }
        return _with_sources(self._head(answer), choice, piece)

    def usage(self, answer: Answer) -> dict:
        """The chunk that tells what was used."""
        return self._head(answer) | {"choices": [], "usage": answer.usage}

    def _head(self, answer: Answer) -> dict:
        return {
            "id": f"cmpl-{answer.id}",
            "object": "text_completion",
            "created": answer.created,
            "model": self._model,
        }

    def _logprobs(self, tokens: Sequence[TokenLogProb]) -> dict | None:
        if not self._has_logprobs:
            return None
        return {
            "tokens": [each.token for each in tokens],
            "token_logprobs": [each.log_prob for each in tokens],
            "top_logprobs": [each.likeliest for each in tokens],
            "text_offset": [each.offset for each in tokens],
        }


class ChatShape:
    """Objects of the kinds `chat.completion` and `chat.completion.chunk`."""

    def __init__(self, model: str, *, has_logprobs: bool):
        """Names the model that answers."""
        self._model, self._has_logprobs = model, has_logprobs

    def whole(self, answer: Answer, texts: Sequence[list[Piece]]) -> dict:
        """The whole answer, from the pieces of each text."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in pieces),
                    "refusal": None,
                    "annotations": annotations(_spans(pieces)),
                },
                "logprobs": self._logprobs(_tokens(pieces)),
                "finish_reason": pieces[-1].finish,
                "sources": _spans(pieces),
            }
            for index, pieces in enumerate(texts)
        ]
        return self._head(answer, "chat.completion") | {
            "choices": choices,
            "usage": answer.usage,
            "citations": citations(span for pieces in texts for span in _spans(pieces)),
        }

    def opening(self, answer: Answer) -> list[dict]:
        """The chunks that say who speaks."""
        return [
            self._head(answer)
            | {
                "choices": [
                    {
                        "index": index,
                        "delta": {"role": "assistant", "content": ""},
                        "logprobs": None,
                        "finish_reason": None,
                    }
                ]
            }
            for index in range(answer.num_texts)
        ]

    def chunk(self, answer: Answer, piece: Piece) -> dict:
        """A piece of a text as a chunk of a stream."""
        delta: dict = {"content": piece.text} if piece.text else {}
        if piece.sources:
            delta["annotations"] = annotations(piece.sources)
        choice = {
            "index": piece.index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }
        return _with_sources(self._head(answer), choice, piece)

    def usage(self, answer: Answer) -> dict:
        """The chunk that tells what was used."""
        return self._head(answer) | {"choices": [], "usage": answer.usage}

    def _head(self, answer: Answer, kind: str = "chat.completion.chunk") -> dict:
        return {
            "id": f"chatcmpl-{answer.id}",
            "object": kind,
            "created": answer.created,
            "model": self._model,
        }

    def _logprobs(self, tokens: Sequence[TokenLogProb]) -> dict | None:
        if not self._has_logprobs:
            return None
        return {
            "content": [
                _of_chat(each.token, each.log_prob)
                | {
                    "top_logprobs": [
                        _of_chat(name, value)
                        for name, value in (each.likeliest or {}).items()
                    ]
                }
                for each in tokens
            ],
            "refusal": None,
        }


def _of_chat(token: str, log_prob: float | None) -> dict:
    return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}


def _tokens(pieces: Iterable[Piece]) -> list[TokenLogProb]:
    return [token for piece in pieces for token in piece.logprobs]


def _spans(pieces: Iterable[Piece]) -> list[dict]:
    return [span for piece in pieces for span in piece.sources]


def _with_sources(head: dict, choice: dict, piece: Piece) -> dict:
    if not piece.sources:
        return head | {"choices": [choice]}
    choice["sources"] = piece.sources
    return head | {"choices": [choice], "citations": citations(piece.sources)}


def citations(spans: Iterable[dict]) -> list[str]:
    """Where all passages of spans stand, each once: addresses, else ids of documents."""
    read = [passage for span in spans for passage in span["passages"]]
    return list(dict.fromkeys(each["uri"] or each["document_id"] for each in read))


def annotations(spans: Iterable[dict]) -> list[dict]:
    """The passages of spans as OpenAI's `url_citation`s."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": span["start"],
                "end_index": span["end"],
                "title": passage["title"] or passage["document_id"],
                "url": passage["uri"],
            },
        }
        for span in spans
        for passage in span["passages"]
    ]
