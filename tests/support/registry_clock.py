"""A clock that tests move on."""

from __future__ import annotations

from dataclasses import dataclass

from obm_registry.service.registry import now_ms


@dataclass
class Clock:
    """Real time, moved on by hand."""

    ahead_ms: int = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms

    def pass_hours(self, hours: float) -> None:
        self.ahead_ms += int(hours * 3_600_000)
