"""Identities: SHA-256 of bytes, artifact ids, and the content fingerprint of a backbone.

Never reads files; it only turns bytes and table rows into names. Source: obm-1 clauses 7 and 10.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Protocol

ARTIFACT_PREFIX = "obm1-sha256:"
_HEX = re.compile(r"[0-9a-f]{64}")


class _TensorRow(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype_name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sha256(self) -> bytes: ...


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def is_sha256_hex(text: object) -> bool:
    """Whether `text` is 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def artifact_id(header: bytes | memoryview) -> str:
    """The artifact id of a file whose bytes 0..8+N are `header` (obm-1 clause 7.1)."""
    return ARTIFACT_PREFIX + hashlib.sha256(header).hexdigest()


def fingerprint(rows: Iterable[_TensorRow]) -> str:
    """The content fingerprint of a checkpoint, 64 hexadecimal digits (obm-1 clause 10.1).

    SHA-256 over one line per tensor, `name NUL dtype NUL shape NUL digest LF`, sorted by name, with the shape as
    decimal numbers joined by commas. Independent of sharding, file names and the order of tensors in files.

    Args:
        rows: every tensor of the checkpoint: name, safetensors dtype name, shape, SHA-256 of its bytes.
    """
    lines = sorted((row.name.encode(), row.dtype_name, ",".join(map(str, row.shape)), row.sha256.hex()) for row in rows)
    total = hashlib.sha256()
    for name, dtype, shape, digest in lines:
        total.update(name + f"\0{dtype}\0{shape}\0{digest}\n".encode())
    return total.hexdigest()
