"""The application: which request goes where, and what becomes of an error."""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from obm_format.errors import ObmError, RegistryError
from obm_registry.server.api.routes import API_ROUTES
from obm_registry.server.credentials import Unauthorized, challenge
from obm_registry.server.guard import Guard
from obm_registry.server.oci import blobs, lists, manifests, token, uploads
from obm_registry.server.pages.views import PAGE_ROUTES, refuse
from obm_registry.server.replies import error_reply
from obm_registry.server.settings import Server

_log = logging.getLogger("obm.server")

_NAME = "/v2/{name:path}"
OCI_ROUTES = [
    Route("/v2/", lists.ping, methods=["GET"]),
    Route("/v2", lists.ping, methods=["GET"]),
    Route("/v2/_catalog", lists.catalog, methods=["GET"]),
    Route("/v2/token", token.exchange, methods=["GET", "POST"]),
    Route(f"{_NAME}/tags/list", lists.tags, methods=["GET"]),
    Route(f"{_NAME}/referrers/{{digest}}", lists.referrers, methods=["GET"]),
    Route(f"{_NAME}/manifests/{{reference}}", manifests.read, methods=["GET"]),
    Route(f"{_NAME}/manifests/{{reference}}", manifests.put, methods=["PUT"]),
    Route(f"{_NAME}/manifests/{{reference}}", manifests.delete, methods=["DELETE"]),
    Route(f"{_NAME}/blobs/uploads/", uploads.begin, methods=["POST"]),
    Route(f"{_NAME}/blobs/uploads", uploads.begin, methods=["POST"]),
    Route(f"{_NAME}/blobs/uploads/{{session}}", uploads.status, methods=["GET"]),
    Route(f"{_NAME}/blobs/uploads/{{session}}", uploads.append, methods=["PATCH"]),
    Route(f"{_NAME}/blobs/uploads/{{session}}", uploads.finish, methods=["PUT"]),
    Route(f"{_NAME}/blobs/uploads/{{session}}", uploads.cancel, methods=["DELETE"]),
    Route(f"{_NAME}/blobs/{{digest}}", blobs.read_blob, methods=["GET"]),
    Route(f"{_NAME}/blobs/{{digest}}", blobs.delete_blob, methods=["DELETE"]),
]


def make_app(server: Server) -> ASGIApp:
    """The ASGI application of a server."""
    app = Starlette(
        routes=[*OCI_ROUTES, *API_ROUTES, *PAGE_ROUTES],
        exception_handlers={ObmError: _refuse, HTTPException: _refuse_route},
    )
    app.add_exception_handler(Exception, _fail)
    app.state.server = server
    app.router.redirect_slashes = False
    return Guard(app, server)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ObmError)  # noqa: S101 - registered for this class
    if _is_page(request):
        return refuse(request, error)
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers = challenge(request, error)
    elif error.http_status >= 500:
        _log.error("%s %s: %s", request.method, request.url.path, error)
    if error.http_status in (413, 408, 429) or error.http_status >= 500:
        headers["Connection"] = "close"  # the rest of the body is not read
    if error.reason == "rate_limited":
        headers["Retry-After"] = "10"
    return error_reply(error, _code(request, error), headers)


def _code(request: Request, error: ObmError) -> str | None:
    """OCI's code where it depends on what was asked for."""
    path = request.url.path
    if error.reason == "not_found" and "/manifests/" in path:
        return "MANIFEST_UNKNOWN"
    if error.reason == "not_found" and "/blobs/" in path:
        return "BLOB_UNKNOWN"
    if error.reason == "blob_unknown" and "/manifests/" in path:
        return "MANIFEST_BLOB_UNKNOWN"
    return None


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    if error.status_code == 405:
        refusal, code = RegistryError("bad_method", "this cannot be done here", where=request.method), "UNSUPPORTED"
    else:
        refusal, code = RegistryError("not_found", "there is nothing here"), "NAME_UNKNOWN"
    if _is_page(request):
        return refuse(request, refusal)
    return error_reply(refusal, code, error.headers)


def _is_page(request: Request) -> bool:
    """Whether somebody looks at the page, rather than a client at the registry or the API."""
    path = request.url.path
    return not path.startswith(("/v2", "/api/", "/healthz/")) and path != "/openapi.json"


async def _fail(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody reads this
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_reply(ObmError("internal", "the server failed"))
