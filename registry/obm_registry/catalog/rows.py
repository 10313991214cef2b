"""What leaves the catalog: frozen records, never SQL rows.

Times are milliseconds since 1970, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

from obm_registry.manifest.backbone import BackboneFacts
from obm_registry.manifest.expert import ExpertFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """The rules that hold for the repositories of one namespace.

    Args:
        id: key in the catalog.
        name: everything before the last slash of its repositories.
        quota_nbytes: most bytes of blobs and manifests, or None.
        subject_policy: `require`, `warn` or `accept`: what happens to an expert without its backbone.
        immutable_tags: shell patterns of tags that always name the manifest that they named first.
    """

    id: int
    name: str
    quota_nbytes: int | None
    subject_policy: str
    immutable_tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One repository and the namespace whose rules it follows."""

    id: int
    name: str
    namespace: Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One stored object.

    Args:
        id: key in the catalog.
        digest: digest of its bytes.
        size: number of bytes.
        storage_key: where the blob store keeps it.
        touched_at: when somebody last asked for it in order to use it.
    """

    id: int
    digest: str
    size: int
    storage_key: str
    touched_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One manifest of one repository.

    Args:
        id: key in the catalog; grows with time.
        repo_id: its repository.
        digest: digest of `body`.
        media_type: type it is served under.
        artifact_type: what it is.
        body: the bytes that were pushed.
        subject_digest: the manifest that it refers to, or None.
        pushed_by: who pushed it.
        pushed_at: when.
        yanked_at: since when nobody should use it any more, or None.
        yank_reason: why.
    """

    id: int
    repo_id: int
    digest: str
    media_type: str
    artifact_type: str
    body: bytes
    subject_digest: str | None
    pushed_by: str
    pushed_at: int
    yanked_at: int | None
    yank_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewManifest:
    """What is recorded of a manifest when it is published.

    Args:
        digest: digest of `body`.
        media_type: type it is served under.
        artifact_type: what it is.
        body: the bytes that were pushed.
        subject_digest: the manifest that it refers to, or None.
        config: key of the config blob, or None.
        layers: keys of the layer blobs in order.
        children: (place, key) of the manifests of an index that are there.
    """

    digest: str
    media_type: str
    artifact_type: str
    body: bytes
    subject_digest: str | None
    config: int | None
    layers: tuple[int, ...]
    children: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagEvent:
    """One move of a tag; None stands for "no manifest"."""

    name: str
    old_digest: str | None
    new_digest: str | None
    actor: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneRow:
    """One backbone in one repository."""

    repository: str
    manifest_id: int
    manifest_digest: str
    manifest_nbytes: int
    facts: BackboneFacts
    n_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRow:
    """One expert of one repository under one of its tags, or under none."""

    repository: str
    tag: str | None
    manifest_digest: str
    backbone_digest: str | None
    facts: ExpertFacts
    pushed_by: str
    pushed_at: int
    yanked_at: int | None
    yank_reason: str | None
