"""S-18: what a request's head and chunks can say in two ways, byte by byte; a request hidden behind it never runs."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from registry_server import RunningServer

CHUNKED = "Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def talk(server: RunningServer, data: bytes, replies: int | None = None) -> tuple[list[int], bool]:
    """Statuses of all replies to bytes that are sent at once, and whether the server closed the connection.

    With `replies` so many are waited for and a moment more, else the end of the connection.
    """
    host, _, port = server.host.partition(":")
    received, closed = b"", False
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        try:
            while piece := connection.recv(65536):
                received += piece
                if received.count(b"HTTP/1.") == replies:
                    connection.settimeout(0.3)
            closed = True
        except TimeoutError:
            pass
        except ConnectionResetError:
            closed = True
    return [int(part[2:5]) for part in received.split(b"HTTP/1.")[1:]], closed


def head(server: RunningServer, path: str, *lines: str, version: str = "HTTP/1.1") -> bytes:
    fields = [f"POST {path} {version}", f"Host: {server.host}", f"Authorization: Bearer {server.admin}", *lines]
    return ("\r\n".join(fields) + "\r\n\r\n").encode("latin-1")


def send(
    server: RunningServer,
    repo: str,
    lines: tuple[str, ...],
    body: Callable[[bytes], bytes],
    version: str = "HTTP/1.1",
    replies: int | None = None,
) -> tuple[list[int], bool, bool]:
    """Begin an upload with a body that holds a second request; statuses, whether it was closed, whether that ran."""
    hidden = head(server, f"/v2/{repo}/hidden/blobs/uploads/", "Content-Length: 0")
    request = head(server, f"/v2/{repo}/blobs/uploads/", *lines, version=version) + body(hidden)
    statuses, closed = talk(server, request, replies)
    ran = server.client().get(f"/v2/{repo}/hidden/tags/list").status_code == 200
    return statuses, closed, ran


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 4", "Content-Length: 5"),
        ("Content-Length: 4, 4",),
        ("Content-Length: +4",),
        ("Content-Length: -4",),
        ("Content-Length: 0x4",),
        ("Content-Length: 0 4",),
        ("Content-Length:",),
        ("Content-Length : 4",),
        ("Content-Length:\r\n 4",),
        ("X-Other: a\r\n b", "Content-Length: 4"),
        ("X-Other: a\rTransfer-Encoding: chunked", "Content-Length: 4"),
        ("X-Other: a\0", "Content-Length: 4"),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding:\r\n chunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ('Transfer-Encoding: "chunked"',),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity", "Content-Length: 4"),
        ("Transfer-Encoding: xchunked",),
        (CHUNKED, CHUNKED),
    ],
)
def test_s18_framing_that_can_be_read_in_two_ways_is_refused(
    server: RunningServer, repo: str, lines: tuple[str, ...]
) -> None:
    for body in (END, b"abcd"):
        statuses, closed, ran = send(server, repo, lines, lambda hidden, body=body: body + hidden)
        assert (statuses, closed, ran) == ([400], True, False)


def test_s18_chunks_are_not_known_to_http_1_0(server: RunningServer, repo: str) -> None:
    assert send(server, repo, (CHUNKED,), lambda hidden: END + hidden, "HTTP/1.0") == ([400], True, False)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        # RFC 9112, 6.1: length and chunks together are read by the chunks alone, and the connection is closed
        (("Content-Length: 4", CHUNKED), lambda hidden: END + hidden),
        ((CHUNKED, "Content-Length: 4"), lambda hidden: END + hidden),
        (("Content-Length: 400", CHUNKED), lambda hidden: END + hidden),
        ((CHUNKED, "Content-Length: 5"), lambda hidden: b"%x\r\n%s\r\n" % (len(hidden), hidden) + END),
        (("X-Other: a\nTransfer-Encoding: chunked", "Content-Length: 5"), lambda hidden: END + hidden),
        (("X-Other: a\nTransfer-Encoding: chunked",), lambda hidden: END + hidden),
        # nothing is read behind chunks, whatever they look like
        ((CHUNKED,), lambda hidden: END + hidden),
        (("Transfer-Encoding:\tchunked",), lambda hidden: END + hidden),
        (("tRANSFER-eNCODING: cHUNKED",), lambda hidden: END + hidden),
        ((CHUNKED,), lambda hidden: b"0 \r\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"0\r\nContent-Length: 4\r\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"0;a=" + hidden.replace(b"\r\n", b"\n") + b"\r\n\r\n"),
        ((CHUNKED,), lambda hidden: b"0;a\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"0\n\n" + hidden),
        ((CHUNKED,), lambda hidden: b"+0\r\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"0x0\r\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"10000000000000000\r\n\r\n" + hidden),
        ((CHUNKED,), lambda hidden: b"2\r\nabX\r\n" + END + hidden),
    ],
)
def test_s18_nothing_runs_behind_chunks(
    server: RunningServer, repo: str, lines: tuple[str, ...], body: Callable[[bytes], bytes]
) -> None:
    statuses, closed, ran = send(server, repo, lines, body)
    assert (len(statuses), closed, ran) == (1, True, False)


def test_requests_of_a_known_length_share_a_connection(server: RunningServer, repo: str) -> None:
    """The same way of looking finds a second request where there may be one; a length said twice alike is one."""
    for lines in (("Content-Length: 4",), ("Content-Length: 4", "Content-Length: 4")):
        statuses, closed, ran = send(server, repo, lines, lambda hidden: b"abcd" + hidden, replies=2)
        assert (statuses, closed, ran) == ([202, 202], False, True)


def test_a_body_in_chunks_is_taken(server: RunningServer, repo: str) -> None:
    client = server.client()
    where = client.post(f"/v2/{repo}/blobs/uploads/").headers["Location"]
    sent = client.patch(where, content=iter([b"ab", b"cd"]))
    assert (sent.status_code, sent.headers["Range"], sent.headers["Connection"]) == (202, "0-3", "close")
