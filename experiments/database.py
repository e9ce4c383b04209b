"""Searches a database, looks into it, checks it and changes it.

    python -m experiments.database search "who wrote it?" --database=DIR [-k 5]
    python -m experiments.database show CHUNK_ID --database=DIR
    python -m experiments.database stats --database=DIR [--plot=distances.png]
    python -m experiments.database verify --database=DIR [--blocks=1]
    python -m experiments.database add FILE --database=DIR [--replace] [--text_column=NAME]
    python -m experiments.database delete ID [ID ...] --database=DIR
    python -m experiments.database compact --database=DIR
    python -m experiments.database versions --database=DIR [--use=NUMBER]

`search` also takes a retrieval service: --database=grpc://HOST:PORT, or grpcs:// with TLS.
FILE is what a corpus may be: a folder, a .jsonl or .parquet file, a text file, ... The database
is that of `--corpus` or of `--workdir` if it is not named. `retro search` and its like are these
commands too.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data_pipeline.storage import object_store
from data_pipeline.storage.printing import (
    check_output,
    counted,
    printable_line,
    protect_streams,
)
from data_pipeline.storage.progress import say
from experiments import command_line, workdirs
from experiments.jobs import remote_database

_PROG = "python -m experiments.database"


def start(argv: Sequence[str] | None = None, prog: str = _PROG) -> NoReturn:
    """Runs the command in `argv`, or of the command line, and ends the process."""
    # Accelerators are for builds and training.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    protect_streams()
    command_line.end_at_interrupt()
    sys.exit(main(argv, prog))


def main(argv: Sequence[str] | None = None, prog: str = _PROG) -> int:
    """Runs the command in `argv`; gives its exit status."""

    def run(_: list[str]) -> None:
        args = _parser(prog).parse_args(argv)
        changes = args.run in (_add, _delete, _compact)
        if changes or getattr(args, "use", None) is not None:
            _refuse_stored(args.database or "")
        args.database = workdirs.database_of(args)
        for name in ("file", "plot", "token_file", "tls_ca"):
            if path := getattr(args, name, None):
                setattr(args, name, workdirs.expanded(path))
        args.run(args)
        check_output()

    return command_line.run(run, [])


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, what: str) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, help=what, description=f"{what}.")
        workdirs.add_arguments(made)
        made.set_defaults(run=run)
        return made

    search = command("search", _search, "Finds the passages that are nearest to a text")
    _add_search_arguments(search)
    show = command(
        "show", _show, "Prints a chunk with its source and the text around it"
    )
    show.add_argument(
        "chunk_id", type=int, metavar="CHUNK_ID", help="as found by search"
    )
    stats = command("stats", _stats, "Prints sizes, recall, duplicates and distances")
    stats.add_argument(
        "--plot", metavar="FILE", help="PNG of the neighbours' distances"
    )
    verify = command("verify", _verify, "Checks every file and embeds a sample again")
    verify.add_argument(
        "--blocks", type=int, default=1, help="blocks of about 1,000 chunks [1]"
    )
    verify.add_argument("--seed", type=int, default=0, help="which blocks they are [0]")
    add = command("add", _add, "Adds documents")
    add.add_argument(
        "file", metavar="FILE", help="a folder, .jsonl, .parquet, text ..."
    )
    add.add_argument("--text_column", default="", help="field of records with the text")
    add.add_argument("--replace", action="store_true", help="those of the same ids")
    delete = command("delete", _delete, "Deletes documents")
    delete.add_argument("document_id", nargs="+", metavar="ID", help="a document's id")
    command("compact", _compact, "Takes deleted text and old versions off the disk")
    versions = command("versions", _versions, "Lists the versions, or goes to one")
    versions.add_argument(
        "--use", type=int, metavar="NUMBER", help="the version to go to"
    )
    return parser


def _add_search_arguments(search: argparse.ArgumentParser) -> None:
    search.add_argument("query", metavar="TEXT", help="what to search for")
    search.add_argument(
        "-k", "--k", type=int, default=5, help="how many passages to find [5]"
    )
    search.add_argument(
        "--max_distance",
        type=float,
        default=math.inf,
        metavar="D",
        help="leave out what is farther away",
    )
    search.add_argument(
        "--rank",
        choices=("dense", "hybrid"),
        default="dense",
        help="by vectors, or by vectors and words [dense]",
    )
    search.add_argument(
        "--json", action="store_true", help="one JSON object a passage, for programs"
    )
    search.add_argument(
        "--without",
        nargs="*",
        default=[],
        metavar="ID",
        help="documents to leave out, by their ids",
    )
    search.add_argument(
        "--token_file", metavar="FILE", help="holds the token that a service wants"
    )
    search.add_argument(
        "--tls_ca", metavar="FILE", help="PEM certificate to check grpcs:// with"
    )


def _refuse_stored(database: str) -> None:
    """Raises ValueError for a database that can only be read."""
    if object_store.is_url(database):
        raise ValueError(
            f"{database} is a stored database, which is only read: change it in a folder "
            "and store it again with `retro copy`"
        )


def _open(args: argparse.Namespace, version: int | None = None):
    remote_database.folder_only(args.database, "this command")
    from data_pipeline.database import Database  # takes seconds: flags come first

    return Database.open(args.database, version)


@contextlib.contextmanager
def _open_to_search(args: argparse.Namespace):
    remote_database.check(args.database, args.token_file, args.tls_ca)
    if not remote_database.is_address(args.database):
        yield _open(args)
        return
    service = remote_database.RemoteDatabase.open(
        args.database, token_file=args.token_file, tls_ca=args.tls_ca
    )
    with contextlib.closing(service):
        yield service


def _search(args: argparse.Namespace) -> None:
    if not args.query.strip():
        raise ValueError("the query is empty: give some text to search for")
    try:
        args.query.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are no UTF-8
        raise ValueError(f"the query is not valid Unicode: {error}") from error
    if not args.max_distance >= 0:
        raise ValueError(f"--max_distance must be 0 or more, is {args.max_distance}")
    if args.rank != "dense":
        remote_database.folder_only(args.database, f"--rank={args.rank}")
    with _open_to_search(args) as opened:
        ranked = {} if args.rank == "dense" else {"rank": args.rank}
        (found,) = opened.search(
            [args.query], args.k, exclude_documents=args.without, **ranked
        )
        near = [one for one in found if one.distance <= args.max_distance]
        for place, passage in enumerate(near, start=1):
            excerpt = _excerpt(opened, passage)
            if args.json:
                passage_of = {"place": place, **dataclasses.asdict(passage)}
                print(json.dumps(passage_of | {"passage": excerpt.text}))
            else:
                distance = f"distance {passage.distance:.3f}"
                print(f"{place}. {_source(passage)}  {distance}")
                print(excerpt.lines(), end="\n\n")
    if not args.json:
        print(_LEGEND if near else _nothing(found))


_LEGEND = (
    "Lines with > hold the chunk that was compared with the query. Distance: 0 for the same "
    "text, about 2 for unrelated text."
)


def _nothing(found) -> str:
    if not found:
        return "nothing was found"
    nearest = min(passage.distance for passage in found)
    return f"nothing is as near as that; the nearest has distance {nearest:.3f}"


def _excerpt(opened, passage):
    """The passage as it is shown; a service tells nothing of what stands before it."""
    from data_pipeline.database import excerpts

    if isinstance(opened, remote_database.RemoteDatabase):
        return excerpts.excerpt_of_found(passage)
    return excerpts.excerpt_at(opened.snapshot, passage.chunk_id)


def _source(passage) -> str:
    """Where a passage stands, in one line."""
    title = passage.title or passage.document_id
    known = (passage.uri, passage.licence, f"document {passage.document_id}")
    place = f"byte {passage.offset:,}, chunk {passage.chunk_id}"
    parts = dict.fromkeys([title, *(value for value in known if value), place])
    return printable_line(", ".join(parts))


def _show(args: argparse.Namespace) -> None:
    from experiments.report import database_facts

    opened = _open(args)
    passage = database_facts.passage(opened, args.chunk_id)
    print(_source(passage))
    print(_excerpt(opened, passage).lines())


def _stats(args: argparse.Namespace) -> None:
    from experiments.report import database_facts

    if args.plot:
        command_line.output_file(Path(args.plot))
    opened = _open(args)
    for name, value in database_facts.facts(opened.snapshot):
        print(printable_line(f"{name:<28} {value}"))
    if args.plot:
        database_facts.plot_distances(opened.snapshot, Path(args.plot))
        print(f"{'distances of neighbours':<28} {args.plot}")


def _verify(args: argparse.Namespace) -> None:
    from data_pipeline.database import verify

    for flag in ("blocks", "seed"):
        if getattr(args, flag) < 0:
            raise ValueError(f"--{flag} must be at least 0, is {getattr(args, flag)}")
    opened = _open(args)
    checked, problems = 0, []
    for _, problem in verify.files(opened.snapshot):
        checked += 1
        problems += [problem] if problem else []
    if problems:
        raise ValueError("; ".join(problems))
    print(f"{checked} files are as they were written")
    for block in range(args.blocks):
        shard, chunks, cosine = verify.recompute(opened.snapshot, args.seed + block)
        same = "bit for bit the same"
        if cosine < 1:
            same = (
                f"cosine {cosine:.6f} or more: another processor made the vectors, or "
                "compacting took others away that were beside them"
            )
        print(f"{shard}: {chunks} chunks made again, {same}")


def _add(args: argparse.Namespace) -> None:
    from data_pipeline.database import updates
    from data_pipeline.text import corpora
    from data_pipeline.text.documents import Skipped

    if not args.file:
        raise ValueError("the name of the corpus is empty: give a folder or a file")
    opened, skipped = _open(args), Skipped()
    reading = corpora.Reading(text_column=args.text_column)
    documents = list(corpora.read_documents(args.file, skipped, reading=reading))
    number = updates.add(opened.snapshot, documents, replace=args.replace).version
    for line in skipped.summary_lines():
        say(f"left out: {line}")
    done = "added or replaced" if args.replace else "added"
    print(f"version {number}: {counted(len(documents), 'document')} {done}")


def _delete(args: argparse.Namespace) -> None:
    number = _open(args).delete(args.document_id)
    print(
        f"version {number}: {counted(len(set(args.document_id)), 'document')} deleted"
    )


def _compact(args: argparse.Namespace) -> None:
    opened = _open(args)
    number = opened.compact()
    print(f"version {number}: nothing deleted is left on disk; older versions are gone")


def _versions(args: argparse.Namespace) -> None:
    import numpy as np

    from data_pipeline.database import versions

    if args.use is not None:
        versions.put_in_force(_open(args, args.use).folder, args.use)  # if it is whole
    folder = Path(args.database)
    shown = versions.in_force(folder)
    for number in versions.numbers(folder):
        in_force = "  in force" if number == shown else ""
        try:
            opened = _open(args, number)
        except ValueError as error:  # others may be whole
            print(f"version {number}: {printable_line(str(error))}{in_force}")
            continue
        rows = opened.snapshot.documents().num_rows
        deleted = opened.snapshot.state.is_deleted(np.arange(rows)).sum()
        there = f"{counted(int(rows - deleted), 'document')}, {deleted:,} deleted"
        print(f"version {number}: {there}{in_force}")


if __name__ == "__main__":
    start()
