"""Expert manifests: an `.obm` file as an index blob, segments and a manifest that names its backbone.

Never decodes tensors. What is told of an expert comes from the file itself. Source: obm-1 clauses 5 and 7.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from obm_format.container.reader import Container
from obm_format.container.sources import Source
from obm_format.digest import ARTIFACT_PREFIX
from obm_format.errors import FormatError, RegistryError
from obm_format.limits import DEFAULT_LIMITS, MIB
from obm_format.model import DType, Kind, SignParams, TernParams
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
SHARED_TYPE = "application/vnd.obm.shared.v1"
SHARED_ID = "io.obm.shared"

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
class Layer:
    """A layer with the bytes that it holds: a segment of a file."""

    descriptor: Descriptor
    source: Source
    segment: Segment

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Its bytes from `start` on, in chunks of at most 1 MiB."""
        return segment_chunks(self.source, Segment(self.segment.offset + start, self.segment.nbytes - start))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPackage:
    """What is published for an expert.

    Args:
        body: the manifest.
        digest: its digest.
        facts: what is listed of it.
        config: bytes of the config blob.
        layers: its layers in file order, then those of the base vectors that it refers to.
    """

    body: bytes
    digest: str
    facts: ExpertFacts
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all blobs."""
        return len(self.config) + sum(layer.segment.nbytes for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayers:
    """The blobs of a published expert: the index, then the segments; concatenated they are the file.

    `shared` has those of the base vectors that it refers to, each a file of its own.
    """

    index: Descriptor
    segments: tuple[Descriptor, ...]
    shared: tuple[ExpertLayers, ...] = ()

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


def require_base_vector(container: Container, base: Container) -> None:
    """Refuse what is no base vector for an expert (obm-1 clause 6.7).

    Raises:
        FormatError: `bad_reference`: no base vector, or one of another backbone.
    """
    expected, got = container.manifest.backbone.fingerprint, base.manifest.backbone.fingerprint
    if base.manifest.kind is not Kind.RTVQ_BASE or got != expected:
        raise FormatError(
            "bad_reference",
            "an artifact that the expert refers to is no base vector for its backbone",
            where=base.id,
            expected=f"{Kind.RTVQ_BASE.value} of {expected}",
            got=f"{base.manifest.kind.value} of {got}",
        )


def package_expert(
    container: Container,
    source: Source,
    backbone: Descriptor | None,
    *,
    bases: Sequence[tuple[Container, Source]] = (),
    progress: Progress = silent,
) -> ExpertPackage:
    """Build the manifest of a file; equal files on equal backbones give equal manifests.

    Args:
        container: the open file.
        source: its bytes, which are all read once.
        backbone: descriptor of the backbone's manifest in the same repository; None only where the namespace
            takes experts without it.
        bases: the base vectors that the expert refers to, in its order, each open and with its bytes.
        progress: told how many bytes are hashed.

    Raises:
        FormatError: as `facts_of`; `bad_reference` when `bases` are others than the expert refers to.
    """
    require_references(container, [base.id for base, _ in bases])
    facts = facts_of(container)
    config = encode_json({"schema": _SCHEMA, **_shown(facts)})
    layers = []
    for i, segment in enumerate(cut(container)):
        # a stock client that pulls the layers as files gets them in an order that `cat` can join
        title = {TITLE: f"expert.obm.{i:05d}"}
        layers.append(_describe_segment(source, segment, SEGMENT_TYPE if i else INDEX_TYPE, title))
        progress("hash", segment.offset + segment.nbytes, facts.nbytes)
    for base, its_source in bases:
        require_base_vector(container, base)
        name = base.id.removeprefix(ARTIFACT_PREFIX)
        for i, segment in enumerate(cut(base)):
            notes = {TITLE: f"{name}.obm.{i:05d}", SHARED_ID: base.id}
            layers.append(_describe_segment(its_source, segment, SHARED_TYPE, notes))
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
        layers=tuple(layer.descriptor for layer in layers),
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


def require_references(container: Container, given: Sequence[str]) -> None:
    """Refuse an expert whose base vectors do not come along, or others than those.

    Raises:
        FormatError: `bad_reference`.
    """
    wanted = list(container.manifest.refs)
    if wanted != list(given):
        raise FormatError(
            "bad_reference",
            "the base vectors are not those that the expert refers to",
            where=container.id,
            expected=", ".join(wanted) or "none",
            got=", ".join(given) or "none",
        )


def _describe_segment(source: Source, segment: Segment, media_type: str, annotations: dict[str, str]) -> Layer:
    total = hashlib.sha256()
    for chunk in segment_chunks(source, segment):
        total.update(chunk)
    descriptor = Descriptor(
        media_type=media_type,
        digest=f"sha256:{total.hexdigest()}",
        size=segment.nbytes,
        annotations=annotations,
    )
    return Layer(descriptor=descriptor, source=source, segment=segment)


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
    return ExpertLayers(
        index=index,
        segments=tuple(layer for layer in others if layer.media_type == SEGMENT_TYPE),
        shared=_shared(others),
    )


def _shared(layers: Sequence[Descriptor]) -> tuple[ExpertLayers, ...]:
    """The base vectors among layers, in order: those with the same id are one file, which the id's own blob begins."""
    groups: dict[str, list[Descriptor]] = {}
    for layer in layers:
        if layer.media_type == SHARED_TYPE:
            groups.setdefault(layer.annotations.get(SHARED_ID, ""), []).append(layer)
    if len(groups) > DEFAULT_LIMITS.refs:
        raise bad_manifest("manifest.layers", f"at most {DEFAULT_LIMITS.refs} base vectors", len(groups))
    for artifact_id, (first, *_) in groups.items():
        if artifact_id.replace(ARTIFACT_PREFIX, "sha256:", 1) != first.digest:
            raise bad_manifest(f"{SHARED_ID} of {first.digest}", "the artifact id", artifact_id)
    return tuple(ExpertLayers(index=first, segments=tuple(rest)) for first, *rest in groups.values())
