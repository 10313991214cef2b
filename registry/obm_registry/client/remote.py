"""A registry behind HTTP: the endpoints of OCI Distribution v1.1 that the client uses.

Never trusts a reply: manifests must hash to their digest, pages are bounded and lead nowhere else, a blob has
the size that was asked for. Source: OCI Distribution v1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx

from obm_format.errors import RegistryError
from obm_registry.client.http import Reply, Request, Session
from obm_registry.client.journal import Journal
from obm_registry.client.origin import follow, origin_of, shown
from obm_registry.client.referrers import FallbackIndex, is_fallback_tag, tag_of_referrer
from obm_registry.client.store import FoundManifest, ReadFrom, TagRule
from obm_registry.client.upload import Uploads
from obm_registry.manifest.oci import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MAX_MANIFEST_NBYTES,
    Descriptor,
    digest_of,
    parse_manifest,
)
from obm_registry.manifest.strictjson import parse_json
from obm_registry.refs import is_digest, is_repository, is_tag, printable

MAX_PAGES = 1000
MAX_PAGE_NBYTES = 4 << 20
_PAGE = 1000
_ACCEPT = ", ".join((IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
_NEXT = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')
_WARNING = re.compile(r'299 \S{1,255} "((?:[^"\\]|\\.)*)"')


class RemoteStore:
    """A `Store` behind HTTP.

    Args:
        session: connections; closed with the store.
        journal: where unfinished uploads are noted.
    """

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session = session
        self._uploads = Uploads(session, journal)
        self._fallback = FallbackIndex(self, session.patience)

    @property
    def name(self) -> str:
        """See `Store.name`."""
        return self._session.origin.authority

    def close(self) -> None:
        """See `Store.close`."""
        self._session.close()

    # --- manifests ------------------------------------------------------------------------------------------

    def manifest(self, repository: str, target: str) -> FoundManifest:
        """See `Store.manifest`."""
        request = self._request("GET", repository, f"manifests/{target}", headers={"Accept": _ACCEPT})
        reply = self._session.exchange(request, expect=(200, 404), max_nbytes=MAX_MANIFEST_NBYTES)
        mark = "@" if is_digest(target) else ":"
        where = f"{self.name}/{repository}{mark}{target}"
        if reply.status == 404:
            hint = f"`obm ls {self.name}/{repository}` lists what there is"
            raise RegistryError("not_found", "there is no such manifest", where=where, hint=hint)
        promised = reply.headers.get("Docker-Content-Digest", "")
        asked = target if is_digest(target) else promised if is_digest(promised) else None
        own = digest_of(reply.body, asked.partition(":")[0] if asked else "sha256")
        if asked is not None and own != asked:
            raise RegistryError(
                "blob_digest",
                "the registry gives another manifest than its digest says",
                where=where,
                expected=asked,
                got=own,
                hint="do not use it; tell whoever runs the registry",
            )
        media_type = reply.headers.get("Content-Type", "").partition(";")[0].strip() or None
        return FoundManifest(body=reply.body, media_type=media_type, digest=own, warnings=_warnings(reply))

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: TagRule | None = None
    ) -> tuple[str, ...]:
        """See `Store.put_manifest`; a stock registry does not hold the rule, and the last one wins there."""
        reply = self._put(repository, body, media_type, tag)
        subject = parse_manifest(body, media_type=media_type).subject
        if subject is not None and "OCI-Subject" not in reply.headers:
            if tag is None:
                self._put(repository, body, media_type, TagRule(name=tag_of_referrer(subject.digest, body), now=None))
            self._fallback.add(repository, body, media_type)
        return _warnings(reply)

    def _put(self, repository: str, body: bytes, media_type: str, tag: TagRule | None) -> Reply:
        digest, headers = digest_of(body), {"Content-Type": media_type}
        if tag is not None:
            headers |= {"If-None-Match": "*"} if tag.now is None else {"If-Match": f'"{tag.now}"'}
        request = self._request(
            "PUT", repository, f"manifests/{tag.name if tag else digest}", headers=headers, body=body, write=True
        )
        reply = self._session.exchange(request, expect=(200, 201))
        promised = reply.headers.get("Docker-Content-Digest", digest)
        if promised != digest:
            raise RegistryError(
                "blob_digest",
                "the registry stored another manifest",
                where=repository,
                expected=digest,
                got=printable(promised),
            )
        return reply

    def digest_of_tag(self, repository: str, tag: str) -> str | None:
        """The digest that a tag names, without its body where the registry tells it; None when there is none."""
        request = self._request("HEAD", repository, f"manifests/{tag}", headers={"Accept": _ACCEPT})
        reply = self._session.exchange(request, expect=(200, 404))
        if reply.status == 404:
            return None
        promised = reply.headers.get("Docker-Content-Digest", "")
        return promised if is_digest(promised) else self.manifest(repository, tag).digest

    def remove_tag(self, repository: str, tag: str) -> None:
        """See `Store.remove_tag`.

        Raises:
            RegistryError: `unsupported` where tags cannot be removed alone.
        """
        request = self._request("DELETE", repository, f"manifests/{tag}", delete=True)
        # docker-registry 2.8 takes the tag for a malformed digest
        reply = self._session.exchange(request, expect=(200, 202, 400, 404, 405))
        if reply.status >= 400:
            raise RegistryError(
                "unsupported",
                "this registry does not remove a tag alone",
                where=f"{self.name}/{repository}:{tag}",
                hint="remove the manifest by its digest, which takes all its tags along",
            )

    def remove_manifest(self, repository: str, digest: str) -> None:
        """See `Store.remove_manifest`."""
        found = self.manifest(repository, digest)
        request = self._request("DELETE", repository, f"manifests/{digest}", delete=True)
        self._session.exchange(request, expect=(200, 202))
        subject = parse_manifest(found.body, media_type=found.media_type).subject
        if subject is not None and self._referrers_page(repository, subject.digest, "") is None:
            self._fallback.drop(repository, subject.digest, digest)

    # --- blobs ----------------------------------------------------------------------------------------------

    def has_blob(self, repository: str, digest: str) -> bool:
        """See `Store.has_blob`."""
        reply = self._session.exchange(self._request("HEAD", repository, f"blobs/{digest}"), expect=(200, 404))
        return reply.status == 200

    def put_blob(self, repository: str, blob: Descriptor, read: ReadFrom) -> int:
        """See `Store.put_blob`."""
        return self._uploads.send(repository, blob, read)

    def read_blob(self, repository: str, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """See `Store.read_blob`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = self._request("GET", repository, f"blobs/{blob.digest}", headers=headers)
        with self._session.stream(request) as response:
            if response.status_code not in (200, 206):
                raise self._session.refused(response)
            at = _first_byte(response) if response.status_code == 206 else 0
            if at > start:
                raise RegistryError("network", "the registry gives another range", where=shown(response.url))
            for chunk in response.iter_raw():  # as it arrives: what is held back is lost with the connection
                skip, at = max(0, start - at), at + len(chunk)
                if at > blob.size:
                    raise RegistryError(
                        "network", "the blob does not end", where=blob.digest, expected=f"{blob.size} bytes"
                    )
                if skip < len(chunk):
                    yield chunk[skip:]
            if at < blob.size:
                raise RegistryError(
                    "network",
                    "the blob ends early",
                    where=blob.digest,
                    expected=f"{blob.size} bytes",
                    got=f"{at} bytes",
                )

    # --- lists ----------------------------------------------------------------------------------------------

    def repositories(self) -> list[str]:
        """See `Store.repositories`.

        Raises:
            RegistryError: `unsupported` or `denied` where the registry does not list them.
        """
        request = Request(
            method="GET", url=self._session.origin.url(f"/v2/_catalog?n={_PAGE}"), scopes=("registry:catalog:*",)
        )
        found: set[str] = set()
        for page in self._pages(request, missing=()):
            found.update(_texts(page, "repositories"))
        return sorted(name for name in found if is_repository(name))

    def tags(self, repository: str) -> list[str]:
        """See `Store.tags`."""
        return [tag for tag in self.all_tags(repository) if not is_fallback_tag(tag)]

    def all_tags(self, repository: str) -> list[str]:
        """Every tag of a repository."""
        found: set[str] = set()
        for page in self._pages(self._request("GET", repository, f"tags/list?n={_PAGE}"), missing=(404,)):
            found.update(_texts(page, "tags"))
        return sorted(name for name in found if is_tag(name))

    def referrers(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor]:
        """See `Store.referrers`; from the fallback tag where the registry has no such list."""
        found = self._referrers_page(repository, digest, artifact_type)
        rows = self._fallback.read(repository, digest) if found is None else found
        return [row for row in rows if row.artifact_type == artifact_type]

    def _referrers_page(self, repository: str, digest: str, artifact_type: str) -> list[Descriptor] | None:
        """What the referrers API says; None where there is none."""
        query = str(httpx.QueryParams({"artifactType": artifact_type})) if artifact_type else ""
        request = self._request("GET", repository, f"referrers/{digest}?{query}", headers={"Accept": IMAGE_INDEX})
        rows: dict[str, Descriptor] = {}
        for page in self._pages(request, missing=(404, 405)):
            if page is None:
                return None
            rows |= {row.digest: row for row in parse_manifest(page, media_type=IMAGE_INDEX).children}
        return list(rows.values())

    def _pages(self, request: Request, missing: tuple[int, ...]) -> Iterator[bytes | None]:
        """The bodies of a list's pages; None when the first has one of the `missing` statuses.

        Raises:
            RegistryError: `network` when pages lead to another server, in a circle, or to no end.
        """
        seen = set()
        for i in range(MAX_PAGES):
            seen.add(str(request.url))
            reply = self._session.exchange(
                request, expect=(200, *missing) if i == 0 else (200,), max_nbytes=MAX_PAGE_NBYTES
            )
            if reply.status != 200:
                yield None
                return
            yield reply.body
            link = _NEXT.search(reply.headers.get("Link", ""))
            if link is None:
                return
            url = follow(request.url, link[1])
            if origin_of(url) != self._session.origin or str(url) in seen:
                raise RegistryError("network", "the pages of a list lead nowhere", where=shown(request.url))
            request = Request(method="GET", url=url, headers=request.headers, scopes=request.scopes)
        raise RegistryError("network", "a list does not end", where=shown(request.url), expected=f"{MAX_PAGES} pages")

    def _request(
        self,
        method: str,
        repository: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        write: bool = False,
        delete: bool = False,
    ) -> Request:
        actions = "pull,push" if write else "delete" if delete else "pull"
        return Request(
            method=method,
            url=self._session.origin.url(f"/v2/{repository}/{path}"),
            headers=headers or {},
            body=body,
            scopes=(f"repository:{repository}:{actions}",),
        )


def _texts(page: bytes | None, key: str) -> list[str]:
    if page is None:
        return []
    document = parse_json(page, max_nbytes=MAX_PAGE_NBYTES, where=key)
    rows = document.get(key) if isinstance(document, dict) else None
    return [row for row in rows if isinstance(row, str)] if isinstance(rows, list) else []


def _warnings(reply: Reply) -> tuple[str, ...]:
    found = _WARNING.finditer(reply.headers.get("Warning", "")[:4096])
    return tuple(printable(re.sub(r"\\(.)", r"\1", match[1]), 500) for match in found)


def _first_byte(response: httpx.Response) -> int:
    match = re.match(r"bytes (\d{1,19})-", response.headers.get("Content-Range", ""))
    if match is None:
        raise RegistryError("network", "the registry gives no range", where=shown(response.url))
    return int(match[1])
