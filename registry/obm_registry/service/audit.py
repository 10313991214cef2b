"""Read the audit log, and check that nobody changed it."""

from __future__ import annotations

import dataclasses

from obm_format.errors import RegistryError
from obm_registry.catalog.audit import line_hash
from obm_registry.catalog.rows import AuditEntry
from obm_registry.service.registry import Registry

_PAGE = 1000


def read_audit(registry: Registry, *, after: int = 0, limit: int = _PAGE) -> list[AuditEntry]:
    """Lines of the audit log in the order in which they were written, behind `after`."""
    with registry.catalog.read() as session:
        return session.audit.page(after=after, limit=min(limit, _PAGE))


def check_audit(registry: Registry) -> int:
    """Hold every line against its own hash and the line before.

    Returns:
        How many lines there are.

    Raises:
        RegistryError: `audit_broken` at the first line that is not what was written, or follows a gap.
    """
    count, previous, after = 0, "", 0
    while page := read_audit(registry, after=after):
        for entry in page:
            if entry.previous != previous or line_hash(dataclasses.asdict(entry)) != entry.hash:
                raise RegistryError("audit_broken", "the audit log was changed", where=f"line {entry.id}")
            previous, after = entry.hash, entry.id
        count += len(page)
    return count
