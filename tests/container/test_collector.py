"""While a header is parsed nobody looks for garbage, and afterwards the collector is as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from container_files import manifest_of, record, sound_header

from obm_format.container import parse_header
from obm_format.errors import FormatError
from obm_format.model import AlphaLayout, SignParams

RECORDS = 500
HEAD = sound_header(
    manifest_of(tuple(record(f"w.{n:04}", SignParams(alpha=AlphaLayout(), rows=4)) for n in range(RECORDS)))
)


@pytest.fixture
def looks() -> Iterator[list[str]]:
    """Every look for garbage, of a collector that looks at each new object."""
    seen: list[str] = []

    def note(phase: str, _: object) -> None:
        seen.append(phase)

    before = gc.get_threshold()
    gc.set_threshold(1)
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*before)


def test_no_look_while_a_header_is_parsed(looks: list[str]) -> None:
    kept = [[place] for place in range(10)]
    assert looks, kept
    before = len(looks)
    parse_header(HEAD, file_nbytes=None)
    assert len(looks) - before < RECORDS / 10, "a look begins and ends, before and after the records"
    assert gc.isenabled()


def test_a_refusal_puts_it_back() -> None:
    with pytest.raises(FormatError):
        parse_header(HEAD.replace(b"sign1", b"sign9", 1), file_nbytes=None)
    assert gc.isenabled()


def test_who_has_none_keeps_none() -> None:
    gc.disable()
    try:
        parse_header(HEAD, file_nbytes=None)
        assert not gc.isenabled()
    finally:
        gc.enable()
