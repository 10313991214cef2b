"""Find and open the base vectors that an expert refers to, so that they can be published with it.

An artifact is known by the id in its header alone, never by its file's name. Source: obm-1 clause 6.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from obm_format.container.reader import Container
from obm_format.container.sources import PathSource, Source
from obm_format.digest import ARTIFACT_PREFIX
from obm_format.errors import FormatError, ObmError
from obm_format.expert.references import neighbours
from obm_format.progress import Progress
from obm_registry.manifest.expert import ExpertLayers

Opened = tuple[Container, Source]


@contextmanager
def open_bases(
    container: Container, file: Path, given: Sequence[str | Path], progress: Progress
) -> Iterator[list[Opened]]:
    """The base vectors of an expert, open and verified, in the order of its references.

    Args:
        container: the open expert.
        file: its file; others are looked for beside it.
        given: files that are looked at first.
        progress: told how many bytes are verified.

    Raises:
        FormatError: `bad_reference`, one is not found; what `verify` finds in one.
        ObmError: a given file cannot be opened.
    """
    with ExitStack() as stack:
        found = [_open(wanted, file, given, stack) for wanted in container.manifest.refs]
        for base, _ in found:
            require_sound(base, progress)
        yield found


def _open(wanted: str, file: Path, given: Sequence[str | Path], stack: ExitStack) -> Opened:
    named = [Path(one) for one in given]
    for candidate in (*named, *neighbours(wanted, file)):
        try:
            source = PathSource(candidate)
            return stack.enter_context(Container.open(source, expected_id=wanted)), source
        except ObmError as error:
            # what only lies beside the expert may be anything; what was named is to be an artifact
            if error.reason != "artifact_id" and candidate in named:
                raise
    raise FormatError(
        "bad_reference",
        "the expert's base vector is not at hand",
        where=str(file),
        expected=wanted,
        hint="lay its file beside the expert's, or name it (--ref FILE)",
    )


def missing_files(layers: ExpertLayers, out: Path) -> dict[Path, ExpertLayers]:
    """The files that a pull has to write: the base vectors that do not lie beside `out` already, then the expert."""
    beside = {out.parent / f"{one.artifact_id.removeprefix(ARTIFACT_PREFIX)}.obm": one for one in layers.shared}
    return {path: one for path, one in beside.items() if not _is_there(path, one)} | {out: layers}


def is_complete(path: Path) -> bool:
    """Whether an expert's file is there, and beside it, under their ids, the base vectors that it refers to."""
    try:
        with Container.open(str(path)) as found:
            names = [wanted.removeprefix(ARTIFACT_PREFIX) for wanted in found.manifest.refs]
    except ObmError:
        return False
    return all((path.parent / f"{name}.obm").is_file() for name in names)


def _is_there(path: Path, layers: ExpertLayers) -> bool:
    try:
        with Container.open(str(path), expected_id=layers.artifact_id) as found:
            return found.header.file_nbytes == layers.nbytes
    except ObmError:
        return False


def require_sound(container: Container, progress: Progress) -> None:
    """Refuse a file that is damaged anywhere.

    Raises:
        FormatError: the first defect.
    """
    for defect in container.verify(progress=progress):
        raise FormatError(defect.reason, defect.detail, where=defect.where)
