"""A retrieval service in the database's place, at the command line."""

import re
from pathlib import Path

import pytest

from data_pipeline.service.wire import security
from data_pipeline.service.wire.answers import BadAnswerError
from experiments import database as command
from experiments.jobs import remote_database
from tests import tiny_corpus
from tests.ports import free_port
from tests.served import servers

pytestmark = pytest.mark.usefixtures("toy_embedder")

_TLS = Path(__file__).parents[3] / "tests" / "tls"
_QUERY = ("search", tiny_corpus.PLANTED, "-k", "3")


@pytest.fixture
def run(capsys):
    def run(*words: str) -> tuple[int, str, str]:
        status = command.main(list(words))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def running():
    with servers() as made:
        yield made


def _sources(out: str) -> list[str]:
    """The lines that name sources; what stands before a passage no service tells."""
    return [line for line in out.splitlines() if re.match(r"\d+\. ", line)]


def test_a_search_says_what_the_databases_does(run, running, tiny_database):
    shard = running.shard(tiny_database, 0, 1)
    address = f"grpc://{running.router(tiny_database, shard.address).address}"
    without = ("--without", tiny_corpus.PLANTED_IN)
    for words in (_QUERY, (*_QUERY, *without)):
        expected = run(*words, f"--database={tiny_database.folder}")
        assert expected[0] == 0
        status, out, err = run(*words, f"--database={address}")
        assert (status, _sources(out), err) == (0, _sources(expected[1]), "")
    status, _, err = run("search", "x", f"--database={address}", "--without", "none")
    assert status == 2
    assert "document 'none' is not in the database" in err
    running.stop(shard)
    status, _, err = run(*_QUERY, f"--database={address}")
    assert status == 2
    assert err.startswith("error: grpc://")
    assert err.count("\n") == 1


def test_a_search_over_tls_with_a_token(run, running, tiny_database, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    cert = _TLS / "localhost.crt"
    secure = {
        "tls_cert": cert,
        "tls_key": _TLS / "localhost.key",
        "token": security.read_token(token),
    }
    shard = running.shard(tiny_database, 0, 1, **secure)
    credentials = security.channel_credentials(cert)
    router = running.router(
        tiny_database, shard.address, credentials=credentials, **secure
    )
    given = (*_QUERY, f"--database=grpcs://localhost:{router.port}", f"--tls_ca={cert}")
    expected = run(*_QUERY, f"--database={tiny_database.folder}")
    status, out, err = run(*given, f"--token_file={token}")
    assert (status, _sources(out), err) == (0, _sources(expected[1]), "")
    token.chmod(0o644)
    status, out, err = run(*given, f"--token_file={token}")
    assert (status, _sources(out)) == (0, _sources(expected[1]))
    assert err == f"every user of this machine can read {token}: chmod o-r it\n"
    status, _, err = run(*given)
    assert status == 2
    assert "this server wants its token" in err


def test_a_service_without_tls_is_told_from_none(run, running, tiny_database):
    shard = running.shard(tiny_database, 0, 1)
    router = running.router(tiny_database, shard.address)
    status, _, err = run(*_QUERY, f"--database=grpcs://localhost:{router.port}")
    assert status == 2
    assert "the server there has no TLS: use grpc://" in err


@pytest.mark.parametrize(
    "words, message",
    [
        (("stats", "--database=grpc://a:1"), "needs the database's folder: grpc://a:1"),
        (("compact", "--database=grpcs://a:1"), "is a service, which only searches"),
        (("search", "x", "--database=grpc://a"), "no address of a retrieval service"),
        (("search", "x", "--database=http://a:1"), "it speaks gRPC, not http"),
        (("stats", "--database=https://a:1"), "is a service, which only searches"),
        (
            ("search", "x", "--database=grpc://127.0.0.1:{port}"),
            "gave no answer: UNAVAILABLE: nothing listens there",
        ),
        (
            ("search", "x", "--database=grpc://a:1", "--tls_ca=README.md"),
            "tls_ca needs grpcs://",
        ),
        (
            ("search", "x", "--database=grpc://a:1", "--token_file=/nowhere"),
            "token_file /nowhere can't be read",
        ),
        (
            ("search", "x", "--database=somewhere", "--token_file=t"),
            "--token_file is for --database=grpc://",
        ),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    status, _, err = run(*(word.format(port=free_port()) for word in words))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_tokenizer_that_is_not_the_one_spoken_of_is_refused(tiny_database):
    class Client:
        def describe(self):
            class Description:
                chunk_len, tokenizer_fingerprint = 8, "feedfeed"
                database, vocab_size = tiny_database, 300

            return Description()

        def tokenizer_model(self):
            return tiny_database.tokenizer.model

    with pytest.raises(BadAnswerError, match="sent tokenizer .* database has feedfeed"):
        remote_database.RemoteDatabase(Client(), "grpc://a:1")


def test_who_lacks_the_service_is_told_how_to_go_on():
    with (
        pytest.raises(ConnectionError, match="gone; .*evaluation.retrieval=false"),
        remote_database.told_how_to_go_on(),
    ):
        raise ConnectionError("gone")
