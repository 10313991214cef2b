"""Canonical JSON: what is refused, with which reason, in which time and memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obm_format.container.canonical import _STRING, encode_canonical, parse_canonical
from obm_format.errors import FormatError
from obm_format.limits import DEFAULT_LIMITS, Limits

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers(0, 2**53 - 1) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4),
    max_leaves=12,
)


def reason(text: bytes | str, limits: Limits = DEFAULT_LIMITS) -> str:
    data = text if isinstance(text, str) else text.decode("latin-1")
    with pytest.raises(FormatError) as caught:
        parse_canonical(data, limits, "test")
    return caught.value.reason


@given(VALUES)
def test_encode_then_parse_gives_the_value(value: object) -> None:
    text = encode_canonical(value)
    assert parse_canonical(text, Limits(json_depth=100), "test") == value


@given(VALUES)
def test_encode_is_the_same_for_any_order_of_keys(value: object) -> None:
    shuffled = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(sorted(pairs, reverse=True)))
    assert encode_canonical(shuffled) == encode_canonical(value)


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-0",
        "1.0",
        "1e3",
        "1E3",
        "01",
        "00",
        "9007199254740992",
        "1" * 30,
        "[-Infinity]",
        "1x",
    ],
)
def test_parse_other_numbers_refused(text: str) -> None:
    assert reason(text) == "json_number"


def test_parse_number_limits_accepted() -> None:
    assert parse_canonical("[0,9007199254740991]", DEFAULT_LIMITS, "test") == [0, 2**53 - 1]


def test_parse_digits_in_strings_are_no_numbers() -> None:
    assert parse_canonical('{"-01.5e9":"NaN null 007"}', DEFAULT_LIMITS, "test") == {"-01.5e9": "NaN null 007"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        "{}x",
        '{"a":}',
        "// x",
        '"open',
        '"a\\',
        "null",
        "[null]",
        "NaN",
        "[Infinity]",
        "+1",
        ".5",
        "tru",
        "truefalse",
        '0"x"1',
        '"\\x"',
    ],
)
def test_parse_no_json_refused(text: str) -> None:
    assert reason(text) == "json_syntax"


@pytest.mark.parametrize(
    "text",
    ["\t{}", '"\x7f"', '"é"', '"\\u00e9"', '"\\n"', '["\\ud800"]', '{"\\u0000":1}', "\ufeff{}".encode()],
)
def test_parse_text_outside_printable_ascii_refused(text: str | bytes) -> None:
    assert reason(text) == "bad_encoding_of_text"


def test_parse_unusual_escape_of_printable_is_left_to_the_canonical_check() -> None:
    assert parse_canonical('"\\u0041\\/"', DEFAULT_LIMITS, "test") == "A/"


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '[{"x":{"b":1,"c":2,"b":3}}]', '{"a":1,"\\u0061":2}'])
def test_parse_duplicate_key_refused(text: str) -> None:
    assert reason(text) == "json_duplicate_key"


@pytest.mark.parametrize("opener", ["[", '{"a":'])
def test_parse_depth_is_bounded(opener: str) -> None:
    closer = "]" if opener == "[" else "}"
    inner = "0"
    assert parse_canonical(opener * 12 + inner + closer * 12, DEFAULT_LIMITS, "test")
    assert reason(opener * 13 + inner + closer * 13) == "json_depth"
    assert reason(opener * 100_000) == "json_depth"


def test_parse_brackets_in_strings_do_not_nest() -> None:
    assert parse_canonical('"' + "[" * 50 + '\\"{"', DEFAULT_LIMITS, "test")


@pytest.mark.parametrize("text", ["[" + "[],[]," * 20 + "0]", "{" + ",".join(f'"{i}":{{}}' for i in range(40)) + "}"])
def test_parse_many_values_refused_before_they_are_made(text: str) -> None:
    assert reason(text, Limits(json_values=40)) == "limit_exceeded"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"' + '\\"' * 1_000_000, "json_syntax"),
        ("[" * 1_000_000, "json_depth"),
        ("\\" * 2_000_000, "json_syntax"),
        ('"",' * 500_000, "json_syntax"),
        ("[1" + "0" * 1_000_000 + "]", "json_number"),
    ],
)
def test_parse_hostile_megabytes_refused(text: str, expected: str) -> None:
    assert reason(text) == expected


@given(st.text('"\\a{0'))
def test_strings_are_taken_out_in_one_go(text: str) -> None:
    # A quote where no match begins or ends would be tried again to the end of the text: quadratic time.
    assert '"' not in _STRING.sub(" ", text)


def test_large_numbers_are_refused_without_reading_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Decimal digits take quadratic time to read.
    read: list[str] = []
    monkeypatch.setattr("obm_format.container.canonical.int", lambda text: read.append(text) or 0, raising=False)
    for text in ("1" * 17, "[9" + "0" * 1_000_000 + "]", "-" + "1" * 1_000_000, "0" * 1_000_000):
        assert reason(text) == "json_number"
    assert all(len(text) <= 16 for text in read)
