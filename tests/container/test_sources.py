"""Sources: exactly the bytes asked for, or a reason."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from obm_format.container import BytesSource, MappedSource, PathSource, RangeSource, Source, open_source
from obm_format.errors import FormatError, ObmError

DATA = bytes(range(256)) * 40

Make = Callable[[Path, bytes], Source]


def ranged(path: Path, data: bytes) -> Source:
    return RangeSource(len(data), lambda offset, nbytes: data[offset : offset + nbytes], "range")


def stored(kind: type[PathSource] | type[MappedSource]) -> Make:
    def make(path: Path, data: bytes) -> Source:
        path.write_bytes(data)
        return kind(path)

    return make


KINDS: list[Make] = [stored(PathSource), stored(MappedSource), lambda path, data: BytesSource(data), ranged]


@pytest.fixture(params=KINDS, ids=["path", "mapped", "bytes", "range"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def test_read_into_fills_the_buffer_or_says_why_not(make: Make, tmp_path: Path) -> None:
    source, buffer = make(tmp_path / "x", DATA), bytearray(600)
    source.read_into(300, memoryview(buffer)[50:550])
    assert bytes(buffer) == bytes(50) + DATA[300:800] + bytes(50)
    source.read_into(len(DATA), memoryview(buffer)[:0])
    with pytest.raises(FormatError) as error:
        source.read_into(len(DATA) - 599, memoryview(buffer))
    assert error.value.reason == "truncated"
    source.close()


def test_view_gives_the_bytes_or_nothing(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path / "x", DATA)
    view = source.view(300, 500)
    assert (view is None) == isinstance(source, PathSource | RangeSource)
    if view is not None:
        assert view == DATA[300:800]
        with pytest.raises(FormatError) as error:
            source.view(len(DATA) - 10, 11)
        assert error.value.reason == "truncated"
    source.close()
    assert view is None or view == DATA[300:800]


def test_read_into_notices_a_file_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    with PathSource(path) as source:
        path.write_bytes(DATA[:100])
        with pytest.raises(FormatError) as error:
            source.read_into(50, memoryview(bytearray(200)))
    assert error.value.reason == "truncated"


def test_read_gives_the_bytes(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path / "x", DATA)
    assert source.nbytes == len(DATA)
    assert source.read(300, 500) == DATA[300:800]
    assert source.read(0, len(DATA)) == DATA
    assert source.read(len(DATA), 0) == b""
    source.close()
    source.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, len(DATA) + 1), (len(DATA), 1), (1 << 62, 1), (-1, 4), (4, -1)])
def test_read_beyond_the_file_refused(make: Make, tmp_path: Path, offset: int, nbytes: int) -> None:
    source = make(tmp_path / "x", DATA)
    with pytest.raises(FormatError) as caught:
        source.read(offset, nbytes)
    assert caught.value.reason == "truncated"
    source.close()


def test_read_from_threads_gives_each_its_own_bytes(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path / "x", DATA)
    wrong: list[int] = []

    def work(first: int) -> None:
        wrong.extend(i for i in range(first, 9000, 7) if source.read(i, 100) != DATA[i : i + 100])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    source.close()


def test_empty_file_has_nothing_to_read(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path / "x", b"")
    assert source.nbytes == 0
    assert source.read(0, 0) == b""
    source.close()


def test_path_source_file_that_shrinks_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    source = PathSource(path)
    os.truncate(path, 100)
    with pytest.raises(FormatError) as caught:
        source.read(50, 200)
    assert caught.value.reason == "truncated"
    source.close()


def test_path_source_goes_on_after_a_short_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    source = PathSource(path)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, nbytes, offset: real(fd, min(nbytes, 333), offset))
    assert source.read(10, 5000) == DATA[10:5010]
    source.close()


@pytest.mark.parametrize("kind", [PathSource, MappedSource])
def test_open_what_is_no_file_refused(kind: type[PathSource] | type[MappedSource], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, reason in [
        (tmp_path, "io"),
        (fifo, "io"),
        (Path("/dev/zero"), "io"),
        (tmp_path / "none", "not_found"),
    ]:
        with pytest.raises(ObmError) as caught:
            kind(path)
        assert caught.value.reason == reason


@pytest.mark.parametrize(("extra", "reason"), [(-1, "truncated"), (1, "network")])
def test_range_source_other_length_refused(extra: int, reason: str) -> None:
    source = RangeSource(1000, lambda offset, nbytes: bytes(nbytes + extra), "range")
    with pytest.raises(ObmError) as caught:
        source.read(10, 20)
    assert caught.value.reason == reason


def test_range_source_is_not_asked_beyond_its_end() -> None:
    asked: list[int] = []

    def fetch(offset: int, nbytes: int) -> bytes:
        asked.append(offset)
        return bytes(nbytes)

    with pytest.raises(FormatError):
        RangeSource(10, fetch, "range").read(8, 1 << 40)
    assert asked == []


def test_open_source_takes_paths_bytes_and_sources(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    given = BytesSource(DATA)
    assert open_source(given) is given
    for source in (
        open_source(str(tmp_path / "x")),
        open_source(tmp_path / "x", mapped=True),
        open_source(bytearray(DATA)),
    ):
        assert source.read(0, 9) == DATA[:9]
        source.close()
