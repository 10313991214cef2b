"""Send one blob: in chunks that can go on where they stopped, whole where a registry takes no chunks.

Always goes on at the last `Location`, and asks the registry how far it is rather than believe its own count.
Source: OCI Distribution v1.1, "Pushing blobs".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from obm_format.errors import ObmError, RegistryError
from obm_format.limits import MIB
from obm_registry.client.http import Reply, Request, Session
from obm_registry.client.journal import Journal, Unfinished
from obm_registry.client.origin import follow, shown
from obm_registry.client.refusals import refusal
from obm_registry.client.store import ReadFrom
from obm_registry.manifest.oci import Descriptor

CHUNK_NBYTES = 8 * MIB
LEAST_MOUNTED = 4096  # smaller blobs are sent: a note costs as much
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_NO_CHUNKS = (400, 404, 405, 411, 501)
# a server that has not yet noticed that an earlier connection broke says that the upload is somebody else's (`busy`),
# and then that it went on meanwhile (`upload_unknown`)
_TRIED_AGAIN = ("network", "bad_manifest", "not_found", "busy", "upload_unknown")


@dataclass(slots=True)
class _Upload:
    """One upload under way: where it goes on, how much the registry has, the least size of a chunk."""

    location: httpx.URL
    offset: int
    least: int = 0


class Uploads:
    """Sends blobs to one registry.

    Args:
        session: connections.
        journal: where unfinished uploads are noted.
    """

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session = session
        self._journal = journal
        self._origin = str(session.origin)

    def send(self, repository: str, blob: Descriptor, read: ReadFrom) -> int:
        """Send a blob, unless another repository of the registry got it lately and this one may have it from there.

        Args:
            repository: where to.
            blob: digest and size.
            read: gives its bytes from an offset on.

        Returns:
            The number of bytes that went out for it; 0 when it was mounted.

        Raises:
            RegistryError: `network`, and what the registry refuses.
        """
        upload = self._resume(repository, blob)
        if upload is None:
            upload = self._begin_or_mount(repository, blob)
            if upload is None:
                return 0
        sent = self._send_all(repository, blob, read, upload)
        self._journal.drop(self._origin, repository, blob.digest)
        if blob.size >= LEAST_MOUNTED:
            self._journal.learn(self._origin, blob.digest, repository)
        return sent

    def _send_all(self, repository: str, blob: Descriptor, read: ReadFrom, upload: _Upload) -> int:
        """Chunks until all is there, then the end; what fails goes on from where the registry is."""
        sent, failures = 0, 0
        while True:
            before = upload.offset
            try:
                if upload.offset == 0 and blob.size <= max(CHUNK_NBYTES, upload.least):
                    return sent + self._whole(repository, blob, read, upload)
                self._note(repository, blob, upload)
                while upload.offset < blob.size:
                    sent += self._chunk(repository, blob, read, upload)
                    failures = 0
                    self._note(repository, blob, upload)
                self._end(repository, blob, upload)
                return sent
            except _NoChunksError:
                return sent + self._whole(repository, blob, read, self._fresh(repository, blob))
            except RegistryError as error:
                failures += 1
                if error.reason not in _TRIED_AGAIN or failures >= self._session.patience.attempts:
                    raise
                self._session.patience.wait(failures - 1)
                if self._is_there(repository, blob):
                    return sent + blob.size - before  # only the reply was lost
                found = self._status(repository, upload.location)
                # part of a chunk may have arrived, and what the registry lost has to go again
                upload = found if found is not None else self._fresh(repository, blob)
                sent += max(0, upload.offset - before)

    # --- the steps ------------------------------------------------------------------------------------------

    def _resume(self, repository: str, blob: Descriptor) -> _Upload | None:
        note = self._journal.get(self._origin, repository, blob.digest)
        if note is None:
            return None
        try:
            # the address was written by an earlier run; it must still be one that a reply could name
            found = self._status(repository, follow(self._session.origin.url("/v2/"), note.location))
        except ObmError:
            found = None
        if found is None or not 0 < found.offset <= blob.size:
            self._journal.drop(self._origin, repository, blob.digest)
            return None
        return found

    def _fresh(self, repository: str, blob: Descriptor) -> _Upload:
        self._journal.drop(self._origin, repository, blob.digest)
        upload = self._begin(repository, blob, None)
        if upload is None:
            raise RegistryError("network", "the registry mounts what nobody asked it to", where=repository)
        return upload

    def _begin_or_mount(self, repository: str, blob: Descriptor) -> _Upload | None:
        known = self._journal.whereabouts(self._origin, blob.digest)
        if known is None or known == repository:
            return self._begin(repository, blob, None)
        try:
            return self._begin(repository, blob, known)
        except RegistryError as error:
            if error.reason == "network":
                raise
            return self._begin(repository, blob, None)  # whoever may write here may not read there

    def _begin(self, repository: str, blob: Descriptor, mount: str | None) -> _Upload | None:
        """Start an upload; None when the blob was mounted instead."""
        query, scopes = "", self._scopes(repository)
        if mount is not None:
            query = "?" + str(httpx.QueryParams({"mount": blob.digest, "from": mount}))
            scopes = (*scopes, f"repository:{mount}:pull")
        url = self._session.origin.url(f"/v2/{repository}/blobs/uploads/{query}")
        reply = self._session.exchange(
            Request(method="POST", url=url, headers={"Content-Length": "0"}, scopes=scopes),
            expect=(201, 202) if mount is not None else (202,),
        )
        if reply.status == 201:
            return None
        least = reply.headers.get("OCI-Chunk-Min-Length", "0")
        return _Upload(_location(reply), 0, int(least) if least.isdigit() and len(least) < 12 else 0)

    def _whole(self, repository: str, blob: Descriptor, read: ReadFrom, upload: _Upload) -> int:
        """The blob in one PUT."""
        request = Request(
            method="PUT",
            url=_with_digest(upload.location, blob.digest),
            headers={"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"},
            body=lambda: read(0),
            scopes=self._scopes(repository),
        )
        self._session.exchange(request, expect=(201, 204), retry=False)
        return blob.size

    def _chunk(self, repository: str, blob: Descriptor, read: ReadFrom, upload: _Upload) -> int:
        start, stop = upload.offset, min(blob.size, upload.offset + max(CHUNK_NBYTES, upload.least))
        request = Request(
            method="PATCH",
            url=upload.location,
            headers={
                "Content-Length": str(stop - start),
                "Content-Range": f"{start}-{stop - 1}",
                "Content-Type": "application/octet-stream",
            },
            body=lambda: _piece(read(start), stop - start),
            scopes=self._scopes(repository),
        )
        reply = self._session.exchange(request, expect=(200, 201, 202, 204, 416, *_NO_CHUNKS), retry=False)
        if reply.status in _NO_CHUNKS and start == 0:
            raise _NoChunksError
        if reply.status >= 400:
            reason = "network" if reply.status == 416 else refusal(reply.status, reply.body, "").reason
            raise RegistryError(reason, "the registry takes no chunk there", where=shown(upload.location))
        upload.location, upload.offset = _location(reply), stop
        return stop - start

    def _end(self, repository: str, blob: Descriptor, upload: _Upload) -> None:
        url = _with_digest(upload.location, blob.digest)
        request = Request(method="PUT", url=url, headers={"Content-Length": "0"}, scopes=self._scopes(repository))
        self._session.exchange(request, expect=(201, 204), retry=False)

    def _status(self, repository: str, location: httpx.URL) -> _Upload | None:
        """How far an upload is; None when the registry does not know it any more."""
        request = Request(method="GET", url=location, scopes=self._scopes(repository))
        try:
            reply = self._session.exchange(request, expect=(200, 202, 204))
        except RegistryError as error:
            if error.reason in ("network", "denied"):
                raise
            return None
        match = _RANGE.fullmatch(reply.headers.get("Range", ""))
        last = int(match[1]) if match else 0
        # `0-0` is said of an empty upload too, and one byte more or less is no matter
        return _Upload(_location(reply) if "Location" in reply.headers else location, last + 1 if last else 0)

    def _is_there(self, repository: str, blob: Descriptor) -> bool:
        url = self._session.origin.url(f"/v2/{repository}/blobs/{blob.digest}")
        request = Request(method="HEAD", url=url, scopes=self._scopes(repository))
        return self._session.exchange(request, expect=(200, 404)).status == 200

    def _note(self, repository: str, blob: Descriptor, upload: _Upload) -> None:
        note = Unfinished(location=str(upload.location), offset=upload.offset)
        self._journal.put(self._origin, repository, blob.digest, note)

    def _scopes(self, repository: str) -> tuple[str, ...]:
        return (f"repository:{repository}:pull,push",)


class _NoChunksError(Exception):
    """The registry refused the first chunk: it wants the blob whole."""


def _location(reply: Reply) -> httpx.URL:
    text = reply.headers.get("Location", "")
    if not text:
        raise RegistryError("network", "the registry does not say where an upload goes on", where=shown(reply.url))
    return follow(reply.url, text)


def _with_digest(location: httpx.URL, digest: str) -> httpx.URL:
    return location.copy_merge_params({"digest": digest})


def _piece(chunks: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    """The first `nbytes` bytes of chunks."""
    for chunk in chunks:
        yield chunk[:nbytes]
        nbytes -= len(chunk)
        if nbytes <= 0:
            return
