"""Answers of a service whose database changes every 0.3 s: partial, mixed and stale ones.

Every change replaces the same documents, whose titles count the changes: an answer with
titles of two changes, or with those of another version than it names, is mixed.
"""

import argparse
import contextlib
import itertools
import time
from pathlib import Path

import numpy as np

from data_pipeline.database import Database
from data_pipeline.service.wire import retrieval_pb2 as pb
from tools.benchmark.result import Row, progress
from tools.faults import load, servers, small_database, toy_embedder

_EVERY_S = 0.3
_COMPACT_EVERY = 20  # changes
_CLOCKS = 4  # documents that are replaced
_TEXT = "The clocks of four towers strike the hours of a long day."


def rows(scratch: Path, args: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Gives the row of a load under changes."""
    with toy_embedder.in_place(args.embedder):
        corpus = small_database.write_corpus(scratch / "corpus", args.seed)
        folder = scratch / "database"
        small_database.make(corpus, folder, embedder=args.embedder)
        changes = _Changes(Database.open(folder))
        changes.make()
        service = servers.Service(
            folder, args.queue, replicas=1, embedder=args.embedder
        )
        with contextlib.closing(service):
            progress(f"a change every {_EVERY_S} s for {args.seconds} s")
            answers = load.under_load(
                service.port,
                pb.SearchRequest(texts=pb.Texts(texts=[_TEXT]), k=2 * _CLOCKS),
                [changes.make] * round(args.seconds / _EVERY_S),
                clients=args.clients,
                timeout_s=args.timeout_s,
                seconds=args.seconds,
                judge=changes.judge,
            )
    return [{"changes": f"every {_EVERY_S} s"} | changes.counts(answers)]


class _Changes:
    """Changes of an open database, and what answers say of them."""

    def __init__(self, opened: Database):
        """Makes none yet."""
        self._opened = opened
        self._titles: dict[int, str] = {}  # version -> title of its clocks
        self._published_s: dict[
            int, float
        ] = {}  # of each version, on the monotonic clock

    def make(self) -> None:
        """Replaces the clocks, or compacts."""
        number = len(self._titles)
        if number % _COMPACT_EVERY == _COMPACT_EVERY - 1:
            title = self._titles[self._opened.version]
            version = self._opened.compact()
        else:
            title = str(number)
            clocks = [
                {"id": f"clock-{n}", "title": title, "text": _TEXT}
                for n in range(_CLOCKS)
            ]
            version = self._opened.replace(clocks)
        self._titles[version], self._published_s[version] = title, time.monotonic()

    def judge(self, response: pb.SearchResponse) -> str:
        """Tells whether an answer is whole and of one version, the one that it names."""
        clocks = [p for p in response.passages if p.document_id.startswith("clock-")]
        titles = {clock.title for clock in clocks}
        # A version may be served before its `make` comes to note it.
        noted = self._titles.get(response.database.version)
        is_right = len(titles) == 1 and (noted is None or titles == {noted})
        return load.completeness(response) if is_right else "mixed"

    def counts(self, answers: load.Answers) -> Row:
        """Counts the outcomes, and the seconds by which answers came after a newer version."""
        versions = sorted(self._published_s)
        newer_s = {
            old: self._published_s[new] for old, new in itertools.pairwise(versions)
        }
        stale_s = [
            max(0.0, answer.ended_s - newer_s.get(answer.version, answer.ended_s))
            for answer in answers
            if answer.version >= 0
        ] or [0.0]
        mixed = answers.num("mixed")
        return {
            "versions": len(versions),
            "versions seen": len({a.version for a in answers if a.version >= 0}),
            "requests": len(answers),
            "whole": answers.num("whole"),
            "partial": answers.num("partial"),
            "mixed": mixed,
            "failed": answers.errors() - mixed,
            "stale p50 s": round(float(np.median(stale_s)), 2),
            "stale max s": round(max(stale_s), 2),
        }
