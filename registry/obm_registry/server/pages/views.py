"""What the page shows: backbones, experts of a backbone, one expert, search, sign-in."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from obm_format.errors import ObmError, RegistryError
from obm_registry.catalog.rows import ExpertFilter, FoundExpert
from obm_registry.manifest.oci import Descriptor, OciManifest, parse_manifest
from obm_registry.refs import parse_digest, parse_repository
from obm_registry.server.api.common import cursor_of
from obm_registry.server.credentials import base_url
from obm_registry.server.pages import cards, visitors, words
from obm_registry.server.replies import in_thread, server_of
from obm_registry.service import blobs, lookup, search
from obm_registry.service.access import Caller
from obm_registry.service.registry import Registry

_ROWS = 50
_LATEST = 8
_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

_pages = Environment(
    loader=PackageLoader("obm_registry.server.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.filters |= {
    "size": words.size,
    "count": words.count,
    "short": words.short,
    "number": words.number,
    "rough": words.rough,
    "day": words.day,
}
_pages.globals["plural"] = words.plural


def render(request: Request, name: str, caller: Caller | None, status: int = 200, **facts: object) -> Response:
    """A page."""
    frame = {"caller": caller, "host": base_url(request), "q": request.query_params.get("q", "")[:200]}
    html = _pages.get_template(name).render(**{**frame, **facts})
    headers = {"Content-Security-Policy": _CSP, "Cache-Control": "private, no-cache", "Vary": "Cookie"}
    return Response(html, status, headers, media_type="text/html")


async def home(request: Request) -> Response:
    """`GET /`: backbones, and the latest experts."""
    caller = await visitors.visitor(request)
    if caller is None:
        return render(request, "login.html", None, refused="")
    registry = server_of(request).registry
    backbones, more = await in_thread(search.find_backbones, registry, caller, before=cursor_of(request), limit=_ROWS)
    experts, _ = await in_thread(search.find_experts, registry, caller, ExpertFilter(), limit=_LATEST)
    return render(request, "home.html", caller, backbones=backbones, experts=experts, more=more)


async def backbone(request: Request) -> Response:
    """`GET /backbones/{fingerprint}`: a backbone and its experts."""
    caller = await _required(request)
    fingerprint = parse_digest(f"sha256:{request.path_params['fingerprint']}").removeprefix("sha256:")
    registry = server_of(request).registry
    places, _ = await in_thread(search.find_backbones, registry, caller, fingerprint=fingerprint)
    if not places:
        raise RegistryError("not_found", "there is no such backbone")
    wanted = ExpertFilter(fingerprint=fingerprint)
    experts, more = await in_thread(
        search.find_experts, registry, caller, wanted, before=cursor_of(request), limit=_ROWS
    )
    return render(request, "backbone.html", caller, places=places, experts=experts, more=more)


async def expert(request: Request) -> Response:
    """`GET /experts/{name}/{digest}`: one expert."""
    caller = await _required(request)
    name, digest = parse_repository(request.path_params["name"]), parse_digest(request.path_params["digest"])
    registry = server_of(request).registry
    found, manifest, card = await in_thread(_look_up, registry, caller, name, digest)
    return render(request, "expert.html", caller, expert=found, manifest=manifest, card=card)


def _look_up(
    registry: Registry, caller: Caller, name: str, digest: str
) -> tuple[FoundExpert, OciManifest, Markup | None]:
    rows, _ = search.find_experts(registry, caller, ExpertFilter(repository=name, manifest_digest=digest), limit=1)
    if not rows:
        raise RegistryError("not_found", "there is no such expert")
    stored = lookup.find_manifest(registry, name, digest)
    manifest = parse_manifest(stored.body, media_type=stored.media_type)
    written = next((layer for layer in manifest.layers if layer.media_type == cards.CARD_TYPE), None)
    return rows[0], manifest, _card(registry, name, written) if written else None


def _card(registry: Registry, name: str, layer: Descriptor) -> Markup:
    return cards.render(b"".join(blobs.read_blob(registry, name, layer.digest, 0, cards.MAX_NBYTES)))


async def found(request: Request) -> Response:
    """`GET /search?q=`: backbones and experts."""
    caller = await _required(request)
    text = request.query_params.get("q", "").strip()[:200]
    registry = server_of(request).registry
    backbones, _ = await in_thread(search.find_backbones, registry, caller, text=text, limit=_ROWS)
    experts, more = await in_thread(
        search.find_experts, registry, caller, ExpertFilter(text=text), before=cursor_of(request), limit=_ROWS
    )
    return render(request, "search.html", caller, text=text, backbones=backbones, experts=experts, more=more)


async def login(request: Request) -> Response:
    """`GET` and `POST /login`."""
    if request.method != "POST":
        return render(request, "login.html", None, refused="")
    try:
        return await visitors.sign_in(request)
    except RegistryError as error:
        return render(request, "login.html", None, error.http_status, refused=error.message)


async def _required(request: Request) -> Caller:
    caller = await visitors.visitor(request)
    if caller is None:
        raise RegistryError("unauthorized", "sign in to see this")
    return caller


def refuse(request: Request, error: ObmError) -> Response:
    """An error as a page."""
    if error.reason == "unauthorized":
        return render(request, "login.html", None, 401, refused=error.message)
    status = 404 if is_name_error(error) else error.http_status
    return render(
        request, "refused.html", None, status, message="there is nothing here" if status == 404 else error.message
    )


def is_name_error(error: ObmError) -> bool:
    """Whether an address simply names nothing."""
    return error.reason in ("not_found", "bad_ref", "bad_digest", "blob_unknown")


async def style(_request: Request) -> Response:
    """`GET /style.css`."""
    return Response(_text("style.css"), media_type="text/css", headers={"Cache-Control": "public, max-age=300"})


async def icon(_request: Request) -> Response:
    """`GET /icon.svg`."""
    return Response(_text("icon.svg"), media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=86400"})


@lru_cache(maxsize=4)
def _text(name: str) -> str:
    return resources.files(__package__).joinpath("static", name).read_text(encoding="utf-8")


PAGE_ROUTES = [
    Route("/", home, methods=["GET"]),
    Route("/backbones/{fingerprint}", backbone, methods=["GET"]),
    Route("/experts/{name:path}/{digest}", expert, methods=["GET"]),
    Route("/search", found, methods=["GET"]),
    Route("/login", login, methods=["GET", "POST"]),
    Route("/logout", visitors.sign_out, methods=["POST"]),
    Route("/style.css", style, methods=["GET"]),
    Route("/icon.svg", icon, methods=["GET"]),
]
