"""The rules of a namespace: its quota, experts without their backbone, tags that never move."""

from __future__ import annotations

import dataclasses

from obm_format.errors import RegistryError, UsageError
from obm_registry.catalog.rows import Namespace
from obm_registry.refs import is_repository, printable
from obm_registry.service.registry import Registry

SUBJECT_POLICIES = ("require", "warn", "accept")
VISIBILITIES = ("public", "private")


def namespace_rules(registry: Registry, name: str) -> Namespace:
    """The rules of a namespace, made with the default ones when it is not there yet.

    Raises:
        UsageError: `bad_ref`.
    """
    # a namespace is what a repository name has before its last slash
    if not is_repository(f"{name}/x"):
        raise UsageError("bad_ref", "the namespace is malformed", where=printable(name))
    with registry.catalog.write() as session:
        return session.names.ensure_namespace(name, registry.clock())


def namespace_use(registry: Registry, name: str) -> tuple[Namespace, int]:
    """The rules of a namespace, and the bytes of its distinct blobs and of its manifests.

    Raises:
        RegistryError: `not_found`.
    """
    with registry.catalog.read() as session:
        rules = session.names.namespace(name)
        if rules is None:
            raise RegistryError("not_found", "there is no such namespace", where=printable(name))
        return rules, session.names.used_nbytes(rules)


def set_namespace_rules(
    registry: Registry,
    name: str,
    *,
    quota_nbytes: int | None,
    subject_policy: str,
    immutable_tags: tuple[str, ...],
    visibility: str = "public",
    actor: str,
) -> Namespace:
    """Set the rules of a namespace; they hold from the next publication on.

    Args:
        registry: where.
        name: the namespace; made when it is not there yet.
        quota_nbytes: most bytes of its blobs and manifests, or None.
        subject_policy: `require`, `warn` or `accept`: what happens to an expert without its backbone.
        immutable_tags: shell patterns of tags that always name what they named first; no white space in them.
        visibility: `public` or `private`: whether who has no token may pull, where a server lets such callers
            in at all.
        actor: who sets them, for the audit log.

    Raises:
        UsageError: `bad_ref`; `usage` for values outside their range.
    """
    if subject_policy not in SUBJECT_POLICIES:
        expected = ", ".join(SUBJECT_POLICIES)
        raise UsageError("usage", "unknown subject policy", expected=expected, got=printable(subject_policy))
    if visibility not in VISIBILITIES:
        expected = ", ".join(VISIBILITIES)
        raise UsageError("usage", "unknown visibility", expected=expected, got=printable(visibility))
    if quota_nbytes is not None and quota_nbytes < 0:
        raise UsageError("usage", "a quota is not negative", got=quota_nbytes)
    if any(not pattern or any(c.isspace() for c in pattern) for pattern in immutable_tags):
        raise UsageError("usage", "a tag pattern is empty or has white space in it", where=name)
    rules = dataclasses.replace(
        namespace_rules(registry, name),
        quota_nbytes=quota_nbytes,
        subject_policy=subject_policy,
        immutable_tags=immutable_tags,
        visibility=visibility,
    )
    with registry.catalog.write() as session:
        session.names.set_rules(rules)
        detail = f"quota {quota_nbytes}, {subject_policy}, {visibility}, immutable {' '.join(immutable_tags)}"
        session.audit.record(actor, "namespace.rules", name, registry.clock(), detail)
    return rules
