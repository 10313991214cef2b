"""An OCI image layout in a folder: blobs appear whole, the index is replaced under a lock.

Never interprets the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from obm_format.errors import RegistryError, UsageError
from obm_format.limits import MIB
from obm_registry.client.layout import MARKER
from obm_registry.client.locks import exclusive
from obm_registry.durable import disk_errors, replaced_file
from obm_registry.manifest.oci import MAX_MANIFEST_NBYTES
from obm_registry.refs import parse_digest


class FolderLayout:
    """`LayoutFiles` in a folder.

    Args:
        root: the folder; made with the first write. One that holds other things is refused.

    Raises:
        UsageError: `usage`, the folder is something else than a layout.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with disk_errors(str(root)):
            if root.exists() and not root.is_dir():
                raise UsageError("usage", "an OCI layout is a folder", where=str(root))
            others = [p.name for p in root.iterdir() if not p.name.startswith(".")] if root.is_dir() else []
        if others and "oci-layout" not in others and set(others) - {"blobs", "index.json"}:
            raise UsageError(
                "usage",
                "the folder holds other things than an OCI layout",
                where=str(root),
                expected="a folder that is new, empty or has a file oci-layout",
            )

    @property
    def name(self) -> str:
        """See `LayoutFiles.name`."""
        return f"file://{self._root}"

    def close(self) -> None:
        """Nothing is held."""

    def index(self) -> bytes | None:
        """See `LayoutFiles.index`."""
        with disk_errors(str(self._root)):
            try:
                with (self._root / "index.json").open("rb") as file:
                    return file.read(MAX_MANIFEST_NBYTES + 1)
            except FileNotFoundError:
                return None

    def update_index(self, change: Callable[[bytes | None], bytes]) -> None:
        """See `LayoutFiles.update_index`."""
        self._make()
        with exclusive(self._root / ".obm.lock"):
            body = change(self.index())
            if len(body) > MAX_MANIFEST_NBYTES:
                raise RegistryError("limit_exceeded", "the layout's index is full", where=self.name)
            with replaced_file(self._root / "index.json") as file:
                file.write(body)

    def _make(self) -> None:
        with disk_errors(str(self._root)):
            self._root.mkdir(parents=True, exist_ok=True)
        if not (self._root / "oci-layout").exists():
            with replaced_file(self._root / "oci-layout") as file:
                file.write(MARKER)

    def has(self, digest: str) -> bool:
        """See `LayoutFiles.has`."""
        with disk_errors(digest):
            return self._path(digest).is_file()

    def put(self, digest: str, chunks: Iterator[bytes]) -> None:
        """See `LayoutFiles.put`."""
        self._make()
        path = self._path(digest)
        with disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        algorithm, _, expected = digest.partition(":")
        total = hashlib.new(algorithm)
        with replaced_file(path) as file:
            for chunk in chunks:
                total.update(chunk)
                file.write(chunk)
            if total.hexdigest() != expected:
                raise RegistryError(
                    "blob_digest",
                    "the bytes changed on the way",
                    expected=digest,
                    got=f"{algorithm}:{total.hexdigest()}",
                )

    def read(self, digest: str, start: int) -> Iterator[bytes]:
        """See `LayoutFiles.read`."""
        with disk_errors(digest):
            try:
                file = self._path(digest).open("rb")
            except FileNotFoundError as error:
                raise RegistryError("blob_unknown", "the layout does not have the blob", where=digest) from error
            with file:
                file.seek(start)
                while chunk := file.read(MIB):
                    yield chunk

    def _path(self, digest: str) -> Path:
        algorithm, _, digits = parse_digest(digest).partition(":")
        return self._root / "blobs" / algorithm / digits
