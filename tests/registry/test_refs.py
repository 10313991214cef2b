"""Names: what is a reference, a tag, a digest, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obm_format.errors import RegistryError, UsageError
from obm_registry.refs import is_digest, is_repository, parse_digest, parse_ref, parse_repository, parse_tag

SHA = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("acme/minilm", None, "acme/minilm", None, None),
        ("acme/minilm:chat-v1", None, "acme/minilm", "chat-v1", None),
        (f"acme/minilm@{SHA}", None, "acme/minilm", None, SHA),
        (f"acme/minilm:chat@{SHA}", None, "acme/minilm", "chat", SHA),
        ("hub.example.org/acme/minilm:chat", "hub.example.org", "acme/minilm", "chat", None),
        ("localhost/acme/minilm", "localhost", "acme/minilm", None, None),
        ("localhost:5000/acme/team/minilm:x", "localhost:5000", "acme/team/minilm", "x", None),
        ("a-b/c_d.e", None, "a-b/c_d.e", None, None),
    ],
)
def test_parse_ref_well_formed_gives_its_pieces(
    text: str, host: str | None, repository: str, tag: str | None, digest: str | None
) -> None:
    ref = parse_ref(text)
    assert (ref.host, ref.repository, ref.tag, ref.digest) == (host, repository, tag, digest)
    assert ref.target == (digest or tag)
    assert str(ref) == text
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "", "minilm", "minilm:chat", "/minilm", "acme/", "acme//minilm", "Acme/minilm", "acme/../minilm",
        "acme/minilm:", "acme/minilm:-x", "acme/minilm:a b", "acme/minilm:" + "t" * 129, "acme/minilm@",
        "acme/minilm@sha256:12", "acme/minilm@sha256:" + "0A" * 32, "acme/minilm@md5:" + "0" * 32,
        "acme/minilm:a:b", "acme/minilm/:x", "_acme/minilm", ".acme/minilm", "acme/minilm#x", "acme/minilm?x",
        "acme/mini%2flm", "acme\\minilm/x", "acme/minilm\n", "acme/minilm\x00", "acme/m\u0456nilm",
        "a/" + "b" * 300, "-host.example/acme/minilm", "host.example:port/acme/minilm", "../../etc/passwd",
    ],
)  # fmt: skip
def test_parse_ref_malformed_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ref(text)
    assert caught.value.reason == "bad_ref"
    assert str(caught.value).isprintable()


@given(st.text(max_size=60))
def test_parse_ref_any_text_is_a_ref_or_refused(text: str) -> None:
    try:
        ref = parse_ref(text)
    except UsageError:
        return
    assert str(ref) == text
    assert is_repository(ref.repository)


@pytest.mark.parametrize(
    "text",
    ["sha256:../../x", "sha256:" + "G" * 64, SHA.upper(), "sha256:" + "0" * 10_000, "sha1:" + "0" * 40],
)
def test_parse_digest_malformed_is_refused(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(RegistryError) as caught:
        parse_digest(text)
    assert caught.value.reason == "bad_digest"
    assert len(str(caught.value)) < 400


def test_parse_digest_sha512_is_taken() -> None:
    assert parse_digest("sha512:" + "0" * 128)


def test_parse_repository_and_tag_refuse_what_is_none() -> None:
    for call, text in ((parse_repository, "x"), (parse_tag, "a/b")):
        with pytest.raises(UsageError):
            call(text)


def test_with_tag_and_with_digest_replace_the_target() -> None:
    ref = parse_ref(f"acme/minilm:chat@{SHA}")
    assert str(ref.with_tag("x")) == "acme/minilm:x"
    assert str(ref.with_digest(SHA)) == f"acme/minilm@{SHA}"
