"""Make the file of an expert from its blobs: every byte is checked before the file appears.

Never knows where the blobs come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from obm_format.container.reader import Container
from obm_format.errors import RegistryError
from obm_format.progress import Progress, silent
from obm_registry.durable import replaced_file
from obm_registry.manifest.expert import ExpertLayers
from obm_registry.manifest.oci import Descriptor


def assemble(
    layers: ExpertLayers,
    fetch: Callable[[Descriptor], Iterable[bytes]],
    target: Path,
    *,
    progress: Progress = silent,
) -> None:
    """Write the file of an expert: segments in order, each checked, then the whole renamed to `target`.

    Args:
        layers: the blobs of the expert.
        fetch: gives the bytes of a blob in chunks.
        target: the file to write; what it held before stays until the new one is whole.
        progress: told how many bytes are there.

    Raises:
        RegistryError: `blob_damaged` when a segment has other bytes, `disk_full`, `io`; nothing is left
            behind.
        FormatError: the segments are no `.obm` file, or one with another artifact id.
    """
    done = 0
    with replaced_file(target) as file:
        for layer in layers.all:
            _append(file, layer, fetch(layer))
            done += layer.size
            progress("pull", done, layers.nbytes)
        file.flush()
        with Container.open(file.name, expected_id=layers.artifact_id):
            pass  # header, artifact id and file size are what they should be


def fill_file(path: Path, blobs: Iterable[Descriptor], fetch: Callable[[Descriptor], Iterable[bytes]]) -> None:
    """Write blobs end to end into a file, each checked; what the file held is overwritten.

    Raises:
        RegistryError: `blob_damaged`.
    """
    with path.open("wb") as file:
        for blob in blobs:
            _append(file, blob, fetch(blob))


def _append(file: BinaryIO, layer: Descriptor, chunks: Iterable[bytes]) -> None:
    algorithm, _, expected = layer.digest.partition(":")
    total, size = hashlib.new(algorithm), 0
    for chunk in chunks:
        size += len(chunk)
        if size > layer.size:
            break
        total.update(chunk)
        file.write(chunk)
    if size != layer.size or total.hexdigest() != expected:
        raise RegistryError(
            "blob_damaged",
            "a segment does not hash to its digest",
            where=layer.digest,
            expected=f"{layer.size} bytes",
            got=f"{size} bytes, {algorithm}:{total.hexdigest()[:16]}...",
            hint="pull again; if it stays so, the registry needs `obm fsck`",
        )
