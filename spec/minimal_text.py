"""Parses the text of an `.obm` header by the prose of obm-1.md alone (clause 4); how `minimal_reader.py` refuses.

Standard library only, short rather than fast. Numbers in comments are clauses.
"""

# ruff: noqa: ANN401, D103 - JSON has no better type here, and the clause numbers are the documentation
from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any


class Refused(Exception):
    """The file is not what the spec says; the argument is the reason code."""


def check(good: object, reason: str) -> None:
    if not good:
        raise Refused(reason)


def parse(text: str) -> Any:
    """One JSON text that obeys clause 4.1, but for the order of keys, white space and escapes."""
    check(all(" " <= c <= "~" for c in text), "bad_encoding_of_text")
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    check(sum(map(bare.count, ",[{")) <= 2**21, "limit_exceeded")  # 3.1
    check(max(accumulate((c in "[{") - (c in "]}") for c in bare), default=0) <= 12, "json_depth")  # 3.1
    for token in re.findall(r"[-+.\w]+", bare):
        if token[0] in "-0123456789":
            check(re.fullmatch("0|[1-9][0-9]{0,15}", token) and int(token) < 2**53, "json_number")
        else:
            check(token in ("true", "false"), "json_syntax")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except ValueError:
        raise Refused("json_syntax") from None
    for escape in re.findall(r"\\(u....|.)", text):
        code = int(escape[1:], 16) if escape[0] == "u" else ord(escape)
        check(32 <= code <= 126 and escape not in tuple("bfnrt"), "bad_encoding_of_text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check(len(dict(pairs)) == len(pairs), "json_duplicate_key")
    return dict(pairs)


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
