"""Withdraw an expert by a manifest that refers to it, which any registry keeps and every copy takes along."""

from __future__ import annotations

from obm_format.progress import silent
from obm_registry.client.referrers import fallback_tag
from obm_registry.client.store import FoundManifest, ReadFrom, Store, TagRule
from obm_registry.client.transfer import push_blobs
from obm_registry.manifest.oci import (
    EMPTY_BODY,
    EMPTY_TYPE,
    IMAGE_MANIFEST,
    Descriptor,
    OciManifest,
    describe,
    digest_of,
    encode_manifest,
    parse_manifest,
)
from obm_registry.refs import printable

YANK_TYPE = "application/vnd.obm.yank.v1"
YANK_REASON = "io.obm.yank.reason"
MAX_REASON = 500


def is_withdrawn(store: Store, repository: str, digest: str) -> str:
    """Why a manifest was withdrawn; "" when it was not."""
    marks = store.referrers(repository, digest, YANK_TYPE)
    reasons = [printable(mark.annotations.get(YANK_REASON, ""), MAX_REASON) for mark in marks]
    return next(filter(None, reasons), "no reason given") if marks else ""


def withdraw(store: Store, repository: str, found: FoundManifest, *, reason: str, undo: bool) -> None:
    """Mark a manifest as not to be used, or take all such marks away.

    Raises:
        RegistryError: `unsupported` where a registry removes nothing.
    """
    if undo:
        for mark in store.referrers(repository, found.digest, YANK_TYPE):
            store.remove_manifest(repository, mark.digest)
        return
    publish_referrer(store, repository, found, YANK_TYPE, (), {YANK_REASON: reason[:MAX_REASON]} if reason else {})


def publish_referrer(
    store: Store,
    repository: str,
    found: FoundManifest,
    artifact_type: str,
    layers: tuple[tuple[str, bytes], ...],
    annotations: dict[str, str],
) -> str:
    """Publish a small manifest that refers to `found`.

    Args:
        store: where to.
        repository: the repository of both.
        found: what it refers to.
        artifact_type: what it is.
        layers: media type and bytes of each layer; none for a manifest that says all by itself.
        annotations: text by key.

    Returns:
        Its digest.
    """
    empty = describe(EMPTY_BODY, EMPTY_TYPE)
    rows = [(describe(data, media_type), data) for media_type, data in layers] or [(empty, EMPTY_BODY)]
    media_type = parse_manifest(found.body, media_type=found.media_type).media_type
    manifest = OciManifest(
        artifact_type=artifact_type,
        config=empty,
        layers=tuple(row for row, _ in rows),
        subject=Descriptor(media_type=media_type, digest=found.digest, size=len(found.body)),
        annotations=annotations,
    )
    body = encode_manifest(manifest)
    blobs = {row.digest: (row, data) for row, data in [(empty, EMPTY_BODY), *rows]}
    push_blobs(store, repository, [(row, _reader(data)) for row, data in blobs.values()], silent)
    digest = digest_of(body)
    # a tag of its own, so that no client that rewrites an index of referrers can lose it
    own = TagRule(name=f"{fallback_tag(found.digest)[:80]}.{digest.partition(':')[2][:16]}", now=None)
    store.put_manifest(repository, body, IMAGE_MANIFEST, own)
    return digest


def _reader(data: bytes) -> ReadFrom:
    return lambda start: iter([data[start:]])
