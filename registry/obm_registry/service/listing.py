"""Turn rows of the catalog into what callers are told."""

from __future__ import annotations

from datetime import UTC, datetime

from obm_registry import reports
from obm_registry.catalog.rows import BackboneRow, ExpertRow, TagEvent


def list_backbone(row: BackboneRow, tensors: tuple[reports.ListedTensor, ...] = ()) -> reports.ListedBackbone:
    """What is told of a backbone."""
    return reports.ListedBackbone(
        ref=row.repository,
        fingerprint=row.facts.fingerprint,
        manifest_digest=row.manifest_digest,
        architecture=row.facts.architecture,
        n_tensors=row.facts.n_tensors,
        n_params=row.facts.n_params,
        n_experts=row.n_experts,
        weights_digest=row.weights_digest,
        tensors=tensors,
    )


def list_expert(row: ExpertRow) -> reports.ListedExpert:
    """What is told of an expert under one of its tags."""
    facts = row.facts
    return reports.ListedExpert(
        ref=f"{row.repository}:{row.tag}" if row.tag else f"{row.repository}@{row.manifest_digest}",
        id=facts.artifact_id,
        manifest_digest=row.manifest_digest,
        kind=facts.kind,
        task=facts.task,
        position=facts.position,
        nbytes=facts.nbytes,
        n_tensors=facts.n_tensors,
        encodings=dict(facts.encodings),
        alpha_min=facts.alpha_min,
        alpha_mean=facts.alpha_mean,
        alpha_max=facts.alpha_max,
        fingerprint=facts.fingerprint,
        pushed_by=row.pushed_by,
        pushed_at=iso_time(row.pushed_at),
        yanked=None if row.yanked_at is None else row.yank_reason or "no reason given",
    )


def log_entry(event: TagEvent) -> reports.LogEntry:
    """What is told of one move of a tag."""
    return reports.LogEntry(
        tag=event.name,
        old_digest=event.old_digest,
        new_digest=event.new_digest,
        actor=event.actor,
        at=iso_time(event.at),
    )


def iso_time(milliseconds: int) -> str:
    """Milliseconds since 1970 as ISO 8601 text, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
