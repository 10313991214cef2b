"""Full verification of an expert file against SHA-256 alone, on the same bytes in memory and as many threads."""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from harness import Case

from obm_format import open_expert
from obm_format.codecs import raw
from obm_format.expert import ExpertWriter
from obm_format.kernels.words import Words
from obm_format.model import BackboneId, DType, Kind, Mode, TensorSpec

TENSORS, NUMEL = 12, 1 << 24  # 32 MiB each


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


def verify_case(threads: int) -> Case:
    """`obm verify` of a file of 384 MiB, page cache warm."""
    folder = tempfile.TemporaryDirectory(prefix="obm-bench-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "x.obm"
    write_expert(path)
    data = memoryview(path.read_bytes())
    cut = -(-len(data) // threads)
    pool = ThreadPoolExecutor(threads)

    def verify() -> bool:
        with open_expert(path) as expert:
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


CASES: dict[str, Callable[[int], Case]] = {"verify": verify_case}
