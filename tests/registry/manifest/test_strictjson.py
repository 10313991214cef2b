"""JSON with one meaning."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obm_format.errors import RegistryError
from obm_registry.manifest.strictjson import MAX_DEPTH, encode_json, parse_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def parse(body: bytes) -> object:
    return parse_json(body, max_nbytes=1 << 20, where="here")


@given(values)
def test_parse_gives_back_what_was_encoded(value: object) -> None:
    assert parse(encode_json(value)) == value


def test_encode_sorts_keys_and_leaves_no_space() -> None:
    assert encode_json({"b": [1, "é"], "a": None}) == b'{"a":null,"b":[1,"\\u00e9"]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}', b"NaN", b"[Infinity]", b"-Infinity", b"", b"{", b"[1,]", b"\xff", b'{"a":1}x',
        b"[" * 100_000, b'[{"a":' * 40, b"1" * 5000, b"'a'",
    ],
)  # fmt: skip
def test_parse_refuses_what_is_not_strict(body: bytes) -> None:
    with pytest.raises(RegistryError) as caught:
        parse(body)
    assert caught.value.reason == "bad_manifest"


def test_parse_counts_depth_outside_strings_only() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse(deep.encode()) == json.loads(deep)
    assert parse(json.dumps(["[" * 100, '\\"[' * 100]).encode())
    with pytest.raises(RegistryError):
        parse(("[" + deep + "]").encode())


def test_parse_refuses_too_many_bytes_before_it_looks() -> None:
    with pytest.raises(RegistryError) as caught:
        parse_json(b"x" * 11, max_nbytes=10, where="here")
    assert caught.value.reason == "limit_exceeded"
