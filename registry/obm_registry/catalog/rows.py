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
        visibility: `public` or `private`: whether who has no token may pull, where a server lets such callers
            in at all.
    """

    id: int
    name: str
    quota_nbytes: int | None
    subject_policy: str
    immutable_tags: tuple[str, ...]
    visibility: str


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
class Upload:
    """An upload that goes on over several calls.

    Args:
        session: its random name.
        repo_id: the repository that it is for.
        storage_key: where the blob store keeps what has arrived.
        algorithm: hash that the caller said it would use, for a head start only.
        received: bytes that have arrived and are durable.
    """

    session: str
    repo_id: int
    storage_key: str
    algorithm: str
    received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody who may hold tokens; `roles` by namespace, "*" for all namespaces."""

    id: int
    name: str
    roles: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as it is kept: the SHA-256 of its secret, never the secret.

    Args:
        public_id: the part of a token that may be shown.
        principal: whose it is.
        secret_sha256: 64 hexadecimal digits.
        scopes: what it is good for, of what its owner may do; empty for everything.
        created_at: when it was made.
        expires_at: when it ends, or None.
        revoked_at: when it was revoked, or None.
    """

    public_id: str
    principal: str
    secret_sha256: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One line of the audit log.

    Args:
        id: key in the catalog; grows with time.
        at: when.
        actor: who.
        action: what was done, one word.
        subject: to what: a repository, a reference, a namespace, a token.
        detail: further facts, "" for none.
        previous: hash of the line before, "" for the first.
        hash: SHA-256 over all fields above but the id.
    """

    id: int
    at: int
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str


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
    """One backbone in one repository; `weights_digest` is that of the manifest of its weights, None without."""

    repository: str
    manifest_id: int
    manifest_digest: str
    manifest_nbytes: int
    facts: BackboneFacts
    n_experts: int
    weights_digest: str | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundExpert:
    """One expert with everything that is listed of it.

    Args:
        manifest_id: key in the catalog; grows with time.
        repository: where it is.
        tags: the tags that name it, in order.
        manifest_digest: digest of its manifest.
        backbone_digest: digest of the manifest of its backbone, None where the policy let it in without.
        backbone_params: elements of that backbone, or None.
        facts: what its own header tells.
        pushed_by: who pushed it.
        pushed_at: when.
        yanked_at: since when nobody should use it any more, or None.
        yank_reason: why.
    """

    manifest_id: int
    repository: str
    tags: tuple[str, ...]
    manifest_digest: str
    backbone_digest: str | None
    backbone_params: int | None
    facts: ExpertFacts
    pushed_by: str
    pushed_at: int
    yanked_at: int | None
    yank_reason: str | None

    @property
    def bits(self) -> float | None:
        """Bits of the file for each element of the backbone."""
        return 8 * self.facts.nbytes / self.backbone_params if self.backbone_params else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFilter:
    """Which experts are wanted; None and "" leave a field open.

    Args:
        fingerprint: of their backbone.
        repository: where they are.
        manifest_digest: digest of the manifest.
        task: exactly this task.
        position: exactly this position.
        encoding: at least one tensor has this encoding.
        text: stands in repository, task, position, or a tag.
        yanked: withdrawn ones, good ones, or both with None.
    """

    fingerprint: str = ""
    repository: str = ""
    manifest_digest: str = ""
    task: str = ""
    position: str = ""
    encoding: str = ""
    text: str = ""
    yanked: bool | None = None
