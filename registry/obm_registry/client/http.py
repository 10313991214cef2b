"""HTTP with one registry: credentials for its origin alone, bounded replies, no total time-outs.

A connection that moves no byte for a while is given up; a slow one is not. Redirects are followed for reads,
a few of them, and without credentials where they leave the origin. Never knows what a path means.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Self

import httpx

from obm_format.errors import ObmError, RegistryError
from obm_registry.client.auth import MAX_TOKEN_REPLY, Authenticator, Scopes, parse_challenges
from obm_registry.client.credentials import Credential
from obm_registry.client.origin import Origin, follow, origin_of, shown
from obm_registry.client.pieces import read_large_pieces
from obm_registry.client.refusals import refusal

MAX_REDIRECTS = 5
MAX_ERROR_NBYTES = 65_536
CHUNK_NBYTES = 1 << 18
_RETRIED = {429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_WAIT_S = 30.0

Body = bytes | Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the client waits, and how often it tries.

    Args:
        stall_s: seconds without a byte after which a connection is given up.
        attempts: how often something is tried.
        pause_s: seconds before the second try; doubled for each further one.
        sleep: waits; tests put their own here.
    """

    stall_s: float = 60.0
    attempts: int = 5
    pause_s: float = 0.25
    sleep: Callable[[float], None] = time.sleep

    def wait(self, attempt: int, asked_s: float | None = None) -> None:
        """Wait before try number `attempt` + 1, with jitter; at least as long as the server asked for."""
        pause = self.pause_s * 2**attempt * (0.5 + random.random())  # noqa: S311 - jitter
        self.sleep(min(_MAX_WAIT_S, max(pause, asked_s or 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    Args:
        method: GET, HEAD, POST, PUT, PATCH or DELETE.
        url: where to; of any origin.
        headers: without `Authorization`.
        body: bytes, or a function that gives them anew for each try; then `Content-Length` is in `headers`.
        scopes: what a token must allow, as the Docker token protocol writes it.
    """

    method: str
    url: httpx.URL
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    scopes: Scopes = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply; `url` is what was asked last."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: httpx.URL


class Session:
    """Connections to one registry.

    Args:
        origin: the registry.
        credential: what is stored for an origin, or None.
        patience: time-outs and tries.
    """

    def __init__(
        self, origin: Origin, credential: Callable[[Origin], Credential | None], patience: Patience | None = None
    ) -> None:
        self.origin = origin
        self.patience = patience or Patience()
        stall = self.patience.stall_s
        self._client = httpx.Client(
            timeout=httpx.Timeout(stall, connect=min(stall, 15.0), pool=None),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
            headers={"User-Agent": "obm", "Accept-Encoding": "identity"},
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none: they know no ports
            # proxies from the environment are for the network, not for this machine
            trust_env=not origin.is_loopback,
        )
        read_large_pieces(self._client)
        self._auth = Authenticator(origin, credential, self._fetch_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def exchange(
        self, request: Request, *, expect: Iterable[int], max_nbytes: int = MAX_ERROR_NBYTES, retry: bool = True
    ) -> Reply:
        """Send a request and read the whole reply.

        Args:
            request: what to send.
            expect: statuses that are returned.
            max_nbytes: longest body of such a reply.
            retry: whether it may be sent again after a network fault or an overloaded server.

        Raises:
            RegistryError: `network`; for a status that is not expected what `refusal` makes of it.
        """
        expected, attempt = frozenset(expect), 0
        while True:
            asked = None
            try:
                reply = self._once(request, expected, max_nbytes)
                if reply.status in expected:
                    return reply
                error: ObmError = refusal(reply.status, reply.body, shown(reply.url))
                transient, asked = reply.status in _RETRIED, _retry_after(reply.headers)
            except RegistryError as failure:
                error, transient = failure, failure.reason == "network"
            attempt += 1
            if not (retry and transient) or attempt >= self.patience.attempts:
                raise error
            self.patience.wait(attempt - 1, asked)

    def _once(self, request: Request, expected: frozenset[int], max_nbytes: int) -> Reply:
        with self.stream(request) as response:
            good = response.status_code in expected
            body = b"" if request.method == "HEAD" else _read(response, max_nbytes if good else MAX_ERROR_NBYTES, good)
            return Reply(status=response.status_code, headers=response.headers, body=body, url=response.url)

    @contextlib.contextmanager
    def stream(self, request: Request) -> Iterator[httpx.Response]:
        """Send a request once, after redirects and with credentials; the body is for the caller to read.

        Raises:
            RegistryError: `network`; `denied` from a token endpoint.
        """
        with _network_errors(request.url):
            response = self._follow(request)
            try:
                _require_plain(response)
                yield response
            finally:
                response.close()

    def refused(self, response: httpx.Response) -> ObmError:
        """The error for a streaming response with a status that is not wanted; `network` where a later try may do."""
        if response.status_code in _RETRIED:
            message = f"the registry is in trouble (status {response.status_code})"
            return RegistryError("network", message, where=shown(response.url))
        if origin_of(response.url) != self.origin:
            # an address that is good for some minutes may have run out; asking the registry again gives a new one
            message = f"the registry sent us to a place that refuses (status {response.status_code})"
            return RegistryError("network", message, where=shown(response.url))
        return refusal(response.status_code, _read(response, MAX_ERROR_NBYTES, False), shown(response.url))

    def _follow(self, request: Request) -> httpx.Response:
        for _ in range(MAX_REDIRECTS + 1):
            response = self._authorised(request)
            if response.status_code not in _REDIRECTS or request.method not in ("GET", "HEAD"):
                return response
            response.close()
            request = replace(request, url=follow(request.url, response.headers.get("Location", "")))
        raise RegistryError(
            "network", f"more than {MAX_REDIRECTS} redirects", where=shown(request.url), hint="check the address"
        )

    def _authorised(self, request: Request) -> httpx.Response:
        at_home = origin_of(request.url) == self.origin
        header = self._auth.header(request.scopes) if at_home else None
        response = self._send(request, header)
        if response.status_code != 401 or not at_home:
            return response
        challenges = parse_challenges(response.headers.get_list("WWW-Authenticate"))
        answer = self._auth.answer(request.url, challenges, request.scopes, header)
        if answer is None:
            return response
        response.close()
        return self._send(request, answer)

    def _send(self, request: Request, authorization: str | None) -> httpx.Response:
        headers = dict(request.headers)
        if authorization is not None:
            headers["Authorization"] = authorization
        content = request.body() if callable(request.body) else request.body
        built = self._client.build_request(request.method, request.url, headers=headers, content=content)
        return self._client.send(built, stream=True)

    def _fetch_token(self, url: httpx.URL, headers: Mapping[str, str]) -> bytes:
        """GET of a token endpoint, without redirects: it is given a credential."""
        response = self._client.send(self._client.build_request("GET", url, headers=dict(headers)), stream=True)
        try:
            if response.status_code != 200:
                raise refusal(response.status_code, _read(response, MAX_ERROR_NBYTES, False), shown(url))
            _require_plain(response)
            return _read(response, MAX_TOKEN_REPLY, True)
        finally:
            response.close()


@contextlib.contextmanager
def _network_errors(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise RegistryError(
            "network", "the registry does not answer", where=shown(url), hint="try again; what arrived is kept"
        ) from error
    except (httpx.TransportError, httpx.InvalidURL, httpx.StreamError) as error:
        text = str(error) or type(error).__name__
        raise RegistryError(
            "network", f"the connection failed: {text[:200]}", where=shown(url), hint="check the address and try again"
        ) from error


def _require_plain(response: httpx.Response) -> None:
    """Refuse a compressed body: nothing was asked for, and a small one can unpack to any size."""
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise RegistryError("network", "the reply is compressed", where=shown(response.url), got=encoding[:40])


def _read(response: httpx.Response, max_nbytes: int, required: bool) -> bytes:
    """The body, at most `max_nbytes`; what is longer raises where it is required, else is cut."""
    body = bytearray()
    for chunk in response.iter_raw(CHUNK_NBYTES):
        body += chunk
        if len(body) > max_nbytes:
            if required:
                raise RegistryError(
                    "network",
                    "the reply is too long",
                    where=shown(response.url),
                    expected=f"at most {max_nbytes} bytes",
                )
            break
    return bytes(body[:max_nbytes])


def _retry_after(headers: httpx.Headers) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
