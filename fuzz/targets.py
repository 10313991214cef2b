"""What is fuzzed: each target takes bytes that nobody vouches for, and only an `ObmError` may come out of it.

A target that takes more than a second of processor time or more memory than the limits explain is a finding too.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from obm_format import open_expert
from obm_format.checkpoint import parse_safetensors_header
from obm_format.errors import ObmError
from obm_format.expert import Expert
from obm_format.kernels.words import Words, words_dtype
from obm_format.model import RtvqParams, TensorRecord
from obm_registry.manifest.backbone import parse_backbone
from obm_registry.manifest.expert import parse_layers
from obm_registry.manifest.oci import encode_manifest, parse_manifest
from obm_registry.refs import parse_ref

MOST_SECONDS = 1.0
MOST_NBYTES = 256 << 20  # growth of the process; inputs are a few KiB, so nothing explains more
_DECODED_NUMEL = 1 << 20  # tensors above are decoded by rows only
_VECTORS = Path(__file__).resolve().parents[1] / "spec" / "vectors"
_KIB = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


class Finding(AssertionError):
    """Something that must not happen, other than an exception that is no `ObmError`."""


def guarded(target: Callable[[bytes], None], data: bytes) -> None:
    """Run a target once.

    Raises:
        Finding: it took too long or too much memory.
        Exception: whatever escapes but an `ObmError`, which is how bad input is refused.
    """
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ObmError):
        target(data)
    seconds = time.process_time() - started
    nbytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _KIB
    if seconds > MOST_SECONDS:
        raise Finding(f"took {seconds:.1f} s")
    if nbytes > MOST_NBYTES:
        raise Finding(f"took {nbytes >> 20} MiB")


# --- experts ------------------------------------------------------------------------------------------------


def expert(data: bytes) -> None:
    """Open a file, verify it deeply, and decode every tensor: values, rows, the rebuilt tensor."""
    with open_expert(data) as opened:
        found = opened.verify("deep")
        for record in opened.records.values():
            for decode in _decodings(opened, record):
                try:
                    decode()
                except ObmError:
                    continue
        if not found and opened.verify("parts"):
            raise Finding("verified deeply, but not by parts")


def _decodings(opened: Expert, record: TensorRecord) -> Iterator[Callable[[], object]]:
    name = record.name
    yield lambda: opened.digests(name)
    yield lambda: opened.tail(name) if record.spec.numel <= _DECODED_NUMEL else None
    base = _zeros(record)
    if record.spec.shape:
        for rows in (slice(0, 1), slice(1, 3), slice(-1, None)):
            if record.spec.numel // max(1, record.spec.shape[0]) <= _DECODED_NUMEL:
                yield lambda rows=rows: opened.values(name, base, rows, base_checked=True)  # type: ignore[misc]
    if record.spec.numel > _DECODED_NUMEL or isinstance(record.params, RtvqParams):
        return
    yield lambda: opened.values(name, base, base_checked=True)
    yield lambda: opened.operand(name, base, base_checked=True)
    yield lambda: opened.rebuild(name, base, base_checked=True)


def _zeros(record: TensorRecord) -> Words | None:
    if record.base is None or record.base.numel > _DECODED_NUMEL:
        return None
    return np.zeros(record.base.shape, words_dtype(record.base.dtype))


# --- messages and headers -----------------------------------------------------------------------------------


def messages(data: bytes) -> None:
    """Parse a reference, an OCI manifest and a backbone's tensor table from the same bytes."""
    for parse in (_reference, _manifest, parse_backbone):
        try:
            parse(data)
        except ObmError:
            continue


def _reference(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    parsed = parse_ref(text)
    if parse_ref(str(parsed)) != parsed:
        raise Finding(f"the reference {text!r} does not come back")


def _manifest(data: bytes) -> None:
    parsed = parse_manifest(data)
    if parse_manifest(encode_manifest(parsed)) != parsed:
        raise Finding("the manifest does not come back")
    parse_layers(parsed)


def checkpoint(data: bytes) -> None:
    """Parse the header of a safetensors checkpoint."""
    if len(data) < 8:
        return  # the caller has refused files of this size
    entries, _ = parse_safetensors_header(data, Path("model.safetensors"))
    for entry in entries.values():
        if not 8 <= entry.start <= entry.stop <= len(data):
            raise Finding(f"tensor {entry.spec.name!r} leaves the file")


TARGETS: dict[str, Callable[[bytes], None]] = {"expert": expert, "messages": messages, "checkpoint": checkpoint}


def seeds(target: str) -> list[bytes]:
    """Inputs to start from, in a fixed order."""
    if target == "expert":
        return [file.read_bytes() for file in sorted(_VECTORS.rglob("*.obm"))]
    return [*(_MESSAGES if target == "messages" else _CHECKPOINTS)]


_DESCRIPTOR = b'{"mediaType":"application/vnd.obm.index.v1","digest":"sha256:' + b"0" * 64 + b'","size":64}'
_MESSAGES = (
    b"acme/minilm:sentiment-v1",
    b"localhost:5000/acme/deep/minilm@sha256:" + b"0" * 64,
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":'
    b'"application/vnd.obm.expert.v1","config":' + _DESCRIPTOR + b',"layers":[' + _DESCRIPTOR + b'],"subject":'
    + _DESCRIPTOR + b',"annotations":{"a":"b"}}',
    b'{"architecture":"BertModel","tensors":[["w","BF16",[2,3],"' + b"0" * 64 + b'"]]}',
)  # fmt: skip
_TENSORS = (
    b'"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}'
)
_HEADERS = (b"{" + _TENSORS, b'{"__metadata__":{"format":"pt"},' + _TENSORS, b"{}   ")
_CHECKPOINTS = tuple(len(text).to_bytes(8, "little") + text + bytes(20 if b"a" in text else 0) for text in _HEADERS)
