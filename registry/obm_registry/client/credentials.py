"""Credentials by origin: read from and written to one file that its owner alone can read.

A secret never appears in a `repr`, and none is given to another origin than it was stored for.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from obm_format.errors import RegistryError, UsageError
from obm_registry.client.locks import exclusive
from obm_registry.client.origin import Origin
from obm_registry.durable import disk_errors, replaced_file
from obm_registry.manifest.strictjson import encode_json, parse_json

_SCHEMA = "obm.credentials/1"
_MAX_NBYTES = 1 << 20
MAX_SECRET = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user name and a secret: a password or a token."""

    username: str
    secret: str = field(repr=False)


def parse_secret(text: str, where: str) -> str:
    """A secret as it came from a file or a pipe: its line without white space around it.

    Raises:
        UsageError: `usage` when it is empty, too long, or more than one line of printable ASCII.
    """
    secret = text.strip()
    if not 0 < len(secret) <= MAX_SECRET or not secret.isascii() or not secret.isprintable():
        raise UsageError("usage", "no token can be read there", where=where, expected="one line of printable ASCII")
    return secret


def read_secret(path: Path) -> str:
    """The secret in a file.

    Raises:
        UsageError: `usage`, there is none.
        RegistryError: `not_found` or `io`.
    """
    if not path.exists():
        raise RegistryError("not_found", "there is no such file", where=str(path))
    with disk_errors(str(path)), path.open("rb") as file:
        data = file.read(MAX_SECRET + 1)
    return parse_secret(data.decode("utf-8", "replace"), str(path))


class CredentialFile:
    """The credentials that `obm login` stores.

    Args:
        path: the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, origin: Origin) -> Credential | None:
        """What is stored for exactly this origin.

        Raises:
            RegistryError: `io` when others than the owner can read the file, or it is malformed.
        """
        return self._load().get(str(origin))

    def put(self, origin: Origin, credential: Credential | None) -> None:
        """Store a credential, or with None forget the one that is stored.

        Raises:
            RegistryError: as `get`; `disk_full`.
        """
        with disk_errors(str(self._path)):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(self._path.with_name(f".{self._path.name}.lock")):
            stored = self._load()
            stored.pop(str(origin), None)
            if credential is not None:
                stored[str(origin)] = credential
            rows = {key: {"username": row.username, "secret": row.secret} for key, row in stored.items()}
            with replaced_file(self._path, mode=0o600) as file:
                file.write(encode_json({"schema": _SCHEMA, "origins": rows}) + b"\n")

    def _load(self) -> dict[str, Credential]:
        try:
            with self._path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                body = file.read(_MAX_NBYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RegistryError("io", "the credentials cannot be read", where=str(self._path)) from error
        if os.name != "nt" and mode & 0o077:
            raise RegistryError(
                "io",
                "others can read the credentials",
                where=str(self._path),
                expected="mode 600",
                got=f"mode {mode:o}",
                hint=f"chmod 600 {self._path}, and replace the tokens in it",
            )
        return _parse(body, self._path)


def _parse(body: bytes, path: Path) -> dict[str, Credential]:
    try:
        document = parse_json(body, max_nbytes=_MAX_NBYTES, where=str(path))
        if not isinstance(document, dict) or document["schema"] != _SCHEMA:
            raise ValueError
        return {
            str(key): Credential(username=str(row["username"]), secret=str(row["secret"]))
            for key, row in document["origins"].items()
        }
    except (RegistryError, ValueError, KeyError, TypeError, AttributeError):
        # no cause: the text of the parser's error could quote a secret
        raise RegistryError(
            "io", "the credentials are malformed", where=str(path), hint="remove the file and `obm login` again"
        ) from None
