"""The weights of a backbone as a manifest that refers to the backbone's: a checkpoint folder as blobs.

Which files the folder has, and where they are cut, is decided by the tensor table alone, so that equal weights give
equal blobs everywhere; laid end to end, the blobs of a file are the file. Source: ADR 0049.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from obm_format.checkpoint import Checkpoint, is_side_file
from obm_format.checkpoint_plan import PlannedFile, plan_files
from obm_format.errors import RegistryError, UsageError
from obm_format.limits import MIB
from obm_format.progress import Progress, silent
from obm_registry.manifest import segments
from obm_registry.manifest.backbone import BACKBONE_TAG, FINGERPRINT, BackboneTable
from obm_registry.manifest.oci import (
    EMPTY_BODY,
    EMPTY_TYPE,
    TITLE,
    Descriptor,
    OciManifest,
    bad_manifest,
    describe,
    digest_of,
    encode_manifest,
)

WEIGHTS_TYPE = "application/vnd.obm.weights.v1"
WEIGHTS_TAG = "backbone-weights"
HEADER_LAYER = "application/vnd.obm.weights.header.v1"
SEGMENT_LAYER = "application/vnd.obm.weights.segment.v1"
SIDE_LAYER = "application/vnd.obm.weights.side.v1"
MAX_SIDE_NBYTES = 64 * MIB
MAX_SIDE_FILES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes [start, stop) of one tensor."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLayer:
    """A layer with the bytes that it holds: some `data`, or pieces of tensors of an open checkpoint."""

    descriptor: Descriptor
    data: bytes = b""
    checkpoint: Checkpoint | None = None
    pieces: tuple[Piece, ...] = ()

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Its bytes from `start` on, in chunks of at most 1 MiB."""
        if self.checkpoint is None:
            yield from (self.data[at : at + MIB] for at in range(start, len(self.data), MIB))
            return
        for piece in self.pieces:
            skipped = min(start, piece.stop - piece.start)
            start -= skipped
            words = self.checkpoint.words(piece.tensor)
            data = words.reshape(-1).view(np.uint8).data
            for at in range(piece.start + skipped, piece.stop, MIB):
                yield bytes(data[at : min(at + MIB, piece.stop)])


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPackage:
    """What is published for the weights of a backbone: the manifest, its digest, its layers."""

    body: bytes
    digest: str
    layers: tuple[WeightsLayer, ...]

    @property
    def blobs(self) -> tuple[WeightsLayer, ...]:
        """Everything that is sent before the manifest: the layers, and the empty config."""
        return (*self.layers, WeightsLayer(descriptor=describe(EMPTY_BODY, EMPTY_TYPE), data=EMPTY_BODY))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLayers:
    """The blobs of published weights.

    Args:
        files: each file of the folder with its blobs in order.
        side: blobs of configuration and tokenizer files, by file name.
    """

    files: tuple[tuple[PlannedFile, tuple[Descriptor, ...]], ...]
    side: dict[str, Descriptor]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.nbytes for file, _ in self.files)


def package_weights(
    checkpoint: Checkpoint, table: BackboneTable, backbone: Descriptor, progress: Progress = silent
) -> WeightsPackage:
    """Build the manifest of a backbone's weights.

    Args:
        checkpoint: the open checkpoint; all its tensors are read once.
        table: its tensor table.
        backbone: descriptor of the backbone's manifest in the same repository.
        progress: told how many bytes are hashed.

    Raises:
        RegistryError: `limit_exceeded`, a file beside the weights is too large, or there are too many.
    """
    layers: list[WeightsLayer] = []
    for file in plan_files(row.spec for row in table.tensors.values()):
        layers.append(_layer(HEADER_LAYER, f"{file.name}.00000", file.header))
        layers += _segments(checkpoint, file, progress)
    layers += _side_layers(checkpoint)
    manifest = OciManifest(
        artifact_type=WEIGHTS_TYPE,
        config=describe(EMPTY_BODY, EMPTY_TYPE),
        layers=tuple(layer.descriptor for layer in layers),
        subject=backbone,
        annotations={FINGERPRINT: table.fingerprint},
    )
    body = encode_manifest(manifest)
    return WeightsPackage(body=body, digest=digest_of(body), layers=tuple(layers))


def cut_file(file: PlannedFile) -> Iterator[tuple[Piece, ...]]:
    """Where the tensors of a file are cut: several share a segment, a larger one stands alone, in pieces."""
    most = segments.SEGMENT_NBYTES
    shared: list[Piece] = []
    filled = 0
    for spec in file.specs:
        if filled and filled + spec.nbytes > most:
            yield tuple(shared)
            shared, filled = [], 0
        if spec.nbytes > most:
            for start in range(0, spec.nbytes, most):
                yield (Piece(spec.name, start, min(start + most, spec.nbytes)),)
        elif spec.nbytes:
            shared.append(Piece(spec.name, 0, spec.nbytes))
            filled += spec.nbytes
    if filled:
        yield tuple(shared)


def _segments(checkpoint: Checkpoint, file: PlannedFile, progress: Progress) -> Iterator[WeightsLayer]:
    def describe_segment(numbered: tuple[int, tuple[Piece, ...]]) -> WeightsLayer:
        number, pieces = numbered
        bare = Descriptor(media_type="", digest="", size=0)
        total = hashlib.sha256()
        for chunk in WeightsLayer(descriptor=bare, checkpoint=checkpoint, pieces=pieces).chunks():
            total.update(chunk)
        # a stock client that pulls the layers as files gets them in an order that `cat` can join
        descriptor = Descriptor(
            media_type=SEGMENT_LAYER,
            digest=f"sha256:{total.hexdigest()}",
            size=_nbytes(pieces),
            annotations={TITLE: f"{file.name}.{number:05d}"},
        )
        return WeightsLayer(descriptor=descriptor, checkpoint=checkpoint, pieces=pieces)

    done = 0
    with ThreadPoolExecutor(2) as pool:
        for layer in pool.map(describe_segment, enumerate(cut_file(file), start=1)):
            done += layer.descriptor.size
            progress("hash segments", done, file.nbytes - len(file.header))
            yield layer


def _nbytes(pieces: Sequence[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


def _side_layers(checkpoint: Checkpoint) -> Iterator[WeightsLayer]:
    files = checkpoint.side_files()
    if len(files) > MAX_SIDE_FILES:
        raise RegistryError(
            "limit_exceeded", "too many files beside the weights", expected=MAX_SIDE_FILES, got=len(files)
        )
    for path in files:
        nbytes = path.stat().st_size
        if nbytes > MAX_SIDE_NBYTES:
            raise RegistryError(
                "limit_exceeded",
                "a file beside the weights is too large",
                where=str(path),
                expected=f"at most {MAX_SIDE_NBYTES} bytes",
                got=nbytes,
            )
        yield _layer(SIDE_LAYER, path.name, path.read_bytes())


def _layer(media_type: str, title: str, data: bytes) -> WeightsLayer:
    descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data), annotations={TITLE: title})
    return WeightsLayer(descriptor=descriptor, data=data)


def parse_weights(manifest: OciManifest, table: BackboneTable) -> WeightsLayers:
    """Find the blobs of a backbone's weights, which are to be those that its tensor table asks for.

    Args:
        manifest: a manifest of any type.
        table: the tensor table of the backbone.

    Returns:
        The blobs by file; layers of other types are left aside.

    Raises:
        RegistryError: `bad_manifest` when it holds no weights, or not those of such tensors.
    """
    if manifest.artifact_type != WEIGHTS_TYPE:
        raise bad_manifest("manifest.artifactType", WEIGHTS_TYPE, manifest.artifact_type)
    files, found = plan_files(row.spec for row in table.tensors.values()), _by_file(manifest.layers)
    if len(found) != len(files):
        raise bad_manifest("manifest.layers", f"{len(files)} files", len(found))
    for file, blobs in zip(files, found, strict=True):
        # where a file is cut is the sender's choice; a reader joins what it gets
        if blobs[0].digest != digest_of(file.header) or sum(blob.size for blob in blobs) != file.nbytes:
            raise bad_manifest(f"the layers of {file.name}", f"its header, and {file.nbytes} bytes in all", "others")
    return WeightsLayers(
        files=tuple((file, tuple(blobs)) for file, blobs in zip(files, found, strict=True)),
        side=_parse_side(manifest.layers),
    )


def _by_file(layers: Sequence[Descriptor]) -> list[list[Descriptor]]:
    """Headers with the segments that follow each."""
    found: list[list[Descriptor]] = []
    for layer in layers:
        if layer.media_type == HEADER_LAYER:
            found.append([layer])
        elif layer.media_type == SEGMENT_LAYER:
            if not found:
                raise bad_manifest("manifest.layers", "a header before its segments", layer.digest)
            found[-1].append(layer)
    return found


def _parse_side(layers: Sequence[Descriptor]) -> dict[str, Descriptor]:
    rows = [layer for layer in layers if layer.media_type == SIDE_LAYER]
    found = {row.annotations.get(TITLE, ""): row for row in rows}
    if len(found) != len(rows) or len(rows) > MAX_SIDE_FILES:
        raise bad_manifest("manifest.layers", f"at most {MAX_SIDE_FILES} side files, each once", len(rows))
    for name, row in found.items():
        if not is_side_file(name) or row.size > MAX_SIDE_NBYTES:
            raise bad_manifest("manifest.layers", "a configuration or tokenizer file", name)
    return found


def require_expert_tag(tag: str) -> None:
    """Refuse to give an expert one of the names that stand for the backbone and its weights.

    Raises:
        UsageError: `bad_ref`.
    """
    if tag in (BACKBONE_TAG, WEIGHTS_TAG):
        raise UsageError("bad_ref", "this tag is kept for the backbone", got=tag, hint="choose another tag")


def no_weights(repository: str) -> RegistryError:
    """The refusal of weights that are not stored."""
    return RegistryError(
        "not_found",
        "the registry does not hold the weights of this backbone",
        where=repository,
        hint=f"`obm backbone add BASE {repository} --with-weights` stores them",
    )
