"""The weights of a backbone: store them beside it, and write them to a folder again."""

from __future__ import annotations

from pathlib import Path

from obm_format.checkpoint import Checkpoint
from obm_format.progress import Progress
from obm_registry.catalog.rows import BackboneRow
from obm_registry.manifest.assemble import fill_file
from obm_registry.manifest.backbone import BackboneTable, backbone_descriptor
from obm_registry.manifest.folder import rebuild_folder
from obm_registry.manifest.oci import parse_manifest
from obm_registry.manifest.weights import (
    WEIGHTS_TAG,
    no_weights,
    package_weights,
    parse_weights,
)
from obm_registry.service.backbones import table_of
from obm_registry.service.blobs import read_blob, send_blob
from obm_registry.service.lookup import find_manifest
from obm_registry.service.publish import put_manifest
from obm_registry.service.registry import Registry
from obm_registry.service.tags import TagChange


def store_weights(
    registry: Registry,
    row: BackboneRow,
    checkpoint: Checkpoint,
    table: BackboneTable,
    *,
    actor: str,
    progress: Progress,
) -> None:
    """Store the weights of a backbone that is there; the same again changes nothing.

    Args:
        registry: where to.
        row: the backbone.
        checkpoint: its open checkpoint.
        table: its tensors.
        actor: who does it.
        progress: told how many bytes are hashed and stored.

    Raises:
        RegistryError: `tag_exists` when they are there with other files beside them; `quota_exceeded`, `disk_full`,
            `limit_exceeded`.
    """
    subject = backbone_descriptor(row.manifest_digest, row.manifest_nbytes)
    package = package_weights(checkpoint, table, subject, progress)
    done, total = 0, sum(layer.descriptor.size for layer in package.blobs)
    for layer in package.blobs:
        send_blob(registry, row.repository, layer.descriptor.digest, layer.chunks())
        done += layer.descriptor.size
        progress("push", done, total)
    put_manifest(registry, row.repository, package.body, change=TagChange(actor=actor), tags=[WEIGHTS_TAG])


def write_weights(registry: Registry, row: BackboneRow, target: Path, progress: Progress) -> tuple[str, int]:
    """Write the checkpoint folder of a backbone.

    Returns:
        Digest of the manifest of the weights, and the number of bytes that were read.

    Raises:
        RegistryError: `not_found` where the weights are not stored, `blob_damaged`.
        CheckpointError, BackboneMismatch: as `rebuild_folder`.
    """
    if row.weights_digest is None:
        raise no_weights(row.repository)
    found = find_manifest(registry, row.repository, row.weights_digest)
    table = table_of(registry, row.repository, row.manifest_digest)
    layers = parse_weights(parse_manifest(found.body, media_type=found.media_type), table)
    rebuild_folder(
        layers,
        table,
        target,
        fill=lambda path, blobs: fill_file(path, blobs, lambda b: read_blob(registry, row.repository, b.digest)),
        read=lambda blob: b"".join(read_blob(registry, row.repository, blob.digest)),
        progress=progress,
    )
    return found.digest, layers.nbytes + sum(blob.size for blob in layers.side.values())
