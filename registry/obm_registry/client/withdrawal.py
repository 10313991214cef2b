"""Withdraw an expert by a manifest that refers to it, which any registry keeps and every copy takes along."""

from __future__ import annotations

from obm_registry.client.attachments import publish_attached
from obm_registry.client.store import FoundManifest, Store
from obm_registry.refs import printable

YANK_TYPE = "application/vnd.obm.yank.v1"
YANK_REASON = "io.obm.yank.reason"
MAX_REASON = 500


def is_withdrawn(store: Store, repository: str, digest: str) -> str:
    """Why a manifest was withdrawn; "" when it was not."""
    marks = store.referrers(repository, digest, YANK_TYPE)
    reasons = [printable(mark.annotations.get(YANK_REASON, ""), MAX_REASON) for mark in marks]
    return next(filter(None, reasons), "no reason given") if marks else ""


def withdraw(store: Store, repository: str, found: FoundManifest, *, reason: str, undo: bool) -> None:
    """Mark a manifest as not to be used, or take all such marks away.

    Raises:
        RegistryError: `unsupported` where a registry removes nothing.
    """
    if undo:
        for mark in store.referrers(repository, found.digest, YANK_TYPE):
            store.remove_manifest(repository, mark.digest)
        return
    publish_attached(store, repository, found, YANK_TYPE, (), {YANK_REASON: reason[:MAX_REASON]} if reason else {})
