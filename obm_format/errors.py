"""The error tree: every refusal has a stable reason code, a fault and an advice.

`reason` decides the exit code of the command line and the HTTP status of the server; both come from the one
table below. The table is also `spec/reason-codes.md` (a test holds the two equal). This module never formats
for a terminal and never exits.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_INTEGRITY = 4
EXIT_BACKBONE = 5
EXIT_AUTH = 6
EXIT_CONFLICT = 7
EXIT_NETWORK = 8
EXIT_LIMIT = 9
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Reason:
    """What one reason code means, and how it leaves the process.

    Args:
        exit_code: exit status of `obm`.
        http_status: status of the HTTP reply that carries it.
        meaning: one line for people.
    """

    exit_code: int
    http_status: int
    meaning: str


def _format(meaning: str) -> Reason:
    return Reason(EXIT_INTEGRITY, 400, meaning)


def _usage(meaning: str) -> Reason:
    return Reason(EXIT_USAGE, 400, meaning)


REASONS: dict[str, Reason] = {
    # The file: frame and header (obm-1 clauses 2-6)
    "truncated": _format("the file or a part of it ends too early"),
    "bad_header_length": _format("the header length is zero, larger than the file or not aligned"),
    "header_too_large": _format("the header is larger than the limit"),
    "not_obm": _format("the header does not begin with the fixed prefix of the format"),
    "unsupported_version": _format("the major version is not 1, or the version is malformed"),
    "unsupported_feature": _format("`requires` names a feature that this reader does not know"),
    "trailing_data": _format("bytes follow the last part"),
    "bad_encoding_of_text": _format("the header holds bytes outside printable ASCII"),
    "json_syntax": _format("the header or the manifest is not JSON"),
    "json_duplicate_key": _format("an object holds the same key twice"),
    "json_number": _format("a number is not an integer from 0 to 2^53-1"),
    "json_depth": _format("arrays and objects are nested too deeply"),
    "not_canonical": _format("the header is not the canonical byte image of its content"),
    "manifest_field": _format("a manifest field is missing, unknown, or of the wrong type or value"),
    "bad_name": _format("a name is outside its grammar"),
    "duplicate_name": _format("a name is used twice, or names are out of order"),
    "bad_shape": _format("a shape has too many elements or does not fit the encoding"),
    "unknown_encoding": _format("the encoding or its mode is unknown"),
    "bad_params": _format("encoding parameters are outside their range"),
    "bad_digest": _format("a digest is not 64 lower-case hexadecimal digits"),
    "part_table": _format("the part table does not agree with the manifest"),
    "limit_exceeded": Reason(EXIT_INTEGRITY, 413, "a count or size is above the reader's limit"),
    # The file: parts (obm-1 clauses 7-8)
    "artifact_id": _format("the header does not hash to the expected artifact id"),
    "part_digest": _format("a part does not hash to its digest"),
    "pad_not_zero": _format("a padding byte is not zero"),
    # The file: decoding (obm-1 clause 9)
    "pad_bits_set": _format("an unused bit at the end of a row is set"),
    "bad_alpha": _format("an alpha is negative, NaN or infinite"),
    "bad_plane": _format("sign bits contradict a zero alpha or an empty mask"),
    "bad_frame": _format("a compressed frame is malformed or has another size than declared"),
    "frame_digest": _format("a compressed frame does not hash to its digest"),
    "bad_code": _format("a quantised code or its multiplier is outside the encoding"),
    "bad_index": _format("a sparse position is out of range or out of order"),
    "bad_reference": _format("an artifact that `refs` names is no base vector for the tensor"),
    "not_finite": _format("a stored value or a result is NaN or infinite"),
    "output_digest": _format("the rebuilt tensor does not hash to its digest"),
    # The backbone (obm-1 clause 10)
    "backbone_mismatch": Reason(EXIT_BACKBONE, 409, "the checkpoint is not the backbone that the expert names"),
    "backbone_unknown": Reason(EXIT_BACKBONE, 409, "the registry does not hold the backbone of this expert"),
    "base_tensor": Reason(EXIT_BACKBONE, 409, "a backbone tensor is missing or has another dtype or shape"),
    "base_digest": Reason(EXIT_BACKBONE, 409, "a backbone tensor has other bytes than the expert was made against"),
    "tensor_missing": Reason(EXIT_BACKBONE, 409, "a float tensor of the backbone is missing from the fine-tune"),
    "shape_differs": Reason(EXIT_BACKBONE, 409, "a tensor has another shape than in the backbone"),
    "nothing_in_common": Reason(EXIT_BACKBONE, 409, "backbone and fine-tune share no float tensor"),
    # Checkpoints
    "no_weights": Reason(EXIT_NOT_FOUND, 404, "the folder or file holds no safetensors weights"),
    "pickle_refused": _format("the checkpoint is a pickle, which can run code when it is read"),
    "bad_checkpoint": _format("a safetensors file or its index is malformed"),
    "not_finite_input": _format("a tensor of the fine-tune or the backbone holds NaN or Inf"),
    "unsupported_dtype": _format("a tensor has a dtype that this operation does not handle"),
    # What the caller asked for
    "usage": _usage("the call does not make sense"),
    "bad_position": _usage("the position is unknown or matches no tensor"),
    "unknown_architecture": _usage("no layer pattern is known for these tensor names"),
    "budget_too_small": _usage("the expert cannot be made as small as was asked for"),
    "bad_recipe": _usage("a merge recipe is malformed or cannot be honoured"),
    "bad_ref": _usage("a reference is outside its grammar"),
    "route_needed": _usage("several experts and no route or router"),
    "not_found": Reason(EXIT_NOT_FOUND, 404, "the named file, reference or blob does not exist"),
    "missing_dependency": _usage("an optional package is not installed"),
    # The registry
    "tag_exists": Reason(EXIT_CONFLICT, 409, "the tag names another manifest, and moving it was not asked for"),
    "tag_immutable": Reason(EXIT_CONFLICT, 409, "the namespace declares this tag immutable"),
    "in_use": Reason(EXIT_CONFLICT, 409, "other artifacts still refer to this one"),
    "exists": Reason(EXIT_CONFLICT, 409, "the output exists already"),
    "busy": Reason(EXIT_CONFLICT, 503, "another process holds the lock for too long"),
    "bad_manifest": Reason(EXIT_INTEGRITY, 400, "an OCI manifest is malformed or contradicts its blobs"),
    "blob_unknown": Reason(EXIT_NOT_FOUND, 404, "a manifest names a blob that is not in the repository"),
    "blob_digest": Reason(EXIT_INTEGRITY, 400, "bytes do not hash to the digest that they were sent under"),
    "blob_damaged": Reason(EXIT_INTEGRITY, 500, "a stored blob does not hash to its digest"),
    "upload_unknown": Reason(EXIT_NOT_FOUND, 404, "there is no such upload, or it ended meanwhile"),
    "bad_range": Reason(EXIT_USAGE, 416, "a byte range lies outside what is there, or does not follow what arrived"),
    "bad_request": _usage("an HTTP request is malformed or ambiguous"),
    "bad_method": Reason(EXIT_USAGE, 405, "this HTTP method does not apply here"),
    "stalled": Reason(EXIT_NETWORK, 408, "the other side made no progress for too long"),
    "bad_page": _usage("a page size or cursor is malformed"),
    "audit_broken": Reason(EXIT_INTEGRITY, 500, "a line of the audit log is not what was written"),
    "quota_exceeded": Reason(EXIT_LIMIT, 429, "the namespace is at its quota"),
    "rate_limited": Reason(EXIT_LIMIT, 429, "too many requests, or too many wrong credentials, in a short time"),
    "unauthorized": Reason(EXIT_AUTH, 401, "no credentials, or they are unknown, expired or revoked"),
    "denied": Reason(EXIT_AUTH, 403, "the credentials do not allow this"),
    "unsupported": Reason(EXIT_FAILURE, 405, "the registry lacks this capability"),
    "bad_signature": Reason(EXIT_INTEGRITY, 400, "a signature is malformed, is no trusted key's, or does not hold"),
    "network": Reason(EXIT_NETWORK, 502, "the other side cannot be reached or broke off"),
    # The machine
    "disk_full": Reason(EXIT_FAILURE, 507, "no space is left on the device"),
    "io": Reason(EXIT_FAILURE, 500, "the operating system refused a read or a write"),
    "interrupted": Reason(EXIT_INTERRUPTED, 503, "the user stopped the command"),
    "internal": Reason(EXIT_FAILURE, 500, "a defect in obm"),
}


class ObmError(Exception):
    """Root of all errors that obm raises on purpose.

    Args:
        reason: a key of `REASONS`.
        message: one line: what is wrong.
        where: the file, tensor, part or field concerned.
        expected: what would have been right.
        got: what was there.
        hint: what to do about it.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        where: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.where = where
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.hint = hint
        self._facts = REASONS[reason]

    @property
    def exit_code(self) -> int:
        """Exit status of `obm` for this error."""
        return self._facts.exit_code

    @property
    def http_status(self) -> int:
        """HTTP status of a reply that carries this error."""
        return self._facts.http_status

    def __str__(self) -> str:
        """One line: what, where, expected, got, what to do."""
        line = f"{self.where}: {self.message}" if self.where else self.message
        facts = [f"{k} {v}" for k, v in (("expected", self.expected), ("got", self.got)) if v is not None]
        if facts:
            line += f" ({', '.join(facts)})"
        return f"{line}; {self.hint}" if self.hint else line


class FormatError(ObmError):
    """An `.obm` file, or one of its parts, is not what the spec says."""


class CheckpointError(ObmError):
    """A checkpoint (backbone or fine-tune) cannot be used."""


class BackboneMismatch(ObmError):
    """Fine-tune, expert and backbone do not belong together."""


class UsageError(ObmError):
    """The caller asked for something that does not make sense."""


class RegistryError(ObmError):
    """The registry refuses, lacks or cannot deliver something."""


def from_os_error(error: OSError, where: str) -> ObmError:
    """What a failed read or write of the operating system means to the caller: `disk_full`, or `io`.

    Args:
        error: what was raised.
        where: the file or folder concerned.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ObmError("disk_full", "no space is left on the device", where=where, hint="write elsewhere")
    return ObmError("io", error.strerror or "the operating system refused", where=where)
