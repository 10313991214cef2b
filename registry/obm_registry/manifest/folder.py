"""Make the checkpoint folder of a backbone from its blobs: it appears whole and verified, or not at all.

A partial folder beside the target keeps what has come, so that the next try goes on there. Never knows where the
blobs come from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from obm_format import digest
from obm_format.checkpoint import Shard
from obm_format.checkpoint_journal import hold_folder
from obm_format.checkpoint_plan import INDEX, PlannedFile, index_json
from obm_format.checkpoint_writer import PART_SUFFIX, refuse_occupied, undo_renames
from obm_format.errors import BackboneMismatch, ObmError
from obm_format.progress import Progress
from obm_registry.durable import disk_errors, replaced_file, sync_folder
from obm_registry.manifest.backbone import BackboneTable
from obm_registry.manifest.oci import Descriptor
from obm_registry.manifest.weights import WeightsLayers

Fill = Callable[[Path, Sequence[Descriptor]], None]
"""Makes a file of the blobs of it, laid end to end and each checked; what is there of the file already may be used."""


def rebuild_folder(
    layers: WeightsLayers,
    table: BackboneTable,
    target: Path,
    *,
    fill: Fill,
    read: Callable[[Descriptor], bytes],
    progress: Progress,
) -> None:
    """Write a checkpoint folder.

    Args:
        layers: the blobs of the weights.
        table: what every tensor must hash to.
        target: the folder; it must not exist, or be empty.
        fill: makes a file.
        read: gives a small blob, checked.
        progress: told how many bytes are verified.

    Raises:
        CheckpointError: `exists`, `not_found`; `busy`, another process writes this folder.
        BackboneMismatch: `backbone_mismatch`, a tensor is not the backbone's; nothing is kept then.
        ObmError: what `fill` and `read` raise; `disk_full`, `io`. What has come is kept.
    """
    refuse_occupied(target)
    folder = target.parent / _partial_name(target.name)
    files = [file for file, _ in layers.files]
    with disk_errors(str(target)):
        held = hold_folder(folder)
        try:
            undo_renames(folder, files)
            for file, blobs in layers.files:
                fill(folder / (file.name + PART_SUFFIX), blobs)
            _verify_or_discard(folder, files, table, progress)
            _finish(folder, files, {name: read(row) for name, row in layers.side.items()})
            refuse_occupied(target)
            folder.rename(target)
            sync_folder(target.parent)
        finally:
            os.close(held)


def _partial_name(target: str) -> str:
    """Hidden, at most 190 bytes, and the same for the next try."""
    return f".{target[:40]}.{hashlib.sha256(target.encode()).hexdigest()[:16]}.pull"


def _verify_or_discard(folder: Path, files: Sequence[PlannedFile], table: BackboneTable, progress: Progress) -> None:
    try:
        _require_tensors(folder, files, table, progress)
    except ObmError:
        # each blob is what the manifest says, so fetching them again would not help
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _require_tensors(folder: Path, files: Sequence[PlannedFile], table: BackboneTable, progress: Progress) -> None:
    """Refuse weights of which a tensor does not hash to what the table says."""
    done, total = 0, sum(spec.nbytes for file in files for spec in file.specs)
    for file in files:
        shard = Shard.open(folder / (file.name + PART_SUFFIX))
        try:
            with ThreadPoolExecutor(2) as pool:
                found = pool.map(lambda spec, shard=shard: digest.sha256(shard.view(spec.name)), file.specs)
                for spec, own in zip(file.specs, found, strict=True):
                    if own != table.tensors[spec.name].sha256:
                        raise _other_tensor(spec.name, table.tensors[spec.name].sha256, own)
                    done += spec.nbytes
                    progress("verifying", done, total)
        finally:
            shard.close()


def _other_tensor(name: str, expected: bytes, got: bytes) -> BackboneMismatch:
    return BackboneMismatch(
        "backbone_mismatch",
        "the stored weights are not the backbone's",
        where=name,
        expected=f"SHA-256 {expected.hex()[:16]}",
        got=got.hex()[:16],
        hint="remove them (`obm rm`) and add the backbone again with its weights",
    )


def _finish(folder: Path, files: Sequence[PlannedFile], side: dict[str, bytes]) -> None:
    """Sync the files and give them their names; whatever else lies in the folder goes."""
    for file in files:
        descriptor = os.open(folder / (file.name + PART_SUFFIX), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    small = dict(side)
    if len(files) > 1:
        small[INDEX] = index_json(files)
    for name, data in small.items():
        with replaced_file(folder / name) as out:
            out.write(data)
    for file in files:
        (folder / (file.name + PART_SUFFIX)).rename(folder / file.name)
    kept = {*small, *(file.name for file in files)}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    sync_folder(folder)
