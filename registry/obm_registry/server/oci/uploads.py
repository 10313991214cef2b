"""Uploads: begin, send in one piece or many, ask how far, finish, give up; or take a blob from another repository."""

from __future__ import annotations

import asyncio
import contextlib
import re

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from obm_format.errors import ObmError, RegistryError
from obm_registry.catalog.rows import Blob, Upload
from obm_registry.refs import is_repository, parse_digest, printable
from obm_registry.server.credentials import allows, authorize, can_pull_everything
from obm_registry.server.guard import Stalled
from obm_registry.server.replies import in_thread, server_of
from obm_registry.server.settings import SEND_NBYTES
from obm_registry.service import blobs, uploads
from obm_registry.service.access import PULL, PUSH, Caller

_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?")


async def begin(request: Request) -> Response:
    """`POST /v2/{name}/blobs/uploads/`, with `mount`, `digest` or neither."""
    name, query = request.path_params["name"], request.query_params
    source = query.get("from", "") if "mount" in query else ""
    also = f"repository:{source}:pull" if is_repository(source) else ""
    caller = await authorize(request, PUSH, name, also=also)
    registry = server_of(request).registry
    if "mount" in query and await _mount(request, caller):
        return _made(name, query["mount"])
    digest = parse_digest(query["digest"]) if "digest" in query and "mount" not in query else None
    algorithm = digest.partition(":")[0] if digest else query.get("digest-algorithm", uploads.DEFAULT_ALGORITHM)
    upload = await in_thread(uploads.begin_upload, registry, name, algorithm=algorithm)
    if digest is None:
        return _progress(202, name, upload.session, 0)
    try:
        await _receive(request, upload)
        blob = await in_thread(uploads.finish_upload, registry, name, upload.session, digest)
    except BaseException:
        # nobody has been told the name of this upload, so nobody can go on with it
        with anyio.CancelScope(shield=True), contextlib.suppress(ObmError):
            await in_thread(uploads.cancel_upload, registry, name, upload.session)
        raise
    return _made(name, blob.digest)


async def _mount(request: Request, caller: Caller) -> bool:
    """Link a blob that the caller may read elsewhere; False, without a reason, when that cannot be."""
    name, query = request.path_params["name"], request.query_params
    digest, source = parse_digest(query["mount"]), query.get("from")
    server = server_of(request)
    if source is None:
        allowed = can_pull_everything(caller)
    else:
        allowed = is_repository(source) and await in_thread(allows, server, caller, PULL, source)
    return allowed and await in_thread(blobs.mount_blob, server.registry, name, digest, source)


async def status(request: Request) -> Response:
    """`GET /v2/{name}/blobs/uploads/{session}`."""
    name, upload = await _find(request)
    return _progress(204, name, upload.session, upload.received)


async def cancel(request: Request) -> Response:
    """`DELETE /v2/{name}/blobs/uploads/{session}`."""
    name, upload = await _find(request)
    await in_thread(uploads.cancel_upload, server_of(request).registry, name, upload.session)
    return Response(status_code=204)


async def append(request: Request) -> Response:
    """`PATCH /v2/{name}/blobs/uploads/{session}`: the next bytes."""
    name, upload = await _find(request)
    refusal = _out_of_order(request, name, upload)
    if refusal is not None:
        return refusal
    received = await _receive(request, upload)
    return _progress(202, name, upload.session, received)


async def finish(request: Request) -> Response:
    """`PUT /v2/{name}/blobs/uploads/{session}?digest=`: the last bytes, if any, and the name of the whole."""
    name, upload = await _find(request)
    digest = parse_digest(request.query_params.get("digest", ""))
    refusal = _out_of_order(request, name, upload)
    if refusal is not None:
        return refusal
    if request.headers.get("content-length", "") != "0":
        await _receive(request, upload)
    blob: Blob = await in_thread(uploads.finish_upload, server_of(request).registry, name, upload.session, digest)
    return _made(name, blob.digest)


async def _find(request: Request) -> tuple[str, Upload]:
    name, session = request.path_params["name"], request.path_params["session"]
    await authorize(request, PUSH, name)
    try:
        return name, await in_thread(uploads.find_upload, server_of(request).registry, name, session)
    except RegistryError as error:
        if error.reason != "not_found":
            raise
        raise RegistryError("upload_unknown", "there is no such upload", where=printable(session)) from error


def _out_of_order(request: Request, name: str, upload: Upload) -> Response | None:
    """The refusal of bytes that do not follow what has arrived; where the next ones begin stands in it."""
    header = request.headers.get("content-range")
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    length = request.headers.get("content-length", "")
    if match is not None and int(match[1]) == upload.received:
        span = int(match[2]) - int(match[1]) + 1
        if span > 0 and (not length or int(length) == span):
            return None
    return _progress(416, name, upload.session, upload.received)


async def _receive(request: Request, upload: Upload) -> int:
    """Store the body of a request; the number of bytes that the upload has now.

    What has arrived is kept when the sender breaks off.

    Raises:
        RegistryError: as `uploads.Receiver`; `bad_range` when fewer bytes came than were announced.
    """
    server = server_of(request)
    receiver = uploads.Receiver(server.registry, upload, max_nbytes=server.ceilings.blob_nbytes)
    await in_thread(receiver.__enter__)
    writer = _Writer(receiver)
    try:
        try:
            async for chunk in request.stream():
                await writer.take(chunk)
        except (ClientDisconnect, Stalled):
            await writer.flush()
            raise
        await writer.flush()
    finally:
        with anyio.CancelScope(shield=True):
            await writer.settle()
            await in_thread(receiver.__exit__, None, None, None)
    return receiver.received


class _Writer:
    """Hands a body to a thread in batches of `SEND_NBYTES`, and gathers the next while one is hashed and written."""

    def __init__(self, receiver: uploads.Receiver) -> None:
        self._receiver = receiver
        self._gathered: list[bytes] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None

    async def take(self, chunk: bytes) -> None:
        """Take some bytes; waits for the disk when two batches are on the way."""
        self._gathered.append(chunk)
        self._size += len(chunk)
        if self._size >= SEND_NBYTES:
            await self._write()

    async def flush(self) -> None:
        """Write what is left, and wait for it."""
        await self._write()
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        if self._writing is not None:
            await self._writing
        data, self._gathered, self._size = b"".join(self._gathered), [], 0
        self._writing = asyncio.create_task(in_thread(self._receiver.write, data))

    async def settle(self) -> None:
        """Wait until no thread writes any more, however that ends."""
        if self._writing is not None:
            await asyncio.wait([self._writing])


def _progress(status_code: int, name: str, session: str, received: int) -> Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{session}",
        "Range": f"0-{max(received - 1, 0)}",
        "Docker-Upload-UUID": session,
        "Content-Length": "0",
    }
    if status_code == 204:
        del headers["Content-Length"]
    return Response(status_code=status_code, headers=headers)


def _made(name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(status_code=201, headers=headers)
