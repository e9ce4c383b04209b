"""The retriever is LangChain's, where that is installed, and keeps to its interface."""

import importlib
import importlib.util
import sys
import types

import pytest

from data_pipeline.database import Found

_FOUND = Found(
    text="Suva is",
    continuation=" the capital.",
    document_id="fiji",
    title="Fiji",
    uri="https://example.org/fiji",
    licence="CC0",
    offset=12,
    distance=0.5,
    chunk_id=7,
)


class _Database:
    def search(self, texts, k):
        assert texts == ["a capital"] and k == 3
        return [[_FOUND, _FOUND]]


class _Fields:
    """Takes what it is given by name, as LangChain's classes do."""

    def __init__(self, **given):
        self.__dict__.update(given)


class _BaseRetriever(_Fields):
    def invoke(self, query):
        return self._get_relevant_documents(query, run_manager=None)


@pytest.fixture
def langchain(monkeypatch):
    """The module, with the little that it uses of LangChain if that is not there."""
    name = "data_pipeline.database.langchain"
    if importlib.util.find_spec("langchain_core") is None:
        for module, holds in {
            "langchain_core": {},
            "langchain_core.documents": {"Document": _Fields},
            "langchain_core.retrievers": {"BaseRetriever": _BaseRetriever},
        }.items():
            stand_in = types.ModuleType(module)
            stand_in.__dict__.update(holds)
            monkeypatch.setitem(sys.modules, module, stand_in)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_passages_are_documents_with_their_places(langchain):
    retriever = langchain.DatabaseRetriever(database=_Database(), k=3)
    documents = retriever.invoke("a capital")
    assert [each.page_content for each in documents] == ["Suva is the capital."] * 2
    assert documents[0].id == "7"
    assert documents[0].metadata == {
        "document_id": "fiji",
        "title": "Fiji",
        "uri": "https://example.org/fiji",
        "licence": "CC0",
        "offset": 12,
        "distance": 0.5,
        "chunk_id": 7,
    }
