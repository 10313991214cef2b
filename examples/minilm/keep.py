"""Keep a folder that is expensive to make for as long as what it was made from stays the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

RECORD = "training.json"


def keep(folder: Path, made_from: dict[str, object], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder, unless it is there from the same settings; it appears whole or not at all.

    Args:
        folder: The folder to have in the end.
        made_from: Everything that decides its content, recorded beside it.
        write: Fills the empty folder that it is given.

    Returns:
        The folder.
    """
    record = json.dumps(made_from, indent=1, sort_keys=True) + "\n"
    try:
        if (folder / RECORD).read_text(encoding="utf-8") == record:
            return folder
    except FileNotFoundError:
        pass
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        write(partial)
        (partial / RECORD).write_text(record, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        _open_modes(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _open_modes(folder: Path) -> None:
    # Temporary folders and the safetensors writer keep everybody else out; a kept checkpoint need not.
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
