"""JSON without surprises: one byte image on the way out, no second meaning on the way in.

Never knows what a document is about. Duplicate keys, NaN and Infinity, deep nesting and bytes that are not
UTF-8 are refused.
"""

from __future__ import annotations

import json
import re

from obm_format.errors import RegistryError

MAX_DEPTH = 32

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def encode_json(value: object) -> bytes:
    """The one byte image of `value`: sorted keys, no white space, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_json(body: bytes, *, max_nbytes: int, where: str) -> object:
    """Parse a JSON document of at most `max_nbytes` bytes.

    Args:
        body: the document.
        max_nbytes: largest size that is looked at.
        where: what the document is, for messages.

    Raises:
        RegistryError: `limit_exceeded` above `max_nbytes`; `bad_manifest` for what is not strict JSON.
    """
    if len(body) > max_nbytes:
        raise RegistryError(
            "limit_exceeded",
            "document is too large",
            where=where,
            expected=f"at most {max_nbytes} bytes",
            got=len(body),
        )
    _check_depth(body, where)
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RegistryError("bad_manifest", f"not strict JSON: {error}", where=where) from error


def _check_depth(body: bytes, where: str) -> None:
    depth = 0
    for token in _STRUCTURE.finditer(body):
        mark = token[0]
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RegistryError("bad_manifest", "nested too deeply", where=where, expected=f"at most {MAX_DEPTH}")
        elif mark in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return found


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not a number")
