"""What a registry's refusal means: its status and its error envelope as one of our errors.

Nothing that a server says is trusted with the terminal: its words are cut and escaped. Source: OCI Distribution
v1.1, "Error Codes".
"""

from __future__ import annotations

from obm_format.errors import REASONS, BackboneMismatch, ObmError, RegistryError
from obm_registry.manifest.strictjson import parse_json
from obm_registry.refs import printable

_BY_CODE = {
    "BLOB_UNKNOWN": "blob_unknown",
    "MANIFEST_BLOB_UNKNOWN": "blob_unknown",
    "MANIFEST_UNKNOWN": "not_found",
    "NAME_UNKNOWN": "not_found",
    "MANIFEST_INVALID": "bad_manifest",
    "DIGEST_INVALID": "blob_digest",
    "UNAUTHORIZED": "denied",
    "DENIED": "denied",
    "UNSUPPORTED": "unsupported",
    "TOOMANYREQUESTS": "quota_exceeded",
}
_BY_STATUS = {
    401: "denied",
    403: "denied",
    404: "not_found",
    405: "unsupported",
    409: "tag_exists",
    412: "tag_exists",
    413: "quota_exceeded",
    429: "quota_exceeded",
    507: "disk_full",
}
_MESSAGES = {
    "denied": "the registry refuses these credentials, or wants some",
    "not_found": "there is no such thing in the registry",
    "blob_unknown": "the registry does not have the blob",
    "unsupported": "the registry cannot do this",
    "tag_exists": "the tag was moved meanwhile",
    "quota_exceeded": "the registry takes no more for now",
    "network": "the registry is in trouble",
}


def refusal(status: int, body: bytes, where: str) -> ObmError:
    """The error for a reply with a status that is not wanted.

    Args:
        status: HTTP status.
        body: the reply's body, already cut to a bounded size.
        where: what was asked, for the message.
    """
    code, message, detail = _envelope(body)
    reason = str(detail.get("reason", ""))
    if reason not in REASONS:
        reason = _BY_STATUS.get(status, "") if status in (401, 403) else _BY_CODE.get(code, "")
    reason = reason or _BY_STATUS.get(status, "network" if status >= 500 else "bad_manifest")
    own = _MESSAGES.get(reason, "the registry refuses this")
    text = message if message and "reason" in detail else f"{own} (status {status}{': ' + message if message else ''})"
    fields = {
        key: printable(value, 300) for key in ("expected", "got", "hint") if isinstance(value := detail.get(key), str)
    }
    fields.setdefault("hint", "`obm login` stores a token" if reason == "denied" else "")
    kind = BackboneMismatch if reason == "backbone_mismatch" else RegistryError
    told = detail.get("where")
    return kind(
        reason,
        text,
        where=printable(told, 300) if isinstance(told, str) else where,
        expected=fields.get("expected"),
        got=fields.get("got"),
        hint=fields["hint"] or None,
    )


def is_own_refusal(body: bytes) -> bool:
    """Whether a refusal is one of our own server: it names one of our reasons."""
    return str(_envelope(body)[2].get("reason", "")) in REASONS


def _envelope(body: bytes) -> tuple[str, str, dict[str, object]]:
    """Code, message and detail of the first error; empty where there is none."""
    try:
        document = parse_json(body, max_nbytes=1 << 20, where="error")
    except RegistryError:
        return "", "", {}
    rows = document.get("errors") if isinstance(document, dict) else None
    row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    code, message, detail = row.get("code"), row.get("message"), row.get("detail")
    return (
        code if isinstance(code, str) else "",
        printable(message, 600) if isinstance(message, str) else "",
        detail if isinstance(detail, dict) else {},
    )
