"""`obm login`: store a token for a registry."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from obm_cli import output, settings
from obm_cli.paths import InputPath
from obm_format.errors import UsageError


@click.command("login")
@click.argument("registry", metavar="REGISTRY")
@click.option("--username", default="token", show_default=True, help="User name that goes with the secret.")
@click.option(
    "--token-file", type=InputPath(path_type=Path),
    help="File with the token or password [default: OBM_TOKEN_FILE, else standard input].",
)  # fmt: skip
@click.option("--unchecked", is_flag=True, help="Store it without asking the registry.")
@click.option("--logout", is_flag=True, help="Forget what is stored.")
@output.json_option
def command(
    registry: str, username: str, token_file: Path | None, unchecked: bool, logout: bool, as_json: bool
) -> None:
    """Store a token for a registry.

    REGISTRY is HOST[:PORT] or https://HOST[:PORT]. The token goes to that origin and to no other: a registry whose
    tokens come from another host needs a login for that host too. It is stored in credentials.json in OBM_HOME.

    Example: obm login registry.example.com --token-file token.txt
    """
    from obm_registry.client.credentials import Credential, CredentialFile
    from obm_registry.client.open import check_login
    from obm_registry.client.origin import parse_origin

    origin = parse_origin(registry)
    stored = CredentialFile(settings.home() / "credentials.json")
    if logout:
        stored.put(origin, None)
    else:
        credential = Credential(username=username, secret=_secret(token_file))
        if not unchecked:
            check_login(origin, credential)
        stored.put(origin, credential)
    done = "logged out of" if logout else "logged in to"
    payload = {"registry": str(origin), "stored": not logout}
    output.emit("login", payload, as_json=as_json, human=lambda: output.say(f"{done} {origin}"))


def _secret(token_file: Path | None) -> str:
    from obm_registry.client.credentials import MAX_SECRET, parse_secret, read_secret

    named = token_file or (Path(path) if (path := os.environ.get("OBM_TOKEN_FILE")) else None)
    if named is not None:
        return read_secret(named)
    if sys.stdin.isatty():
        return parse_secret(click.prompt("token", hide_input=True, err=True), "the terminal")
    text = sys.stdin.read(MAX_SECRET + 1)
    if not text:
        hint = "pipe it in, or name a file with --token-file or OBM_TOKEN_FILE"
        raise UsageError("usage", "no token was given", where="standard input", hint=hint)
    return parse_secret(text, "standard input")
