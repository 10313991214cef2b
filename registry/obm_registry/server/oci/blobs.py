"""Blobs: give them out whole or in part, tell whether they are there, take them from a repository."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Blob
from obm_registry.refs import parse_digest
from obm_registry.server.credentials import authorize
from obm_registry.server.replies import error_reply, in_thread, server_of
from obm_registry.server.settings import is_loopback
from obm_registry.service import blobs
from obm_registry.service.access import DELETE, PULL

LINK_S = 300
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def read_blob(request: Request) -> Response:
    """`GET` and `HEAD /v2/{name}/blobs/{digest}`."""
    name, digest = request.path_params["name"], request.path_params["digest"]
    await authorize(request, PULL, name)
    server = server_of(request)
    blob = await in_thread(blobs.find_blob, server.registry, name, parse_digest(digest))
    headers = {
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",
    }
    if request.method == "HEAD":
        # whoever asks may be about to name the blob in a manifest, so no collection shall take it meanwhile
        if not await in_thread(blobs.offer_blob, server.registry, name, digest):
            raise blobs.unknown_blob(name, digest)
        return Response(headers={**headers, "Content-Length": str(blob.size)})
    try:
        wanted = parse_range(_asked_range(request, headers["ETag"]), blob.size)
    except RegistryError as error:
        return error_reply(error, headers={"Content-Range": f"bytes */{blob.size}"})
    link = await in_thread(server.registry.blobs.link, blob.storage_key, LINK_S)
    if link is not None and _can_be_followed(request, link):
        # whoever follows asks the bucket for the same range
        return Response(
            status_code=307, headers={"Location": link, "Cache-Control": "no-store", "Docker-Content-Digest": digest}
        )
    await in_thread(blobs.require_whole, server.registry, blob)  # a status cannot be taken back
    if wanted is None:
        path = server.registry.blobs.local_path(blob.storage_key)
        if path is not None and "http.response.pathsend" in request.scope.get("extensions", {}):
            return _WholeFile(str(path), {**headers, "Content-Length": str(blob.size)})
        return _stream(request, blob, 0, blob.size, 200, headers)
    start, stop = wanted
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return _stream(request, blob, start, stop, 206, headers)


def _can_be_followed(request: Request, link: str) -> bool:
    """Whether an address leads the caller anywhere: not over plain HTTP, but for who is on this machine too."""
    target = urlsplit(link)
    return target.scheme == "https" or (is_loopback(target.hostname or "") and is_loopback(request.url.hostname or ""))


def _stream(
    request: Request, blob: Blob, start: int, stop: int, status: int, headers: dict[str, str]
) -> StreamingResponse:
    chunks = server_of(request).registry.blobs.read(blob.storage_key, start, stop)
    return StreamingResponse(_threaded(chunks), status, {**headers, "Content-Length": str(stop - start)})


async def _threaded(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await in_thread(next, chunks, b""):
        yield chunk


class _WholeFile(Response):
    """A file that the HTTP server sends by itself."""

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        super().__init__(headers=headers)
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send status and header fields, then leave the rest to the HTTP server."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.pathsend", "path": self._path})


def _asked_range(request: Request, etag: str) -> str | None:
    """The Range header field, unless the caller wants it kept only for a blob that this one is not."""
    return request.headers.get("range") if request.headers.get("if-range", etag) == etag else None


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that a Range header asks for; None for all of them.

    Several ranges and unknown units are answered with everything, as RFC 9110 allows.

    Raises:
        RegistryError: `bad_range` when the blob has none of these bytes.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise RegistryError("bad_range", "the blob has no such bytes", expected=f"within {size} bytes", got=match[0])
    return start, stop


async def delete_blob(request: Request) -> Response:
    """`DELETE /v2/{name}/blobs/{digest}`."""
    name, digest = request.path_params["name"], request.path_params["digest"]
    caller = await authorize(request, DELETE, name)
    await in_thread(blobs.remove_blob, server_of(request).registry, name, parse_digest(digest), actor=caller.name)
    return Response(status_code=202)
