"""Files that are not what they were a moment ago, other sides that answer wrongly, and things that are no files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from container_files import add_all, header_nbytes, manifest_of, records, sample, small

from obm_format.container import Container, PathSource, RangeSource
from obm_format.container.writer import ContainerWriter
from obm_format.errors import FormatError, ObmError

Fetch = Callable[[int, int], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "x.obm"
    made.write_bytes(sample())
    return made


@pytest.mark.parametrize("left", [0, 8, 64, header_nbytes(sample()), len(sample()) - 64, len(sample()) - 1])
def test_file_that_shrinks_is_refused(path: Path, left: int) -> None:
    with Container.open(path) as container:
        os.truncate(path, left)
        reasons = {defect.reason for defect in container.verify()}
        assert reasons == {"truncated"}


def test_file_that_another_process_cuts_while_it_is_verified_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obm_format.container.verify._READ_NBYTES", 64)
    monkeypatch.setattr("obm_format.container.verify.THREADS", 1)
    cut: list[int] = []

    def progress(_phase: str, done: int, _total: int) -> None:
        if not cut:
            command = "import os, sys; os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)"
            subprocess.run([sys.executable, "-c", command, str(path)], check=True)
            cut.append(done)

    with Container.open(path) as container:
        reasons = {defect.reason for defect in container.verify(collect=True, progress=progress)}
    assert reasons == {"truncated"}


def test_file_that_shrinks_before_its_header_was_read_is_refused(path: Path) -> None:
    source = PathSource(path)
    os.truncate(path, 100)
    with pytest.raises(FormatError) as caught:
        Container.open(source)
    assert caught.value.reason == "truncated"


def test_file_replaced_behind_its_header_is_refused(path: Path) -> None:
    other = bytearray(sample())
    other[header_nbytes(sample()) :] = bytes(len(other) - header_nbytes(sample()))
    with Container.open(path) as container:
        right = container.id
        path.write_bytes(other)  # the same file, written over
        assert {defect.reason for defect in container.verify()} == {"part_digest"}
        assert container.id == right


def test_file_renamed_over_an_open_one_changes_nothing(path: Path) -> None:
    with Container.open(path) as container:
        (path.parent / "new").write_bytes(small())
        (path.parent / "new").replace(path)
        assert container.verify() == []


def test_header_replaced_between_two_reads_is_another_artifact() -> None:
    """The first 64 KiB are of one file and the rest of another: nothing is believed before all of it is checked."""
    calls: list[int] = []

    def fetch(offset: int, nbytes: int) -> bytes:
        calls.append(offset)
        data = sample() if offset == 0 else bytes(len(sample()))
        return data[offset : offset + nbytes]

    with Container.open(RangeSource(len(sample()), fetch, "x")) as container:
        assert {defect.reason for defect in container.verify()} == {"part_digest"}
    assert calls[0] == 0


def _fewer(offset: int, nbytes: int) -> bytes:
    return sample()[offset : offset + nbytes - 1]


def _none(_offset: int, _nbytes: int) -> bytes:
    return b""


def _more(offset: int, nbytes: int) -> bytes:
    return sample()[offset : offset + nbytes] + b"\0"


def _whole(_offset: int, _nbytes: int) -> bytes:
    return sample() * 40


@pytest.mark.parametrize(
    ("fetch", "reason"), [(_fewer, "truncated"), (_none, "truncated"), (_more, "network"), (_whole, "network")]
)
@pytest.mark.parametrize("late", [False, True])
def test_range_of_another_length_refused(fetch: Fetch, reason: str, late: bool) -> None:
    """An answer of another length, to the first request or to a later one."""

    def answer(offset: int, nbytes: int) -> bytes:
        honest = late and offset == 0
        return sample()[offset : offset + nbytes] if honest else fetch(offset, nbytes)

    assert _reason(RangeSource(len(sample()), answer, "x")) == reason


def _reason(source: RangeSource) -> str:
    try:
        return Container.open(source).verify()[0].reason
    except ObmError as error:
        return error.reason


def test_other_side_that_lies_about_the_size_refused() -> None:
    for size in (len(sample()) - 64, len(sample()) + 64):
        source = RangeSource(size, lambda offset, nbytes: sample()[offset : offset + nbytes], "x")
        assert _reason(source) == "truncated"


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_no_plain_file_refused(tmp_path: Path, mapped: bool) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: an open that waits would wait for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    names = [tmp_path / name for name in ("pipe", "folder", "link", "circle")]
    for name in [*names, Path("/dev/zero"), Path("/dev/null")]:
        with pytest.raises(ObmError) as caught:
            Container.open(name, mapped=mapped)
        assert caught.value.reason == "io", name


def test_link_at_the_target_is_not_followed_elsewhere(tmp_path: Path) -> None:
    """A link where a file is to be written is replaced; what it points to stays as it is."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep me")
    target = tmp_path / "x.obm"
    target.symlink_to(victim)
    with ContainerWriter(target) as writer:
        add_all(writer, records()[:1])
        writer.commit(manifest_of(records()[:1]))
    assert victim.read_bytes() == b"keep me"
    assert not target.is_symlink()
    Container.open(target).close()
