"""Queries about principals, their roles in namespaces, and their tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, insert, select, update

from obm_registry.catalog import tables as t
from obm_registry.catalog.rows import Principal, Token


@dataclass(frozen=True, slots=True)
class Access:
    """Principals, roles and tokens, within one transaction."""

    connection: Connection

    def principal(self, name: str) -> Principal | None:
        """The principal called `name`, with its roles."""
        key = self.connection.scalar(select(t.principal.c.id).where(t.principal.c.name == name))
        if key is None:
            return None
        rows = self.connection.execute(
            select(t.member.c.namespace, t.member.c.role).where(t.member.c.principal_id == key)
        )
        return Principal(id=key, name=name, roles={row.namespace: row.role for row in rows})

    def ensure_principal(self, name: str, now: int) -> Principal:
        """The principal called `name`, made without any role when it is not there yet."""
        found = self.principal(name)
        if found is not None:
            return found
        made = insert(t.principal).values(name=name, created_at=now).returning(t.principal.c.id)
        return Principal(id=self.connection.execute(made).scalar_one(), name=name, roles={})

    def set_role(self, principal_id: int, namespace: str, role: str | None) -> None:
        """Give a principal a role in a namespace, or take it away with None."""
        where = (t.member.c.principal_id == principal_id, t.member.c.namespace == namespace)
        self.connection.execute(delete(t.member).where(*where))
        if role is not None:
            values = {"principal_id": principal_id, "namespace": namespace, "role": role}
            self.connection.execute(insert(t.member).values(values))

    def members(self, namespace: str) -> dict[str, str]:
        """Role by name of everybody who has one in exactly this namespace, by name."""
        query = (
            select(t.principal.c.name, t.member.c.role)
            .join(t.principal, t.principal.c.id == t.member.c.principal_id)
            .where(t.member.c.namespace == namespace)
            .order_by(t.principal.c.name)
        )
        return {row.name: row.role for row in self.connection.execute(query)}

    def insert_token(self, token: Token, principal_id: int) -> None:
        """Record a token."""
        values = {
            "principal_id": principal_id,
            "public_id": token.public_id,
            "secret_sha256": token.secret_sha256,
            "scopes": json.dumps(token.scopes),
            "created_at": token.created_at,
            "expires_at": token.expires_at,
        }
        self.connection.execute(insert(t.token).values(values))

    def token(self, public_id: str) -> Token | None:
        """The token with this public part."""
        row = self.connection.execute(_tokens().where(t.token.c.public_id == public_id)).mappings().first()
        return _token(row) if row else None

    def tokens(self, *, principal: str | None = None, after: str = "", limit: int = 1000) -> list[Token]:
        """Tokens of one principal or of all by their public part, those behind `after`, revoked ones too."""
        query = _tokens().where(t.token.c.public_id > after).order_by(t.token.c.public_id).limit(limit)
        if principal is not None:
            query = query.where(t.principal.c.name == principal)
        return [_token(row) for row in self.connection.execute(query).mappings()]

    def revoke(self, public_id: str, now: int) -> bool:
        """End a token; False when there is none that is good."""
        where = (t.token.c.public_id == public_id, t.token.c.revoked_at.is_(None))
        return self.connection.execute(update(t.token).where(*where).values(revoked_at=now)).rowcount == 1


def _tokens() -> Select[Any]:
    return select(
        t.token.c.public_id,
        t.principal.c.name.label("principal"),
        t.token.c.secret_sha256,
        t.token.c.scopes,
        t.token.c.created_at,
        t.token.c.expires_at,
        t.token.c.revoked_at,
    ).join(t.principal, t.principal.c.id == t.token.c.principal_id)


def _token(row: RowMapping) -> Token:
    return Token(**{**row, "scopes": tuple(json.loads(row["scopes"]))})
