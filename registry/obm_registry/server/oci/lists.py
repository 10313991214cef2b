"""Lists, a page at a time: tags of a repository, repositories, manifests that refer to another one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.manifest.oci import IMAGE_INDEX, descriptor_object
from obm_registry.refs import parse_digest, printable
from obm_registry.server.credentials import Unauthorized, authorize, identify
from obm_registry.server.replies import in_thread, json_reply, next_link, page_size, server_of
from obm_registry.service import lookup, search
from obm_registry.service.access import PULL

REFERRERS_PAGE = 50


async def ping(request: Request) -> Response:
    """`GET /v2/`: who shows good credentials may come in.

    Others are told how to get some, also where they may pull without: that is how stock clients find out.
    """
    who = await identify(request)
    if who.caller.is_anonymous and not who.is_session:
        raise Unauthorized("this takes a token")
    return json_reply({})


async def tags(request: Request) -> Response:
    """`GET /v2/{name}/tags/list?n=&last=`."""
    name, last = request.path_params["name"], request.query_params.get("last", "")
    await authorize(request, PULL, name)
    size = page_size(request, most=lookup.MAX_PAGE)
    # one more than asked for tells whether there is another page
    found = await in_thread(lookup.list_tags, server_of(request).registry, name, after=last, limit=size + 1)
    page = found[:size]
    more = next_link(request, n=size, last=page[-1]) if page and len(found) > size else None
    return json_reply({"name": name, "tags": page}, headers=more)


async def catalog(request: Request) -> Response:
    """`GET /v2/_catalog?n=&last=`: the repositories that the caller may pull from."""
    who, size = await identify(request), page_size(request, most=lookup.MAX_PAGE)
    if who.caller.is_anonymous and not who.caller.strangers:
        raise Unauthorized("this takes a token", scope="registry:catalog:*")
    last = request.query_params.get("last", "")
    registry = server_of(request).registry
    found = await in_thread(search.find_repositories, registry, who.owner, after=last, limit=size + 1)
    page = found[:size]
    more = next_link(request, n=size, last=page[-1]) if page and len(found) > size else None
    return json_reply({"repositories": page}, headers=more)


async def referrers(request: Request) -> Response:
    """`GET /v2/{name}/referrers/{digest}?artifactType=`."""
    name, subject = request.path_params["name"], parse_digest(request.path_params["digest"])
    await authorize(request, PULL, name)
    wanted, cursor = request.query_params.get("artifactType"), request.query_params.get("after", "0")
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise RegistryError("bad_page", "the cursor is malformed", got=printable(cursor))
    page, more = await in_thread(
        lookup.list_referrers,
        server_of(request).registry,
        name,
        subject,
        artifact_type=wanted,
        after=int(cursor),
        limit=REFERRERS_PAGE,
    )
    headers = {} if more is None else next_link(request, after=more)
    if wanted is not None:
        headers["OCI-Filters-Applied"] = "artifactType"
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [descriptor_object(row) for row in page],
    }
    return json_reply(document, headers=headers, media_type=IMAGE_INDEX)
