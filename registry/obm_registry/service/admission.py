"""Whether a manifest may be published: its blobs, its backbone, and what the registry notes of it.

Looks and parses only; `publish` checks again, within its transaction, what may have changed since. What is
told of an expert is read from its index blob, not from what the sender says.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from obm_format.container.reader import Container
from obm_format.container.sources import RangeSource
from obm_format.errors import BackboneMismatch, RegistryError
from obm_registry.catalog.rows import Blob, Repository
from obm_registry.catalog.store import Session
from obm_registry.manifest.backbone import BACKBONE_TYPE, FINGERPRINT, BackboneFacts, BackboneTable
from obm_registry.manifest.expert import (
    EXPERT_TYPE,
    ExpertFacts,
    ExpertLayers,
    facts_of,
    parse_layers,
    require_base_vector,
    require_references,
)
from obm_registry.manifest.lineage import require_match
from obm_registry.manifest.oci import Descriptor, OciManifest, bad_manifest, parse_manifest
from obm_registry.manifest.weights import WEIGHTS_TYPE, parse_weights
from obm_registry.service.backbones import is_about_backbone, read_table, unknown_backbone
from obm_registry.service.blobs import unknown_blob
from obm_registry.service.registry import Registry, require_repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the registry notes of an admitted manifest.

    Args:
        backbone: set for a backbone.
        expert: set for an expert.
        has_backbone: whether the expert's subject is its backbone; False only where the policy let that pass.
        warnings: what the sender is told.
    """

    backbone: BackboneFacts | None = None
    expert: ExpertFacts | None = None
    has_backbone: bool = False
    warnings: tuple[str, ...] = ()


def require_blobs(session: Session, repo: Repository, manifest: OciManifest) -> dict[str, Blob]:
    """The blobs that a manifest names, by digest, within the caller's transaction.

    Layers that the image spec lets a registry lack are left out when they are not there.

    Raises:
        RegistryError: `blob_unknown` for one that is not there, `bad_manifest` for one of another size.
    """
    found = session.blobs.linked_many(repo.id, (blob.digest for blob in manifest.blobs))
    for blob in manifest.blobs:
        if blob.digest not in found:
            if blob.is_nondistributable:
                continue
            raise unknown_blob(repo.name, blob.digest)
        if found[blob.digest].size != blob.size:
            raise bad_manifest(f"the size of {blob.digest}", str(found[blob.digest].size), blob.size)
    return found


def admit(registry: Registry, repository: str, manifest: OciManifest) -> Admission:
    """Check a manifest against what is stored.

    Args:
        registry: where.
        repository: where it is to be published; its blobs are there already.
        manifest: any manifest; only backbones, their weights and experts are looked into.

    Raises:
        RegistryError: `blob_unknown`, `bad_manifest`, `backbone_unknown`, `limit_exceeded`.
        BackboneMismatch: `backbone_mismatch`.
        FormatError: the layers of an expert are no sound `.obm` file, or it comes without its base vectors.
    """
    if manifest.artifact_type not in (BACKBONE_TYPE, EXPERT_TYPE, WEIGHTS_TYPE):
        return Admission()
    with registry.catalog.read() as session:
        repo = require_repository(session, repository)
        blobs = require_blobs(session, repo, manifest)
    if manifest.artifact_type == BACKBONE_TYPE:
        return Admission(backbone=read_table(registry, repository, manifest).facts)
    if manifest.artifact_type == WEIGHTS_TYPE:
        return _admit_weights(registry, repo, manifest)
    return _admit_expert(registry, repo, manifest, blobs)


def _admit_expert(registry: Registry, repo: Repository, manifest: OciManifest, blobs: dict[str, Blob]) -> Admission:
    layers = parse_layers(manifest)
    source = _joined(registry, [blobs[layer.digest] for layer in layers.all], layers.artifact_id)
    with Container.open(source, expected_id=layers.artifact_id) as container:
        _require_bases(registry, container, layers, blobs)
        facts = facts_of(container)
        try:
            require_match(
                container, _subject_table(registry, repo.name, manifest.subject, facts.fingerprint), repo.name
            )
        except (RegistryError, BackboneMismatch) as error:
            if repo.namespace.subject_policy == "require" or not is_about_backbone(error):
                raise
            warnings = (str(error),) if repo.namespace.subject_policy == "warn" else ()
            return Admission(expert=facts, warnings=warnings)
    return Admission(expert=facts, has_backbone=True)


def _admit_weights(registry: Registry, repo: Repository, manifest: OciManifest) -> Admission:
    """Whether blobs are cut as the backbone's tensors ask for; what they hold is checked by whoever pulls them."""
    fingerprint = manifest.annotations.get(FINGERPRINT, "of no backbone")
    try:
        parse_weights(manifest, _subject_table(registry, repo.name, manifest.subject, fingerprint))
    except RegistryError as error:
        if repo.namespace.subject_policy == "require" or not is_about_backbone(error):
            raise
        return Admission(warnings=(str(error),) if repo.namespace.subject_policy == "warn" else ())
    return Admission()


def _require_bases(registry: Registry, container: Container, layers: ExpertLayers, blobs: dict[str, Blob]) -> None:
    """Refuse an expert that comes without the base vectors that it refers to, or with others."""
    require_references(container, [shared.artifact_id for shared in layers.shared])
    for shared in layers.shared:
        source = _joined(registry, [blobs[layer.digest] for layer in shared.all], shared.artifact_id)
        with Container.open(source, expected_id=shared.artifact_id) as base:
            require_base_vector(container, base)


def _subject_table(registry: Registry, repository: str, subject: Descriptor | None, fingerprint: str) -> BackboneTable:
    with registry.catalog.read() as session:
        repo = require_repository(session, repository)
        found = session.manifests.get(repo.id, subject.digest) if subject else None
    if found is None or found.artifact_type != BACKBONE_TYPE:
        # where else it is stays untold: the sender may not know of those repositories
        raise unknown_backbone(repository, fingerprint, [])
    return read_table(registry, repository, parse_manifest(found.body))


def _joined(registry: Registry, blobs: Sequence[Blob], name: str) -> RangeSource:
    """Stored blobs laid end to end."""
    starts = list(itertools.accumulate((blob.size for blob in blobs), initial=0))

    def fetch(offset: int, nbytes: int) -> bytes:
        data = bytearray()
        while len(data) < nbytes:
            at = offset + len(data)
            i = bisect_right(starts, at) - 1
            stop = min(at - starts[i] + nbytes - len(data), blobs[i].size)
            for chunk in registry.blobs.read(blobs[i].storage_key, at - starts[i], stop):
                data += chunk
        return bytes(data)

    return RangeSource(starts[-1], fetch, name)
