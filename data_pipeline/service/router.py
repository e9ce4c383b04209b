"""Answers searches of a whole database from shard servers; keeps no state of its own.

    python -m data_pipeline.service.router --database=DIR \
        --shards='host:port|host:port,host:port|host:port'

In `--shards` a comma separates shards, in order, and '|' the replicas of a shard. Of the
database the router reads tokenizer and embedder, not the index.

Texts are embedded, all shards asked at once, and their answers merged exactly: with all
shards there the answer is `Database.search`'s. A shard without a live replica, or with
another database, is missing: the answer is then partial and says so. What was found is
read by the shard that found it, or by another: every server can read all chunks.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np

from data_pipeline.database import Database
from data_pipeline.index import sharded
from data_pipeline.service import messages, replicas, security, serving
from data_pipeline.service import retrieval_pb2 as pb
from data_pipeline.service.batching import MicroBatches
from data_pipeline.service.endpoints import Admission, Endpoint, Refused
from data_pipeline.service.observing import Log, Metrics

SERVICE = pb.DESCRIPTOR.services_by_name["Retrieval"].full_name
# Of the time that is left: a missing shard must not cost the others' answers.
_SEARCH_SHARE, _PASSAGES_SHARE = 0.6, 0.9


class Router:
    """The methods that clients call."""

    def __init__(
        self,
        database: Database,
        shards: Sequence[replicas.ReplicaSet],
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
        self._database, self._shards, self._limits = database, shards, limits
        self._metrics, self._log = metrics, log
        self._state = messages.state_of(database)
        self._width = database.embedder.width
        self._vocab_size = database.tokenizer.vocab_size
        self._batches = MicroBatches(
            database.embedder, window_s=embed_window_s, most_texts=limits.queries
        )
        self._missing: set[int] = set()  # as last logged

    def endpoint(self, *, most: int, timeout_s: float) -> Endpoint:
        """The methods; `most` requests may be under way, more are refused."""
        methods = {
            "Search": (pb.SearchRequest, self._search),
            "Passages": (pb.PassagesRequest, self._read),
            "Describe": (pb.DescribeRequest, self._describe),
        }
        admission = Admission(most, 0, self._metrics)
        return Endpoint(SERVICE, methods, admission, self._metrics, timeout_s)

    async def _describe(self, request: pb.DescribeRequest, timeout_s: float):
        return pb.Description(
            database=self._state,
            chunk_len=self._database.chunk_len,
            width=self._width,
            tokenizer_fingerprint=self._database.tokenizer.fingerprint,
            embedder_fingerprint=self._database.embedder.fingerprint,
            num_shards=len(self._shards),
        )

    async def _search(self, request: pb.SearchRequest, timeout_s: float):
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        wants_passages = request.passage_len > 0 or not request.without_sources
        messages.check_passage_len(
            request.passage_len, self._database.chunk_len, self._limits
        )
        vectors_QW = await self._vectors(request)
        share = _SEARCH_SHARE if wants_passages else _PASSAGES_SHARE
        answers, missing = await self._ask_shards(
            request, vectors_QW, share * (ends_s - loop.time())
        )
        ids_QN, distances_QN = sharded.merge(list(answers.values()), request.k)
        response = pb.SearchResponse(
            results=_neighbours(ids_QN, distances_QN),
            database=self._state,
            partial=bool(missing),
            missing_shards=[
                pb.MissingShard(shard=shard, reason=reason)
                for shard, reason in missing.items()
            ],
        )
        if wants_passages:
            finders = _finders(np.unique(ids_QN[ids_QN >= 0]), answers)
            passages = await self._passages(
                finders, request, _PASSAGES_SHARE * (ends_s - loop.time())
            )
            response.passages.extend(passages)
        return response

    async def _vectors(self, request: pb.SearchRequest) -> np.ndarray:
        """The vectors of a request's queries; all is checked before any is embedded."""
        kind, limits = request.WhichOneof("queries"), self._limits
        vectors_QW, texts = None, list[str]()
        if kind == "vectors":
            vectors_QW = messages.unpack_vectors(request.vectors, self._width, limits)
        elif kind == "token_chunks":
            tokens_QM = messages.unpack_tokens(
                request.token_chunks, self._vocab_size, limits
            )
            texts = [self._database.tokenizer.decode(tokens) for tokens in tokens_QM]
        elif kind == "texts":
            texts = messages.checked_texts(request.texts.texts, limits)
        else:
            raise ValueError("queries: give texts, token_chunks or vectors")
        num_queries = len(texts) if vectors_QW is None else len(vectors_QW)
        messages.check_search(request.k, num_queries, request.exclude_documents, limits)
        return await self._batches.embed(texts) if vectors_QW is None else vectors_QW

    async def _ask_shards(
        self, request: pb.SearchRequest, vectors_QW: np.ndarray, timeout_s: float
    ) -> tuple[dict[int, tuple], dict[int, str]]:
        """What each shard found, and why the others are missing."""
        vectors, k = messages.pack_vectors(vectors_QW), request.k

        async def ask(shard: int):
            asked = pb.ShardSearchRequest(
                database=self._state,
                shard=shard,
                num_shards=len(self._shards),
                vectors=vectors,
                k=k,
                exclude_documents=request.exclude_documents,
            )
            try:
                found = await self._shards[shard].call("Search", asked, timeout_s)
            except replicas.Unanswered as error:
                return _reason(error)
            return messages.unpack_found(found, len(vectors_QW), k)

        each = await asyncio.gather(*map(ask, range(len(self._shards))))
        missing = {s: why for s, why in enumerate(each) if isinstance(why, str)}
        self._note_missing(missing)
        if len(missing) == len(each):
            said = "; ".join(f"shard {s}: {why}" for s, why in missing.items())
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"no shard answered: {said}")
        return {s: found for s, found in enumerate(each) if s not in missing}, missing

    def _note_missing(self, missing: dict[int, str]) -> None:
        """Counts missing shards and logs when others are missing than before."""
        if missing:
            self._metrics.partials.inc()
        for shard in missing:
            self._metrics.missing.labels(str(shard)).inc()
        if set(missing) != self._missing:
            self._missing = set(missing)
            self._log("missing_shards", reasons=missing)

    async def _passages(
        self, finders: dict[int, list[int]], request, timeout_s: float
    ) -> list[pb.Passage]:
        """Passages by the shard that is to read them."""

        async def read(shard: int, chunk_ids: list[int]):
            asked = pb.PassagesRequest(
                database=self._state,
                chunk_ids=chunk_ids,
                passage_len=request.passage_len,
                without_sources=request.without_sources,
            )
            return await self._read_somewhere(shard, asked, timeout_s)

        each = await asyncio.gather(*(read(*finder) for finder in finders.items()))
        return [passage for response in each for passage in response.passages]

    async def _read_somewhere(
        self, first: int, asked: pb.PassagesRequest, timeout_s: float
    ) -> pb.PassagesResponse:
        """Asks one shard, then the others, for passages, each for half the time left."""
        loop = asyncio.get_running_loop()
        ends_s, said = loop.time() + timeout_s, "no time left"
        count = len(self._shards)
        for shard in ((first + step) % count for step in range(count)):
            left_s = ends_s - loop.time()
            if left_s <= 0:
                break
            is_last = shard == (first - 1) % count
            try:
                return await self._shards[shard].call(
                    "Passages", asked, left_s if is_last else left_s / 2
                )
            except replicas.Unanswered as error:
                said = _reason(error)
        raise Refused(
            grpc.StatusCode.UNAVAILABLE, f"no shard could read the passages: {said}"
        )

    async def _read(self, request: pb.PassagesRequest, timeout_s: float):
        chunk_ids = list(request.chunk_ids)
        messages.check_passages(
            chunk_ids, request.passage_len, self._database, self._limits
        )
        if request.HasField("database") and request.database != self._state:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this router serves {messages.said(self._state)}, not "
                f"{messages.said(request.database)}",
            )
        asked = pb.PassagesRequest()
        asked.CopyFrom(request)
        asked.database.CopyFrom(self._state)
        first = chunk_ids[0] % len(self._shards) if chunk_ids else 0
        return await self._read_somewhere(first, asked, _PASSAGES_SHARE * timeout_s)

    async def close(self) -> None:
        """Ends the connections to the shards."""
        await self._batches.close()
        for shard in self._shards:
            await shard.close()


def _reason(error: replicas.Unanswered) -> str:
    """Why a shard is missing; what the caller has to hear is raised instead."""
    if error.code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ):
        raise Refused(error.code, str(error).split(": ", 1)[-1]) from error
    return f"{error.code.name}: {error}"


def _neighbours(ids_QN: np.ndarray, distances_QN: np.ndarray) -> list[pb.Neighbours]:
    counts_Q = np.count_nonzero(ids_QN >= 0, axis=1).tolist()
    return [
        pb.Neighbours(chunk_ids=ids[:count], distances=distances[:count])
        for ids, distances, count in zip(
            ids_QN.tolist(), distances_QN.tolist(), counts_Q, strict=True
        )
    ]


def _finders(ids_X: np.ndarray, answers: dict[int, tuple]) -> dict[int, list[int]]:
    """Which shard found which of the ids."""
    found = {
        shard: ids_X[np.isin(ids_X, ids_QN)].tolist()
        for shard, (ids_QN, _) in answers.items()
    }
    return {shard: ids for shard, ids in found.items() if ids}


class _Running:
    """A router that serves."""

    def __init__(self, server: serving.Server, router: Router):
        self._server, self._router = server, router
        self.announce = server.announce

    async def stop(self) -> None:
        await self._server.stop()
        await self._router.close()


async def start(args: argparse.Namespace) -> _Running:
    """Opens the database, connects to the shards and serves, as the flags say."""
    listening = serving.listening_of(args)
    serving.check_port(listening.host, listening.port)
    metrics, log = Metrics(), Log("router")
    shards = replicas.connect(
        args.shards,
        credentials=security.channel_credentials(args.tls_ca),
        token=listening.token,
        hedge_s=args.hedge_ms / 1000 if args.hedge_ms else None,
        metrics=metrics,
        log=log,
    )
    router = Router(
        Database.open(args.database),
        shards,
        embed_window_s=args.embed_window_ms / 1000,
        limits=serving.limits_of(args),
        metrics=metrics,
        log=log,
    )
    endpoint = router.endpoint(most=args.queue, timeout_s=args.timeout_s)
    server = await serving.Server.start(listening, [endpoint], metrics, log)
    return _Running(server, router)


def _parser() -> argparse.ArgumentParser:
    parser = serving.parser_of("router", (__doc__ or "").splitlines()[0])
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument(
        "--shards", required=True, help="host:port|host:port,...: , shards, | replicas"
    )
    parser.add_argument(
        "--tls_ca", type=Path, help="certificate the shards are checked by"
    )
    parser.add_argument(
        "--hedge_ms", type=float, default=0, help="0: as recent answers suggest"
    )
    parser.add_argument("--embed_window_ms", type=float, default=3.0)
    parser.add_argument(
        "--queue", type=serving.positive, default=256, help="requests under way at most"
    )
    serving.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; gives the exit status."""
    args = _parser().parse_args(argv)
    return serving.command(lambda: start(args), until_eof=args.until_eof)


if __name__ == "__main__":
    sys.exit(main())
