"""Expert manifests: an `.obm` file as an index blob, segments and a manifest that names its backbone.

Never decodes tensors. What is told of an expert comes from the file itself. Source: obm-1 clauses 5 and 7.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from obm_format.container.reader import Container
from obm_format.container.sources import Source
from obm_format.digest import ARTIFACT_PREFIX
from obm_format.errors import FormatError, RegistryError, UsageError
from obm_format.limits import MIB
from obm_format.model import DType, SignParams, TernParams
from obm_format.progress import Progress, silent
from obm_registry.manifest.backbone import FINGERPRINT
from obm_registry.manifest.oci import (
    TITLE,
    Descriptor,
    OciManifest,
    bad_manifest,
    describe,
    digest_of,
    encode_manifest,
)
from obm_registry.manifest.segments import Segment, cut
from obm_registry.manifest.strictjson import encode_json

EXPERT_TYPE = "application/vnd.obm.expert.v1"
EXPERT_CONFIG = "application/vnd.obm.expert.config.v1+json"
INDEX_TYPE = "application/vnd.obm.index.v1"
SEGMENT_TYPE = "application/vnd.obm.segment.v1"

_SCHEMA = "obm.expert/1"
_CHUNK_NBYTES = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """What is listed of an expert.

    Args:
        artifact_id: `obm1-sha256:...`.
        fingerprint: fingerprint of the backbone it was made against.
        kind: what the file holds.
        task: task name, "" for none.
        position: position word or pattern.
        encodings: number of tensors by encoding.
        nbytes: bytes of the whole file.
        n_tensors: number of tensor records.
        alpha_min: smallest alpha, None where the expert has none.
        alpha_mean: mean of all alphas.
        alpha_max: largest alpha.
    """

    artifact_id: str
    fingerprint: str
    kind: str
    task: str
    position: str
    encodings: Mapping[str, int]
    nbytes: int
    n_tensors: int
    alpha_min: float | None = None
    alpha_mean: float | None = None
    alpha_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPackage:
    """What is published for an expert.

    Args:
        body: the manifest.
        digest: its digest.
        facts: what is listed of it.
        config: bytes of the config blob.
        layers: each layer with the bytes of the file that it holds, in file order.
    """

    body: bytes
    digest: str
    facts: ExpertFacts
    config: bytes
    layers: tuple[tuple[Descriptor, Segment], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayers:
    """The blobs of a published expert: the index, then the segments; concatenated they are the file."""

    index: Descriptor
    segments: tuple[Descriptor, ...]

    @property
    def artifact_id(self) -> str:
        """The artifact id, which is the digest of the index blob (obm-1 clause 7.1)."""
        return ARTIFACT_PREFIX + self.index.digest.removeprefix("sha256:")

    @property
    def all(self) -> tuple[Descriptor, ...]:
        """Index and segments in file order."""
        return (self.index, *self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return sum(layer.size for layer in self.all)


def facts_of(container: Container) -> ExpertFacts:
    """Read off an open file what is listed of it.

    Args:
        container: the file; its alpha pool is read and verified.

    Raises:
        FormatError: the alpha pool is damaged, or an alpha is out of range (`bad_alpha`).
    """
    manifest = container.manifest
    low, high, total, count = float("inf"), float("-inf"), 0.0, 0
    for alphas in _alphas(container):
        low, high = min(low, min(alphas)), max(high, max(alphas))
        total, count = total + sum(alphas), count + len(alphas)
    # obm-1 clause 6.3; a sum shows an infinity or NaN wherever it stands
    if count and not (low >= 0 and math.isfinite(total)):
        raise FormatError("bad_alpha", "an alpha is negative, NaN or infinite", where="#alphas")
    return ExpertFacts(
        artifact_id=container.id,
        fingerprint=manifest.backbone.fingerprint,
        kind=manifest.kind.value,
        task=manifest.task,
        position=manifest.position,
        encodings=dict(sorted(Counter(record.encoding for record in manifest.tensors).items())),
        nbytes=container.header.file_nbytes,
        n_tensors=len(manifest.tensors),
        alpha_min=low if count else None,
        alpha_mean=total / count if count else None,
        alpha_max=high if count else None,
    )


def _alphas(container: Container) -> Iterator[tuple[float, ...]]:
    for record in container.manifest.tensors:
        if isinstance(record.params, SignParams | TernParams):
            data = container.alphas(record)
            dtype = record.params.alpha.dtype
            yield struct.unpack(f"<{len(data) // dtype.itemsize}{'e' if dtype is DType.F16 else 'f'}", data)


def require_self_contained(container: Container) -> None:
    """Refuse an expert that refers to another artifact, which a pull would not bring along (obm-1 clause 6.7).

    Raises:
        UsageError: `usage`, naming the first.
    """
    for wanted in container.manifest.refs:
        raise UsageError(
            "usage",
            "this version does not publish experts that need a base vector of their own",
            where=container.id,
            got=f"a reference to {wanted}",
            hint="keep the folder with base.obm together, or compress without --rtvq",
        )


def package_expert(
    container: Container, source: Source, backbone: Descriptor | None, *, progress: Progress = silent
) -> ExpertPackage:
    """Build the manifest of a file; equal files on equal backbones give equal manifests.

    Args:
        container: the open file.
        source: its bytes, which are all read once.
        backbone: descriptor of the backbone's manifest in the same repository; None only where the namespace
            takes experts without it.
        progress: told how many bytes are hashed.

    Raises:
        UsageError: `usage`, the expert refers to another artifact.
        FormatError: as `facts_of`.
    """
    require_self_contained(container)
    facts = facts_of(container)
    config = encode_json({"schema": _SCHEMA, **_shown(facts)})
    layers: list[tuple[Descriptor, Segment]] = []
    for i, segment in enumerate(cut(container)):
        layers.append((_describe_segment(source, segment, i), segment))
        progress("hash", segment.offset + segment.nbytes, facts.nbytes)
    annotations = {
        "io.obm.id": facts.artifact_id,
        FINGERPRINT: facts.fingerprint,
        "io.obm.nbytes": str(facts.nbytes),
        "io.obm.position": facts.position,
    }
    if facts.task:
        annotations["io.obm.task"] = facts.task
    manifest = OciManifest(
        artifact_type=EXPERT_TYPE,
        config=describe(config, EXPERT_CONFIG),
        layers=tuple(layer for layer, _ in layers),
        subject=backbone,
        annotations=annotations,
    )
    body = encode_manifest(manifest)
    return ExpertPackage(body=body, digest=digest_of(body), facts=facts, config=config, layers=tuple(layers))


def _shown(facts: ExpertFacts) -> dict[str, object]:
    return {
        "backbone": facts.fingerprint,
        "encodings": dict(facts.encodings),
        "id": facts.artifact_id,
        "kind": facts.kind,
        "n_tensors": facts.n_tensors,
        "nbytes": facts.nbytes,
        "position": facts.position,
        "task": facts.task,
    }


def _describe_segment(source: Source, segment: Segment, ordinal: int) -> Descriptor:
    total = hashlib.sha256()
    for chunk in segment_chunks(source, segment):
        total.update(chunk)
    return Descriptor(
        media_type=SEGMENT_TYPE if ordinal else INDEX_TYPE,
        digest=f"sha256:{total.hexdigest()}",
        size=segment.nbytes,
        # a stock client that pulls the layers as files gets them in an order that `cat` can join
        annotations={TITLE: f"expert.obm.{ordinal:05d}"},
    )


def segment_chunks(source: Source, segment: Segment) -> Iterator[bytes]:
    """The bytes of a segment in chunks of at most 1 MiB."""
    for offset in range(segment.offset, segment.offset + segment.nbytes, _CHUNK_NBYTES):
        yield source.read(offset, min(_CHUNK_NBYTES, segment.offset + segment.nbytes - offset))


def parse_layers(manifest: OciManifest) -> ExpertLayers:
    """Find index and segments among the layers of an expert manifest.

    Args:
        manifest: a manifest of any type.

    Returns:
        The index and the segments behind it; layers of other types (a card, a picture) are left aside.

    Raises:
        RegistryError: `bad_manifest` when it is no expert, or its layers do not begin with an index.
    """
    if manifest.artifact_type != EXPERT_TYPE:
        raise RegistryError(
            "bad_manifest",
            "this is no expert",
            where="manifest.artifactType",
            expected=EXPERT_TYPE,
            got=manifest.artifact_type or "nothing",
            hint="`obm ls` lists the experts of a repository",
        )
    if not manifest.layers or manifest.layers[0].media_type != INDEX_TYPE:
        raise bad_manifest("manifest.layers[0]", INDEX_TYPE, manifest.layers[0].media_type if manifest.layers else None)
    index, *others = manifest.layers
    if not index.digest.startswith("sha256:"):
        raise bad_manifest("manifest.layers[0].digest", "a SHA-256", index.digest)
    if any(layer.media_type == INDEX_TYPE for layer in others):
        raise bad_manifest("manifest.layers", "one index", "several")
    return ExpertLayers(index=index, segments=tuple(layer for layer in others if layer.media_type == SEGMENT_TYPE))
