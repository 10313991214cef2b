"""A bucket of an S3 service: objects by key, conditional writes, and what a refusal means. Knows no layout.

The only module that knows boto3, which is loaded when a bucket is opened. Credentials, region and endpoint are
found by boto3 itself (`AWS_PROFILE`, `AWS_ENDPOINT_URL` and the rest). Nothing that the service says of the bytes is
relied on: whoever reads them checks their digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from obm_format.errors import ObmError, RegistryError, UsageError
from obm_format.limits import MIB
from obm_registry.refs import printable

PART_NBYTES = 16 * MIB
MAX_PARTS = 10_000
STALL_S = 60.0
ATTEMPTS = 5
_CONNECTIONS = 48
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[\w!.*'()/-]{0,512}))?", re.ASCII)
_MISSING = {"404", "NoSuchKey", "NotFound"}
_OTHER_NOW = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}
_UNKNOWN_HEADER = {"501", "NotImplemented"}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The bytes of an object and the mark by which a conditional write knows them."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a list tells it; the time in milliseconds since 1970, UTC."""

    key: str
    nbytes: int
    written_at: int


class _S3(Protocol):
    """What is used of boto3's client."""

    def get_object(self, **request: object) -> dict[str, Any]: ...
    def head_object(self, **request: object) -> dict[str, Any]: ...
    def put_object(self, **request: object) -> dict[str, Any]: ...
    def delete_object(self, **request: object) -> dict[str, Any]: ...
    def list_objects_v2(self, **request: object) -> dict[str, Any]: ...
    def create_multipart_upload(self, **request: object) -> dict[str, Any]: ...
    def upload_part(self, **request: object) -> dict[str, Any]: ...
    def complete_multipart_upload(self, **request: object) -> dict[str, Any]: ...
    def abort_multipart_upload(self, **request: object) -> dict[str, Any]: ...
    def generate_presigned_url(self, method: str, **request: object) -> str: ...
    def close(self) -> None: ...


def parse_bucket_url(url: str) -> tuple[str, str, str]:
    """Parse `s3://bucket/prefix`.

    Returns:
        The bucket; what keys begin with, "" or text that ends in `/`; and the name for messages.

    Raises:
        UsageError: `usage`, no bucket can be named so.
    """
    match = _URL.fullmatch(url)
    steps = ((match["prefix"] or "").rstrip("/") if match else "").split("/")
    if match is None or (steps != [""] and not {"", ".", ".."}.isdisjoint(steps)):
        raise UsageError("usage", "the URL names no bucket", got=printable(url), expected="s3://bucket/prefix")
    prefix = "".join(f"{step}/" for step in steps if step)
    return match["bucket"], prefix, f"s3://{match['bucket']}/{prefix}".rstrip("/")


class Bucket:
    """Objects of one bucket.

    Args:
        name: the bucket.
        stall_s: seconds without a byte after which a connection is given up.
        attempts: how often a request is tried.

    Raises:
        UsageError: `missing_dependency` without boto3.
    """

    def __init__(self, name: str, *, stall_s: float = STALL_S, attempts: int = ATTEMPTS) -> None:
        self._name = name
        self._s3 = _connect(name, stall_s, attempts)

    def close(self) -> None:
        """Close all connections."""
        self._s3.close()

    def has(self, key: str) -> bool:
        """Whether there is an object."""
        with self._refusals(key):
            try:
                self._s3.head_object(Bucket=self._name, Key=key)
            except Exception as error:
                if _code(error) in _MISSING:
                    return False
                raise
            return True

    def find(self, key: str, max_nbytes: int) -> StoredObject | None:
        """An object as it is now, no more of it than `max_nbytes`; None where there is none."""
        with self._refusals(key):
            try:
                reply = self._s3.get_object(Bucket=self._name, Key=key)
            except Exception as error:
                if _code(error) in _MISSING - {"404"}:
                    return None
                raise
            with contextlib.closing(reply["Body"]) as body:
                return StoredObject(body.read(max_nbytes), str(reply.get("ETag", "")))

    def read(self, key: str, start: int, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of an object from `start` on, at least those before `stop`, as far as there are any.

        Raises:
            RegistryError: `blob_unknown`.
        """
        with self._refusals(key):
            last = "" if stop is None else stop - 1
            wanted: dict[str, object] = {"Range": f"bytes={start}-{last}"} if start or stop is not None else {}
            try:
                reply = self._s3.get_object(Bucket=self._name, Key=key, **wanted)
            except Exception as error:
                if _code(error) in _MISSING:
                    raise RegistryError("blob_unknown", "the bucket does not have the blob", where=key) from error
                if _code(error) in ("416", "InvalidRange"):
                    return
                raise
            # some services know no ranges and send everything
            skip = start if "ContentRange" not in reply else 0
            with contextlib.closing(reply["Body"]) as body:
                while chunk := body.read(MIB):
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))

    def put(self, key: str, body: bytes) -> None:
        """Write an object, whatever is there."""
        with self._refusals(key):
            self._s3.put_object(Bucket=self._name, Key=key, Body=body)

    def put_if(self, key: str, body: bytes, etag: str | None) -> bool:
        """Write an object where the one with `etag` is, or with None where there is none; False where it is not so.

        A service that does not know conditions writes in any case, or raises `unsupported`.
        """
        condition: dict[str, object] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._refusals(key):
            try:
                self._s3.put_object(Bucket=self._name, Key=key, Body=body, **condition)
            except Exception as error:
                # with If-Match, an object that is gone is a 404
                if _code(error) in _OTHER_NOW or (etag is not None and _code(error) in _MISSING):
                    return False
                raise
            return True

    def put_checked(self, key: str, digest: str, chunks: Iterator[bytes]) -> None:
        """Write an object that appears only when its bytes hash to `digest`; a large one in parts.

        Raises:
            RegistryError: `blob_digest`.
        """
        with self._refusals(key):
            self._put_parts(key, _cut(_hashed(chunks, digest), PART_NBYTES))

    def put_sized(self, key: str, chunks: Iterator[bytes], nbytes: int) -> None:
        """Write an object of `nbytes` bytes, which appears when all are there; a large one in parts."""
        with self._refusals(key):
            self._put_parts(key, _cut(chunks, max(PART_NBYTES, -(-nbytes // MAX_PARTS))))

    def _put_parts(self, key: str, parts: Iterator[bytes]) -> None:
        first = next(parts, b"")
        second = next(parts, None)
        if second is None:
            self._s3.put_object(Bucket=self._name, Key=key, Body=first)
            return
        target = {"Bucket": self._name, "Key": key}
        upload = target | {"UploadId": self._s3.create_multipart_upload(**target)["UploadId"]}
        try:
            rows = [self._put_part(upload, number, part) for number, part in enumerate((first, second), 1)]
            rows += [self._put_part(upload, number, part) for number, part in enumerate(parts, 3)]
            self._s3.complete_multipart_upload(MultipartUpload={"Parts": rows}, **upload)
        except BaseException:
            with contextlib.suppress(Exception):
                self._s3.abort_multipart_upload(**upload)
            raise

    def _put_part(self, upload: dict[str, object], number: int, part: bytes) -> dict[str, object]:
        reply = self._s3.upload_part(PartNumber=number, Body=part, **upload)
        return {"PartNumber": number, "ETag": reply["ETag"]}

    def remove(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with self._refusals(key):
            self._s3.delete_object(Bucket=self._name, Key=key)

    def first_keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, the first thousand at most."""
        with self._refusals(prefix):
            reply = self._s3.list_objects_v2(Bucket=self._name, Prefix=prefix)
            return [str(row["Key"]) for row in reply.get("Contents", ())]

    def nbytes(self, key: str) -> int | None:
        """Size of an object, None where there is none."""
        with self._refusals(key):
            try:
                return int(self._s3.head_object(Bucket=self._name, Key=key)["ContentLength"])
            except Exception as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def objects(self, prefix: str) -> Iterator[ListedObject]:
        """Every object whose key begins with `prefix`, by key."""
        more: dict[str, object] = {}
        while True:
            with self._refusals(prefix):
                reply = self._s3.list_objects_v2(Bucket=self._name, Prefix=prefix, **more)
            for row in reply.get("Contents", ()):
                written: datetime = row["LastModified"]
                yield ListedObject(str(row["Key"]), int(row["Size"]), int(written.timestamp() * 1000))
            if not reply.get("IsTruncated"):
                return
            more = {"ContinuationToken": reply["NextContinuationToken"]}

    def link(self, key: str, seconds: int) -> str:
        """An address that gives one object to whoever has it, as a download, for some seconds from now."""
        shown = {"ResponseContentType": "application/octet-stream", "ResponseContentDisposition": "attachment"}
        with self._refusals(key):
            return self._s3.generate_presigned_url(
                "get_object", Params={"Bucket": self._name, "Key": key, **shown}, ExpiresIn=seconds, HttpMethod="GET"
            )

    def _refusals(self, key: str) -> contextlib.AbstractContextManager[None]:
        return _refusals(f"s3://{self._name}/{key}")


def _connect(name: str, stall_s: float, attempts: int) -> _S3:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise UsageError(
            "missing_dependency",
            "a registry in a bucket needs boto3",
            where=f"s3://{name}",
            hint="pip install 'obm-format[s3]'",
        ) from error
    config = Config(
        signature_version="s3v4",
        # sums that the service adds by itself break ranges, and some services do not know them
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=stall_s,
        read_timeout=stall_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=_CONNECTIONS,
    )
    with _refusals(f"s3://{name}"):
        client: _S3 = boto3.session.Session().client("s3", config=config)
        return client


def _hashed(chunks: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """The chunks; refuses before the end when they hash to something else."""
    algorithm, _, expected = digest.partition(":")
    total = hashlib.new(algorithm)
    for chunk in chunks:
        total.update(chunk)
        yield chunk
    if total.hexdigest() != expected:
        got = f"{algorithm}:{total.hexdigest()}"
        raise RegistryError("blob_digest", "the bytes changed on the way", expected=digest, got=got)


def _cut(chunks: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of `nbytes`; the last may be smaller, and comes after the end of `chunks`."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) > nbytes:
            yield bytes(held[:nbytes])
            del held[:nbytes]
    if held:
        yield bytes(held)


def _code(error: Exception) -> str:
    """The code of a service's refusal; "" for any other error."""
    response = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return str(found)


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Turn what boto3 raises into the errors of a registry."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(error, where) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        raise RegistryError(
            "unauthorized", _line(error), where=where, hint="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret"
        ) from error
    except (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError) as error:
        raise RegistryError("network", "the service made no progress for too long", where=where) from error
    except (exceptions.ParamValidationError, exceptions.NoRegionError, ValueError) as error:
        raise UsageError("usage", _line(error), where=where) from error
    except exceptions.BotoCoreError as error:
        raise RegistryError("network", _line(error), where=where) from error


def _refusal(error: Exception, where: str) -> ObmError:
    code = _code(error)
    response: dict[str, Any] = getattr(error, "response", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return RegistryError("not_found", "there is no such bucket", where=where, hint="make the bucket first")
    if code in _UNKNOWN_HEADER:
        return RegistryError("unsupported", "the service does not know the request", where=where, got=code)
    if status in (401, 403):
        hint = "the credentials need s3:ListBucket, GetObject, PutObject and DeleteObject there"
        return RegistryError("denied", "the service refuses the credentials", where=where, got=code, hint=hint)
    if status == 429 or code in ("SlowDown", "TooManyRequests"):
        return RegistryError("rate_limited", "the service asks to come back later", where=where, got=code)
    return RegistryError("network", f"the service refuses: {_line(error)}", where=where)


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300]
