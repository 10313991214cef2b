"""Prompt files: one `{"text": ...}` object per line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from obm_format.errors import UsageError


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """Read the texts of a prompts file; blank lines and fields besides `text` are passed over.

    Args:
        path: UTF-8 file, one JSON object per line.

    Raises:
        UsageError: the file does not exist (`not_found`), or a line is no object with a text (`usage`).
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError("not_found", "there is no such prompts file", where=str(path))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError("usage", "the file is not UTF-8 text", where=str(path)) from error
    return [_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _text(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("usage", "the line is not JSON", where=where) from error
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UsageError("usage", "the line has no text", where=where, expected='{"text": "..."}')
    return text
