"""Answers searches of a whole database from shard servers; keeps no state of its own.

    python -m data_pipeline.service.router --database=DIR \
        --shards='host:port|host:port,host:port|host:port'

In `--shards` a comma separates shards, in order, and '|' the replicas of a shard.

The router needs the whole database's folder, though it holds little of it: it opens it as
everybody does, which looks at the size of every file and reads documents, chunks, tokenizer
and what was added once for their checksums (up to a gigabyte, `integrity.py`). Then it keeps
the tokenizer, and the table of chunks by memory map for its length; the embedder's weights
come from where the embedder has them. It reads no index and no vectors. While it runs it
reads `versions/` and, of a new version, the files that are new.

Texts are embedded, all shards asked at once, and their answers merged exactly: with all
shards there the answer is `Database.search`'s. A shard without a live replica, or with
another database, is missing: the answer is then partial and says so. What was found is
read by the shard that found it, or by another: every server can read all chunks. A request
is answered from one version of the database, from its start to its end.
"""

import argparse
import asyncio
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import Message

from data_pipeline.database import Database
from data_pipeline.embedding.embedder import compile_for_queries
from data_pipeline.index import sharded
from data_pipeline.service.routing import replica_set
from data_pipeline.service.routing.fan_out import Shards
from data_pipeline.service.routing.micro_batches import MicroBatches
from data_pipeline.service.routing.served_version import ServedVersion, Switch
from data_pipeline.service.server import server
from data_pipeline.service.server.admission import Admission, Refused
from data_pipeline.service.server.endpoints import Call, Endpoint, Method
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import messages, security
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.storage.printing import protect_streams

SERVICE = pb.DESCRIPTOR.services_by_name["Retrieval"].full_name
# Of the time that is left: a missing shard must not cost the others' answers.
_SEARCH_SHARE, _PASSAGES_SHARE = 0.6, 0.9


class Router:
    """Answers the calls of clients: embeds, asks all shards, merges."""

    def __init__(
        self,
        database: Database,
        shards: Sequence[replica_set.ReplicaSet],
        *,
        embed_window_s: float,
        limits: messages.Limits,
        metrics: Metrics,
        log: Log,
    ):
        """Loads tokenizer and embedder, so that the first request finds them.

        Raises:
            ValueError: if the embedder is not the database's.
        """
        self._limits, self._metrics = limits, metrics
        self._shards = Shards(shards, metrics=metrics, log=log)
        self.switch = Switch(database, shards, metrics=metrics, log=log)
        # Of all versions of a database these are the same.
        self._tokenizer, self._chunk_len = database.tokenizer, database.chunk_len
        self._embedder = database.embedder
        self._batches = MicroBatches(
            self._embed, size_of=messages.size_of_query, window_s=embed_window_s
        )

    def endpoint(self, *, most: int, timeout_s: float) -> Endpoint:
        """Gives the methods; `most` of a kind may be under way, more are refused."""
        methods: dict[str, tuple[type[Message], Method]] = {
            "Search": (pb.SearchRequest, self._search),
            "Passages": (pb.PassagesRequest, self._read),
            "Describe": (pb.DescribeRequest, self._describe),
            "Tokenizer": (pb.TokenizerRequest, self._give_tokenizer),
        }
        shares = {
            kind: Admission(most, 0, self._metrics, kind)
            for kind in ("texts", "vectors", "passages", "facts")
        }
        return Endpoint(
            SERVICE,
            methods,
            lambda request: shares[_kind_of(request)],
            self._metrics,
            timeout_s,
        )

    async def _describe(self, request: pb.DescribeRequest, call: Call):
        return pb.Description(
            database=self.switch.current.state,
            chunk_len=self._chunk_len,
            width=self._embedder.width,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            embedder_fingerprint=self._embedder.fingerprint,
            num_shards=len(self._shards),
            vocab_size=self._tokenizer.vocab_size,
        )

    async def _give_tokenizer(self, request: pb.TokenizerRequest, call: Call):
        call.reserve(len(self._tokenizer.model))
        return pb.TokenizerModel(
            model=self._tokenizer.model, fingerprint=self._tokenizer.fingerprint
        )

    async def _search(self, request: pb.SearchRequest, call: Call):
        with self.switch.pinned() as version:
            return await self._search_in(version, request, call)

    async def _search_in(
        self, version: ServedVersion, request: pb.SearchRequest, call: Call
    ) -> pb.SearchResponse:
        loop, state = asyncio.get_running_loop(), version.state
        ends_s = loop.time() + call.timeout_s
        wants_passages = request.passage_len > 0 or not request.without_sources
        queries = self._checked_queries(request, version.database, call)
        vectors_QW = (
            await self._batches.embed(queries) if isinstance(queries, list) else queries
        )
        share = _SEARCH_SHARE if wants_passages else _PASSAGES_SHARE
        answers, missing = await self._shards.search(
            state, request, vectors_QW, share * (ends_s - loop.time())
        )
        ids_QN, distances_QN = sharded.merge(list(answers.values()), request.k)
        response = pb.SearchResponse(
            results=_neighbours(ids_QN, distances_QN),
            database=state,
            partial=bool(missing),
            missing_shards=[
                pb.MissingShard(shard=shard, reason=reason)
                for shard, reason in missing.items()
            ],
        )
        if wants_passages:
            left_s = _PASSAGES_SHARE * (ends_s - loop.time())
            response.passages.extend(
                await self._shards.passages(state, request, answers, ids_QN, left_s)
            )
        return response

    def _checked_queries(
        self, request: pb.SearchRequest, database: Database, call: Call
    ) -> list[str | np.ndarray] | np.ndarray:
        """Gives a list of texts or rows of tokens, or vectors; all is checked first."""
        limits, chunk_len = self._limits, self._chunk_len
        messages.check_passage_len(request.passage_len, chunk_len, limits)
        queries: list[str | np.ndarray] | np.ndarray
        match request.WhichOneof("queries"):
            case "vectors":
                queries = messages.unpack_vectors(
                    request.vectors, self._embedder.width, limits
                )
            case "token_chunks":
                vocab_size = self._tokenizer.vocab_size
                queries = list(
                    messages.unpack_tokens(request.token_chunks, vocab_size, limits)
                )
            case "texts":
                queries = [*messages.checked_texts(request.texts.texts, limits)]
            case _:
                raise ValueError("queries: give texts, token_chunks or vectors")
        k, excluded = request.k, request.exclude_documents
        width = self._embedder.width
        messages.check_search(k, len(queries), width, excluded, limits)
        most = min(len(queries) * k, len(database.snapshot.chunks()))
        call.reserve(
            messages.check_answer(
                most, request.passage_len, request.without_sources, chunk_len, limits
            )
        )
        return queries

    def _embed(self, queries: Sequence[str | np.ndarray]) -> np.ndarray:
        """Gives the vectors of texts and of tokens, on a thread: tokens are decoded here."""
        decode = self._tokenizer.decode
        return self._embedder.embed(
            [query if isinstance(query, str) else decode(query) for query in queries]
        )

    async def _read(self, request: pb.PassagesRequest, call: Call):
        with self.switch.pinned() as version:
            size_bytes = messages.check_passages(
                request, version.database, self._limits
            )
            call.reserve(size_bytes)
            if request.HasField("database") and request.database != version.state:
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"this router serves {messages.describe_state(version.state)}, not "
                    f"{messages.describe_state(request.database)}",
                )
            asked = pb.PassagesRequest()
            asked.CopyFrom(request)
            asked.database.CopyFrom(version.state)
            first = request.chunk_ids[0] if request.chunk_ids else 0
            return await self._shards.read(
                first % len(self._shards), asked, _PASSAGES_SHARE * call.timeout_s
            )

    async def close(self) -> None:
        """Ends the connections to the shards."""
        self.switch.close()
        self._batches.close()
        await self._shards.close()


def _kind_of(request: Message) -> str:
    """The kind that a request shares places with."""
    match request:
        case pb.SearchRequest():
            # Tokens are embedded as texts are.
            is_vectors = request.WhichOneof("queries") == "vectors"
            return "vectors" if is_vectors else "texts"
        case pb.PassagesRequest():
            return "passages"
        case _:
            return "facts"


def _neighbours(ids_QN: np.ndarray, distances_QN: np.ndarray) -> list[pb.Neighbours]:
    counts_Q = np.count_nonzero(ids_QN >= 0, axis=1).tolist()
    return [
        pb.Neighbours(chunk_ids=ids[:count], distances=distances[:count])
        for ids, distances, count in zip(
            ids_QN.tolist(), distances_QN.tolist(), counts_Q, strict=True
        )
    ]


async def start(args: argparse.Namespace) -> server.Stoppable:
    """Opens the database, connects to the shards and serves, as the flags say.

    Before that the embedder compiles all that queries need: no request waits for it.
    """
    listening = server.listening_of(args)
    server.check_port(listening.host, listening.port)
    metrics, log = Metrics(), Log("router")
    shards = replica_set.connect(
        args.shards,
        credentials=security.channel_credentials(args.tls_ca),
        token=security.read_token(args.shards_token_file) or listening.token,
        hedge_s=args.hedge_ms / 1000 if args.hedge_ms else None,
        metrics=metrics,
        log=log,
    )
    database = Database.open(args.database)
    compile_for_queries(database.embedder)
    router = Router(
        database,
        shards,
        embed_window_s=args.embed_window_ms / 1000,
        limits=server.limits_of(args),
        metrics=metrics,
        log=log,
    )
    endpoint = router.endpoint(most=args.queue, timeout_s=args.timeout_s)
    started = await server.Server.start(listening, [endpoint], metrics, log)
    started.closing.push_async_callback(router.close)
    router.switch.follow(args.follow_s, functools.partial(started.set_ready, SERVICE))
    return started


def _parser() -> argparse.ArgumentParser:
    parser = server.parser_of("router", (__doc__ or "").splitlines()[0])
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument(
        "--shards", required=True, help="host:port|host:port,...: , shards, | replicas"
    )
    parser.add_argument(
        "--tls_ca", type=Path, help="certificate the shards are checked by"
    )
    parser.add_argument(
        "--shards_token_file", type=Path, help="token for the shards, if another"
    )
    parser.add_argument(
        "--hedge_ms", type=float, default=0, help="0: as recent answers suggest"
    )
    parser.add_argument("--embed_window_ms", type=float, default=3.0)
    parser.add_argument(
        "--queue",
        type=server.positive,
        default=256,
        help="requests of a kind under way at most",
    )
    server.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; gives the exit status."""
    args = _parser().parse_args(argv)
    return server.run(lambda: start(args), until_eof=args.until_eof)


if __name__ == "__main__":
    protect_streams(outlives_readers=True)
    sys.exit(main())
