"""moto's S3 server in a process of its own, on a free port of the loopback.

Run as a script it is the server. One request is answered after the other, so that a condition and its write are one
step. Buckets with these names behave as some services do: `poor-...` knows no conditions and no ranges, `shut-...`
refuses all credentials, `lossy-...` does the first conditional write of a key and answers 500.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BUCKETS = ("shelf", "poor-shelf", "shut-shelf", "lossy-shelf")
_CONDITIONS = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")


def aws_environment(url: str) -> dict[str, str]:
    """What a user of AWS's own variables has in the environment, for a server at `url`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A running server; gives its URL. Its data is gone with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                raise AssertionError(f"the server did not start:\n{(folder / 'log').read_text()}")
            yield url
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # else it never says 100 Continue, for which clients wait

        def log(self, type: str, message: str, *args: object) -> None:
            """Nothing."""

    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()

    lost: set[str] = set()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, is_conditional = environ["PATH_INFO"], any(name in environ for name in _CONDITIONS)
        is_listed = path == "/shut-shelf" and environ["REQUEST_METHOD"] == "GET"
        if path.startswith("/shut-shelf/") or is_listed:
            return _refuse(start_response, "403 Forbidden", "AccessDenied")
        if path.startswith("/poor-"):
            for name in (*_CONDITIONS, "HTTP_RANGE"):
                environ.pop(name, None)
        with one_at_a_time:
            reply = list(moto(environ, start_response))
        if path.startswith("/lossy-") and path.endswith("/index.json") and is_conditional and path not in lost:
            lost.add(path)
            return _refuse(start_response, "500 Internal Server Error", "InternalError")
        return reply

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


def _refuse(start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    try:
        raise RuntimeError  # WSGI lets a reply that was not sent be replaced only after an error
    except RuntimeError:
        start_response(
            status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))], sys.exc_info()
        )
    return [body]


if __name__ == "__main__":
    _serve()
