"""The reader in JavaScript, `spec/js`: every vector in one node process, and one tensor by HTTP range requests."""

import hashlib
import json
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from spec_readers import SPEC, VECTORS
from vector_tensors import added
from vector_writer import Defect, Dense, artifact_id, file_bytes
from vectors_spoilt import lean

NODE = shutil.which("node") or ""
pytestmark = pytest.mark.skipif(
    not NODE, reason="node (20 or newer) is not installed: the JavaScript reader did not run"
)

FOLDER = SPEC / "js"
MEBI = 2**20
NAMES = sorted((path.parent.name, path.stem) for path in VECTORS.glob("*valid/*.json"))

# Reads the header and one tensor, whole or by rows, from a URL; prints what it decoded as hexadecimal.
READ_URL = """
import { HttpSource, decodeValues, openExpert, rebuildTensor } from "MODULE";
const [url, tensor, what, rows] = JSON.parse(process.argv[1]);
const expert = await openExpert(new HttpSource(url), { firstRead: 64 });
const decode = what === "values" ? decodeValues : rebuildTensor;
const array = await decode(expert, tensor, { rows });
const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
console.log(JSON.stringify({ id: expert.id, decoded: Buffer.from(bytes).toString("hex") }));
"""


def run_node(*arguments: str, status: int = 0) -> str:
    done = subprocess.run([NODE, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout


def facts_of(folder: str, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((VECTORS / folder / f"{name}.json").read_text())
    return facts


@pytest.fixture(scope="module")
def reports() -> dict[tuple[str, str], Any]:
    lines = map(json.loads, run_node(str(FOLDER / "run_vectors.js"), str(VECTORS)).splitlines())
    return {(line["folder"], line["name"]): line["report"] for line in lines}


def test_every_vector_was_read(reports: dict[tuple[str, str], Any]) -> None:
    assert sorted(reports) == NAMES


@pytest.mark.parametrize(("folder", "name"), NAMES)
def test_vector_read_as_described(folder: str, name: str, reports: dict[tuple[str, str], Any]) -> None:
    facts, report = facts_of(folder, name), reports[folder, name]
    if folder == "invalid":
        assert report == {"reason": facts["reason"]}
    elif "zstd" in facts["needs"]:
        assert report == {"needs": "a frame holds a compressed block: needs zstd"}
    else:
        assert report == {"id": facts["id"], "tensors": facts["tensors"]}


@pytest.mark.parametrize(
    ("folder", "name", "status"), [("valid", "rtvq", 0), ("invalid", "alpha-nan", 4), ("valid", "zstd-raw", 1)]
)
def test_command_exit_status(folder: str, name: str, status: int) -> None:
    facts = facts_of(folder, name)
    others = [facts["base"], *facts.get("refs", [])] if facts["base"] else []
    paths = [f"{folder}/{name}.obm", *others]
    printed = run_node(str(FOLDER / "cli.js"), *(str(VECTORS / path) for path in paths), status=status)
    expected = {0: {key: facts.get(key) for key in ("id", "tensors")}, 4: {"reason": facts.get("reason")}}
    assert (json.loads(printed) if printed else None) == expected.get(status)


@contextmanager
def served(file: bytes) -> Iterator[tuple[str, list[int]]]:
    """The URL of a file on loopback, and the numbers of bytes that were asked of it."""

    class Handler(BaseHTTPRequestHandler):
        requested: ClassVar[list[int]] = []

        def do_GET(self) -> None:
            begin, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            body = file[begin : last + 1]
            self.requested.append(last + 1 - begin)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{len(file)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x.obm", Handler.requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read_url(url: str, tensor: str, what: str, rows: tuple[int, int] | None = None) -> tuple[str, bytes]:
    script = READ_URL.replace("MODULE", (FOLDER / "obm.js").as_uri())
    arguments = json.dumps([url, tensor, what, rows])
    report = json.loads(run_node("--input-type=module", "--eval", script, arguments))
    return report["id"], bytes.fromhex(report["decoded"])


def header_end(file: bytes) -> int:
    return 8 + int.from_bytes(file[:8], "little")


@pytest.mark.parametrize("rows", [None, (1, 2)])
def test_header_and_one_tensor_read_by_http_ranges(rows: tuple[int, int] | None) -> None:
    file, facts = (VECTORS / "valid/sign1-cube.obm").read_bytes(), facts_of("valid", "sign1-cube")
    table = json.loads(file[8 : header_end(file)])
    name = next(part for part in table if part.endswith("#bits0")).removesuffix("#bits0")
    with served(file) as (url, requested):
        id_, whole = read_url(url, name, "values")
        assert id_ == facts["id"]
        assert hashlib.sha256(whole).hexdigest() == facts["tensors"][name]["f32_sha256"]
        requested.clear()
        row_nbytes = len(whole) // facts["tensors"][name]["shape"][0]
        wanted = whole[rows[0] * row_nbytes : rows[1] * row_nbytes] if rows else whole
        assert read_url(url, name, "values", rows) == (id_, wanted)
    parts = [table[part]["shape"][0] for part in ("#alphas", "#digests", f"{name}#bits0")]
    assert requested == [64, header_end(file) - 64, *parts]
    assert sum(requested) < len(file)


def test_rows_of_large_part_read_by_its_sums() -> None:
    content = bytes(range(251)) * (9 * MEBI // 251 + 1)
    draft = lean()
    draft.tensors = [added("large", Dense(dtype="U8", shape=[len(content)], data=content))]
    file = file_bytes(draft)
    rows = (3 * MEBI - 5, 3 * MEBI + 5)
    with served(file) as (url, requested):
        assert read_url(url, "large", "rebuilt", rows) == (artifact_id(file), content[slice(*rows)])
        assert requested[2:] == [MEBI, 32 * 10, MEBI]
    broken = bytearray(file)
    broken[-4 * MEBI :] = bytes(4 * MEBI)
    with served(bytes(broken)) as (url, _):
        assert read_url(url, "large", "rebuilt", rows)[1] == content[slice(*rows)]
        with pytest.raises(AssertionError, match="part_digest"):
            read_url(url, "large", "rebuilt", (9 * MEBI - 5, 9 * MEBI))


LARGE_FILE = bytes(8 * MEBI + 1)
SUMS = b"".join(hashlib.sha256(LARGE_FILE[i : i + MEBI]).digest() for i in range(0, len(LARGE_FILE), MEBI))


@pytest.mark.parametrize(
    ("sums", "reason"), [(SUMS, None), (SUMS[:-32] + bytes(32), "part_digest"), (b"", "part_table")]
)
def test_large_attachment_has_sums(sums: bytes, reason: str | None, tmp_path: Path) -> None:
    draft, path = lean(), tmp_path / "x.obm"
    draft.attach = {"merges.txt": LARGE_FILE}
    path.write_bytes(file_bytes(draft, Defect(pools=lambda pools: {**pools, "sums": sums})))
    report = json.loads(run_node(str(FOLDER / "cli.js"), str(path), status=4 if reason else 0))
    assert report.get("reason") == reason


def test_other_file_refused_after_its_first_bytes() -> None:
    file = struct.pack("<Q", 120) + bytes(2**20)
    with served(file) as (url, requested), pytest.raises(AssertionError, match="not_obm"):
        read_url(url, "w", "values")
    assert requested == [64]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.js")), ids=lambda file: file.name)
def test_module_runs_in_a_browser_and_tells_its_job(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("// ")
    assert max(map(len, text.splitlines())) <= 120
    imports = re.findall(r'from "([^"]+)"', text)
    if file.name not in ("cli.js", "report.js", "run_vectors.js"):
        assert all(target.startswith("./") and (FOLDER / target).exists() for target in imports)
        assert not re.search(r"\b(process|Buffer|require|__dirname)\b", text)
