"""What a server shows of a database that changes under it, end to end."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.database import Database
from experiments.serving.passages import Passages
from tests import served_model, tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, opening

_NAMED = {"title": "Tortoises", "uri": "https://a.example/t", "licence": "CC0"}


@pytest.fixture
def own(tiny_database, tmp_path, toy_embedder):
    """A database that may be changed."""
    return Database.open(shutil.copytree(tiny_database.folder, tmp_path / "own"))


def _served(database, **settings):
    passages = Passages(database, can_change=settings.pop("can_change", True))
    return served_model.served(passages, of=database.tokenizer, says=" so", **settings)


def _read(stub, prompt) -> list[dict]:
    """The passages that were read for a prompt."""
    answer = stub.ask(prompt=prompt, max_tokens=4, num_neighbours=3)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return [passage for span in choice["sources"] for passage in span["passages"]]


def test_a_replaced_fact_changes_the_next_request_and_a_deleted_one_is_gone(own):
    with _served(own, limits={"max_prompt_tokens": 200}) as stub:
        client = stub.client
        new = {"id": "news/1", "text": NEWS, **_NAMED}
        added = client.post("/v1/documents", json={"documents": [new]}).json()
        assert added["version"] == 1 and added["ids"] == ["news/1"] and added["changed"]
        first, *_ = _read(stub, NEWS)
        assert first["document_id"] == "news/1" and first["text"] in NEWS
        assert {name: first[name] for name in _NAMED} == _NAMED
        kept = client.get("/v1/documents/news/1").json()
        assert kept["text"] == NEWS and kept["title"] == "Tortoises"
        again = client.post("/v1/documents", json={"documents": [new]})
        assert again.status_code == 409
        assert again.json()["error"]["code"] == "document_exists"
        assert str(own.folder) not in again.text

        replaced = client.put("/v1/documents/news/1", json={"text": OTHER_NEWS})
        assert replaced.json()["version"] == 2
        first, *_ = _read(stub, OTHER_NEWS)
        assert first["document_id"] == "news/1" and first["version"] == 2
        assert not any(passage["text"] in NEWS for passage in _read(stub, NEWS))
        chunk = first["chunk_id"]
        assert client.get(f"/v1/passages/{chunk}").json()["text"] == first["text"]

        assert client.delete("/v1/documents/news/1").json()["deleted"]
        for text in (NEWS, OTHER_NEWS):
            assert "news/1" not in {each["document_id"] for each in _read(stub, text)}
            found = stub.ask("/v1/search", query=text, k=50).json()["data"]
            assert len(found) == 50
            assert "news/1" not in {each["document_id"] for each in found}
        for path in (f"passages/{chunk}", "documents/news/1"):
            assert client.get(f"/v1/{path}").status_code == 404
        assert client.delete("/v1/documents/news/1").status_code == 404


def test_another_process_changes_what_is_read_next(own):
    passages = Passages(own)
    Database.open(own.folder).add([{"id": "elsewhere", "text": NEWS}])
    asked = (opening(own, NEWS), 1, "dense", np.inf)
    assert passages.search(*asked)[0]["document_id"] != "elsewhere"
    passages.refresh()
    assert passages.search(*asked)[0]["document_id"] == "elsewhere"


def test_sources_come_in_three_forms_and_as_evidence(tiny_database):
    text = tiny_database.found(5).text
    with _served(tiny_database, can_change=False) as stub:
        answer = stub.ask(prompt=text, max_tokens=6, effects=True).json()
        stream = stub.stream(prompt=text, max_tokens=6, effects=True)
    (choice,) = answer["choices"]
    assert [choice["text"][s["start"] : s["end"]] for s in choice["sources"]] == [
        span["text"] for span in choice["sources"]
    ]
    assert "".join(span["text"] for span in choice["sources"]) == choice["text"]
    best = choice["sources"][0]["passages"][0]
    assert best["text"] == text
    assert best["attention"] == 0.5 and best["effect"] == 1.0
    assert best["verbatim"] in best["text"] + best["continuation"]
    assert answer["citations"] and len(set(answer["citations"])) == len(
        answer["citations"]
    )
    streamed = [
        span
        for chunk in stream
        for each in chunk["choices"]
        for span in each.get("sources", [])
    ]
    assert streamed == choice["sources"]
    assert any("citations" in chunk for chunk in stream)


def test_a_chat_cites_as_openai_does(tiny_database):
    tokenizer = served_model.tokenizer()
    passages = Passages(tiny_database)
    passages.read = lambda source, text: [  # type: ignore[method-assign]
        {"title": "", "document_id": "d", "uri": "https://a.example/", "text": text}
    ]
    with served_model.served(passages, of=tokenizer) as stub:
        stub.model.problem = "away"
        message = stub.ask(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=4,
        ).json()["choices"][0]["message"]
    (annotation,) = message["annotations"]
    assert annotation == {
        "type": "url_citation",
        "url_citation": {
            "start_index": 0,
            "end_index": 4,
            "title": "d",
            "url": "https://a.example/",
        },
    }


def test_what_a_database_fails_with_costs_the_sources_and_is_told(tiny_database):
    passages = Passages(tiny_database)
    tokens = np.full((1, 8), 10**6, np.int32)  # no tokens of this database
    with pytest.raises(ConnectionError, match="nothing was retrieved"):
        passages.retrieve(tokens, 2)
    with served_model.served(passages, of=tiny_database.tokenizer, says="so") as stub:
        stub.model.problem = "the service is away"
        (span,) = stub.ask(prompt="a", max_tokens=2).json()["choices"][0]["sources"]
    assert span["problem"] == "the service is away" and span["passages"] == []


def test_tickets_name_what_was_found_even_in_a_later_version(own):
    passages = Passages(own, can_change=True)
    chunk_M = own.tokenizer.encode(own.found(5).text)[: own.chunk_len]
    found = passages.retrieve(chunk_M[None], 1)
    passages.add([{"id": "n", "text": NEWS}])
    passages.delete("n")
    (ticket,) = found.chunk_ids_QN[0]
    view, chunk_id = passages._tickets[int(ticket)]
    assert (own.version, view.version) == (2, 0)
    assert view.found(chunk_id).text == own.found(5).text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_documents_are_not_changed_unless_that_was_allowed(tiny_database, method):
    with _served(tiny_database, can_change=False) as stub:
        path = "/v1/documents" if method == "POST" else "/v1/documents/planted"
        refused = stub.client.request(method, path, json={"nonsense": 1})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "documents_disabled"


def test_whole_documents_are_shown_with_all_their_text(tiny_database):
    passages, texts = Passages(tiny_database), tiny_corpus.texts()
    rows = tiny_database.snapshot.documents().column("id").to_pylist()
    for name in rows[:5]:
        shown = passages.document(name)
        assert shown["text"].strip() in {text.strip() for text in texts.values()}
        assert json.dumps(shown)
