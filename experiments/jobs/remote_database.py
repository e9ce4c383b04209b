"""A database behind a retrieval service, in place of a database's folder.

With `--database=grpc://HOST:PORT`, or `grpcs://` with TLS, the passages and the tokenizer
come from the service.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.storage import object_store
from data_pipeline.storage.extras import install_command

if TYPE_CHECKING:  # commands check their flags before numpy and JAX are imported
    from data_pipeline.database.results import Found, Retrieved
    from data_pipeline.service.client import RetrievalClient
    from data_pipeline.text.tokenizer import Tokenizer

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(database: str) -> bool:
    """Whether this names a service, not a folder; the form may still be a wrong one."""
    return _SCHEME.match(database) is not None and not object_store.is_url(database)


def check(database: str, token_file: str | None, tls_ca: str | None) -> None:
    """Raises ValueError for flags of a service where there is none."""
    for name, value in (("token_file", token_file), ("tls_ca", tls_ca)):
        if value and not is_address(database):
            raise ValueError(f"--{name} is for --database=grpc://... or grpcs://...")


@contextlib.contextmanager
def told_how_to_go_on() -> Iterator[None]:
    """Adds to a ConnectionError how a model writes without the service."""
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; to go on without passages: --config.evaluation.retrieval=false"
        ) from error


def folder_only(database: str, what: str) -> None:
    """Raises ValueError if `what`, which needs the files, is asked of a service."""
    if is_address(database):
        raise ValueError(
            f"{what} needs the database's folder: {database} is a service, which only "
            "searches (for search and --job=generate)"
        )


@dataclasses.dataclass(frozen=True)
class NoDatabase:
    """What generation needs where nothing is retrieved: the tokenizer of the model."""

    tokenizer: "Tokenizer"


class RemoteDatabase:
    """The part of `Database` that generation and search use, answered by a service.

    Attributes:
        chunk_len: tokens of a chunk.
        tokenizer: the database's tokenizer.
        fingerprint: the database's fingerprint when the connection was opened.
    """

    def __init__(self, client: "RetrievalClient", address: str):
        """Asks the service what it holds and takes its tokenizer.

        Raises:
            ConnectionError: if there is no service; `BadAnswerError` if the tokenizer that it
                sends is none or not the one it speaks of.
        """
        from data_pipeline.service.wire.answers import BadAnswerError
        from data_pipeline.text.tokenizer import Tokenizer

        self._client, self.address = client, address
        self._sources: dict[int, Found] = {}
        described = client.describe()
        self.chunk_len = described.chunk_len
        self.fingerprint = described.database.fingerprint
        try:
            self.tokenizer = Tokenizer(client.tokenizer_model(), address)
        except ValueError as error:
            raise BadAnswerError(f"{address} sent no tokenizer: {error}") from error
        said = (described.tokenizer_fingerprint, described.vocab_size)
        if said != (self.tokenizer.fingerprint, self.tokenizer.vocab_size):
            raise BadAnswerError(
                f"{address} sent tokenizer {self.tokenizer.fingerprint} and says that its "
                f"database has {said[0]} with {said[1]} tokens: start its router again"
            )

    @classmethod
    def open(
        cls, address: str, *, token_file: str | None = None, tls_ca: str | None = None
    ) -> "RemoteDatabase":
        """Connects to a service.

        Args:
            address: grpc://host:port, or grpcs://host:port for TLS.
            token_file: holds the token that the service wants.
            tls_ca: PEM certificate that vouches for the service's, for grpcs.
        Raises:
            ValueError: for another form of address, a file that holds no token or no
                certificate, or a service that refuses the token.
            ConnectionError: if there is no service.
        """
        try:
            from data_pipeline.service.client import RetrievalClient
            from data_pipeline.service.wire import security
        except ImportError as error:
            raise ValueError(
                f"--database={address} needs gRPC ({error}): {install_command('serve')}"
            ) from error
        # gRPC reads it at the first connection; else it logs what our error says.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        secret = Path(token_file) if token_file else None
        token = security.read_token(secret)
        if security.is_open_to_all(secret):
            print(
                f"every user of this machine can read {secret}: chmod o-r it",
                file=sys.stderr,
            )
        authority = Path(tls_ca) if tls_ca else None
        return cls(RetrievalClient(address, tls_ca=authority, token=token), address)

    def retrieve(self, tokens_QM, num_neighbours: int) -> "Retrieved":
        """Finds neighbours as `Database.retrieve` does, and keeps their sources.

        `found` gives the sources of the version that answered: the service may show
        another version later.
        """
        neighbours, sources = self._client.retrieve_with_sources(
            tokens_QM, num_neighbours
        )
        self._sources |= sources
        return neighbours

    def found(self, chunk_id: int, distance: float = float("nan")) -> "Found":
        """Gives what `Database.found` gives, for a chunk that was retrieved before."""
        return dataclasses.replace(self._sources[chunk_id], distance=distance)

    def search(
        self, texts: Sequence[str], k: int, *, exclude_documents: Collection[str] = ()
    ) -> "list[list[Found]]":
        """Searches as `Database.search` does."""
        return self._client.search(texts, k, exclude_documents=exclude_documents)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def check_trained_with(
        self, tokenizer_fingerprint: str | None, workdir: Path
    ) -> None:
        """Raises ValueError if a model was trained with another tokenizer's tokens."""
        if tokenizer_fingerprint not in (None, self.tokenizer.fingerprint):
            raise ValueError(
                f"{self.address} serves a database with tokenizer "
                f"{self.tokenizer.fingerprint}, the model in {workdir} was trained with "
                f"{tokenizer_fingerprint}: serve a database with the model's tokenizer"
            )
