"""Rows of the catalog as the JSON that the API gives."""

from __future__ import annotations

from obm_registry.catalog.rows import AuditEntry, BackboneRow, FoundExpert, Namespace, TagEvent
from obm_registry.service.listing import iso_time


def show_backbone(row: BackboneRow) -> dict[str, object]:
    """A backbone in one repository."""
    return {
        "repository": row.repository,
        "manifest_digest": row.manifest_digest,
        "fingerprint": row.facts.fingerprint,
        "architecture": row.facts.architecture,
        "n_tensors": row.facts.n_tensors,
        "n_params": row.facts.n_params,
        "n_experts": row.n_experts,
        "weights_digest": row.weights_digest,
    }


def show_expert(row: FoundExpert) -> dict[str, object]:
    """An expert, with its numbers."""
    facts = row.facts
    alpha = None
    if facts.alpha_min is not None:
        alpha = {"min": facts.alpha_min, "mean": facts.alpha_mean, "max": facts.alpha_max}
    return {
        "repository": row.repository,
        "tags": list(row.tags),
        "manifest_digest": row.manifest_digest,
        "id": facts.artifact_id,
        "kind": facts.kind,
        "task": facts.task,
        "position": facts.position,
        "encodings": dict(facts.encodings),
        "n_tensors": facts.n_tensors,
        "nbytes": facts.nbytes,
        "bits": row.bits,
        "alpha": alpha,
        "backbone": {"fingerprint": facts.fingerprint, "manifest_digest": row.backbone_digest},
        "pushed_by": row.pushed_by,
        "pushed_at": iso_time(row.pushed_at),
        "yanked": None if row.yanked_at is None else row.yank_reason or "no reason given",
    }


def show_event(event: TagEvent) -> dict[str, object]:
    """One move of a tag."""
    return {
        "tag": event.name,
        "old_digest": event.old_digest,
        "new_digest": event.new_digest,
        "actor": event.actor,
        "at": iso_time(event.at),
    }


def show_namespace(rules: Namespace, used_nbytes: int) -> dict[str, object]:
    """The rules of a namespace, and how much it holds."""
    return {
        "namespace": rules.name,
        "quota_nbytes": rules.quota_nbytes,
        "used_nbytes": used_nbytes,
        "subject_policy": rules.subject_policy,
        "immutable_tags": list(rules.immutable_tags),
        "visibility": rules.visibility,
    }


def show_line(entry: AuditEntry) -> dict[str, object]:
    """One line of the audit log."""
    return {
        "id": entry.id,
        "at": iso_time(entry.at),
        "at_ms": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
        "previous": entry.previous,
        "hash": entry.hash,
    }
