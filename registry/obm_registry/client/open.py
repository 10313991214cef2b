"""Open a registry by what a user names it: a server's address, `file://folder`, `s3://bucket/prefix`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from obm_format.errors import UsageError
from obm_registry.bucket import Bucket, parse_bucket_url
from obm_registry.client.cache import Cache
from obm_registry.client.credentials import Credential, CredentialFile, read_secret
from obm_registry.client.extras import NoExtras, ServerExtras
from obm_registry.client.http import Patience, Request, Session
from obm_registry.client.journal import Journal
from obm_registry.client.layout import LayoutFiles, LayoutStore
from obm_registry.client.layout_bucket import BucketLayout
from obm_registry.client.layout_folder import FolderLayout
from obm_registry.client.offline import OfflineStore
from obm_registry.client.origin import Origin, parse_origin
from obm_registry.client.registry import ClientRegistry
from obm_registry.client.remote import RemoteStore
from obm_registry.refs import printable

TOKEN_USER = "token"  # noqa: S105 - the user name that goes with a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the client keeps things.

    Args:
        home: folder of `credentials.json`.
        cache: folder of pulled experts and unfinished uploads.
        limit: bytes that the cache keeps.
        token: a file with a token, and the one registry that it is for.
        offline: whether to work from the cache alone.
    """

    home: Path
    cache: Path
    limit: int
    token: tuple[Path, str] | None = None
    offline: bool = False


def open_client(url: str, places: Places, *, patience: Patience | None = None) -> ClientRegistry:
    """Open a registry.

    Args:
        url: `https://host[:port]`, `http://` on loopback, `host[:port]`, `file://folder` or
            `s3://bucket/prefix`.
        places: where the client keeps things.
        patience: time-outs and tries.

    Raises:
        UsageError: `usage`, no registry can be named so.
    """
    cache = Cache(places.cache, places.limit, patience)
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "s3" and places.offline:
        there = OfflineStore(parse_bucket_url(url)[2], cache)
        return ClientRegistry(there, cache, None, there)
    if scheme in ("file", "s3"):
        files = _folder(url) if scheme == "file" else _bucket(url, patience or Patience())
        return ClientRegistry(LayoutStore(files), cache, None, NoExtras(files.name))
    origin = parse_origin(url)
    if places.offline:
        store = OfflineStore(origin.authority, cache)
        return ClientRegistry(store, cache, origin.authority, store)
    session = Session(origin, _credentials(places), patience)
    remote = RemoteStore(session, Journal(places.cache / "uploads"))
    return ClientRegistry(remote, cache, origin.authority, ServerExtras(session))


def _credentials(places: Places) -> Callable[[Origin], Credential | None]:
    """What is stored for an origin, or stands in the token file that is for it alone."""
    stored = CredentialFile(places.home / "credentials.json")
    path, url = places.token if places.token is not None else (None, "")
    own = parse_origin(url) if path is not None else None

    def find(origin: Origin) -> Credential | None:
        if path is not None and origin == own:
            return Credential(username=TOKEN_USER, secret=read_secret(path))
        return stored.get(origin)

    return find


def check_login(origin: Origin, credential: Credential, patience: Patience | None = None) -> None:
    """Ask a registry whether it takes a credential.

    Raises:
        RegistryError: `denied`, it does not; `network`.
    """
    own = {origin: credential}
    with Session(origin, own.get, patience) as session:
        session.exchange(Request(method="GET", url=origin.url("/v2/")), expect=(200,))


def _folder(url: str) -> LayoutFiles:
    path = unquote(url.removeprefix("file://"))
    if not path or "\0" in path:
        raise UsageError("usage", "the URL names no folder", got=printable(url), expected="file:///path/of/folder")
    return FolderLayout(Path(path))


def _bucket(url: str, patience: Patience) -> LayoutFiles:
    bucket, prefix, name = parse_bucket_url(url)
    return BucketLayout(Bucket(bucket, stall_s=patience.stall_s, attempts=patience.attempts), name, prefix, patience)
