"""Reading a file: all of it against SHA-256 alone on as many threads, and a long header against `json.loads` alone."""

from __future__ import annotations

import atexit
import hashlib
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from harness import Case
from kernel_cases import COLS, ROWS

from obm_format import open_expert
from obm_format.codecs import raw
from obm_format.container import encode_header, parse_header
from obm_format.expert import ExpertWriter
from obm_format.kernels.words import Words
from obm_format.layout import pool_sizes
from obm_format.model import (
    AlphaLayout,
    AlphaRule,
    BackboneId,
    DType,
    Granularity,
    Kind,
    Manifest,
    Mode,
    Pool,
    SignParams,
    TensorRecord,
    TensorSpec,
)

TENSORS, NUMEL = 12, 1 << 24  # 32 MiB each
RECORDS = 50_000


def write_expert(path: Path) -> None:
    """An expert of plain added tensors with random bytes."""
    words: Words = np.random.default_rng(0).integers(0, 0x3F80, NUMEL, dtype=np.uint16)
    with ExpertWriter(path) as writer:
        for place in range(TENSORS):
            words[:4] = place
            spec = TensorSpec(f"w{place:02}", DType.BF16, (NUMEL,))
            digest = hashlib.sha256(words.data).digest()
            encoded = raw.encode(words, DType.BF16, framed=False)
            writer.add(spec, None, Mode.ADDED, encoded, base_sha256=None, out_sha256=digest)
        backbone = BackboneId(fingerprint="0" * 64, n_tensors=0, n_params=0, architecture="")
        writer.commit(kind=Kind.TASK_VECTOR, task="bench", position="none", backbone=backbone)


def verify_case(threads: int, *, mapped: bool) -> Case:
    """`obm verify` of a file of 384 MiB, page cache warm; `mapped`: with `--mmap`."""
    folder = tempfile.TemporaryDirectory(prefix="obm-bench-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "x.obm"
    write_expert(path)
    data = memoryview(path.read_bytes())
    cut = -(-len(data) // threads)
    pool = ThreadPoolExecutor(threads)

    def verify() -> bool:
        with open_expert(path, mapped=mapped) as expert:
            return not expert.verify("parts")

    def hash_alone() -> None:
        list(pool.map(lambda i: hashlib.sha256(data[i * cut : (i + 1) * cut]).digest(), range(threads)))

    return Case(
        dtype="BF16",
        kernel="hashlib",
        nbytes=len(data),
        check=verify,
        run=lambda _: verify(),
        limit=hash_alone,
        limit_name="sha256",
        output="file",
    )


def long_header() -> bytes:
    """A header of many 1-bit tensors, with every parameter written out."""
    alpha = AlphaLayout(granularity=Granularity.GROUP, group=128, rule=AlphaRule.PROJ, gain="0.5", dtype=DType.F32)
    params = SignParams(alpha=alpha, rows=ROWS, planes=2)
    names = [f"model.layers.{place:05}.mlp.gate_proj.weight" for place in range(RECORDS)]
    specs = [TensorSpec(name, DType.BF16, (ROWS, COLS)) for name in names]
    records = tuple(TensorRecord(spec=spec, base=spec, mode=Mode.DELTA, params=params) for spec in specs)
    backbone = BackboneId(fingerprint="0" * 64, n_tensors=RECORDS, n_params=RECORDS * ROWS * COLS)
    manifest = Manifest(kind=Kind.TASK_VECTOR, task="bench", position="linear", backbone=backbone, tensors=records)
    sizes = {name: nbytes for name, nbytes in pool_sizes(manifest).items() if nbytes}
    return encode_header(manifest, {name: Pool(nbytes=nbytes, sha256=bytes(32)) for name, nbytes in sizes.items()})


def header_case(_threads: int) -> Case:
    """Parse and check a header of 50,000 records; the limit makes objects of the same texts and checks nothing."""
    head = long_header()

    def same() -> bool:
        header = parse_header(head, file_nbytes=None)
        return encode_header(header.manifest, header.pools) == head

    return Case(
        dtype="-",
        kernel="python",
        nbytes=len(head),
        check=same,
        run=lambda _: parse_header(head, file_nbytes=None),
        limit=lambda: json.loads(json.loads(head[8:])["__metadata__"]["obm"]),
        limit_name="json",
        output="fresh",
    )


CASES: dict[str, Callable[[int], Case]] = {
    "verify": lambda threads: verify_case(threads, mapped=False),
    "verify-mapped": lambda threads: verify_case(threads, mapped=True),
    "header-50k": header_case,
}
