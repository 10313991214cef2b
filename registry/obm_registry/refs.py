"""Names: references, repositories, tags and digests, parsed from text.

Never resolves anything: it only tells well-formed names from others. Source: interfaces.md (REF); OCI
Distribution v1.1, "Pulling manifests" (grammar of names, tags and digests).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from obm_format.errors import RegistryError, UsageError

MAX_NAME = 229  # host and name together stay below the 255 characters that stock clients accept
MAX_DIGEST = 136
ALGORITHMS = {"sha256": 64, "sha512": 128}

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})+")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_DIGEST = re.compile(r"([a-z0-9]+):([0-9a-f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A reference `[host/]namespace/backbone[:tag][@digest]`.

    Args:
        host: registry host with its port, or None for the default registry.
        namespace: everything before the last slash of the repository.
        backbone: last component of the repository.
        tag: tag name or None.
        digest: manifest digest `algorithm:hex` or None; where both are given the digest decides.
    """

    host: str | None
    namespace: str
    backbone: str
    tag: str | None
    digest: str | None

    @property
    def repository(self) -> str:
        """`namespace/backbone`: the name of the repository."""
        return f"{self.namespace}/{self.backbone}"

    @property
    def target(self) -> str | None:
        """What a manifest is looked up by: the digest, else the tag, else None."""
        return self.digest or self.tag

    def with_tag(self, tag: str) -> Ref:
        """The same repository under `tag`, without a digest."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: str) -> Ref:
        """The same repository at `digest`, without a tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        """The reference as text; `parse_ref` gives it back."""
        text = f"{self.host}/{self.repository}" if self.host else self.repository
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text


def parse_ref(text: str) -> Ref:
    """Parse a reference.

    The first segment is a host if and only if it has a `.` or a `:` or is `localhost`.

    Args:
        text: `[host/]namespace/backbone[:tag][@sha256:<manifest digest>]`.

    Returns:
        The parsed reference.

    Raises:
        UsageError: `bad_ref`, naming the piece that is outside the grammar.
    """
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, "the digest is malformed", "sha256: and 64 lower-case hexadecimal digits", digest)
    host, rest = _split_host(text, rest)
    repository, colon, tag = rest.partition(":")
    if colon and not is_tag(tag):
        raise _bad(text, "the tag is malformed", "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag)
    if not is_repository(repository):
        raise _bad(text, "the name is malformed", "namespace/backbone in lower case", repository)
    namespace, _, backbone = repository.rpartition("/")
    return Ref(host=host, namespace=namespace, backbone=backbone, tag=tag or None, digest=digest or None)


def require_tag(where: Ref) -> str:
    """The tag of a reference to something that is about to be published.

    Raises:
        UsageError: `bad_ref` when it has none, or has a digest.
    """
    if where.tag is None or where.digest is not None:
        expected = f"{where.repository}:TAG"
        raise UsageError("bad_ref", "name the tag to publish under", where=str(where), expected=expected)
    return where.tag


def require_target(where: Ref) -> str:
    """What a reference to something that is there is looked up by.

    Raises:
        UsageError: `bad_ref` when it has neither tag nor digest.
    """
    if where.target is None:
        hint = f"`obm ls {where.repository}` lists the tags"
        raise UsageError("bad_ref", "name a tag or a digest", where=str(where), hint=hint)
    return where.target


def _split_host(text: str, rest: str) -> tuple[str | None, str]:
    first, slash, behind = rest.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return None, rest
    if not _HOST.fullmatch(first):
        raise _bad(text, "the host is malformed", "a host name with an optional port", first)
    return first, behind


def _bad(text: str, message: str, expected: str, got: str) -> UsageError:
    return UsageError(
        "bad_ref",
        message,
        where=printable(text),
        expected=expected,
        got=printable(got) or "nothing",
        hint="a reference is [host/]namespace/backbone[:tag][@sha256:digest]",
    )


def printable(text: str, limit: int = 120) -> str:
    """`text` for a message: control and non-ASCII characters escaped, long text cut."""
    safe = text.encode("unicode_escape").decode("ascii")
    return safe if len(safe) <= limit else safe[:limit] + "..."


def is_repository(text: str) -> bool:
    """Whether `text` is a repository name: at least two components, at most `MAX_NAME` characters."""
    return len(text) <= MAX_NAME and _REPOSITORY.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether `text` is a host name or address with an optional port."""
    return _HOST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` is a tag name."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` or `sha512:` and the right number of lower-case hexadecimal digits."""
    if len(text) > MAX_DIGEST:
        return False
    match = _DIGEST.fullmatch(text)
    return match is not None and ALGORITHMS.get(match[1]) == len(match[2])


def parse_digest(text: str) -> str:
    """Give `text` back if it is a digest.

    Raises:
        RegistryError: `bad_digest`.
    """
    if not is_digest(text):
        raise RegistryError(
            "bad_digest",
            "malformed digest",
            expected="sha256:<64 hex> or sha512:<128 hex>",
            got=printable(text),
        )
    return text


def parse_repository(text: str) -> str:
    """Give `text` back if it is a repository name.

    Raises:
        UsageError: `bad_ref`.
    """
    if not is_repository(text):
        raise _bad(text, "the name is malformed", "namespace/backbone in lower case", text)
    return text


def parse_tag(text: str) -> str:
    """Give `text` back if it is a tag name.

    Raises:
        UsageError: `bad_ref`.
    """
    if not is_tag(text):
        raise _bad(text, "the tag is malformed", "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", text)
    return text


def namespace_of(repository: str) -> str:
    """Everything before the last slash of a repository name."""
    return repository.rpartition("/")[0]
