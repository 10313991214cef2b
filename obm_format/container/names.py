"""The grammars of names in the manifest: tensors, attachments, tasks, features, artifact ids, digests.

Source: obm-1 clauses 5.1, 5.3, 5.9, 12.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from obm_format.digest import ARTIFACT_PREFIX, is_sha256_hex
from obm_format.errors import FormatError
from obm_format.limits import Limits

TASK = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,127})?")
ROUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ARCHITECTURE = re.compile(r"[A-Za-z0-9_.-]{0,128}")
FEATURE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
VENDOR_KEY = re.compile(r"[a-z0-9-]+\.[a-z0-9_.-]+")
PREFIX = re.compile(r"[A-Za-z0-9_.:/+-]{0,511}\.")
POSITION = re.compile(r"[\x20-\x7e]{1,512}")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.:+-]++"
_TENSOR = re.compile(rf"(?!__metadata__\Z){_SEGMENT}(?:/{_SEGMENT})*+")
_ATTACHMENT = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*\.(?:json|txt|jinja|model|md)")


def grammatical(text: str, pattern: re.Pattern[str], where: str) -> str:
    """`text`, when all of it matches `pattern`.

    Raises:
        FormatError: it does not (reason `manifest_field`).
    """
    if pattern.fullmatch(text) is None:
        raise FormatError(
            "manifest_field",
            "the text is outside its grammar",
            where=where,
            expected=pattern.pattern,
            got=ascii(text[:80]),
        )
    return text


def check_tensor_name(name: str, limits: Limits, where: str) -> str:
    """`name`, when it is a tensor name (obm-1 clause 5.3).

    Raises:
        FormatError: it is not (reason `bad_name`).
    """
    if len(name) > limits.name_nbytes or _TENSOR.fullmatch(name) is None:
        raise FormatError(
            "bad_name",
            "this is no tensor name",
            where=where,
            expected=f"1 to {limits.name_nbytes} of A-Z a-z 0-9 _ . : / + -, no segment empty, . or ..",
            got=ascii(name[:80]),
        )
    return name


def check_attachment_name(name: str, where: str) -> str:
    """`name`, when it is the name of an attachment (obm-1 clause 5.9).

    Raises:
        FormatError: it is not (reason `bad_name`).
    """
    if _ATTACHMENT.fullmatch(name) is None:
        raise FormatError(
            "bad_name",
            "this is no attachment name",
            where=where,
            expected="a plain file name that ends in .json, .txt, .jinja, .model or .md",
            got=ascii(name[:80]),
        )
    return name


def check_digest(text: str, where: str) -> bytes:
    """The 32 bytes of a digest in hexadecimal.

    Raises:
        FormatError: not 64 lower-case hexadecimal digits (reason `bad_digest`).
    """
    if not is_sha256_hex(text):
        raise FormatError(
            "bad_digest", "this is no digest", where=where, expected="64 of 0-9 a-f", got=ascii(text[:80])
        )
    return bytes.fromhex(text)


def check_artifact_id(text: str, where: str) -> str:
    """`text`, when it is an artifact id (obm-1 clause 7.1).

    Raises:
        FormatError: it is not (reason `bad_digest`).
    """
    if not text.startswith(ARTIFACT_PREFIX):
        raise FormatError(
            "bad_digest",
            "this is no artifact id",
            where=where,
            expected=f"{ARTIFACT_PREFIX}<hex>",
            got=ascii(text[:80]),
        )
    check_digest(text[len(ARTIFACT_PREFIX) :], where)
    return text


def check_sorted(names: Sequence[str], where: str) -> None:
    """Refuse names that are not strictly ascending bytewise (obm-1 clause 5.3).

    Raises:
        FormatError: reason `duplicate_name`.
    """
    for before, after in pairwise(names):
        if before >= after:
            raise FormatError(
                "duplicate_name",
                "a name occurs twice" if before == after else "names are out of order",
                where=where,
                got=f"{before!r} before {after!r}",
            )
