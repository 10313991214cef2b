"""The referrers of a manifest on a registry that keeps no list of them: an index under the tag `sha256-<hex>`.

Clients maintain it, several at once and without any lock. What makes that safe: each referrer is tagged before its
writer touches the index, and a writer goes on until the index that it reads back holds every tagged referrer that
there is by then. So whoever writes last has seen all. A referrer without a tag gets one that no list shows. Source:
OCI Distribution v1.1, "Referrers Tag Schema".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from obm_format.errors import RegistryError
from obm_registry.client.http import Patience
from obm_registry.client.store import FoundManifest, TagRule
from obm_registry.manifest.oci import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MAX_MANIFEST_NBYTES,
    Descriptor,
    OciManifest,
    digest_of,
    encode_manifest,
    parse_manifest,
)

MAX_ROUNDS = 20
_FALLBACK = re.compile(r"sha(?:256|512)-[0-9a-f]{32,128}(?:\..*)?")
_THREADS = 8


def is_fallback_tag(tag: str) -> bool:
    """Whether a tag is the index of a manifest's referrers, or names one of them."""
    return _FALLBACK.fullmatch(tag) is not None


def fallback_tag(digest: str) -> str:
    """The tag of the index of the referrers of `digest`."""
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}-{digits}"[:128]


def tag_of_referrer(subject: str, body: bytes) -> str:
    """A tag for a referrer that has none, so that no client that rewrites the index can lose it."""
    return f"{fallback_tag(subject)[:80]}.{digest_of(body).partition(':')[2][:16]}"


def describe_referrer(body: bytes, media_type: str | None) -> Descriptor:
    """What a list of referrers says of a manifest: its type and annotations, so that nobody has to fetch it."""
    manifest = parse_manifest(body, media_type=media_type)
    return Descriptor(
        media_type=manifest.media_type,
        digest=digest_of(body),
        size=len(body),
        artifact_type=manifest.artifact_type,
        annotations=manifest.annotations,
    )


class _Registry(Protocol):
    @property
    def name(self) -> str: ...
    def manifest(self, repository: str, target: str) -> FoundManifest: ...
    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: TagRule | None = None
    ) -> tuple[str, ...]: ...
    def all_tags(self, repository: str) -> list[str]: ...
    def digest_of_tag(self, repository: str, tag: str) -> str | None: ...


@dataclass(slots=True)
class FallbackIndex:
    """Reads and writes the indexes of one registry."""

    registry: _Registry
    patience: Patience

    def read(self, repository: str, subject: str) -> list[Descriptor]:
        """The referrers of `subject`; none where there is no index."""
        found = self._find(repository, subject)
        return list(found[1].values())

    def add(self, repository: str, body: bytes, media_type: str) -> None:
        """List a manifest among the referrers of its subject, whatever others do meanwhile.

        Args:
            repository: where the manifest was published.
            body: the manifest.
            media_type: its type.

        Raises:
            RegistryError: `busy` when others overwrite the index again and again.
        """
        own = describe_referrer(body, media_type)
        subject = parse_manifest(body, media_type=media_type).subject
        if subject is None:
            return
        known: dict[str, Descriptor | None] = {own.digest: own}
        for attempt in range(MAX_ROUNDS):
            now, listed = self._find(repository, subject.digest)
            known |= listed
            wanted = listed | {own.digest: own} | self._tagged(repository, subject.digest, known)
            if wanted == listed:
                return
            try:
                self._write(repository, subject.digest, now, wanted.values())
            except RegistryError as error:
                if error.reason != "tag_exists":  # somebody was faster, on a registry that can tell
                    raise
            if attempt:
                self.patience.wait(min(attempt, 4))
        raise RegistryError(
            "busy",
            "others keep overwriting the list of referrers",
            where=f"{repository}:{fallback_tag(subject.digest)}",
        )

    def drop(self, repository: str, subject: str, digest: str) -> None:
        """Take a manifest that was removed off the list of its subject's referrers."""
        now, listed = self._find(repository, subject)
        if listed.pop(digest, None) is not None:
            self._write(repository, subject, now, listed.values())

    def _find(self, repository: str, subject: str) -> tuple[str | None, dict[str, Descriptor]]:
        """Digest and rows of the index; None and no rows where there is none."""
        try:
            found = self.registry.manifest(repository, fallback_tag(subject))
        except RegistryError as error:
            if error.reason != "not_found":
                raise
            return None, {}
        rows = parse_manifest(found.body, media_type=found.media_type).children
        return found.digest, {row.digest: row for row in rows}

    def _write(self, repository: str, subject: str, now: str | None, rows: Iterable[Descriptor]) -> None:
        children = tuple(sorted(rows, key=lambda row: row.digest))
        body = encode_manifest(OciManifest(media_type=IMAGE_INDEX, children=children))
        if len(body) > MAX_MANIFEST_NBYTES:
            raise RegistryError("limit_exceeded", "too many referrers for one index", where=repository)
        self.registry.put_manifest(repository, body, IMAGE_INDEX, TagRule(name=fallback_tag(subject), now=now))

    def _tagged(self, repository: str, subject: str, known: dict[str, Descriptor | None]) -> dict[str, Descriptor]:
        """Tagged manifests of the repository that refer to `subject`; `known` remembers all that were looked at."""
        tags = [tag for tag in self.registry.all_tags(repository) if tag != fallback_tag(subject)]
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = {d for d in pool.map(lambda tag: self.registry.digest_of_tag(repository, tag), tags) if d}
            new = [digest for digest in digests if digest not in known]
            known |= dict(zip(new, pool.map(lambda d: self._referrer(repository, d, subject), new), strict=True))
        return {digest: row for digest in digests if (row := known.get(digest)) is not None}

    def _referrer(self, repository: str, digest: str, subject: str) -> Descriptor | None:
        found = self.registry.manifest(repository, digest)
        manifest = parse_manifest(found.body, media_type=found.media_type)
        if manifest.media_type != IMAGE_MANIFEST or manifest.subject is None or manifest.subject.digest != subject:
            return None
        return describe_referrer(found.body, found.media_type)
