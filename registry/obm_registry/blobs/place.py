"""Where the bytes that a catalog names lie, when not beside it: noted in a file beside the catalog, and held to.

A catalog that is opened with other bytes would name objects that are not there.
"""

from __future__ import annotations

from pathlib import Path

from obm_format.errors import UsageError
from obm_registry.blobs.base import is_key
from obm_registry.durable import disk_errors, replaced_file
from obm_registry.refs import printable

DEFAULT = "the folder data beside the catalog"
_MAX_NBYTES = 4096


def require_place(catalog: Path, url: str | None) -> None:
    """Refuse other bytes than those that the catalog was used with.

    Args:
        catalog: the file of the catalog.
        url: where the bytes are to be; None for `data` beside it.

    Raises:
        UsageError: `usage`.
    """
    noted = _noted(catalog) or (DEFAULT if _has_objects(catalog.parent / "data") and catalog.exists() else None)
    if noted not in (None, url or DEFAULT):
        raise UsageError(
            "usage",
            "the bytes of this registry lie elsewhere",
            where=str(catalog),
            expected=noted if noted == DEFAULT else f"--blobs {printable(noted)}",
            got=f"--blobs {printable(url)}" if url else DEFAULT,
            hint="only `obm serve` knows other places; name the server with --registry for everything else",
        )


def _has_objects(folder: Path) -> bool:
    with disk_errors(str(folder)):
        return any(is_key(path.name) for path in folder.glob("??/*"))


def note_place(catalog: Path, url: str | None) -> None:
    """Note where the bytes are, for whoever opens the catalog next."""
    if url is not None and _noted(catalog) != url:
        with replaced_file(_file(catalog)) as file:
            file.write(url.encode() + b"\n")


def _noted(catalog: Path) -> str | None:
    with disk_errors(str(catalog)):
        try:
            with _file(catalog).open("rb") as file:
                return file.read(_MAX_NBYTES).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return None


def _file(catalog: Path) -> Path:
    return catalog.with_name(catalog.name + ".blobs")
