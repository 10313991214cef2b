"""Debian's docker-registry on a free port of the loopback, for tests that need a stock OCI registry."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """version: 0.1
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:0"}}
{auth}
"""


@contextlib.contextmanager
def stock_registry(folder: Path, *, auth: str = "") -> Iterator[str]:
    """A running registry that keeps its data under `folder`; gives `127.0.0.1:port`."""
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.skip("docker-registry is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(CONFIG.format(root=folder / "data", auth=auth))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "serve", folder / "config.yml"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            # it says where it listens, and nothing else tells which port it got
            for line in process.stderr:
                log.write(line)
                if match := re.search(rb"listening on (127\.0\.0\.1:\d+)", line):
                    break
            else:
                raise RuntimeError((folder / "log").read_text())
            with _drained(process):
                yield match[1].decode()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


@contextlib.contextmanager
def _drained(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Read what the registry logs, so that it never waits for a reader."""
    import threading

    assert process.stderr is not None
    reader = threading.Thread(target=lambda: [None for _ in process.stderr or ()])
    reader.start()
    try:
        yield
    finally:
        process.kill()
        reader.join()
