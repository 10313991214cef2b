"""Backbone manifests: the tensor table of a backbone as a small document that is the same everywhere.

Never holds weights, names or dates, so that the digest of the manifest depends on the tensors and the
architecture alone. Source: obm-1 clause 10.1 (fingerprint).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from obm_format.checkpoint import Checkpoint
from obm_format.digest import fingerprint, is_sha256_hex
from obm_format.errors import RegistryError, UsageError
from obm_format.limits import DEFAULT_LIMITS, MIB
from obm_format.model import DType, TensorSpec
from obm_format.progress import Progress, silent
from obm_registry.manifest.oci import (
    EMPTY_BODY,
    EMPTY_TYPE,
    Descriptor,
    OciManifest,
    bad_manifest,
    describe,
    digest_of,
    encode_manifest,
)
from obm_registry.manifest.strictjson import encode_json, parse_json
from obm_registry.refs import Ref

BACKBONE_TYPE = "application/vnd.obm.backbone.v1"
BACKBONE_TAG = "backbone"
BACKBONE_CONFIG = "application/vnd.obm.backbone.config.v1+json"
FINGERPRINT = "io.obm.fingerprint"
MAX_CONFIG_NBYTES = 64 * MIB

_SCHEMA = "obm.backbone/1"
_FIELDS = {"architecture", "fingerprint", "n_params", "n_tensors", "schema", "tensors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneTensor:
    """One row of the tensor table: the tensor and the SHA-256 of its bytes."""

    spec: TensorSpec
    sha256: bytes

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.spec.name

    @property
    def dtype_name(self) -> str:
        """Its safetensors dtype."""
        return self.spec.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.spec.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneFacts:
    """What is listed of a backbone: fingerprint, model class, number of tensors and of elements."""

    fingerprint: str
    architecture: str
    n_tensors: int
    n_params: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneTable:
    """All tensors of a backbone.

    Args:
        architecture: model class name, "" when unknown.
        fingerprint: content fingerprint of `tensors`, 64 hexadecimal digits.
        tensors: rows by tensor name, in name order.
    """

    architecture: str
    fingerprint: str
    tensors: dict[str, BackboneTensor]

    @property
    def facts(self) -> BackboneFacts:
        """What is listed of the backbone."""
        return BackboneFacts(
            fingerprint=self.fingerprint,
            architecture=self.architecture,
            n_tensors=len(self.tensors),
            n_params=sum(row.spec.numel for row in self.tensors.values()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackbonePackage:
    """What is published for a backbone.

    Args:
        body: the manifest.
        digest: its digest.
        blobs: config and the empty layer, by digest.
    """

    body: bytes
    digest: str
    blobs: dict[str, bytes]

    @property
    def descriptor(self) -> Descriptor:
        """What an expert's `subject` says."""
        return backbone_descriptor(self.digest, len(self.body))


def backbone_descriptor(digest: str, size: int) -> Descriptor:
    """The descriptor of a backbone manifest, as an expert's `subject` carries it."""
    return Descriptor(media_type=OciManifest().media_type, digest=digest, size=size, artifact_type=BACKBONE_TYPE)


def tabulate(tensors: Iterable[BackboneTensor], architecture: str) -> BackboneTable:
    """The table of `tensors`, sorted and fingerprinted."""
    rows = sorted(tensors, key=lambda row: row.name)
    return BackboneTable(
        architecture=architecture, fingerprint=fingerprint(rows), tensors={row.name: row for row in rows}
    )


def package_backbone(table: BackboneTable) -> BackbonePackage:
    """Build the manifest and the blobs of a backbone."""
    config = encode_json(
        {
            "schema": _SCHEMA,
            "architecture": table.architecture,
            "fingerprint": table.fingerprint,
            "n_params": table.facts.n_params,
            "n_tensors": len(table.tensors),
            "tensors": [
                [row.name, row.dtype_name, list(row.shape), row.sha256.hex()] for row in table.tensors.values()
            ],
        }
    )
    manifest = OciManifest(
        artifact_type=BACKBONE_TYPE,
        config=describe(config, BACKBONE_CONFIG),
        layers=(describe(EMPTY_BODY, EMPTY_TYPE),),
        annotations={FINGERPRINT: table.fingerprint},
    )
    body = encode_manifest(manifest)
    blobs = {digest_of(config): config, digest_of(EMPTY_BODY): EMPTY_BODY}
    return BackbonePackage(body=body, digest=digest_of(body), blobs=blobs)


def package_checkpoint(checkpoint: Checkpoint, progress: Progress = silent) -> tuple[BackbonePackage, BackboneTable]:
    """Build what is published for an open checkpoint as a backbone.

    Args:
        checkpoint: the checkpoint; all its tensors are hashed.
        progress: told how many bytes are hashed.
    """
    rows = [
        BackboneTensor(spec=TensorSpec(row.name, DType[row.dtype_name], row.shape), sha256=row.sha256)
        for row in checkpoint.table(progress)
    ]
    table = tabulate(rows, checkpoint.architecture)
    return package_backbone(table), table


def parse_backbone(config: bytes) -> BackboneTable:
    """Parse the config blob of a backbone and recompute its fingerprint.

    Args:
        config: the blob, at most 64 MiB.

    Returns:
        The tensor table.

    Raises:
        RegistryError: `bad_manifest` when a field is malformed, rows are out of order or the fingerprint is
            another; `limit_exceeded`.
    """
    document = parse_json(config, max_nbytes=MAX_CONFIG_NBYTES, where="backbone config")
    if not isinstance(document, dict) or set(document) != _FIELDS or document["schema"] != _SCHEMA:
        raise bad_manifest("backbone config", f"the fields of {_SCHEMA}", type(document).__name__)
    architecture = document["architecture"]
    if not isinstance(architecture, str):
        raise bad_manifest("backbone config.architecture", "text", architecture)
    table = parse_tensors(document["tensors"], architecture, "backbone config")
    facts = {"fingerprint": table.fingerprint, "n_tensors": len(table.tensors), "n_params": table.facts.n_params}
    for key, value in facts.items():
        if document[key] != value:
            raise bad_manifest(f"backbone config.{key}", str(value), document[key])
    return table


def parse_tensors(rows: object, architecture: str, where: str) -> BackboneTable:
    """Parse the rows of a tensor table.

    Args:
        rows: an array of `[name, dtype, shape, sha256]`, sorted by name.
        architecture: of the table.
        where: what the rows are part of, for messages.

    Raises:
        RegistryError: `bad_manifest`.
    """
    if not isinstance(rows, list):
        raise bad_manifest(f"{where}.tensors", "an array of rows", type(rows).__name__)
    parsed = [_parse_row(row, f"{where}.tensors[{i}]") for i, row in enumerate(rows)]
    names = [row.name for row in parsed]
    if names != sorted(set(names)):
        raise RegistryError("bad_manifest", "tensor names are out of order or repeated", where=where)
    return tabulate(parsed, architecture)


def _parse_row(row: object, where: str) -> BackboneTensor:
    if not isinstance(row, list) or len(row) != 4:
        raise bad_manifest(where, "[name, dtype, shape, sha256]", row)
    name, dtype, shape, digest = row
    # a control character could forge another line under the fingerprint
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= DEFAULT_LIMITS.name_nbytes:
        raise bad_manifest(where, "a tensor name", name)
    if not isinstance(dtype, str) or dtype not in DType.__members__:
        raise bad_manifest(where, "a dtype", dtype)
    if not isinstance(shape, list) or len(shape) > DEFAULT_LIMITS.rank or not all(map(_is_size, shape)):
        raise bad_manifest(where, "a shape", shape)
    if not is_sha256_hex(digest):
        raise bad_manifest(where, "a SHA-256", digest)
    return BackboneTensor(spec=TensorSpec(name, DType[dtype], tuple(shape)), sha256=bytes.fromhex(digest))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < DEFAULT_LIMITS.numel


def other_backbone(repository: str, there: str, own: str) -> RegistryError:
    """The refusal of a second backbone in a repository, by fingerprints."""
    return RegistryError(
        "tag_exists",
        "the repository has another backbone already",
        where=repository,
        expected=f"fingerprint {there}",
        got=own,
        hint="add this one under another name: one repository per backbone",
    )


def require_untagged(where: Ref) -> None:
    """Refuse another tag for a backbone than the one that every backbone has.

    Raises:
        UsageError: `bad_ref`.
    """
    if where.target not in (None, BACKBONE_TAG):
        message = "a backbone has no tag of its own"
        raise UsageError("bad_ref", message, where=str(where), expected=where.repository)
