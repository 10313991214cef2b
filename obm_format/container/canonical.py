"""Canonical JSON: strict parsing into plain objects, and the one byte image of an object.

Parsing refuses what no canonical text can hold, in bounded memory and time. Order of keys, white space and
forms of escapes are not judged here: the header does that by writing what was parsed and comparing bytes
(clause 4.3). Source: obm-1 clauses 3 and 4.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from obm_format.errors import FormatError
from obm_format.limits import Limits

_PairsHook = Callable[[list[tuple[str, object]]], dict[str, object]]

_MAX_INTEGER: Final = 2**53 - 1
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
# Also takes a string that never ends: trying again from each of its quotes would take quadratic time.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)')
_UNUSUAL_ESCAPE = re.compile(r'\\[^"]')  # once escaped backslashes are gone
_WORDS = re.compile(r"(?:[\[\]{},: ]++|(?:true|false|0|[1-9][0-9]{0,15})(?![-+.\w]))*+")
_NUMBER_LIKE = re.compile(r"[-0-9]")
_LARGE_NUMBER = re.compile(r"[0-9]{16}")
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _STEP)


def encode_canonical(value: object) -> str:
    """The canonical text of a value of dict, list, tuple, str, int and bool: keys sorted, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def parse_canonical(text: str, limits: Limits, where: str) -> object:
    """Parse strict JSON.

    Args:
        text: the JSON, without padding; a character for each byte.
        limits: `json_depth` and `json_values` apply.
        where: what messages call the text.

    Returns:
        dict, list, str, int (0 to 2^53-1) and bool objects.

    Raises:
        FormatError: `bad_encoding_of_text`, `json_depth`, `limit_exceeded`, `json_number`, `json_syntax`,
            `json_duplicate_key`.
    """
    return _parse(text, limits, where, lambda pairs: _unique(pairs, where))


def parse_to_compare(text: str, limits: Limits, where: str) -> object:
    """As `parse_canonical`, but of a doubled key the last value: for a text that is then compared with its image."""
    return _parse(text, limits, where, None)


def _parse(text: str, limits: Limits, where: str, hook: _PairsHook | None) -> object:
    found = None if text.isascii() and text.isprintable() else _UNPRINTABLE.search(text)
    if found:
        raise FormatError(
            "bad_encoding_of_text",
            "a byte is not printable ASCII",
            where=f"{where}, byte {found.start()}",
            got=f"0x{ord(found[0]):02x}",
        )
    # A text with so many quotes is above the limit too, and taking its strings out would cost memory.
    _check_count((text.count('"') - text.count('\\"')) // 4, limits, where)
    _check_skeleton(_STRING.sub(" ", text), limits, where)
    try:
        value: object = json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        raise FormatError("json_syntax", error.msg, where=f"{where}, byte {error.pos}") from error
    if _UNUSUAL_ESCAPE.search(text.replace("\\\\", "")):
        _check_strings(value, where)
    return value


def _check_skeleton(skeleton: str, limits: Limits, where: str) -> None:
    """Check all that lies outside strings, before objects are made of it."""
    _check_count(skeleton.count(",") + skeleton.count("[") + skeleton.count("{"), limits, where)
    brackets = skeleton.encode("latin-1").translate(None, _NO_BRACKETS)
    # obm-1 clause 3.1: nesting
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > limits.json_depth:
        raise FormatError("json_depth", "nested too deeply", where=where, expected=f"at most {limits.json_depth}")
    # obm-1 clause 4.1: whole numbers, true and false, and neither null nor anything else
    good = _WORDS.match(skeleton)
    rest = skeleton[good.end() if good else 0 :]
    if rest and not _NUMBER_LIKE.match(rest):
        raise FormatError("json_syntax", "this is no canonical JSON value", where=where, got=ascii(rest[:20]))
    if rest or any(int(found[0]) > _MAX_INTEGER for found in _LARGE_NUMBER.finditer(skeleton)):
        raise FormatError(
            "json_number",
            "a number is not a plain integer",
            where=where,
            expected="0 to 2^53-1 without sign, fraction, exponent or leading zeros",
        )


def _check_count(count: int, limits: Limits, where: str) -> None:
    # obm-1 clause 3.1: no text has more values than commas and opening brackets
    if count > limits.json_values:
        raise FormatError(
            "limit_exceeded",
            "too many values",
            where=where,
            expected=f"at most {limits.json_values}",
            got=count,
        )


def _unique(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise FormatError("json_duplicate_key", "a key occurs twice", where=where, got=ascii(twice))
    return made


def _check_strings(value: object, where: str) -> None:
    """Refuse strings that an escape gave a character outside printable ASCII; depth is bounded by now."""
    if isinstance(value, str):
        if _UNPRINTABLE.search(value):
            raise FormatError(
                "bad_encoding_of_text", "an escape is not printable ASCII", where=where, got=ascii(value[:80])
            )
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key, where)
            _check_strings(item, where)
