"""Manifests: publish, give out, remove; by tag or by digest."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Manifest
from obm_registry.manifest.oci import MAX_MANIFEST_NBYTES
from obm_registry.refs import is_digest, is_tag, parse_digest, parse_tag, printable
from obm_registry.server.credentials import allows, authorize
from obm_registry.server.replies import in_thread, server_of
from obm_registry.service import lookup, publish, tags
from obm_registry.service.access import DELETE, MOVE, PULL, PUSH, Caller

MAX_TAGS = 50


async def read(request: Request) -> Response:
    """`GET` and `HEAD /v2/{name}/manifests/{reference}`."""
    name, reference = request.path_params["name"], _reference(request)
    await authorize(request, PULL, name)
    found = await in_thread(lookup.find_manifest, server_of(request).registry, name, reference)
    headers = _headers(found)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(len(found.body))})
    return Response(found.body, headers=headers)


def _headers(found: Manifest) -> dict[str, str]:
    headers = {
        "Content-Type": found.media_type,
        "Docker-Content-Digest": found.digest,
        "ETag": f'"{found.digest}"',
        "Cache-Control": "private, no-cache",
    }
    if found.yanked_at is not None:
        reason = printable(found.yank_reason or "no reason given", 200).replace("\\", "/").replace('"', "'")
        headers["Warning"] = f'299 - "withdrawn: {reason}"'
    return headers


async def put(request: Request) -> Response:
    """`PUT /v2/{name}/manifests/{reference}`, with `tag` any number of times.

    `If-None-Match: *` refuses to move a tag, `If-Match: "digest"` moves it only from that manifest. Without
    either the tag moves if the caller may move tags, as stock clients expect.
    """
    name, reference = request.path_params["name"], _reference(request)
    caller = await authorize(request, PUSH, name)
    server = server_of(request)
    named = [parse_tag(tag) for tag in request.query_params.getlist("tag")]
    if len(named) > MAX_TAGS:
        raise RegistryError("limit_exceeded", "too many tags", expected=f"at most {MAX_TAGS}", got=len(named))
    digest = reference if is_digest(reference) else None
    change = _change(request, caller, await in_thread(allows, server, caller, MOVE, name))
    done = await in_thread(
        publish.put_manifest,
        server.registry,
        name,
        await _body(request),
        change=change,
        tags=named if digest else [reference, *named],
        media_type=request.headers.get("content-type", "").partition(";")[0].strip() or None,
        digest=digest,
    )
    headers = {"Location": f"/v2/{name}/manifests/{done.digest}", "Docker-Content-Digest": done.digest}
    if done.subject:
        headers["OCI-Subject"] = done.subject
    if named:
        headers["OCI-Tag"] = ", ".join(named)
    if done.warnings:
        headers["Warning"] = ", ".join(f'299 - "{_quotable(text)}"' for text in done.warnings)
    return Response(status_code=201, headers=headers)


def _quotable(text: str) -> str:
    return printable(text, 500).replace("\\", "/").replace('"', "'")


def _change(request: Request, caller: Caller, may_move: bool) -> tags.TagChange:
    if request.headers.get("if-none-match", "").strip() == "*":
        return tags.TagChange(actor=caller.name)
    expected = request.headers.get("if-match")
    if expected is None:
        return tags.TagChange(move=may_move, actor=caller.name)
    digest = parse_digest(expected.strip().strip('"'))
    if not may_move:
        raise RegistryError("denied", "your token does not allow to move tags", where=request.path_params["name"])
    return tags.TagChange(move=True, expected=digest, actor=caller.name)


async def _body(request: Request) -> bytes:
    """The body, as long as it is no larger than a manifest may be.

    Raises:
        RegistryError: `limit_exceeded`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MANIFEST_NBYTES:
            raise RegistryError(
                "limit_exceeded", "the manifest is too large", expected=f"at most {MAX_MANIFEST_NBYTES} bytes"
            )
    return bytes(body)


async def delete(request: Request) -> Response:
    """`DELETE /v2/{name}/manifests/{reference}`: a tag, or a manifest with all its tags."""
    name, reference = request.path_params["name"], _reference(request)
    caller = await authorize(request, DELETE, name)
    await in_thread(tags.remove, server_of(request).registry, name, reference, caller.name)
    return Response(status_code=202)


def _reference(request: Request) -> str:
    """The tag or digest in the path.

    Raises:
        RegistryError: `bad_digest`.
    """
    reference: str = request.path_params["reference"]
    return reference if is_tag(reference) else parse_digest(reference)
