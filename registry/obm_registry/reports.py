"""What the registry tells its callers: plain records whose fields are those of the JSON output.

The same whatever kind of registry answers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a push or a pull moved.

    Args:
        ref: the reference, with its tag.
        manifest_digest: digest of the manifest.
        id: artifact id.
        sent_bytes: bytes of blobs that the registry took in.
        received_bytes: bytes of blobs that it gave out.
        reused_bytes: bytes that it had already.
        seconds: how long it took.
        warnings: what somebody should know, for instance that the expert was withdrawn.
    """

    ref: str
    manifest_digest: str
    id: str
    sent_bytes: int
    received_bytes: int
    reused_bytes: int
    seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedExpert:
    """One expert of the registry, as its own header tells it; `yanked` is why it was withdrawn, or None."""

    ref: str
    id: str
    manifest_digest: str
    kind: str
    task: str
    position: str
    nbytes: int
    n_tensors: int
    encodings: dict[str, int]
    alpha_min: float | None
    alpha_mean: float | None
    alpha_max: float | None
    fingerprint: str
    pushed_by: str
    pushed_at: str
    yanked: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTensor:
    """One tensor of a backbone."""

    name: str
    dtype: str
    shape: list[int]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBackbone:
    """One backbone of the registry.

    `tensors` only where a single backbone was asked for; `weights_digest` is that of the manifest of its weights, None
    where they are not there.
    """

    ref: str
    fingerprint: str
    manifest_digest: str
    architecture: str
    n_tensors: int
    n_params: int
    n_experts: int
    weights_digest: str | None
    tensors: tuple[ListedTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledBackbone:
    """The weights of a backbone that were written to a folder.

    Args:
        ref: the repository.
        fingerprint: content fingerprint, which the folder has.
        manifest_digest: digest of the backbone's manifest.
        weights_digest: digest of the manifest of its weights.
        n_tensors: number of tensors.
        received_bytes: bytes of blobs that the registry gave out.
        reused_bytes: bytes that an earlier, broken off pull had left.
        seconds: how long it took.
    """

    ref: str
    fingerprint: str
    manifest_digest: str
    weights_digest: str
    n_tensors: int
    received_bytes: int
    reused_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference stands for: the manifest, and the artifact id of the expert."""

    ref: str
    manifest_digest: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A reference, and the manifest that it names (or named)."""

    ref: str
    manifest_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One move of a tag; `at` is ISO 8601, UTC."""

    tag: str
    old_digest: str | None
    new_digest: str | None
    actor: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport:
    """What `fsck` looked at, and one line per problem."""

    blobs: int
    nbytes: int
    manifests: int
    problems: tuple[str, ...]
