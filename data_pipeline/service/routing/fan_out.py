"""Asks all shards of a database, and puts their answers together.

Every request carries the version that it is for, so what is merged here is of one version.
A shard that does not answer is missing, with the reason; the others' answers stand.
Letters here: X passages.
"""

import asyncio
import dataclasses
from collections.abc import Sequence

import grpc
import numpy as np

from data_pipeline.service.routing import replica_set
from data_pipeline.service.server.admission import Refused
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

# What a shard found: ids and distances, (Q, k) each.
Answer = tuple[np.ndarray, np.ndarray]


class Shards:
    """All shards of a database."""

    def __init__(
        self, shards: Sequence[replica_set.ReplicaSet], *, metrics: Metrics, log: Log
    ):
        """Takes the shards in order."""
        self._shards, self._metrics, self._log = shards, metrics, log
        self._missing: set[int] = set()  # as last logged

    def __len__(self) -> int:
        return len(self._shards)

    async def search(
        self,
        state: pb.DatabaseState,
        request: pb.SearchRequest,
        vectors_QW: np.ndarray,
        timeout_s: float,
    ) -> tuple[dict[int, Answer], dict[int, str]]:
        """Gives what each shard found, and why the others are missing.

        Raises:
            Refused: if all are, or one says that the request is wrong or that it is
                overloaded.
        """
        vectors, k = messages.pack_vectors(vectors_QW), request.k

        async def ask(shard: int):
            """Gives what one shard found, or why it is missing."""
            asked = pb.ShardSearchRequest(
                database=state,
                shard=shard,
                num_shards=len(self._shards),
                vectors=vectors,
                k=k,
                exclude_documents=request.exclude_documents,
            )
            try:
                found = await self._shards[shard].call("Search", asked, timeout_s)
            except replica_set.Unanswered as error:
                return _reason(error)
            return messages.unpack_found(found, len(vectors_QW), k)

        each = await asyncio.gather(*map(ask, range(len(self._shards))))
        missing = {s: why for s, why in enumerate(each) if isinstance(why, _Missing)}
        self._record_missing({shard: why.details for shard, why in missing.items()})
        reasons = {shard: why.reason for shard, why in missing.items()}
        if len(missing) == len(each):
            said = "; ".join(f"shard {s}: {why}" for s, why in reasons.items())
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"no shard answered: {said}")
        return {s: found for s, found in enumerate(each) if s not in missing}, reasons

    def _record_missing(self, missing: dict[int, str]) -> None:
        """Counts missing shards and logs when others are missing than before."""
        if missing:
            self._metrics.partials.inc()
        for shard in missing:
            self._metrics.missing.labels(str(shard)).inc()
        if set(missing) != self._missing:
            self._missing = set(missing)
            self._log("missing_shards", reasons=missing)

    async def passages(
        self,
        state: pb.DatabaseState,
        request: pb.SearchRequest,
        answers: dict[int, Answer],
        ids_QN: np.ndarray,
        timeout_s: float,
    ) -> list[pb.Passage]:
        """Reads the passages of ids, each once, by the shard that found it or by another.

        Raises:
            Refused: if no shard can read them.
        """

        async def read(shard: int, chunk_ids: list[int]):
            asked = pb.PassagesRequest(
                database=state,
                chunk_ids=chunk_ids,
                passage_len=request.passage_len,
                without_sources=request.without_sources,
            )
            return await self.read(shard, asked, timeout_s)

        finders = _finders(np.unique(ids_QN[ids_QN >= 0]), answers)
        each = await asyncio.gather(*(read(*finder) for finder in finders.items()))
        return [passage for response in each for passage in response.passages]

    async def read(
        self, first: int, asked: pb.PassagesRequest, timeout_s: float
    ) -> pb.PassagesResponse:
        """Asks one shard, then the others, for passages, each for half the time left.

        Every server can read all chunks from disk, so any of them will do.

        Raises:
            Refused: if no shard can read them.
        """
        loop = asyncio.get_running_loop()
        ends_s, said = loop.time() + timeout_s, "no time left"
        count = len(self._shards)
        for shard in ((first + step) % count for step in range(count)):
            left_s = ends_s - loop.time()
            if left_s <= 0:
                break
            # With half of the time, one that stalls leaves enough for the next.
            is_last = shard == (first - 1) % count
            try:
                return await self._shards[shard].call(
                    "Passages", asked, left_s if is_last else left_s / 2
                )
            except replica_set.Unanswered as error:
                said = _reason(error).reason
        raise Refused(
            grpc.StatusCode.UNAVAILABLE, f"no shard could read the passages: {said}"
        )

    async def close(self) -> None:
        """Ends the connections."""
        for shard in self._shards:
            await shard.close()


# What clients are told. The router's log has the rest, with the addresses of its shards.
_REASONS = {
    grpc.StatusCode.UNAVAILABLE: "no server of it can be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "no server of it answered in time",
    grpc.StatusCode.FAILED_PRECONDITION: "its servers have another database or version",
    grpc.StatusCode.UNAUTHENTICATED: "its servers do not know the router's token",
}


@dataclasses.dataclass(frozen=True)
class _Missing:
    """Why a shard is missing: what clients are told, and what the log says."""

    reason: str
    details: str


def _reason(error: replica_set.Unanswered) -> _Missing:
    """Why a shard is missing; what the caller has to hear is raised instead."""
    if error.code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ):
        raise Refused(error.code, str(error).split(": ", 1)[-1]) from error
    name, said = error.code.name, _REASONS.get(error.code, "see the router's log")
    return _Missing(f"{name}: {said}", f"{name}: {error}")


def _finders(ids_X: np.ndarray, answers: dict[int, Answer]) -> dict[int, list[int]]:
    """The ids that each shard found."""
    found = {
        shard: ids_X[np.isin(ids_X, ids_QN)].tolist()
        for shard, (ids_QN, _) in answers.items()
    }
    return {shard: ids for shard, ids in found.items() if ids}
