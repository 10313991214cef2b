"""Writing: in place at once or not at all, the same bytes every time, readable by any safetensors reader."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors
from container_files import add_all, fill, manifest_of, record, records, sample, sample_manifest

from obm_format.container import Container, ContainerWriter
from obm_format.digest import sha256
from obm_format.errors import FormatError, ObmError, UsageError
from obm_format.layout import PartData, part_layouts
from obm_format.limits import Limits
from obm_format.model import (
    AlphaLayout,
    Attachment,
    BackboneId,
    DType,
    Mode,
    Pool,
    RawParams,
    SignParams,
    TensorRecord,
    XdeltaParams,
)

SIGN = record("w", SignParams(alpha=AlphaLayout(), rows=4))
EXACT = record("w", XdeltaParams(zstd_nbytes=17))
BITS = PartData("bits0", [bytes(36)])
DIGEST = bytes(32)


def write(path: Path) -> None:
    with ContainerWriter(path) as writer:
        write_with(writer)


def write_with(writer: ContainerWriter) -> None:
    add_all(writer, records())
    writer.attach("empty.txt", b"")
    writer.attach("config.json", b"{}")
    writer.commit(sample_manifest())


def files(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_commit_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "x.obm")
    assert (tmp_path / "x.obm").read_bytes() == sample()
    assert files(tmp_path) == ["x.obm"]


def test_commit_gives_the_header_that_a_reader_parses(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, records()[:2])
        header = writer.commit(manifest_of(records()[:2]))
    with Container.open(tmp_path / "x.obm") as container:
        assert container.header == header


def test_safetensors_library_opens_the_file(tmp_path: Path) -> None:
    write(tmp_path / "x.obm")
    with (
        safetensors.safe_open(tmp_path / "x.obm", framework="numpy") as opened,
        Container.open(sample()) as container,
    ):
        assert opened.metadata()["format"] == "obm"
        assert sorted(opened.keys()) == sorted(container.header.parts)
        for tensor in records():
            for layout in part_layouts(tensor):
                padded = opened.get_tensor(f"{tensor.name}#{layout.suffix}").tobytes()
                assert padded[: layout.nbytes] == fill(f"{tensor.name}#{layout.suffix}", layout.nbytes)
                assert not any(padded[layout.nbytes :])


def test_chunks_may_be_any_buffer(tmp_path: Path) -> None:
    raw = record("w", RawParams(value_dtype=DType.F32), shape=(4, 3), dtype=DType.F32, mode=Mode.ADDED)
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    chunks: list[bytes | bytearray | memoryview] = [
        values[:2].data,
        values[2:3].tobytes(),
        bytearray(values[3:].tobytes()),
        b"",
        values[:0].data,
    ]
    with ContainerWriter(tmp_path / "x.obm") as writer:
        writer.add(raw, [PartData("data", chunks)], alphas=b"", base_sha256=None, out_sha256=sha256(values.tobytes()))
        writer.commit(manifest_of((raw,)))
    with Container.open(tmp_path / "x.obm") as container:
        assert container.part(raw, "data") == values.tobytes()
        assert container.digests(raw).parts == (sha256(values.tobytes()),)


def test_mode_honours_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "x.obm")
    finally:
        os.umask(before)
    assert (tmp_path / "x.obm").stat().st_mode & 0o777 == 0o640


WRONG: list[tuple[str, TensorRecord, list[PartData], bytes, bytes | None, bytes | None]] = [
    ("no parts", SIGN, [], bytes(2), DIGEST, None),
    ("short part", SIGN, [PartData("bits0", [bytes(35)])], bytes(2), DIGEST, None),
    ("long part", SIGN, [PartData("bits0", [bytes(36), b"x"])], bytes(2), DIGEST, None),
    ("other name", SIGN, [PartData("bits1", [bytes(36)])], bytes(2), DIGEST, None),
    ("one part too many", SIGN, [BITS, PartData("mask", [b"x"])], bytes(2), DIGEST, None),
    ("framed signs", SIGN, [PartData("bits0", [bytes(36)], framed=True)], bytes(2), DIGEST, None),
    ("no alpha", SIGN, [BITS], b"", DIGEST, None),
    ("long alpha", SIGN, [BITS], bytes(4), DIGEST, None),
    ("no base digest", SIGN, [BITS], bytes(2), None, None),
    ("short digest", SIGN, [BITS], bytes(2), bytes(31), None),
    ("output digest of approximate", SIGN, [BITS], bytes(2), DIGEST, DIGEST),
    ("no output digest of exact", EXACT, [PartData("data", [bytes(17)], framed=True)], b"", DIGEST, None),
    ("unframed xdelta", EXACT, [PartData("data", [bytes(17)])], b"", DIGEST, DIGEST),
    ("two frames for one", EXACT, [PartData("data", [bytes(8), bytes(9)], framed=True)], b"", DIGEST, DIGEST),
]


@pytest.mark.parametrize(
    ("tensor", "parts", "alphas", "base", "out"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_add_what_the_record_does_not_imply_refused(
    tensor: TensorRecord,
    parts: list[PartData],
    alphas: bytes,
    base: bytes | None,
    out: bytes | None,
    tmp_path: Path,
) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer, pytest.raises(FormatError) as caught:
        writer.add(tensor, parts, alphas=alphas, base_sha256=base, out_sha256=out)
    assert caught.value.reason == "part_table"
    assert files(tmp_path) == []


def test_add_right_parts_accepted(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer:
        writer.add(SIGN, [BITS, PartData("tail", [])], alphas=bytes(2), base_sha256=DIGEST, out_sha256=None)
        assert writer.commit(manifest_of((SIGN,))).pools["alphas"] == Pool(nbytes=2, sha256=sha256(bytes(2)))


def test_commit_other_records_refused(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, records()[:2])
        for tensors in (records()[:1], records()[1::-1], records()[:3]):
            with pytest.raises(UsageError):
                writer.commit(manifest_of(tensors))
        with pytest.raises(UsageError):
            writer.commit(manifest_of(records()[:2], attachments=(Attachment(name="a.md", nbytes=1),)))
    assert files(tmp_path) == []


def test_commit_what_a_reader_refuses_leaves_nothing(tmp_path: Path) -> None:
    bad = BackboneId(fingerprint="no digest", n_tensors=1, n_params=1)
    with ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, records()[:1])
        with pytest.raises(FormatError) as caught:
            writer.commit(manifest_of(records()[:1], backbone=bad))
    assert caught.value.reason == "bad_digest"
    assert files(tmp_path) == []


def test_attach_bad_attachments_refused(tmp_path: Path) -> None:
    limits = Limits(attachments=2, attachment_nbytes=5)
    with ContainerWriter(tmp_path / "x.obm", limits) as writer:
        writer.attach("a.json", b"12345")
        writer.attach("b.json", b"")
        for name, data, reason in [
            ("a.json", b"1", "duplicate_name"),
            ("c.json", b"", "limit_exceeded"),
            ("x.py", b"", "bad_name"),
        ]:
            with pytest.raises(FormatError) as caught:
                writer.attach(name, data)
            assert caught.value.reason == reason


def test_exception_leaves_nothing_and_keeps_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "x.obm").write_bytes(b"old")
    with suppress(RuntimeError), ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, records())
        raise RuntimeError
    assert files(tmp_path) == ["x.obm"]
    assert (tmp_path / "x.obm").read_bytes() == b"old"


def test_writer_after_commit_or_abort_is_closed(tmp_path: Path) -> None:
    writer = ContainerWriter(tmp_path / "x.obm")
    writer.commit(manifest_of(()))
    with pytest.raises(UsageError):
        writer.add(SIGN, [BITS], alphas=bytes(2), base_sha256=DIGEST, out_sha256=None)
    with pytest.raises(UsageError):
        writer.commit(manifest_of(()))
    writer.abort()
    assert files(tmp_path) == ["x.obm"]


@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-65E5}", "\N{GRINNING FACE}"])
def test_name_as_long_as_the_system_allows(tmp_path: Path, letter: str) -> None:
    target = tmp_path / (letter * (251 // len(letter.encode())) + ".obm")
    write(target)
    assert files(tmp_path) == [target.name]


def test_device_pipe_or_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(ObmError) as caught:
            ContainerWriter(tmp_path / name)
        assert caught.value.reason == "io"
    assert files(tmp_path) == ["folder", "link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_folder_that_does_not_exist_refused(tmp_path: Path) -> None:
    with pytest.raises(ObmError) as caught:
        ContainerWriter(tmp_path / "none" / "x.obm")
    assert caught.value.reason == "not_found"


def fail_with(number: int) -> Callable[..., int]:
    def fail(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "io")]
)
@pytest.mark.parametrize("call", ["write", "fsync", "preadv"])
def test_failing_disk_leaves_nothing(
    call: str, number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ContainerWriter(tmp_path / "x.obm")
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(ObmError) as caught, writer:
        write_with(writer)
    assert caught.value.reason == reason
    assert files(tmp_path) == []


def test_short_reads_of_the_spool_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:97]], offset))
    write(tmp_path / "x.obm")
    assert (tmp_path / "x.obm").read_bytes() == sample()


def test_a_spool_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ContainerWriter(tmp_path / "x.obm")
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 0)
    with pytest.raises(ObmError) as caught, writer:
        write_with(writer)
    assert caught.value.reason == "io"
    assert files(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:97]))
    write(tmp_path / "x.obm")
    assert (tmp_path / "x.obm").read_bytes() == sample()


KILLED = """
import sys
from container_files import add_all, records, manifest_of
from obm_format.container import ContainerWriter
from obm_format.container import writer as module
from pathlib import Path

if sys.argv[2] == "publish":
    real = module._write_all
    def slow(descriptor, data):
        real(descriptor, data)
        print("ready", flush=True)
        sys.stdin.read()
else:
    slow = None
with ContainerWriter(Path(sys.argv[1])) as writer:
    add_all(writer, records()[:6])
    if slow is None:
        print("ready", flush=True)
        sys.stdin.read()
    module._write_all = slow
    writer.commit(manifest_of(records()[:6], refs=("obm1-sha256:" + "cd" * 32,)))
"""


@pytest.mark.parametrize("moment", ["spool", "publish"])
def test_killed_writer_leaves_no_file_at_the_target(moment: str, tmp_path: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "x.obm"), moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "x.obm").exists()
    left = files(tmp_path)
    # Only a file that was being published has a name, and that name says what it is.
    assert len(left) == (moment == "publish")
    assert all(name.startswith(".x.obm.") and name.endswith(".tmp") for name in left)
