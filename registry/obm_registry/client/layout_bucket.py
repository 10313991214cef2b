"""An OCI image layout in a bucket: blobs appear whole, no writer of the index loses another's change.

Where the service holds conditions on writes, the index is replaced only as it was read. Where it does not, writers
announce themselves and go on alone. Never interprets the index.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from functools import cached_property

from obm_format.errors import RegistryError
from obm_registry.bucket import Bucket, StoredObject
from obm_registry.client.http import Patience
from obm_registry.client.layout import MARKER
from obm_registry.manifest.oci import MAX_MANIFEST_NBYTES
from obm_registry.refs import parse_digest

MAX_ROUNDS = 20
_NO_ETAG = f'"{"0" * 32}"'


class BucketLayout:
    """`LayoutFiles` in a bucket.

    Args:
        bucket: the bucket; closed with the layout.
        name: what messages call it.
        prefix: what its keys begin with, "" or text that ends in `/`.
        patience: time between tries of writers who meet.
    """

    def __init__(self, bucket: Bucket, name: str, prefix: str, patience: Patience) -> None:
        self._bucket = bucket
        self._name = name
        self._prefix = prefix
        self._patience = patience

    @property
    def name(self) -> str:
        """See `LayoutFiles.name`."""
        return self._name

    def close(self) -> None:
        """See `LayoutFiles.close`."""
        self._bucket.close()

    def index(self) -> bytes | None:
        """See `LayoutFiles.index`."""
        found = self._find_index()
        return None if found is None else found.body

    def update_index(self, change: Callable[[bytes | None], bytes]) -> None:
        """See `LayoutFiles.update_index`.

        Raises:
            RegistryError: `busy` when others write again and again.
        """
        if not self._bucket.has(self._marker):
            self._bucket.put(self._marker, MARKER)
        if self._holds_conditions:
            self._replace(change)
        else:
            with self._alone():
                self._bucket.put(self._index, self._changed(change, self._find_index()))

    def has(self, digest: str) -> bool:
        """See `LayoutFiles.has`."""
        return self._bucket.has(self._key(digest))

    def put(self, digest: str, chunks: Iterator[bytes]) -> None:
        """See `LayoutFiles.put`."""
        self._bucket.put_checked(self._key(digest), digest, chunks)

    def read(self, digest: str, start: int) -> Iterator[bytes]:
        """See `LayoutFiles.read`."""
        return self._bucket.read(self._key(digest), start)

    # --- the index ------------------------------------------------------------------------------------------

    @cached_property
    def _holds_conditions(self) -> bool:
        """Whether the service refuses a write whose condition fails; tried on the marker, which never changes."""
        try:
            return not any(self._bucket.put_if(self._marker, MARKER, etag) for etag in (None, _NO_ETAG))
        except RegistryError as error:
            if error.reason != "unsupported":
                raise
            return False

    def _replace(self, change: Callable[[bytes | None], bytes]) -> None:
        """Write the changed index where it is still the one that was changed, until it is."""
        for attempt in range(MAX_ROUNDS):
            found = self._find_index()
            body = self._changed(change, found)
            if self._bucket.put_if(self._index, body, None if found is None else found.etag):
                return
            self._patience.wait(min(attempt, 4))
        raise RegistryError("busy", "others keep changing the layout's index", where=self.name)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only writer. Whoever announces itself before it looks, and sees nobody, is seen by all later ones."""
        folder = f"{self._prefix}.obm-writers/"
        own = folder + secrets.token_hex(16)
        others: list[str] = []
        for attempt in range(MAX_ROUNDS):
            self._bucket.put(own, b"")
            try:
                others = [key for key in self._bucket.first_keys(folder) if key != own]
                if not others:
                    yield
                    return
            finally:
                self._bucket.remove(own)
            self._patience.wait(min(attempt, 4))
        raise RegistryError(
            "busy",
            "another writer is at work, and this service knows no conditional writes",
            where=self.name,
            got=others[0],
            hint="if nobody else is writing, one was killed: remove that object",
        )

    def _changed(self, change: Callable[[bytes | None], bytes], found: StoredObject | None) -> bytes:
        body = change(None if found is None else found.body)
        if len(body) > MAX_MANIFEST_NBYTES:
            raise RegistryError("limit_exceeded", "the layout's index is full", where=self.name)
        return body

    def _find_index(self) -> StoredObject | None:
        return self._bucket.find(self._index, MAX_MANIFEST_NBYTES + 1)

    @property
    def _index(self) -> str:
        return f"{self._prefix}index.json"

    @property
    def _marker(self) -> str:
        return f"{self._prefix}oci-layout"

    def _key(self, digest: str) -> str:
        algorithm, _, digits = parse_digest(digest).partition(":")
        return f"{self._prefix}blobs/{algorithm}/{digits}"
