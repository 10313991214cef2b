"""`obm token`: make, list and revoke the tokens of a registry that lies on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from obm_cli import output, settings
from obm_format.errors import UsageError

if TYPE_CHECKING:
    from obm_registry.catalog.rows import Token
    from obm_registry.service.registry import Registry

ACTOR = "console"
DAY_S = 86_400.0


@click.group("token")
def command() -> None:
    """Make, list and revoke the tokens that a server takes.

    Works on the registry in OBM_HOME, also while a server runs over it.
    """


@command.command("create")
@click.argument("name", metavar="NAME")
@click.option(
    "--role", type=click.Choice(["reader", "writer", "maintainer", "admin"]), help="Also give NAME a role ..."
)
@click.option("--namespace", metavar="NS", help="... in this namespace, or in all with '*'.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="TARGET:ACTIONS",
    help="Limit the token, e.g. acme/minilm:pull or 'acme/*:pull,push' [default: all that NAME may].",
)  # fmt: skip
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days until it ends [default: never].")
@output.json_option
def create(
    name: str, role: str | None, namespace: str | None, scopes: tuple[str, ...], days: float | None, as_json: bool
) -> None:
    """Make a token for NAME and print it; it is shown this once.

    Example: obm token create ci --role writer --namespace acme --days 90
    """
    if (role is None) != (namespace is None):
        raise UsageError("usage", "--role and --namespace belong together")
    from obm_registry.service import access

    with _registry() as registry:
        if role is not None and namespace is not None:
            access.set_role(registry, name, namespace, role, actor=ACTOR)
        lifetime_s = None if days is None else days * DAY_S
        shown, token = access.create_token(registry, name, actor=ACTOR, scopes=scopes, lifetime_s=lifetime_s)

    def human() -> None:
        output.say(shown)
        output.note(f"for {name}; `obm token revoke {token.public_id}` ends it")

    output.emit("token", {"token": shown, **_public(token)}, as_json=as_json, human=human)


@command.command("ls")
@output.json_option
def list_all(as_json: bool) -> None:
    """List the tokens, without their secrets."""
    from obm_registry.service import access

    with _registry() as registry:
        tokens = access.list_tokens(registry)

    def human() -> None:
        rows = [
            (row["id"], row["principal"], row["state"], row["expires_at"] or "never", " ".join(row["scopes"]) or "all")
            for row in map(_public, tokens)
        ]
        output.table(["id", "name", "state", "ends", "good for"], rows)

    output.emit("tokens", {"tokens": [_public(token) for token in tokens]}, as_json=as_json, human=human)


@command.command("revoke")
@click.argument("token_id", metavar="ID")
@output.json_option
def revoke(token_id: str, as_json: bool) -> None:
    """End a token; the next request that shows it is refused."""
    from obm_registry.service import access

    with _registry() as registry:
        access.revoke_token(registry, token_id, actor=ACTOR)
    output.emit("token", {"revoked": token_id}, as_json=as_json, human=lambda: output.say(f"revoked {token_id}"))


@contextmanager
def _registry() -> Iterator[Registry]:
    from obm_registry.server.home import open_home

    with open_home(settings.home()) as registry:
        yield registry


def _public(token: Token) -> dict[str, Any]:
    from obm_registry.service.access import describe_token

    return describe_token(token)
