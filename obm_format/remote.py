"""A file at an http(s) address, read by range requests: what is asked for and little more.

Every answer is held against its question: the range, the size of the whole file, its entity tag. What the bytes mean
is checked where those of a local file are; the header and the digests in it do not trust the other side. Never sends
credentials. See docs/adr/0015. Source: RFC 9110, sections 13 to 15.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from obm_format.container.header import FIRST_READ_NBYTES
from obm_format.container.sources import AnySource, RangeSource
from obm_format.errors import ObmError, UsageError
from obm_format.model import padded

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30.0  # without a byte; a slow transfer that goes on may take as long as it takes
MOST_REDIRECTS: Final = 5
WITHOUT_RANGES_NBYTES: Final = 16 << 20  # most that is read of a file whose server knows no ranges
_AHEAD_NBYTES: Final = 65_536  # behind the rest of a long header: the digests are there
_KEPT: Final = 16  # pieces that were read beside what was asked for
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REFUSALS: Final = frozenset({401, 403, 404, 410})
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})")


def is_url(text: object) -> bool:
    """Whether this is an http(s) address and not the path of a file."""
    return isinstance(text, str) and re.match(r"https?://", text, re.IGNORECASE) is not None


def reachable(source: AnySource) -> AnySource:
    """The source behind an http(s) address; a path, bytes or a source as they are.

    Raises:
        ObmError: as `HttpSource`.
    """
    return HttpSource(source) if isinstance(source, str) and is_url(source) else source


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the first answer says of the file: bytes from its start, its size, its tag, and whether ranges work."""

    start: bytes
    nbytes: int
    etag: str | None
    ranges: bool


class HttpSource(RangeSource):
    """A file at an http(s) address. May be read from several threads; close it.

    The first request asks for the first 64 KiB, which is all of most headers. A server that does not know ranges
    is read from the start each time, up to 16 MiB and no further.

    Args:
        url: the address; user name and password in it are refused.

    Raises:
        UsageError: `usage`, this is no such address.
        ObmError: `not_found` (404, 410), `denied` (401, 403), `network` for all else.
    """

    def __init__(self, url: str) -> None:
        self._url = self._place = _checked(url)
        self._client = _client()
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._whole = b""
        try:
            self._first = self._ask_first(_name(url))
        except BaseException:
            self._client.close()
            raise
        super().__init__(self._first.nbytes, self._fetch, _name(url))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask_first(self, name: str) -> _Answer:
        with self._answer(name, _range(0, FIRST_READ_NBYTES)) as response:
            etag = response.headers.get("etag", "")
            strong = etag if etag.startswith('"') else None
            if response.status_code == 416 and response.headers.get("content-range", "").endswith("/0"):
                return _Answer(start=b"", nbytes=0, etag=strong, ranges=True)
            if response.status_code == 206:
                nbytes = _total(response, name, 0, FIRST_READ_NBYTES)
                start = _body(response, name, min(nbytes, FIRST_READ_NBYTES))
                return _Answer(start=start, nbytes=nbytes, etag=strong, ranges=True)
            if response.status_code != 200:
                raise _no_file(response, name)
            nbytes = _length(response, name)
            start = _prefix(response, name, min(nbytes, FIRST_READ_NBYTES))
            return _Answer(start=start, nbytes=nbytes, etag=strong, ranges=False)

    # --- reading --------------------------------------------------------------------------------------------

    def _fetch(self, offset: int, nbytes: int) -> bytes:
        """Bytes from what is held, the rest in one request."""
        held = self._held(offset, nbytes)
        at, missing = offset + len(held), nbytes - len(held)
        if not missing:
            return held
        if not self._first.ranges:
            return held + self._without_ranges(at, missing)
        # padding is read with its part, and the digests with the rest of the header
        ahead = _AHEAD_NBYTES if at == FIRST_READ_NBYTES else 0
        stop = min(self.nbytes, padded(at + missing) + ahead)
        data = self._range(at, stop)
        if len(data) > missing:
            with self._lock:
                self._kept.append((at + missing, data[missing:]))
        return held + data[:missing]

    def _held(self, offset: int, nbytes: int) -> bytes:
        """What is at hand of these bytes, from the first one on."""
        with self._lock:
            pieces = [(0, self._first.start), *self._kept]
        for start, data in pieces:
            if start <= offset < start + len(data):
                return data[offset - start : offset - start + nbytes]
        return b""

    def _range(self, start: int, stop: int) -> bytes:
        headers = _range(start, stop) | ({"If-Range": self._first.etag} if self._first.etag else {})
        with self._answer(self.name, headers) as response:
            if response.status_code != 206:
                raise self._changed(f"HTTP {response.status_code}")
            if _total(response, self.name, start, stop) != self.nbytes:
                raise self._changed(response.headers["content-range"])
            if self._first.etag and response.headers.get("etag", self._first.etag) != self._first.etag:
                raise self._changed(response.headers["etag"])
            return _body(response, self.name, stop - start)

    def _without_ranges(self, offset: int, nbytes: int) -> bytes:
        """Bytes of a file that can only be read from its start; small files are kept whole."""
        stop = self.nbytes if self.nbytes <= WITHOUT_RANGES_NBYTES else offset + nbytes
        if stop > WITHOUT_RANGES_NBYTES:
            raise ObmError(
                "network",
                "the server does not answer range requests, and the file is large",
                where=self.name,
                expected="HTTP 206",
                got="HTTP 200",
                hint="download the file, and name that",
            )
        with self._lock:
            if len(self._whole) < offset + nbytes:
                self._whole = self._read_start(stop)
            return self._whole[offset : offset + nbytes]

    def _read_start(self, stop: int) -> bytes:
        with self._answer(self.name, {}) as response:
            if response.status_code != 200 or _length(response, self.name) != self.nbytes:
                raise self._changed(f"HTTP {response.status_code}")
            return _prefix(response, self.name, stop)

    def _changed(self, got: str) -> ObmError:
        return ObmError(
            "network",
            "the file at this address changed while it was read, or the server stopped answering ranges",
            where=self.name,
            expected=f"a range of {self.nbytes} bytes" + (f", tag {self._first.etag}" if self._first.etag else ""),
            got=got,
            hint="run the command again",
        )

    # --- asking ---------------------------------------------------------------------------------------------

    @contextmanager
    def _answer(self, name: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """An answer of status 200, 206 or 416 in the end, its body not read yet."""
        with _network_errors(name):
            response = self._follow(name, self._place, headers)
            if response.status_code in _REFUSALS and self._place != self._url:
                # where a redirect led may be valid for a while only
                response.close()
                response = self._follow(name, self._url, headers)
            try:
                _check_status(response, name)
                yield response
            finally:
                response.close()

    def _follow(self, name: str, url: str, headers: dict[str, str]) -> httpx.Response:
        for _ in range(MOST_REDIRECTS + 1):
            response = self._send(url, headers)
            if response.status_code not in _REDIRECTS:
                self._place = url
                return response
            response.close()
            url = _redirected(name, url, response.headers.get("location", ""))
        raise ObmError("network", "too many redirects", where=name, expected=f"at most {MOST_REDIRECTS}")

    def _send(self, url: str, headers: dict[str, str]) -> httpx.Response:
        import httpx

        request = self._client.build_request("GET", url, headers=headers)
        try:
            return self._client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # a kept connection that the server has just closed
            return self._client.send(request, stream=True)


def _client() -> httpx.Client:
    import httpx

    return httpx.Client(
        headers={"Accept-Encoding": "identity", "User-Agent": "obm"},
        timeout=httpx.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
    )


def _range(start: int, stop: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{stop - 1}"}


def _name(url: str) -> str:
    """The address as messages show it: what follows a question mark may be secret."""
    return url.partition("#")[0].partition("?")[0]


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = is_url(url) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("usage", "this is no http(s) address", got=ascii(_name(url)[:200]))
    if "@" in parts.netloc:
        raise UsageError(
            "usage",
            "obm sends no user name or password",
            where=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            hint="leave it out, or download the file by other means",
        )
    return url


def _redirected(name: str, url: str, location: str) -> str:
    """Where a redirect leads; from https never to http."""
    target = urljoin(url, location)
    if not location or (urlsplit(url).scheme.lower() == "https" and urlsplit(target).scheme.lower() != "https"):
        raise ObmError("network", "the server redirects to where obm does not follow", where=name, got=_name(target))
    try:
        return _checked(target)
    except UsageError as error:
        raise ObmError(
            "network", "the server redirects to where obm does not follow", where=name, got=error.where or error.got
        ) from error


@contextmanager
def _network_errors(name: str) -> Iterator[None]:
    """Turn what httpx says into one line."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        kind = "cannot connect" if isinstance(error, httpx.ConnectTimeout) else "the server fell silent"
        seconds = CONNECT_SECONDS if isinstance(error, httpx.ConnectTimeout) else IDLE_SECONDS
        raise ObmError("network", f"{kind}: no answer for {seconds:.0f} s", where=name) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ObmError("network", f"the transfer failed: {text[:200]}", where=name) from error


def _check_status(response: httpx.Response, name: str) -> None:
    status = response.status_code
    if status in (404, 410):
        raise ObmError("not_found", "there is no such file at this address", where=name, got=f"HTTP {status}")
    if status in (401, 403):
        hint = "obm sends no credentials here: download the file by other means"
        raise ObmError("denied", "the server refuses this", where=name, got=f"HTTP {status}", hint=hint)
    if status not in (200, 206, 416):
        raise _no_file(response, name)
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise ObmError("network", "the server compresses what it was asked to send as it is", where=name, got=coding)


def _no_file(response: httpx.Response, name: str) -> ObmError:
    return ObmError("network", "the server does not give the file", where=name, got=f"HTTP {response.status_code}")


def _total(response: httpx.Response, name: str, start: int, stop: int) -> int:
    """The size of the whole file, from the answer to a range, which must be the one that was asked for."""
    text = response.headers.get("content-range", "")
    found = _CONTENT_RANGE.fullmatch(text)
    first, last, total = (int(found[i]) for i in (1, 2, 3)) if found else (-1, -1, -1)
    if first != start or last + 1 != min(stop, total):
        raise ObmError(
            "network",
            "the server answers another range than it was asked for",
            where=name,
            expected=f"bytes {start}-{stop - 1}",
            got=ascii(text[:80]) if text else "no Content-Range",
        )
    return total


def _length(response: httpx.Response, name: str) -> int:
    text = response.headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,16}", text):
        raise ObmError(
            "network", "the server neither answers range requests nor says how large the file is", where=name
        )
    return int(text)


def _body(response: httpx.Response, name: str, nbytes: int) -> bytes:
    """A body of exactly `nbytes` bytes; not a byte beyond is kept."""
    data = _prefix(response, name, nbytes, more=True)
    if len(data) > nbytes:
        raise ObmError("network", "the server sent more bytes than it was asked for", where=name, expected=nbytes)
    return data


def _prefix(response: httpx.Response, name: str, nbytes: int, *, more: bool = False) -> bytes:
    """The first `nbytes` bytes of a body; with `more` one chunk may follow, to see whether there is one."""
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > nbytes or (len(data) == nbytes and not more):
            break
    if len(data) < nbytes:
        raise ObmError(
            "network", "the server sent fewer bytes than it was asked for", where=name, expected=nbytes, got=len(data)
        )
    return bytes(data if more else data[:nbytes])
