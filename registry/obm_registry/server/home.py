"""The folder of a registry on this machine: catalog, blobs, and the file with the first administrator's token."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from obm_format.errors import UsageError
from obm_registry.blobs.base import BlobStore
from obm_registry.blobs.local import LocalBlobs
from obm_registry.blobs.s3 import S3Blobs
from obm_registry.bucket import Bucket, parse_bucket_url
from obm_registry.catalog.store import FILE_NAME, open_catalog
from obm_registry.durable import disk_errors
from obm_registry.service.access import EVERYWHERE, create_token, list_members, set_role
from obm_registry.service.registry import Registry

ADMIN = "admin"
TOKEN_FILE = "admin.token"  # noqa: S105 - a file name


@contextlib.contextmanager
def open_home(home: Path, *, db: str | None = None, blobs: str | None = None) -> Iterator[Registry]:
    """Open or create a registry.

    Args:
        home: the folder; made, for its owner alone, when it is not there. It must be on a local disk.
        db: URL of the catalog, `sqlite:///PATH`; None for `registry.sqlite3` in `home`.
        blobs: URL of the blobs, `file:///PATH` or `s3://BUCKET/PREFIX`; None for `data` in `home`. With a bucket, what
            is still coming lies in `incoming` in `home`.

    Raises:
        UsageError: `usage` for a URL of another kind; `missing_dependency` for a bucket without boto3.
        RegistryError: `io`, `busy`, `disk_full`; `not_found`, `unauthorized`, `denied`, `network` for a bucket.
    """
    path = catalog_file(home, db)
    with disk_errors(str(home)):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(_open_blobs(home, blobs)) as store, contextlib.closing(open_catalog(path)) as catalog:
        yield Registry(catalog=catalog, blobs=store)


def catalog_file(home: Path, db: str | None) -> Path:
    """The file of a catalog by its URL, `sqlite:///PATH`; None for `registry.sqlite3` in `home`.

    Raises:
        UsageError: `usage` for a URL of another kind.
    """
    return home / FILE_NAME if db is None else _local_path(db, "sqlite", "--db")


def _open_blobs(home: Path, url: str | None) -> BlobStore:
    if url is not None and url.startswith("s3://"):
        name, prefix, _ = parse_bucket_url(url)
        bucket = Bucket(name)
        bucket.first_keys(prefix)  # a bucket that is not there, or is not ours, shows now and not at the first push
        return S3Blobs(bucket, prefix, home / "incoming")
    return LocalBlobs(home / "data" if url is None else _local_path(url, "file", "--blobs"))


def _local_path(url: str, scheme: str, where: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != scheme or parts.netloc or not parts.path.startswith("/") or parts.query or parts.fragment:
        expected = f"{scheme}:///PATH" + (" or s3://BUCKET/PREFIX" if scheme == "file" else "")
        raise UsageError("usage", "nothing of the registry can be kept there", where=where, expected=expected, got=url)
    return Path(unquote(parts.path))


def ensure_admin(registry: Registry, home: Path) -> Path:
    """Make the first administrator and a file with its token, unless there is an administrator already.

    Returns:
        The file, which only its owner may read. Whoever has stored the token elsewhere may delete it.
    """
    path = home / TOKEN_FILE
    if "admin" in list_members(registry, EVERYWHERE).values():
        return path
    token, _ = create_token(registry, ADMIN, actor=ADMIN)
    with disk_errors(str(path)):
        path.unlink(missing_ok=True)  # of a start that was cut off before the role was given
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
    set_role(registry, ADMIN, EVERYWHERE, "admin", actor=ADMIN)
    return path
