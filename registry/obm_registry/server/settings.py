"""What a server is told when it starts, and the ceilings that it keeps."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from obm_format.limits import MIB
from obm_registry.server.sessions import SessionKey
from obm_registry.server.throttle import Throttle
from obm_registry.service.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What one request may ask for.

    Args:
        header_nbytes: most bytes of all header fields together.
        target_nbytes: most bytes of the request target.
        blob_nbytes: most bytes of one blob.
        idle_s: seconds in which a sender or a reader must make progress.
        rate: requests a second that one address may go on making.
        burst: requests that it may make at once.
        wrong_credentials: how many times a minute one address may show wrong credentials.
    """

    header_nbytes: int = 32 << 10
    target_nbytes: int = 8 << 10
    blob_nbytes: int = 1 << 40
    idle_s: float = 30.0
    rate: float = 1000.0
    burst: int = 10_000
    wrong_credentials: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the handlers share.

    Args:
        registry: catalog and blobs.
        sessions: signs the short-lived tokens of the Docker token protocol.
        strangers: whether callers without a token may pull what is public.
        ceilings: limits on requests.
        requests: counts requests by address.
        wrong_credentials: counts wrong credentials by address.
    """

    registry: Registry
    sessions: SessionKey
    strangers: bool = False
    ceilings: Ceilings = field(default_factory=Ceilings)
    requests: Throttle
    wrong_credentials: Throttle


SEND_NBYTES = MIB // 4  # how much of a body is gathered before it goes to the disk; each upload holds three of these


def make_server(
    registry: Registry, sessions: SessionKey, *, strangers: bool = False, ceilings: Ceilings | None = None
) -> Server:
    """A server over a registry, with fresh counters."""
    chosen = ceilings or Ceilings()
    return Server(
        registry=registry,
        sessions=sessions,
        strangers=strangers,
        ceilings=chosen,
        requests=Throttle(per_second=chosen.rate, burst=chosen.burst),
        wrong_credentials=Throttle(per_second=chosen.wrong_credentials / 60, burst=chosen.wrong_credentials),
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is an address or name of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
