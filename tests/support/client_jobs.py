"""What a child process of a test does: one push or pull, with small segments and chunks."""

from __future__ import annotations

from pathlib import Path

from client_parts import open_there

from obm_registry.client import upload
from obm_registry.manifest import segments

SEGMENT, CHUNK = 8192, 1024


def shrink() -> None:
    """Segments and chunks so small that a small file has many."""
    segments.SEGMENT_NBYTES = SEGMENT
    upload.CHUNK_NBYTES = CHUNK


def push(url: str, folder: Path, file: Path, ref: str) -> None:
    """Push a file."""
    shrink()
    with open_there(url, folder) as registry:
        registry.push(file, ref)


def pull(url: str, folder: Path, ref: str, out: Path) -> None:
    """Pull an expert."""
    shrink()
    with open_there(url, folder) as registry:
        registry.pull(ref, out)
