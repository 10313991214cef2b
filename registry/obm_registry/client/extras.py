"""What OCI has no word for: how a tag moved, and withdrawal that the registry itself keeps.

`/api/v1` of our own server knows both; stock registries and layouts know neither.
"""

from __future__ import annotations

from typing import Protocol

from obm_format.errors import RegistryError
from obm_registry import reports
from obm_registry.client.http import Reply, Request, Session
from obm_registry.client.refusals import is_own_refusal, refusal
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import is_digest, printable

MAX_NBYTES = 4 << 20


class Extras(Protocol):
    """More than OCI."""

    def history(self, repository: str, tag: str) -> list[reports.LogEntry]:
        """The moves of a tag, the latest first.

        Raises:
            RegistryError: `unsupported` where nobody keeps them; `not_found`.
        """

    def withdraw(self, repository: str, digest: str, reason: str, *, undo: bool) -> bool:
        """Withdraw a manifest or take that back; False where the registry has no such thing."""


class NoExtras:
    """A registry that has nothing of the kind.

    Args:
        name: what messages call it.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def history(self, repository: str, tag: str) -> list[reports.LogEntry]:
        """See `Extras.history`; refused."""
        raise RegistryError(
            "unsupported",
            "this registry keeps no history of its tags",
            where=f"{self._name}: {repository}:{tag}",
            hint="`obm serve` and the embedded registry do",
        )

    def withdraw(self, repository: str, digest: str, reason: str, *, undo: bool) -> bool:
        """See `Extras.withdraw`."""
        return False


class ServerExtras:
    """The extras of a server, where it is one of ours.

    Args:
        session: connections.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._none = NoExtras(session.origin.authority)

    def history(self, repository: str, tag: str) -> list[reports.LogEntry]:
        """See `Extras.history`."""
        reply = self._ask("GET", repository, f"tags/{tag}/history", "pull")
        return self._none.history(repository, tag) if reply is None else _events(reply.body)

    def withdraw(self, repository: str, digest: str, reason: str, *, undo: bool) -> bool:
        """See `Extras.withdraw`."""
        body = None if undo else encode_json({"reason": reason})
        method = "DELETE" if undo else "PUT"
        return self._ask(method, repository, f"manifests/{digest}/yank", "delete", body) is not None

    def _ask(self, method: str, repository: str, path: str, action: str, body: bytes | None = None) -> Reply | None:
        """The reply of the API; None where there is no API."""
        url = self._session.origin.url(f"/api/v1/repositories/{repository}/{path}")
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        request = Request(
            method=method, url=url, headers=headers, body=body, scopes=(f"repository:{repository}:{action}",)
        )
        reply = self._session.exchange(request, expect=(200, 404, 405), max_nbytes=MAX_NBYTES)
        if reply.status == 200:
            return reply
        if is_own_refusal(reply.body):
            raise refusal(reply.status, reply.body, f"{self._session.origin.authority}/{repository}")
        return None


def _events(body: bytes) -> list[reports.LogEntry]:
    document = parse_json(body, max_nbytes=MAX_NBYTES, where="history")
    rows = document.get("history") if isinstance(document, dict) else None
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
