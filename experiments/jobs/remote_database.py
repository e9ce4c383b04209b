"""A database behind a retrieval service, where a job or a command takes one.

`--database=grpc://host:port`, or `grpcs://` with TLS: what it takes of a database comes
from the service, its tokenizer too.
"""

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.database.results import Found, Retrieved

if TYPE_CHECKING:
    from data_pipeline.service.client import RetrievalClient

_SCHEMES = ("grpc://", "grpcs://")


def is_address(database: str) -> bool:
    """Whether this names a service, not a folder."""
    return database.startswith(_SCHEMES)


def check(database: str, token_file: str | None, tls_ca: str | None) -> None:
    """Raises ValueError for flags of a service where there is none."""
    for name, value in (("token_file", token_file), ("tls_ca", tls_ca)):
        if value and not is_address(database):
            raise ValueError(f"--{name} is for --database=grpc://... or grpcs://...")


def folder_only(database: str, what: str) -> None:
    """Raises ValueError if `what`, which needs the files, is asked of a service."""
    if is_address(database):
        raise ValueError(
            f"{what} needs the database's folder: {database} is a service, which only "
            "searches (for search and --job=generate)"
        )


class RemoteDatabase:
    """What generation and search take of a database, from a service.

    Attributes:
        chunk_len: tokens of a chunk.
        tokenizer: the database's.
        fingerprint: of the contents when it was opened.
    """

    def __init__(self, client: "RetrievalClient", address: str):
        """Asks for what the service holds.

        Raises:
            ValueError: if the tokenizer that it sends is not the one it speaks of.
            ConnectionError: if there is no service.
        """
        from data_pipeline.text.tokenizer import (
            Tokenizer,  # after the flags were checked
        )

        self._client, self.address = client, address
        self._sources: dict[int, Found] = {}
        described = client.describe()
        self.chunk_len = described.chunk_len
        self.fingerprint = described.database.fingerprint
        self.tokenizer = Tokenizer(client.tokenizer_model(), address)
        if self.tokenizer.fingerprint != described.tokenizer_fingerprint:
            raise ValueError(
                f"{address} sent tokenizer {self.tokenizer.fingerprint} and says that its "
                f"database has {described.tokenizer_fingerprint}: start its router again"
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
            ValueError: for another form of address, a file that is none of these, or a
                service that refuses the token.
            ConnectionError: if there is no service.
        """
        try:
            from data_pipeline.service.client import RetrievalClient
            from data_pipeline.service.wire import security
        except ImportError as error:
            raise ValueError(
                f"--database={address} needs gRPC: pip install 'retro-jax[serve]' ({error})"
            ) from error
        # Before the first connection: else gRPC logs what the error says.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        token = security.read_token(Path(token_file) if token_file else None)
        authority = Path(tls_ca) if tls_ca else None
        return cls(RetrievalClient(address, tls_ca=authority, token=token), address)

    def retrieve(self, tokens_QM, num_neighbours: int) -> Retrieved:
        """As `Database.retrieve`; the sources come with it, for `found`.

        They are those of the version that was read: it may be another one later.
        """
        neighbours, sources = self._client.retrieve_with_sources(
            tokens_QM, num_neighbours
        )
        self._sources |= sources
        return neighbours

    def found(self, chunk_id: int, distance: float = float("nan")) -> Found:
        """As `Database.found`, of a chunk that was retrieved."""
        return dataclasses.replace(self._sources[chunk_id], distance=distance)

    def search(
        self, texts: Sequence[str], k: int, *, exclude_documents: Collection[str] = ()
    ) -> list[list[Found]]:
        """As `Database.search`."""
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
