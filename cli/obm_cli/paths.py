"""Paths that people type: an empty one is a mistake in the call, and what is written needs a folder to lie in.

That an input is missing is said by whoever opens it, as `not_found`, exit status 3.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from obm_format.errors import ObmError


class InputPath(click.Path):
    """A file or folder to read, or one to write whose folder the command judges itself.

    Raises:
        click.BadParameter: the path is empty.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's
        """The path as it was typed."""
        if not os.fspath(value):
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


class NeededPath(InputPath):
    """A file that must be there even if nothing turns out to need it.

    Raises:
        click.BadParameter: the path is empty.
        ObmError: nothing is there (`not_found`).
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's
        """The path as it was typed."""
        converted = super().convert(value, param, ctx)
        if not Path(converted).exists():
            raise ObmError("not_found", "there is no such file", where=str(converted))
        return converted


class OutputPath(InputPath):
    """A file or folder to write.

    Raises:
        click.BadParameter: the path is empty.
        ObmError: there is no folder that it could be made in (`not_found`).
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's
        """The path as it was typed."""
        converted = super().convert(value, param, ctx)
        require_folder(Path(converted).parent)
        return converted


def require_folder(folder: Path) -> None:
    """Refuse to write into a folder that does not exist, before the work.

    Raises:
        ObmError: `not_found`.
    """
    if not folder.is_dir():
        raise ObmError("not_found", "the folder to write to does not exist", where=str(folder), hint="create it first")
