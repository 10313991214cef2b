"""Connections that are read in large pieces: what has arrived is taken at once, which halves the work of a pull.

httpx reads 64 KiB at a time and has no option for it; a piece costs it more than hashing those bytes does.
"""

from __future__ import annotations

from typing import Any

import httpx

READ_NBYTES = 512 << 10


def read_large_pieces(client: httpx.Client) -> None:
    """Let the connections that a client opens from now on be read in pieces of up to `READ_NBYTES`.

    Plain ones only: TLS gives 16 KiB at a time. Where httpx keeps its parts elsewhere, all stays as it was.
    """
    transports: list[Any] = [client._transport, *client._mounts.values()]
    for transport in transports:
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):
            pool._network_backend = _Backend(pool._network_backend)


class _Backend:
    """Opens the connections of another one."""

    def __init__(self, backend: Any) -> None:  # noqa: ANN401 - httpcore's, which is not a dependency of ours
        self._backend = backend

    def connect_tcp(self, *args: object, **options: object) -> _Stream:
        return _Stream(self._backend.connect_tcp(*args, **options))

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)


class _Stream:
    """A connection whose reads ask for more."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - as above
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._stream.read(max(max_bytes, READ_NBYTES), timeout)
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
