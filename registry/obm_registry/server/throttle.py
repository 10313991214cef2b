"""How often one address may do something: a bucket of permits by address, filled at a steady rate.

Never sleeps: it answers how long to wait. Keeps the latest addresses only, so that its memory is bounded.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_ADDRESSES = 10_000


class Throttle:
    """Permits by address.

    Args:
        per_second: permits that come back in a second.
        burst: permits that an address has at most.
        clock: seconds, monotonic.
    """

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until the address has a permit again; 0.0 when it has one now."""
        left, _ = self._level(address)
        return 0.0 if left >= 1 else (1 - left) / self._per_second

    def take(self, address: str) -> None:
        """Use one permit of the address up."""
        left, now = self._level(address)
        self._buckets[address] = (max(left - 1, 0.0), now)
        self._buckets.move_to_end(address)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)

    def _level(self, address: str) -> tuple[float, float]:
        now = self._clock()
        left, since = self._buckets.get(address, (float(self._burst), now))
        return min(self._burst, left + (now - since) * self._per_second), now
