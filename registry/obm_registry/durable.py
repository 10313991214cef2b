"""Files that appear whole or not at all, and survive a power cut; and what the disk's errors mean.

Never decides what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from obm_format.container.writer import refuse_special
from obm_format.errors import from_os_error


@contextlib.contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turn what the operating system refuses into `disk_full` or `io`.

    Args:
        where: the file concerned, for the message.

    Raises:
        ObmError: `disk_full` where no space is left, `io` for every other `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(error, where) from error


def sync_folder(folder: Path) -> None:
    """Flush the entries of `folder`, so that a name made in it survives a power cut."""
    if os.name == "nt":
        return  # Windows has no handle on a folder to flush; NTFS journals names itself
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replaced_file(target: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write `target` so that it appears whole or not at all.

    The bytes go to a hidden file beside it, are flushed and renamed over `target` when the block ends well;
    when it raises, nothing is left behind.

    Args:
        target: the file to write; its folder exists, and it is no folder, device or pipe.
        mode: who may read it, before the process's umask.

    Raises:
        ObmError: `disk_full` or `io`.
    """
    refuse_special(target)
    # 40 characters: at most 160 bytes of the 255 that a name may have
    draft = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    with disk_errors(str(target)):
        try:  # from before the file is there: an interrupt may come while it is made
            with open(draft, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
            sync_folder(target.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that `target` appears whole or not at all; without moving bytes where the disk can share them.

    Raises:
        ObmError: `disk_full` or `io`.
    """
    with disk_errors(str(source)), source.open("rb") as whole, replaced_file(target) as file:
        if not _copy_in_kernel(whole.fileno(), file.fileno()):
            shutil.copyfileobj(whole, file, 1 << 20)


def _copy_in_kernel(source: int, target: int) -> bool:
    """Let the system copy all of a file; False where it cannot, and then nothing is copied."""
    copy = getattr(os, "copy_file_range", None)
    left, first = os.fstat(source).st_size, True
    while copy is not None and left:
        try:
            copied = copy(source, target, left)
        except OSError as error:
            if first and error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                return False
            raise
        if not copied:
            return not first
        left, first = left - copied, False
    return copy is not None
