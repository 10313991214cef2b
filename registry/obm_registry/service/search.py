"""Find repositories, backbones and experts among what a caller may read, a page at a time, the latest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from obm_registry.catalog.rows import BackboneRow, ExpertFilter, FoundExpert
from obm_registry.catalog.store import Session
from obm_registry.service.access import PULL, Caller, may
from obm_registry.service.registry import Registry

MAX_PAGE = 200


class _Placed(Protocol):
    @property
    def repository(self) -> str: ...
    @property
    def manifest_id(self) -> int: ...


Row = TypeVar("Row", bound=_Placed)


def find_experts(
    registry: Registry, caller: Caller, wanted: ExpertFilter, *, before: int | None = None, limit: int = 50
) -> tuple[list[FoundExpert], int | None]:
    """Experts that a caller may pull.

    Args:
        registry: where.
        caller: who asks.
        wanted: which ones.
        before: the key that the page before gave, or None for the first page.
        limit: most rows, capped at `MAX_PAGE`.

    Returns:
        The rows, and the key for the next page, None where there is none.
    """
    with registry.catalog.read() as session:
        return _page(
            session,
            caller,
            lambda key, size: session.lineage.search(wanted, before=key, limit=size),
            before,
            min(limit, MAX_PAGE),
        )


def find_repositories(registry: Registry, caller: Caller, *, after: str, limit: int) -> list[str]:
    """Names of repositories that a caller may pull from, in order, behind `after`, at most `limit`."""
    found: list[str] = []
    with registry.catalog.read() as session:
        while len(found) < limit:
            page = session.names.repositories(after=after)
            found += [name for name in page if may(session, caller, PULL, name)]
            if not page:
                break
            after = page[-1]
    return found[:limit]


def find_backbones(
    registry: Registry,
    caller: Caller,
    *,
    fingerprint: str | None = None,
    text: str = "",
    before: int | None = None,
    limit: int = 50,
) -> tuple[list[BackboneRow], int | None]:
    """Backbones that a caller may pull; see `find_experts`."""
    with registry.catalog.read() as session:
        return _page(
            session,
            caller,
            lambda key, size: session.lineage.backbones(fingerprint=fingerprint, text=text, before=key, limit=size),
            before,
            min(limit, MAX_PAGE),
        )


def _page(
    session: Session,
    caller: Caller,
    fetch: Callable[[int | None, int], list[Row]],
    before: int | None,
    limit: int,
) -> tuple[list[Row], int | None]:
    readable: dict[str, bool] = {}

    def seen(rows: Iterable[Row]) -> list[Row]:
        found = []
        for row in rows:
            if row.repository not in readable:
                readable[row.repository] = may(session, caller, PULL, row.repository)
            if readable[row.repository]:
                found.append(row)
        return found

    page: list[Row] = []
    while len(page) <= limit:
        rows = fetch(before, MAX_PAGE)
        page += seen(rows)
        if len(rows) < MAX_PAGE:
            break
        before = rows[-1].manifest_id
    if len(page) <= limit:
        return page, None
    return page[:limit], page[limit - 1].manifest_id
