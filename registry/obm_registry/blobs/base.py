"""What every blob store can do.

Keys are random, are never used again and tell nothing about the content; the catalog maps digests to them. A
store is never asked whether a digest exists.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obm_format.errors import RegistryError

CHUNK_NBYTES = 1 << 20

_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object in a store: its key, its size, when it was written (milliseconds since 1970, UTC)."""

    key: str
    nbytes: int
    written_at: int


class ObjectWriter(Protocol):
    """Takes the bytes of one new object."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append bytes."""


class BlobStore(Protocol):
    """Objects by key."""

    def create(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """A context that takes the bytes of a new object.

        When the block ends well the object is durable; when it raises there is none.

        Raises:
            RegistryError: `disk_full` or `io`.
        """

    def resume(self, key: str, durable: Callable[[], int]) -> AbstractContextManager[ObjectWriter]:
        """A context that appends to an object, made when it is not there yet, and keeps others from doing so.

        Args:
            key: the object.
            durable: asked once nobody else can write: how many bytes of the object count. Whatever it has beyond
                them is cut off. What this raises ends the context before anything is changed.

        However the block ends, what was written is durable.

        Raises:
            RegistryError: `busy` when somebody else is writing to it, `blob_damaged` when it has fewer bytes,
                `disk_full`, `io`.
        """

    def finish(self, key: str) -> None:
        """Put an object that was appended to where finished ones are; all its bytes have come and are right.

        Called before a row names the object. May be called again, and the object may be resumed again, when no row
        could be written.

        Raises:
            RegistryError: `io`, `disk_full`; the object is as it was then.
        """

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes [start, stop) of an object in chunks of at most 1 MiB.

        Raises:
            RegistryError: `blob_damaged` when the object is missing or too short, `io` when it cannot be
                read.
        """

    def local_path(self, key: str) -> Path | None:
        """The file that is the object, for stores on a local disk; None for others."""

    def link(self, key: str, seconds: int) -> str | None:
        """An address that gives a finished object to whoever has it, for some seconds from now; None where none can.

        The object comes as a download of bytes, and ranges of it too.
        """

    def nbytes(self, key: str) -> int | None:
        """Size of an object, None when there is none."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""

    def objects(self) -> Iterator[StoredObject]:
        """Every object there is, in any order."""

    def close(self) -> None:
        """Give back what is held."""


def new_key() -> str:
    """A key that no object has ever had."""
    return secrets.token_hex(16)


def is_key(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _KEY.fullmatch(text) is not None


def damaged(key: str, detail: str) -> RegistryError:
    """The refusal of an object that is not what the catalog says."""
    return RegistryError("blob_damaged", detail, where=f"object {key}", hint="run `obm fsck`")
