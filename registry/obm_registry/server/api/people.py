"""Who somebody is, tokens, members and rules of namespaces."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from obm_format.errors import RegistryError
from obm_registry.catalog.rows import Namespace
from obm_registry.server.api.common import (
    body_of,
    list_field,
    number_field,
    page_reply,
    require_administrator,
    require_known,
    text_field,
)
from obm_registry.server.api.shown import show_namespace
from obm_registry.server.credentials import Identity
from obm_registry.server.replies import in_thread, json_reply, page_size, server_of
from obm_registry.service import access, namespaces

_DAY_S = 86_400
_MAX_PAGE = 200


async def whoami(request: Request) -> Response:
    """`GET /api/v1/whoami`."""
    caller = (await require_known(request)).caller
    limits = [[str(scope) for scope in limit] for limit in caller.limits]
    return json_reply({"name": caller.name, "roles": caller.roles, "limits": limits})


async def tokens(request: Request) -> Response:
    """`GET /api/v1/tokens`: one's own, or everybody's for an administrator; a narrow token tells of itself alone."""
    who, size = await require_known(request), page_size(request, most=_MAX_PAGE, default=_MAX_PAGE)
    owner = None if _is_administrator(who) else who.caller.name
    if owner is not None and who.caller.limits and who.token is not None:
        return page_reply(request, "tokens", [access.describe_token(who.token)], None)
    after = request.query_params.get("cursor", "")
    registry = server_of(request).registry
    found = await in_thread(access.list_tokens, registry, principal=owner, after=after, limit=max(size, 1) + 1)
    page = found[: max(size, 1)]
    more = page[-1].public_id if len(found) > len(page) else None
    return page_reply(request, "tokens", [access.describe_token(token) for token in page], more)


async def make_token(request: Request) -> Response:
    """`POST /api/v1/tokens`: for oneself, or for anybody by an administrator; the token is shown this once."""
    who = await require_known(request)
    document = await body_of(request, optional=("principal", "scopes", "days"))
    if who.caller.limits:
        # else a narrow token could make itself a wider one
        raise RegistryError("denied", "a token with scopes of its own makes no others")
    principal = text_field(document, "principal", who.caller.name)
    if principal != who.caller.name:
        access.require_admin(who.caller, access.EVERYWHERE)
    days = number_field(document, "days")
    shown, token = await in_thread(
        access.create_token,
        server_of(request).registry,
        principal,
        actor=who.caller.name,
        scopes=list_field(document, "scopes"),
        lifetime_s=None if days is None else days * _DAY_S,
    )
    return json_reply({"token": shown, **access.describe_token(token)}, 201, {"Cache-Control": "no-store"})


async def revoke_token(request: Request) -> Response:
    """`DELETE /api/v1/tokens/{id}`: one's own, or anybody's by an administrator; a narrow token ends itself alone."""
    who, public_id = await require_known(request), request.path_params["id"]
    registry = server_of(request).registry
    if not _is_administrator(who):
        token = await in_thread(access.find_token, registry, public_id)
        if token.principal != who.caller.name or (who.caller.limits and (who.is_session or token != who.token)):
            # the same as for one that is not there
            raise RegistryError("not_found", "there is no such token", where=public_id)
    await in_thread(access.revoke_token, registry, public_id, actor=who.caller.name)
    return Response(status_code=204)


def _is_administrator(who: Identity) -> bool:
    try:
        access.require_admin(who.caller, access.EVERYWHERE)
    except RegistryError:
        return False
    return True


async def rules(request: Request) -> Response:
    """`GET /api/v1/namespaces/{namespace}`: rules, quota and use."""
    name = request.path_params["namespace"]
    await require_administrator(request, name)
    registry = server_of(request).registry
    found, used = await in_thread(namespaces.namespace_use, registry, name)
    return json_reply(show_namespace(found, used))


async def set_rules(request: Request) -> Response:
    """`PUT /api/v1/namespaces/{namespace}`; what is left out stays as it is."""
    name = request.path_params["namespace"]
    who = await require_administrator(request, name)
    fields = ("quota_nbytes", "subject_policy", "immutable_tags", "visibility")
    document = await body_of(request, optional=fields)
    registry = server_of(request).registry
    now = await in_thread(namespaces.namespace_rules, registry, name)
    quota = number_field(document, "quota_nbytes") if "quota_nbytes" in document else now.quota_nbytes
    if isinstance(quota, float):
        raise RegistryError("bad_request", "a quota is a whole number of bytes", where="quota_nbytes")
    changed: Namespace = await in_thread(
        namespaces.set_namespace_rules,
        registry,
        name,
        quota_nbytes=quota,
        subject_policy=text_field(document, "subject_policy", now.subject_policy),
        immutable_tags=tuple(list_field(document, "immutable_tags"))
        if "immutable_tags" in document
        else now.immutable_tags,
        visibility=text_field(document, "visibility", now.visibility),
        actor=who.caller.name,
    )
    _, used = await in_thread(namespaces.namespace_use, registry, name)
    return json_reply(show_namespace(changed, used))


async def members(request: Request) -> Response:
    """`GET /api/v1/namespaces/{namespace}/members`: role by name; "*" stands for all namespaces."""
    name = request.path_params["namespace"]
    await require_administrator(request, name)
    return json_reply({"members": await in_thread(access.list_members, server_of(request).registry, name)})


async def set_member(request: Request) -> Response:
    """`PUT /api/v1/namespaces/{namespace}/members/{principal}`."""
    who = await require_administrator(request, request.path_params["namespace"])
    role = text_field(await body_of(request, "role"), "role")
    return await _set_member(request, who, role)


async def remove_member(request: Request) -> Response:
    """`DELETE /api/v1/namespaces/{namespace}/members/{principal}`."""
    who = await require_administrator(request, request.path_params["namespace"])
    return await _set_member(request, who, None)


async def _set_member(request: Request, who: Identity, role: str | None) -> Response:
    name, principal = request.path_params["namespace"], request.path_params["principal"]
    await in_thread(access.set_role, server_of(request).registry, principal, name, role, actor=who.caller.name)
    return json_reply({"namespace": name, "principal": principal, "role": role})
