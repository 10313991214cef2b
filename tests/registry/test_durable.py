"""Files that are replaced whole: never something that is no file, and under any name that the system allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from obm_format.errors import ObmError
from obm_registry.durable import replaced_file


def test_pipe_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ObmError) as caught, replaced_file(pipe) as file:
        file.write(b"x")
    assert caught.value.reason == "io"
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    with replaced_file(target) as file:
        file.write(b"x")
    assert target.read_bytes() == b"x"
