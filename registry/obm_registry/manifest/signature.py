"""Detached Ed25519 signatures over artifact ids: one line of JSON each, in a file beside the expert or a registry.

A signature says who stands behind an artifact id, and nothing about a registry, a tag or a file's name. Source:
RFC 8032 (Ed25519); the `cryptography` package does it, and is loaded when a key is used.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from obm_format.digest import ARTIFACT_PREFIX, is_sha256_hex
from obm_format.errors import ObmError, RegistryError, UsageError
from obm_registry.durable import disk_errors, replaced_file
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_TYPE = "application/vnd.obm.signature.v1"
SIGNATURE_LAYER = "application/vnd.obm.signature.v1+json"
MAX_NBYTES = 1024
MAX_SIGNATURES = 64
_SCHEMA = "obm.signature/1"
_KEY = re.compile(r"ed25519:([0-9a-f]{64})")
_MAX_KEY_FILE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature.

    Args:
        id: artifact id that is signed.
        key: public key, `ed25519:` and 64 hexadecimal digits.
        value: the 64 bytes.
    """

    id: str
    key: str
    value: bytes

    def encode(self) -> bytes:
        """Its line of JSON, without the line's end."""
        return encode_json({"schema": _SCHEMA, "id": self.id, "key": self.key, "signature": self.value.hex()})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key and whose it is."""

    key: str
    name: str


def parse_signature(data: bytes) -> Signature:
    """Parse one signature; whether it holds is another question.

    Raises:
        RegistryError: `bad_signature`.
    """
    try:
        row = parse_json(data, max_nbytes=MAX_NBYTES, where="signature")
    except RegistryError as error:
        raise _bad("malformed signature", error.message) from error
    if not isinstance(row, dict) or set(row) != {"schema", "id", "key", "signature"} or row["schema"] != _SCHEMA:
        raise _bad("malformed signature", f"expected the fields of {_SCHEMA}")
    artifact_id, key, value = row["id"], row["key"], row["signature"]
    if not isinstance(artifact_id, str) or not _is_id(artifact_id):
        raise _bad("malformed signature", "no artifact id")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise _bad("malformed signature", "no Ed25519 key")
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{128}", value):
        raise _bad("malformed signature", "no Ed25519 signature")
    return Signature(id=artifact_id, key=key, value=bytes.fromhex(value))


def _is_id(text: str) -> bool:
    return text.startswith(ARTIFACT_PREFIX) and is_sha256_hex(text.removeprefix(ARTIFACT_PREFIX))


def _bad(message: str, detail: str) -> RegistryError:
    return RegistryError("bad_signature", message, got=printable(detail, 200))


def message_of(artifact_id: str) -> bytes:
    """The bytes that are signed for an artifact id."""
    return f"{_SCHEMA}\n{artifact_id}\n".encode("ascii")


def sign(artifact_id: str, key_file: Path) -> Signature:
    """Sign an artifact id.

    Args:
        artifact_id: `obm1-sha256:...`.
        key_file: private key, PKCS #8 in PEM, as `new_key` writes it.

    Raises:
        UsageError: `usage`, no Ed25519 key can be read there; `missing_dependency`.
        ObmError: `not_found` or `io`.
    """
    key = _read_private(key_file)
    public = f"ed25519:{key.public_key().public_bytes_raw().hex()}"
    return Signature(id=artifact_id, key=public, value=key.sign(message_of(artifact_id)))


def new_key(path: Path) -> str:
    """Write a new private key for its owner alone, and its public key beside it under the suffix `.pub`.

    Returns:
        The public key.

    Raises:
        ObmError: `exists`, one of both is there; `io`.
        UsageError: `missing_dependency`.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    public_path = path.with_name(path.name + ".pub")
    for one in (path, public_path):
        if one.exists() or one.is_symlink():
            raise ObmError("exists", "the file exists already", where=str(one), hint="a key is never overwritten")
    key = ed25519.Ed25519PrivateKey.generate()
    public = f"ed25519:{key.public_key().public_bytes_raw().hex()}"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with replaced_file(path, mode=0o600) as file:
        file.write(secret)
    with replaced_file(public_path) as file:
        file.write(f"{public}\n".encode())
    return public


def read_trusted(path: Path) -> list[TrustedKey]:
    """The public keys in a file: one per line, `ed25519:<hex>` and after a space whose it is; `#` begins a comment.

    Raises:
        UsageError: `usage`, a line is something else.
        ObmError: `not_found` or `io`.
    """
    if not path.is_file():
        raise ObmError("not_found", "there is no such key file", where=str(path))
    with disk_errors(str(path)), path.open("rb") as file:
        text = file.read(_MAX_KEY_FILE).decode("utf-8", "replace")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        key, _, name = line.partition("#")[0].strip().partition(" ")
        if not key:
            continue
        if not _KEY.fullmatch(key):
            raise UsageError(
                "usage",
                "no public key",
                where=f"{path}:{number}",
                expected="ed25519:<64 hex> NAME",
                got=printable(key, 20),
            )
        found.append(TrustedKey(key=key, name=name.strip() or path.name))
    return found


def signers(artifact_id: str, signatures: Iterable[bytes], trusted: Sequence[TrustedKey]) -> list[str]:
    """Names of the trusted keys whose signatures over `artifact_id` hold; all other signatures count for nothing.

    Raises:
        UsageError: `missing_dependency`.
    """
    _require_cryptography()
    names = {row.key: row.name for row in trusted}
    found = []
    for data in signatures:
        try:
            one = parse_signature(data)
        except RegistryError:
            continue
        if one.id == artifact_id and one.key in names and _holds(one):
            found.append(names[one.key])
    return list(dict.fromkeys(found))


def _holds(signature: Signature) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key.removeprefix("ed25519:")))
    try:
        key.verify(signature.value, message_of(signature.id))
    except InvalidSignature:
        return False
    return True


def signature_file(expert: Path) -> Path:
    """Where the signatures of an expert's file lie: beside it, one per line."""
    return expert.with_name(expert.name + ".sig")


def read_signatures(expert: Path) -> list[bytes]:
    """The signatures beside an expert's file; none where there is no such file."""
    path = signature_file(expert)
    if not path.is_file():
        return []
    with disk_errors(str(path)), path.open("rb") as file:
        return file.read(MAX_SIGNATURES * (MAX_NBYTES + 1)).splitlines()[:MAX_SIGNATURES]


def signatures_for(expert: Path, artifact_id: str) -> list[bytes]:
    """The signatures beside an expert's file that are about it, for a push; others are left where they are."""
    return [line for line in read_signatures(expert) if _signs(line, artifact_id)]


def _signs(line: bytes, artifact_id: str) -> bool:
    try:
        return parse_signature(line).id == artifact_id
    except RegistryError:
        return False


def require_signs(data: bytes, artifact_id: str) -> None:
    """Refuse what is no signature of an artifact.

    Raises:
        RegistryError: `bad_signature`.
    """
    found = parse_signature(data)
    if found.id != artifact_id:
        raise RegistryError(
            "bad_signature", "the signature is about another expert", expected=artifact_id, got=found.id
        )


def write_signatures(expert: Path, signatures: Sequence[bytes]) -> None:
    """Write signatures beside an expert's file, in place of those that lie there."""
    with replaced_file(signature_file(expert)) as file:
        file.write(b"".join(line + b"\n" for line in signatures))


def _read_private(path: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if not path.is_file():
        raise ObmError("not_found", "there is no such key file", where=str(path))
    with disk_errors(str(path)), path.open("rb") as file:
        mode, data = os.fstat(file.fileno()).st_mode, file.read(_MAX_KEY_FILE)
    if os.name != "nt" and mode & 0o077:
        raise UsageError("usage", "others can read the private key", where=str(path), hint=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError("usage", "no private Ed25519 key", where=str(path), hint="`obm sign --new-key FILE` makes one")
    return key


def _require_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        hint = "pip install 'obm-format[sign]'"
        raise UsageError("missing_dependency", "signatures need the package cryptography", hint=hint)
