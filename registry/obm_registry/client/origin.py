"""Origins: which server a credential belongs to, and where a reply may send the client next.

Never opens a connection. A credential belongs to one origin (scheme, host, port). Plain HTTP is for loopback
alone, and nothing leads from HTTPS to HTTP.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import httpx

from obm_format.errors import RegistryError, UsageError
from obm_registry.refs import is_host, printable

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine by its name or address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as a reference begins with it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def url(self, path: str) -> httpx.URL:
        """The URL of a path on this server."""
        return httpx.URL(f"{self}{path}")

    def __str__(self) -> str:
        """The origin as text; `parse_origin` gives it back."""
        return f"{self.scheme}://{self.authority}"


def parse_origin(text: str) -> Origin:
    """Parse what a user names a registry by: `https://host[:port]`, `http://` on loopback, or `host[:port]`.

    A host without a scheme means HTTPS, on loopback HTTP.

    Raises:
        UsageError: `usage` for another scheme, credentials or a path in the URL, or plain HTTP off loopback.
    """
    if "://" not in text:
        host = text.rstrip("/")
        if not is_host(host):
            raise _bad_url(text, "a host with an optional port")
        return _loopback_or_https(host)
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _bad_url(text, "https://host[:port]") from error
    if url.scheme not in _PORTS or not url.host or url.userinfo or url.path not in ("", "/") or url.query:
        raise _bad_url(text, "https://host[:port], without a path or credentials")
    origin = origin_of(url)
    if origin.scheme == "http" and not origin.is_loopback:
        raise UsageError(
            "usage",
            "plain HTTP is for this machine only",
            where=str(origin),
            expected="https://",
            hint="anybody on the way could read and change what is sent",
        )
    return origin


def _loopback_or_https(host: str) -> Origin:
    plain = origin_of(httpx.URL(f"http://{host}"))
    return plain if plain.is_loopback else origin_of(httpx.URL(f"https://{host}"))


def _bad_url(text: str, expected: str) -> UsageError:
    # what is wrong may be a password in it
    shown = text if "@" not in text else "a URL with an @"
    return UsageError("usage", "no registry can be named so", expected=expected, got=printable(shown))


def origin_of(url: httpx.URL) -> Origin:
    """The origin of an absolute `http` or `https` URL."""
    return Origin(url.scheme, url.host.lower(), url.port or _PORTS[url.scheme])


def shown(url: httpx.URL) -> str:
    """A URL for messages: without its query, which may hold a secret."""
    return printable(f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}{url.path}")


def follow(url: httpx.URL, location: str) -> httpx.URL:
    """Where a reply from `url` leads.

    Args:
        url: what was asked.
        location: the reply's `Location`, or the target of a link; relative or absolute.

    Raises:
        RegistryError: `network` for no URL, another scheme, credentials in it, from HTTPS to HTTP, or HTTP
            off loopback.
    """
    try:
        target = url.join(location)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise _refuse(url, "the registry sends the client to no URL", location) from error
    if target.scheme not in _PORTS or not target.host or target.userinfo:
        raise _refuse(url, "the registry sends the client to no web address", location)
    if target.scheme == "http" and (url.scheme != "http" or not origin_of(target).is_loopback):
        raise _refuse(url, "the registry sends the client to plain HTTP", location)
    return target


def _refuse(url: httpx.URL, message: str, location: str) -> RegistryError:
    return RegistryError("network", message, where=shown(url), got=printable(location.partition("?")[0]))
