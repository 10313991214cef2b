"""Looking after a registry: audit log, collection, examination; and whether the server is well."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.server.api.common import cursor_of, page_reply, require_administrator
from obm_registry.server.api.shown import show_line
from obm_registry.server.replies import in_thread, json_reply, page_size, server_of
from obm_registry.service.access import EVERYWHERE
from obm_registry.service.audit import read_audit
from obm_registry.service.collect import DEFAULT_GRACE_S, collect
from obm_registry.service.fsck import examine
from obm_registry.service.lookup import list_repositories

_MAX_PAGE = 1000
_MAX_GRACE_HOURS = 24 * 365


async def audit(request: Request) -> Response:
    """`GET /api/v1/audit`: lines in the order in which they were written."""
    await require_administrator(request, EVERYWHERE)
    size = max(page_size(request, most=_MAX_PAGE, default=100), 1)
    after = cursor_of(request) or 0
    found = await in_thread(read_audit, server_of(request).registry, after=after, limit=size)
    more = found[-1].id if len(found) == size else None
    return page_reply(request, "lines", [show_line(entry) for entry in found], more)


async def gc(request: Request) -> Response:
    """`POST /api/v1/admin/gc?dry_run=&grace_hours=`."""
    await require_administrator(request, EVERYWHERE)
    query = request.query_params
    text = query.get("grace_hours", str(DEFAULT_GRACE_S / 3600))
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours <= _MAX_GRACE_HOURS or query.get("dry_run", "false") not in ("true", "false"):
        raise RegistryError("bad_request", "`grace_hours` is a number from 0, `dry_run` is true or false")
    dry_run = query.get("dry_run") == "true"
    done = await in_thread(collect, server_of(request).registry, dry_run=dry_run, grace_s=hours * 3600)
    return json_reply({"dry_run": dry_run, **dataclasses.asdict(done)})


async def fsck(request: Request) -> Response:
    """`POST /api/v1/admin/fsck`: reads and hashes everything there is."""
    await require_administrator(request, EVERYWHERE)
    found = await in_thread(examine, server_of(request).registry)
    return json_reply(dataclasses.asdict(found))


async def live(_request: Request) -> Response:
    """`GET /healthz/live`: the process answers."""
    return json_reply({"live": True})


async def ready(request: Request) -> Response:
    """`GET /healthz/ready`: the catalog answers too."""
    await in_thread(list_repositories, server_of(request).registry, limit=1)
    return json_reply({"ready": True})


async def openapi(_request: Request) -> Response:
    """`GET /openapi.json`."""
    return Response(openapi_text(), media_type="application/json")


@lru_cache(maxsize=1)
def openapi_text() -> str:
    """The description of the API."""
    text = resources.files(__package__).joinpath("openapi.json").read_text(encoding="utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))
