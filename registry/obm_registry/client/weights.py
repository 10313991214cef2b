"""The weights of a backbone on the other side: send them, and write them to a folder again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obm_format.checkpoint import Checkpoint
from obm_format.progress import Progress
from obm_registry.client.draft import Draft
from obm_registry.client.http import Patience
from obm_registry.client.listing import find_weights, require_room
from obm_registry.client.store import FoundManifest, Store
from obm_registry.client.transfer import push_blobs, read_whole
from obm_registry.manifest.backbone import BackboneTable, backbone_descriptor
from obm_registry.manifest.folder import rebuild_folder
from obm_registry.manifest.oci import IMAGE_MANIFEST, Descriptor, parse_manifest
from obm_registry.manifest.weights import (
    MAX_SIDE_NBYTES,
    WEIGHTS_TAG,
    no_weights,
    package_weights,
    parse_weights,
)
from obm_registry.refs import parse_ref


def push_weights(
    store: Store,
    repository: str,
    backbone: FoundManifest,
    opened: tuple[Checkpoint, BackboneTable],
    progress: Progress,
) -> None:
    """Send the weights of a backbone that is there; only blobs that the other side lacks.

    Args:
        store: where to.
        repository: which.
        backbone: its manifest.
        opened: its checkpoint, and the tensors of it.
        progress: told how many bytes are hashed and sent.

    Raises:
        RegistryError: `tag_exists` when the weights are there with other files beside them.
    """
    package = package_weights(*opened, backbone_descriptor(backbone.digest, len(backbone.body)), progress)
    rule = require_room(store, parse_ref(f"{repository}:{WEIGHTS_TAG}"), package.digest, move=False)
    push_blobs(store, repository, [(layer.descriptor, layer.chunks) for layer in package.blobs], progress)
    store.put_manifest(repository, package.body, IMAGE_MANIFEST, rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledWeights:
    """What was written: digest of the manifest of the weights, bytes that came, bytes that were there."""

    digest: str
    received: int
    reused: int


def pull_weights(
    store: Store,
    repository: str,
    backbone: tuple[str, BackboneTable],
    target: Path,
    *,
    progress: Progress,
    patience: Patience,
) -> PulledWeights:
    """Write the checkpoint folder of a backbone; a pull that was broken off goes on where it stopped.

    Args:
        store: where from.
        repository: which.
        backbone: digest of its manifest, and its tensors.
        target: the folder.
        progress: told how many bytes are there and verified.
        patience: tries and pauses.

    Raises:
        RegistryError: `not_found` where the weights are not stored, `network`, `blob_damaged`.
        CheckpointError, BackboneMismatch: as `rebuild_folder`.
    """
    digest, table = backbone
    found = find_weights(store, repository, digest)
    if found is None:
        raise no_weights(repository)
    layers = parse_weights(parse_manifest(found.body, media_type=found.media_type), table)
    received = done = 0

    def fill(path: Path, blobs: Sequence[Descriptor]) -> None:
        nonlocal received, done
        before = done

        def shown(phase: str, here: int, _total: int) -> None:
            progress(phase, before + here, layers.nbytes)

        with Draft(path, path.with_suffix(".marks"), blobs) as draft:
            received += draft.fill(partial(store.read_blob, repository), shown, patience)
        done += sum(blob.size for blob in blobs)

    def read(blob: Descriptor) -> bytes:
        nonlocal received, done
        received, done = received + blob.size, done + blob.size
        return read_whole(store, repository, blob, MAX_SIDE_NBYTES)

    rebuild_folder(layers, table, target, fill=fill, read=read, progress=progress)
    return PulledWeights(digest=found.digest, received=received, reused=max(0, done - received))
