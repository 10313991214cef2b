"""Three readers that share no code, shown the same mutated manifests: they accept and refuse the same ones.

A file with several defects may be refused for any of its reasons in the first step that finds one (clause 14.1), so
they are compared by step: before the part table, at it, behind it, or not at all.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import minimal_reader
import pytest
from container_files import dumps, header_nbytes, tree_of, with_manifest
from spec_readers import SPEC, VECTORS

from obm_format.container import parse_header
from obm_format.errors import FormatError

NODE = shutil.which("node") or ""
LATE = {"accepted", "part_table", "not_canonical"}
KEYS = """
    alias attach backbone ext kind pools position prefix refs removed requires router task tensors base dtype encoding
    mode name params shape alpha alpha_dtype blocks gain group planes rows rule bits ref nnz value_dtype bucket
    zstd_nbytes side text nbytes sha256 max_tokens routes
""".split()  # noqa: SIM905 - a list of words
WORDS = """
    w a embed head BF16 F16 F32 I64 U8 delta replace added zero raw sign1 tern1 affine rtvq sparse xdelta row group
    block matrix rms proj mean 1 0.5 task-vector router rtvq-base none linear
""".split()  # noqa: SIM905 - a list of words
VALUES: list[Any] = [0, 1, 2, 3, 4, 8, 63, 64, 65, 210, 2**52, 2**53 - 1, "", True, False, [], {}, *WORDS]
VALUES += [[1], [3, 70], [70, 3], [0, 4], [[1, 3]], [[3, 1]], [[1, 2], [1, 1]], ["a", "b"], [["a", "w"]], [["b", "a"]]]
VALUES += [{"name": "v"}, {"dtype": "F32"}, {"shape": [2, 70]}, {"rows": 1}, {"planes": 2}, {"alpha": "row"}]
VALUES += [{"bits": 2}, {"nnz": 0}, {"zstd_nbytes": 5}, {"side": "tuned", "text": "m."}]
VALUES += [{"side": "backbone", "text": "m."}, "obm1-sha256:" + "0" * 64, ["obm1-sha256:" + "0" * 64], "0" * 64]

READ_ALL = """
import { parseHeader, Refused } from "MODULE";
const lines = await new Response(process.stdin).text();
for (const line of lines.trim().split("\\n")) {
  let reason = "accepted";
  try {
    parseHeader(new Uint8Array(Buffer.from(line, "base64")), Infinity);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.reason !== "trailing_data") reason = error.reason; // the only one that the size can have
  }
  console.log(reason);
}
"""


@cache
def documents() -> list[tuple[Any, dict[str, object]]]:
    """Manifest and part table of the small valid vectors."""
    found = []
    for path in sorted((VECTORS / "valid").glob("*.obm")):
        if path.stat().st_size < 5000:
            tree = tree_of(path.read_bytes())
            metadata: Any = tree.pop("__metadata__")
            found.append((json.loads(metadata["obm"]), tree))
    return found


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """The way to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*above, key)
        yield from paths(item, (*above, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:  # noqa: ANN401 - JSON
    for key in path:
        value = value[key]
    return value


def mutated(rng: random.Random) -> bytes:
    """A canonical header whose manifest was changed in a few places."""
    manifest, table = rng.choice(documents())
    manifest = copy.deepcopy(manifest)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(list(paths(manifest)))
        target, parent = at(manifest, path), at(manifest, path[:-1])
        chosen = copy.deepcopy(rng.choice(VALUES))
        if isinstance(target, dict) and rng.random() < 0.5:
            target[rng.choice(KEYS)] = chosen
        elif isinstance(target, list) and rng.random() < 0.5:
            target.insert(rng.randint(0, len(target)), chosen)
        elif rng.random() < 0.25:
            del parent[path[-1]]
        else:
            parent[path[-1]] = chosen
    return with_manifest(dumps(manifest), table)


class HeaderOnly(minimal_reader.Expert):
    """The minimal reader, without a file behind the header."""

    def __init__(self, head: bytes) -> None:
        self.read_header(head[8 : header_nbytes(head)].decode("latin-1").rstrip(" "))


def of_minimal(head: bytes) -> str:
    try:
        HeaderOnly(head)
    except minimal_reader.Refused as refused:
        return str(refused)
    return "accepted"


def of_package(head: bytes) -> str:
    try:
        parse_header(head, file_nbytes=None)
    except FormatError as error:
        return error.reason
    return "accepted"


def step(reason: str) -> str:
    return reason if reason in LATE else "before the part table"


@pytest.mark.parametrize("count", [1500, pytest.param(40_000, marks=pytest.mark.slow)])
def test_minimal_reader_and_package_agree(count: int) -> None:
    rng = random.Random(count)
    reasons = set()
    for _ in range(count):
        head = mutated(rng)
        reasons.add(of_package(head))
        assert step(of_minimal(head)) == step(of_package(head)), head
    assert {"accepted", "part_table", "not_canonical", "manifest_field", "bad_params", "bad_shape"} <= reasons


@pytest.mark.skipif(not NODE, reason="node (20 or newer) is not installed: the JavaScript reader did not run")
def test_javascript_reader_agrees() -> None:
    rng = random.Random(3)
    heads = [mutated(rng) for _ in range(1500)]
    script = READ_ALL.replace("MODULE", (SPEC / "js" / "obm.js").as_uri())
    lines = "\n".join(base64.b64encode(head).decode() for head in heads)
    command = [NODE, "--input-type=module", "--eval", script]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for head, reason in zip(heads, done.stdout.split(), strict=True):
        assert step(reason) == step(of_package(head)), head
