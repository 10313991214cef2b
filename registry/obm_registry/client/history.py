"""How tags moved: `/api/v1` of our own server tells; stock registries and layouts keep no history."""

from __future__ import annotations

from collections.abc import Callable

from obm_format.errors import RegistryError
from obm_registry import reports
from obm_registry.client.http import Request, Session
from obm_registry.manifest.strictjson import parse_json
from obm_registry.refs import is_digest, printable

MAX_NBYTES = 4 << 20

History = Callable[[str, str | None], list[reports.LogEntry]]
"""(repository, tag or None for all tags) -> moves, the latest first."""


def no_history(name: str) -> History:
    """The history of a registry that keeps none."""

    def refuse(repository: str, tag: str | None) -> list[reports.LogEntry]:
        raise RegistryError(
            "unsupported",
            "this registry keeps no history of its tags",
            where=f"{name}: {repository}",
            hint="`obm serve` and the embedded registry do",
        )

    return refuse


def remote_history(session: Session) -> History:
    """The history that a server keeps, where it has `/api/v1`."""

    def ask(repository: str, tag: str | None) -> list[reports.LogEntry]:
        middle = f"tags/{tag}/history" if tag else "history"
        request = Request(
            method="GET",
            url=session.origin.url(f"/api/v1/repositories/{repository}/{middle}"),
            headers={"Accept": "application/json"},
            scopes=(f"repository:{repository}:pull",),
        )
        reply = session.exchange(request, expect=(200, 404, 405), max_nbytes=MAX_NBYTES)
        if reply.status == 200:
            return _parse(reply.body)
        return no_history(session.origin.authority)(repository, tag)

    return ask


def _parse(body: bytes) -> list[reports.LogEntry]:
    document = parse_json(body, max_nbytes=MAX_NBYTES, where="history")
    rows = document.get("events") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise RegistryError("network", "the registry's history is malformed")
    return [_entry(row) for row in rows if isinstance(row, dict)]


def _entry(row: dict[str, object]) -> reports.LogEntry:
    def digest(key: str) -> str | None:
        value = row.get(key)
        return value if isinstance(value, str) and is_digest(value) else None

    def text(key: str) -> str:
        return printable(str(row.get(key, "")))

    return reports.LogEntry(
        tag=text("tag"),
        old_digest=digest("old_digest"),
        new_digest=digest("new_digest"),
        actor=text("actor"),
        at=text("at"),
    )
