"""Running hashes of uploads that go on over several calls, so that the last call need not read them all again.

Only a head start: what is not here is hashed again from what is stored. Several threads may use one object.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

MAX_KEPT = 1024


class RunningHashes:
    """Hash states by upload, the latest `MAX_KEPT`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[int, hashlib._Hash]] = OrderedDict()

    def take(self, session: str, nbytes: int, algorithm: str) -> hashlib._Hash | None:
        """The hash over the first `nbytes` bytes of an upload, or None; it is no longer kept here then."""
        with self._lock:
            found = self._kept.pop(session, None)
        if nbytes == 0:
            return hashlib.new(algorithm)
        return found[1] if found is not None and found[0] == nbytes and found[1].name == algorithm else None

    def keep(self, session: str, nbytes: int, total: hashlib._Hash) -> None:
        """Keep the hash over the first `nbytes` bytes of an upload."""
        with self._lock:
            self._kept[session] = (nbytes, total)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    def drop(self, session: str) -> None:
        """Forget an upload."""
        with self._lock:
            self._kept.pop(session, None)
