"""The reader in JavaScript in a real browser: header and one tensor by HTTP range, and not a byte more."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode, urlsplit

import pytest
from spec_readers import SPEC, VECTORS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=60000
"""
TYPES = {".html": "text/html", ".js": "text/javascript"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM and os.environ.get("OBM_CI") != "1", reason="chromium is not installed: no browser ran the reader"
    ),
]


class Handler(BaseHTTPRequestHandler):
    """`spec/js` as static files, and vectors that only ranges are given of."""

    protocol_version = "HTTP/1.1"
    ranges: ClassVar[list[tuple[str, int, int]]] = []
    others: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/vectors/"):
            self.send_range(path, VECTORS / path.removeprefix("/vectors/"))
        elif path.startswith("/js/") and (SPEC / "js" / Path(path).name).is_file():
            file = SPEC / "js" / Path(path).name
            self.send(200, file.read_bytes(), {"Content-Type": TYPES[file.suffix]})
        else:
            self.others.append(path)
            self.send(404, b"", {})

    def send_range(self, path: str, file: Path) -> None:
        content, asked = file.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self.others.append(path)
            return self.send(400, b"", {})
        begin, end = int(asked[1]), int(asked[2]) + 1
        self.ranges.append((file.name, begin, end))
        place = f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}"
        return self.send(206, content[begin:end], {"Content-Range": place, "Cache-Control": "no-store"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown(url: str, profile: Path, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """What the page shows of a file."""
    assert CHROMIUM, "chromium is missing"
    Handler.ranges.clear()
    Handler.others.clear()
    page = f"{url}/js/page.html?{urlencode(parameters)}"
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", page]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the browser and the children that it started
            process.communicate()
    found = re.search(r'<pre id="report">(.*?)</pre>', printed, re.DOTALL)
    assert found, errors
    assert not Handler.others
    return json.loads(html.unescape(found[1]))


def spans(name: str, *parts: str) -> list[tuple[int, int]]:
    """Where the header and some parts of a vector lie."""
    file = (VECTORS / name).read_bytes()
    end = 8 + int.from_bytes(file[:8], "little")
    table = json.loads(file[8:end])
    offsets = [table[part]["data_offsets"] for part in parts]
    return [(0, 64), (64, end), *((end + begin, end + stop) for begin, stop in offsets)]


@pytest.mark.parametrize(
    ("vector", "tensor", "parts"),
    [
        ("sign1-cube", "cube", ["#digests", "#alphas", "cube#bits0"]),
        ("scalars", "a", ["#digests", "#alphas", "a#codes"]),
        ("raw-added", "new.f16", ["#digests", "new.f16#data"]),
        ("frame-liberties", "unused-bit", ["#digests", "#frames", "unused-bit#data"]),
    ],
)
def test_header_and_one_tensor_by_ranges(vector: str, tensor: str, parts: list[str], url: str, tmp_path: Path) -> None:
    name = f"valid/{vector}.obm"
    facts = json.loads((VECTORS / f"valid/{vector}.json").read_text())
    report = shown(url, tmp_path, file=f"{url}/vectors/{name}", tensor=tensor)
    own = facts["tensors"][tensor]
    assert {key: report.get(key) for key in ("id", "tensor", "dtype", "shape")} == {
        "id": facts["id"],
        "tensor": tensor,
        "dtype": own["dtype"],
        "shape": own["shape"],
    }
    if own["f32_sha256"]:
        assert report["f32_sha256"] == own["f32_sha256"]
    requested = [(begin, end) for _, begin, end in Handler.ranges]
    assert sorted(requested) == sorted(spans(name, *parts))
    assert sum(end - begin for begin, end in requested) < (VECTORS / name).stat().st_size


def test_bad_header_refused_after_it(url: str, tmp_path: Path) -> None:
    name = "invalid/part-dtype.obm"
    assert shown(url, tmp_path, file=f"{url}/vectors/{name}", tensor="w") == {"reason": "part_table"}
    assert [(begin, end) for _, begin, end in Handler.ranges] == spans(name)
