"""Backbones of a repository: read their tables, and find the one that an expert belongs to."""

from __future__ import annotations

from obm_format.container.reader import Container
from obm_format.errors import BackboneMismatch, RegistryError
from obm_registry.catalog.rows import BackboneRow
from obm_registry.manifest.backbone import (
    BACKBONE_CONFIG,
    MAX_CONFIG_NBYTES,
    BackboneTable,
    backbone_descriptor,
    parse_backbone,
)
from obm_registry.manifest.lineage import MAX_DIFFERENCES, Difference, require_match, table_differences
from obm_registry.manifest.oci import Descriptor, OciManifest, bad_manifest, parse_manifest
from obm_registry.service.blobs import read_blob
from obm_registry.service.lookup import find_manifest
from obm_registry.service.registry import Registry


def read_table(registry: Registry, repository: str, manifest: OciManifest) -> BackboneTable:
    """The tensor table of a backbone manifest whose config blob is stored.

    Raises:
        RegistryError: `bad_manifest`, `limit_exceeded`, `blob_unknown`, `blob_damaged`.
    """
    config = manifest.config
    if config is None or config.media_type != BACKBONE_CONFIG:
        raise bad_manifest("manifest.config", BACKBONE_CONFIG, config.media_type if config else None)
    if config.size > MAX_CONFIG_NBYTES:
        raise RegistryError(
            "limit_exceeded", "the tensor table is too large", expected=MAX_CONFIG_NBYTES, got=config.size
        )
    return parse_backbone(b"".join(read_blob(registry, repository, config.digest)))


def table_of(registry: Registry, repository: str, digest: str) -> BackboneTable:
    """The tensor table of a backbone of the repository.

    Raises:
        RegistryError: `not_found`, and as `read_table`.
    """
    return read_table(registry, repository, parse_manifest(find_manifest(registry, repository, digest).body))


def check_table(registry: Registry, row: BackboneRow, own: BackboneTable) -> tuple[list[Difference], int]:
    """Hold a checkpoint's table against a backbone.

    Returns:
        The first differences, and how many there are.

    Raises:
        RegistryError: as `table_of`.
    """
    found = list(table_differences(own, table_of(registry, row.repository, row.manifest_digest)))
    return found[:MAX_DIFFERENCES], len(found)


def find_backbone(registry: Registry, repository: str, container: Container) -> Descriptor | None:
    """The backbone of an expert in the repository where it is to be published.

    Args:
        registry: where.
        repository: may be one that is not there yet.
        container: the expert.

    Returns:
        Descriptor of the backbone's manifest; None where it is not there and the namespace takes experts
        without.

    Raises:
        RegistryError: `backbone_unknown` when the repository has no backbone.
        BackboneMismatch: `backbone_mismatch` when it has another one, with the first differences.
    """
    fingerprint = container.manifest.backbone.fingerprint
    with registry.catalog.read() as session:
        repo = session.names.repository(repository)
        here = session.lineage.backbones(repo_id=repo.id) if repo else []
        elsewhere = [row.repository for row in session.lineage.backbones(fingerprint=fingerprint)]
    own = next((row for row in here if row.facts.fingerprint == fingerprint), None)
    candidate = own or (here[0] if here else None)
    try:
        if candidate is None:
            raise unknown_backbone(repository, fingerprint, elsewhere)
        require_match(container, table_of(registry, repository, candidate.manifest_digest), repository)
    except (RegistryError, BackboneMismatch) as error:
        if repo is not None and repo.namespace.subject_policy != "require" and is_about_backbone(error):
            return None
        raise
    return backbone_descriptor(candidate.manifest_digest, candidate.manifest_nbytes)


def is_about_backbone(error: RegistryError | BackboneMismatch) -> bool:
    """Whether a refusal is one that a namespace's policy can lift."""
    return error.reason in ("backbone_unknown", "backbone_mismatch")


def unknown_backbone(repository: str, fingerprint: str, elsewhere: list[str]) -> RegistryError:
    """The refusal of an expert whose backbone is not there."""
    hint = f"run `obm backbone add BASE {repository}` with the checkpoint that it was made from"
    if elsewhere:
        hint += f", or push to {elsewhere[0]}, which has it"
    return RegistryError(
        "backbone_unknown",
        "the repository does not have the expert's backbone",
        where=repository,
        expected=f"fingerprint {fingerprint}",
        got="no backbone",
        hint=hint,
    )
