"""A database, or a service of one, as a retriever of LangChain (the `langchain` extra).

found = DatabaseRetriever(database=Database.open(folder), k=4).invoke("a question")
"""

import dataclasses
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever


class DatabaseRetriever(BaseRetriever):
    """The passages that are nearest to a text, as LangChain's documents.

    Attributes:
        database: a `Database`, or the client of a service.
        k: how many passages are found.
    """

    database: Any
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any
    ) -> list[Document]:
        """The passages, each with its place, licence and distance as metadata."""
        documents = []
        for found in self.database.search([query], self.k)[0]:
            metadata = dataclasses.asdict(found)
            text = metadata.pop("text") + metadata.pop("continuation")
            name = str(metadata["chunk_id"])
            documents.append(Document(id=name, page_content=text, metadata=metadata))
        return documents
