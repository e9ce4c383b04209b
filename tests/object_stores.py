"""A local S3 server for tests, and servers that refuse, fail or say nothing."""

import contextlib
import functools
import http.server
import logging
import threading
from collections.abc import Iterator

import boto3
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

BUCKET = "bucket"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def use(address: str, monkeypatch) -> None:
    """Tells S3's libraries where the server is and who asks."""
    for name, value in (_CREDENTIALS | {"AWS_ENDPOINT_URL": address}).items():
        monkeypatch.setenv(name, value)


@functools.cache
def endpoint() -> str:
    """The address of an S3 server with one bucket, which ends with this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client(address).create_bucket(Bucket=BUCKET)
    return address


def client(address: str):
    """A client of the server that does not go through our code."""
    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="someone",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )


@contextlib.contextmanager
def answering(status: int | None, code: str = "") -> Iterator[tuple[str, list[str]]]:
    """A server that answers all with one error, or, without a status, nothing at all.

    Gives its address and the requests that it got.
    """
    asked: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            if status is None:
                over.wait(30)
                return
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

        def log_message(self, *args) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
