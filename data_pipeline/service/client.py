"""A client of the retrieval service, used as the database itself is.

    retriever = RetrievalClient("grpc://localhost:50050")
    retriever.search(["how tall is the tower"], 4)

It is a `Retriever` (`retro_jax/generation.py`): a model generates with it in the database's
place. Mistakes of the caller are ValueErrors, as the database's are; a service that is not
there, too busy or too slow is a ConnectionError, and one whose answers are none a
`BadAnswerError`, which is a ConnectionError too (`wire/answers.py` checks all of them).
"""

import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType

import grpc
import numpy as np
from jaxtyping import Float, Integer

from data_pipeline.database import Found, Retrieved, arguments
from data_pipeline.service.wire import addresses, answers, messages, security
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of

SCHEMES = ("grpc://", "grpcs://")
_CALLERS_FAULT = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class RetrievalClient:
    """A connection to a router, made at the first call; threads may share it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        tls_ca: Path | None = None,
        token: str | None = None,
        allow_partial: bool = False,
    ):
        """Reads the certificate; connects at the first call.

        Args:
            address: grpc://host:port, or grpcs://host:port for TLS; an IPv6 address in
                brackets, grpc://[::1]:50050. A host that is not this machine is asked
                through the proxy that the environment names, if it names one.
            timeout_s: of each call.
            tls_ca: PEM certificate that vouches for the server's, for grpcs; the
                system's, if not given.
            token: bearer token that the service wants.
            allow_partial: take answers that lack a shard; else a ConnectionError.
        Raises:
            ValueError: for another form of address or a certificate that is none.
        """
        scheme, target = _parts(address)
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, is {timeout_s}")
        if tls_ca is not None and scheme != "grpcs://":
            raise ValueError(f"tls_ca needs grpcs://, the address is {address}")
        options = addresses.channel_options(target)
        if scheme == "grpcs://":
            credentials = security.channel_credentials(tls_ca)
            credentials = credentials or grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._stub = stub_of(self._channel, "Retrieval")
        self._address, self._target, self._timeout_s = address, target, timeout_s
        self._metadata, self._allow_partial = security.metadata(token), allow_partial

    def retrieve(
        self,
        tokens_QM: Integer[np.ndarray, "Q M"],
        num_neighbours: int,
        *,
        neighbour_len: int | None = None,
        exclude_documents: Collection[str] = (),
    ) -> Retrieved:
        """Retrieves as `Database.retrieve` does; `neighbour_len` is twice M if not given.

        Raises:
            ValueError: if the service refuses what is asked.
            ConnectionError: if there is no answer, or one that lacks a shard;
                `BadAnswerError` for one that is none.
        """
        response, passage_len = self._retrieve(
            tokens_QM, num_neighbours, neighbour_len, exclude_documents
        )
        shape = (len(tokens_QM), num_neighbours)
        return messages.retrieved_of(response, shape, passage_len)

    def retrieve_with_sources(
        self, tokens_QM: Integer[np.ndarray, "Q M"], num_neighbours: int
    ) -> tuple[Retrieved, dict[int, Found]]:
        """Retrieves as `retrieve` does, and gives the source of each neighbour by its chunk id.

        The version that is served may change: asked for later, an id of what was added can
        be another passage's.
        """
        response, passage_len = self._retrieve(
            tokens_QM, num_neighbours, None, (), with_sources=True
        )
        shape = (len(tokens_QM), num_neighbours)
        return messages.retrieved_of(response, shape, passage_len), {
            passage.chunk_id: messages.found_of(passage, float("nan"))
            for passage in response.passages
        }

    def _retrieve(
        self,
        tokens_QM: np.ndarray,
        num_neighbours: int,
        neighbour_len: int | None,
        exclude_documents: Collection[str],
        *,
        with_sources: bool = False,
    ) -> tuple[pb.SearchResponse, int]:
        passage_len = neighbour_len or 2 * self._description.chunk_len
        request = pb.SearchRequest(
            token_chunks=messages.pack_tokens(tokens_QM),
            passage_len=passage_len,
            without_sources=not with_sources,
        )
        return self._search(request, num_neighbours, exclude_documents), passage_len

    def search(
        self,
        texts: Sequence[str],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
    ) -> list[list[Found]]:
        """Searches as `Database.search` does; raises as `retrieve` does."""
        arguments.check_strings(texts, "texts")
        _check_utf8("texts", texts)
        request = pb.SearchRequest(texts=pb.Texts(texts=texts))
        response = self._search(request, k, exclude_documents)
        passages = {passage.chunk_id: passage for passage in response.passages}
        return [
            [
                messages.found_of(passages[chunk_id], distance)
                for chunk_id, distance in zip(
                    neighbours.chunk_ids, neighbours.distances, strict=True
                )
            ]
            for neighbours in response.results
        ]

    def nearest(
        self,
        vectors_QW: Float[np.ndarray, "Q W"],
        k: int,
        *,
        exclude_documents: Collection[str] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Searches as `Database.nearest` does, for the database's embedder; N is k always."""
        request = pb.SearchRequest(
            vectors=messages.pack_vectors(vectors_QW), without_sources=True
        )
        response = self._search(request, k, exclude_documents)
        ids_QN = np.full((len(vectors_QW), k), -1, np.int64)
        distances_QN = np.full(ids_QN.shape, np.inf, np.float32)
        for row, neighbours in enumerate(response.results):
            count = len(neighbours.chunk_ids)
            ids_QN[row, :count] = neighbours.chunk_ids
            distances_QN[row, :count] = neighbours.distances
        return ids_QN, distances_QN

    def found(self, chunk_id: int, distance: float = float("nan")) -> Found:
        """Gives the passage at a chunk with its source, as `Database.found` does."""
        request = pb.PassagesRequest(chunk_ids=[chunk_id])
        response = self._call("Passages", request)
        answers.check_passages(response, request)
        (passage,) = response.passages
        return messages.found_of(passage, distance)

    @functools.cached_property
    def _description(self) -> pb.Description:
        return self.describe()

    def describe(self) -> pb.Description:
        """Asks which database the service holds."""
        described = self._call("Describe", pb.DescribeRequest())
        answers.check_description(described)
        return described

    def tokenizer_model(self) -> bytes:
        """The database's tokenizer, in the bytes that `Tokenizer` takes."""
        answer = self._call("Tokenizer", pb.TokenizerRequest())
        answers.check_tokenizer(answer)
        return answer.model

    def _search(
        self, request: pb.SearchRequest, k: int, exclude_documents: Collection[str]
    ) -> pb.SearchResponse:
        if not -(2**31) <= k < 2**31:
            raise ValueError(f"k is {k}, which is out of all bounds")
        arguments.check_strings(exclude_documents, "exclude_documents")
        _check_utf8("exclude_documents", exclude_documents)
        request.k = k
        request.exclude_documents.extend(exclude_documents)
        response = self._call("Search", request)
        with_tokens = request.passage_len > 0
        vocab_size = self._description.vocab_size if with_tokens else None
        answers.check_search(response, request, vocab_size)
        if response.partial and not self._allow_partial:
            missing = ", ".join(
                f"shard {shard.shard} ({shard.reason})"
                for shard in response.missing_shards
            )
            raise ConnectionError(
                f"{self._address} lacks {missing}; allow_partial=True takes what there is"
            )
        return response

    def _call(self, method: str, request):
        call = getattr(self._stub, method)
        try:
            return call(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code in _CALLERS_FAULT:
                raise ValueError(f"{self._address}: {details}") from error
            raise ConnectionError(
                f"{self._address} gave no answer: {code.name}: "
                f"{addresses.explain(details, self._target)}"
            ) from error

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> "RetrievalClient":  # noqa: PYI034
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parts(address: str) -> tuple[str, str]:
    """The scheme of a service's address, and the rest; ValueError if it is none."""
    scheme = next((s for s in SCHEMES if address.startswith(s)), None)
    forms = "grpc://host:port or, with TLS, grpcs://host:port"
    if scheme is None:
        other = re.match(r"(\w+)://", address)
        said = f" (it speaks gRPC, not {other[1]})" if other else ""
        raise ValueError(
            f"{address!r} is no address of a retrieval service: {forms}{said}"
        )
    try:
        return scheme, addresses.checked(address.removeprefix(scheme))
    except ValueError as error:
        raise ValueError(
            f"{address!r} is no address of a retrieval service: {forms}; {error}"
        ) from error


def _check_utf8(name: str, texts: Collection[str]) -> None:
    """Raises ValueError for a text with half a surrogate pair, which no message carries."""
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{row}] can't be written in UTF-8") from error
