"""Backbones, experts of a backbone with their numbers, search; tag history and withdrawal."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import BackboneRow, ExpertFilter
from obm_registry.manifest.backbone import parse_tensors
from obm_registry.refs import parse_digest, parse_repository, parse_tag, printable
from obm_registry.server.api.common import body_of, cursor_of, page_reply, require_reader, text_field
from obm_registry.server.api.shown import show_backbone, show_event, show_expert
from obm_registry.server.credentials import authorize
from obm_registry.server.replies import in_thread, json_reply, page_size, server_of
from obm_registry.service import backbones as backbones_of
from obm_registry.service import search, tags
from obm_registry.service.access import DELETE, PULL

_MAX_REASON = 1000
MAX_TABLE_NBYTES = 8 << 20  # some 60,000 tensors


async def backbones(request: Request) -> Response:
    """`GET /api/v1/backbones`."""
    who, size = await require_reader(request), page_size(request, most=search.MAX_PAGE, default=50)
    rows, more = await in_thread(
        search.find_backbones,
        server_of(request).registry,
        who.caller,
        text=request.query_params.get("q", ""),
        before=cursor_of(request),
        limit=max(size, 1),
    )
    return page_reply(request, "backbones", [show_backbone(row) for row in rows], more)


async def backbone(request: Request) -> Response:
    """`GET /api/v1/backbones/{fingerprint}`: the repositories that have it."""
    rows = await _repositories_with(request)
    here = ("repository", "n_experts", "weights_digest")
    facts = {key: value for key, value in show_backbone(rows[0]).items() if key not in here}
    where = [{key: show_backbone(row)[key] for key in here} for row in rows]
    return json_reply({**facts, "repositories": where})


async def check_backbone(request: Request) -> Response:
    """`POST /api/v1/backbones/{fingerprint}/check`: in which tensors a checkpoint differs from a backbone."""
    rows = await _repositories_with(request)
    document = await body_of(request, "tensors", max_nbytes=MAX_TABLE_NBYTES)
    registry = server_of(request).registry
    own = await in_thread(parse_tensors, document["tensors"], "", "body")
    found, count = await in_thread(backbones_of.check_table, registry, rows[0], own)
    return json_reply(
        {
            "matches": count == 0,
            "fingerprint": own.fingerprint,
            "n_differences": count,
            "differences": [{"tensor": d.name, "expected": d.expected, "got": d.got} for d in found],
        }
    )


async def _repositories_with(request: Request) -> list[BackboneRow]:
    """A backbone in each of the repositories that the caller may pull from; one at least."""
    who, fingerprint = await require_reader(request), _fingerprint(request)
    rows, _ = await in_thread(
        search.find_backbones, server_of(request).registry, who.caller, fingerprint=fingerprint, limit=search.MAX_PAGE
    )
    if not rows:
        raise RegistryError("not_found", "there is no such backbone", where=fingerprint)
    return rows


async def backbone_experts(request: Request) -> Response:
    """`GET /api/v1/backbones/{fingerprint}/experts`."""
    return await _experts(request, fingerprint=_fingerprint(request))


async def repository_experts(request: Request) -> Response:
    """`GET /api/v1/repositories/{name}/experts`."""
    name = request.path_params["name"]
    await authorize(request, PULL, name)
    return await _experts(request, repository=name)


async def found(request: Request) -> Response:
    """`GET /api/v1/search?q=`: experts."""
    return await _experts(request)


async def _experts(request: Request, *, fingerprint: str = "", repository: str = "") -> Response:
    who, size = await require_reader(request), page_size(request, most=search.MAX_PAGE, default=50)
    rows, more = await in_thread(
        search.find_experts,
        server_of(request).registry,
        who.caller,
        filter_of(request, fingerprint=fingerprint, repository=repository),
        before=cursor_of(request),
        limit=max(size, 1),
    )
    return page_reply(request, "experts", [show_expert(row) for row in rows], more)


def filter_of(request: Request, *, fingerprint: str = "", repository: str = "") -> ExpertFilter:
    """What the parameters of a request ask for.

    Raises:
        RegistryError: `bad_request` for a parameter that is neither true nor false.
    """
    query = request.query_params
    yanked = {None: None, "": None, "true": True, "false": False}
    if query.get("yanked") not in yanked:
        raise RegistryError("bad_request", "`yanked` is true or false", got=printable(query["yanked"]))
    return ExpertFilter(
        fingerprint=fingerprint,
        repository=repository,
        task=query.get("task", ""),
        position=query.get("position", ""),
        encoding=query.get("encoding", ""),
        text=query.get("q", ""),
        yanked=yanked[query.get("yanked")],
    )


def _fingerprint(request: Request) -> str:
    text: str = request.path_params["fingerprint"]
    return parse_digest(f"sha256:{text}").removeprefix("sha256:")


async def tag_history(request: Request) -> Response:
    """`GET /api/v1/repositories/{name}/tags/{tag}/history`: the latest move first."""
    name, tag = parse_repository(request.path_params["name"]), parse_tag(request.path_params["tag"])
    await authorize(request, PULL, name)
    events = await in_thread(tags.tag_history, server_of(request).registry, name, tag)
    return json_reply({"history": [show_event(event) for event in events]})


async def yank(request: Request) -> Response:
    """`PUT /api/v1/repositories/{name}/manifests/{digest}/yank`: whoever fetches it is told."""
    name, digest = request.path_params["name"], parse_digest(request.path_params["digest"])
    caller = await authorize(request, DELETE, name)
    reason = text_field(await body_of(request, optional=("reason",)), "reason")
    if len(reason) > _MAX_REASON:
        raise RegistryError("limit_exceeded", "the reason is too long", expected=f"at most {_MAX_REASON} characters")
    registry = server_of(request).registry
    await in_thread(tags.yank, registry, name, digest, reason, actor=caller.name)
    return json_reply({"repository": name, "manifest_digest": digest, "yanked": reason or "no reason given"})


async def unyank(request: Request) -> Response:
    """`DELETE /api/v1/repositories/{name}/manifests/{digest}/yank`."""
    name, digest = request.path_params["name"], parse_digest(request.path_params["digest"])
    caller = await authorize(request, DELETE, name)
    await in_thread(tags.unyank, server_of(request).registry, name, digest, actor=caller.name)
    return json_reply({"repository": name, "manifest_digest": digest, "yanked": None})
