"""Small `.obm` files for tests of the container, and forged ones: any manifest or table in a sound frame."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from obm_format.container import ContainerWriter, encode_header, parse_header
from obm_format.digest import sha256
from obm_format.errors import FormatError
from obm_format.layout import PartData, alpha_nbytes, part_layouts, pool_sizes
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.model import (
    AffineParams,
    AlphaLayout,
    AlphaRule,
    Attachment,
    BackboneId,
    DType,
    Granularity,
    Kind,
    Manifest,
    Mode,
    Params,
    Pool,
    Prefix,
    RawParams,
    RtvqParams,
    SignParams,
    SparseParams,
    TensorRecord,
    TensorSpec,
    TernParams,
    XdeltaParams,
    ZeroParams,
)

START = b'{"__metadata__":{"format":"obm","obm_version":"1.0","obm":'


def record(
    name: str,
    params: Params,
    *,
    shape: tuple[int, ...] = (4, 70),
    dtype: DType = DType.BF16,
    mode: Mode = Mode.DELTA,
    base: TensorSpec | None = None,
) -> TensorRecord:
    """A tensor record; in the modes delta and replace its counterpart is the same tensor unless given."""
    spec = TensorSpec(name, dtype, shape)
    return TensorRecord(spec=spec, base=None if mode is Mode.ADDED else base or spec, mode=mode, params=params)


def records() -> tuple[TensorRecord, ...]:
    """One record or more of every encoding and mode, sorted by name."""
    rows = AlphaLayout(granularity=Granularity.ROW, rule=AlphaRule.PROJ)
    groups = AlphaLayout(granularity=Granularity.GROUP, group=64, dtype=DType.F32, gain="0.5")
    blocks = AlphaLayout(granularity=Granularity.BLOCK, blocks=((1, 2), (2, 1)))
    old = TensorSpec("n.embed", DType.BF16, (3, 8))
    return (
        record("a.affine", AffineParams(bits=3, rows=4)),
        record("b.added", RawParams(value_dtype=DType.I64), shape=(3,), dtype=DType.I64, mode=Mode.ADDED),
        record("c.raw", RawParams(value_dtype=DType.F32), base=TensorSpec("c.raw", DType.F16, (4, 70))),
        record("d.replaced", RawParams(value_dtype=DType.BF16, zstd_nbytes=11), mode=Mode.REPLACE),
        record("e.rtvq", RtvqParams(bits=2, rows=280, ref=0)),
        record("f.blocks", SignParams(alpha=blocks, rows=4)),
        record("g.groups", SignParams(alpha=groups, rows=4)),
        record("h.planes", SignParams(alpha=rows, rows=4, planes=2)),
        record("i.sparse", SparseParams(nnz=5, value_dtype=DType.F32)),
        record("j.sparse", SparseParams(nnz=2, value_dtype=DType.BF16), mode=Mode.REPLACE),
        record("k.tern", TernParams(alpha=AlphaLayout(), rows=4)),
        record("l.exact", XdeltaParams(zstd_nbytes=17, bucket=True)),
        record("m/zero", ZeroParams(), dtype=DType.I64),
        record("n.embed", SignParams(alpha=rows, rows=3), shape=(5, 8), base=old),
    )


def manifest_of(tensors: tuple[TensorRecord, ...], **fields: object) -> Manifest:
    """A manifest with the required fields filled in."""
    common: dict[str, object] = {
        "kind": Kind.TASK_VECTOR,
        "task": "math",
        "position": "linear",
        "backbone": BackboneId(fingerprint="ab" * 32, n_tensors=12, n_params=3000, architecture="LlamaForCausalLM"),
    }
    return Manifest(tensors=tensors, **{**common, **fields})  # type: ignore[arg-type]


def fill(name: str, nbytes: int) -> bytes:
    """`nbytes` bytes that differ from place to place and part to part, none of them zero."""
    seed = sha256(name.encode())
    return bytes((seed[i % 32] + i // 32) % 255 + 1 for i in range(nbytes))


def parts_of(tensor: TensorRecord) -> list[PartData]:
    """The parts of a record, of the right sizes, with meaningless bytes."""
    return [
        PartData(
            layout.suffix,
            [fill(f"{tensor.name}#{layout.suffix}", layout.nbytes)],
            framed=layout.raw_nbytes is not None,
        )
        for layout in part_layouts(tensor)
    ]


def add_all(writer: ContainerWriter, tensors: tuple[TensorRecord, ...]) -> None:
    """Add records with meaningless bytes."""
    for tensor in tensors:
        writer.add(
            tensor,
            parts_of(tensor),
            alphas=fill(tensor.name, alpha_nbytes(tensor)),
            base_sha256=sha256(b"base") if tensor.base is not None else None,
            out_sha256=sha256(b"out") if tensor.is_exact else None,
        )


def sample_manifest() -> Manifest:
    """A manifest that uses every field."""
    return manifest_of(
        records(),
        aliases=(("lm_head", "n.embed"),),
        removed=("rotary.inv_freq",),
        prefix=Prefix(side="tuned", text="model."),
        attachments=(Attachment(name="config.json", nbytes=2), Attachment(name="empty.txt", nbytes=0)),
        refs=("obm1-sha256:" + "cd" * 32,),
        ext={"acme.note": {"run": [1, True, 'x \\ " y']}},
    )


@cache
def sample() -> bytes:
    """A file that holds `sample_manifest`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.obm"
        with ContainerWriter(path) as writer:
            add_all(writer, records())
            writer.attach("empty.txt", b"")
            writer.attach("config.json", b"{}")
            writer.commit(sample_manifest())
        return path.read_bytes()


@cache
def small() -> bytes:
    """A file of one 1-bit tensor and one attachment, small enough to mutate at every byte."""
    tensor = record("w", SignParams(alpha=AlphaLayout(), rows=2), shape=(2, 9))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.obm"
        with ContainerWriter(path) as writer:
            add_all(writer, (tensor,))
            writer.attach("a.md", b"hi")
            writer.commit(manifest_of((tensor,), attachments=(Attachment(name="a.md", nbytes=2),)))
        return path.read_bytes()


def header_nbytes(data: bytes) -> int:
    """8+N."""
    return 8 + int.from_bytes(data[:8], "little")


def frame(text: bytes) -> bytes:
    """A header whose JSON is `text`."""
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def tree_of(data: bytes) -> dict[str, object]:
    """The header's JSON, as Python sees it."""
    tree: dict[str, object] = json.loads(data[8 : header_nbytes(data)])
    return tree


def manifest_tree(data: bytes) -> dict[str, object]:
    """The manifest's JSON, as Python sees it."""
    metadata = tree_of(data)["__metadata__"]
    assert isinstance(metadata, dict)
    tree: dict[str, object] = json.loads(metadata["obm"])
    return tree


def dumps(value: object) -> str:
    """Canonical JSON, written without the code under test."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def with_manifest(text: str, table: Mapping[str, object] | None = None) -> bytes:
    """A header with this manifest text and part table."""
    rest = json.dumps(dict(table or {}), separators=(",", ":"))[1:-1]
    return frame(START + json.dumps(text).encode() + b"}" + (b"," if rest else b"") + rest.encode() + b"}")


def reason_of(head: bytes, file_nbytes: int | None = None, limits: Limits = DEFAULT_LIMITS) -> str:
    """The reason for which a header is refused, or `accepted`."""
    try:
        parse_header(head, file_nbytes=file_nbytes, limits=limits)
    except FormatError as error:
        return error.reason
    return "accepted"


def sound_header(manifest: Manifest) -> bytes:
    """The header of a file with this manifest, with made-up digests of its pools."""
    sizes = {name: nbytes for name, nbytes in pool_sizes(manifest).items() if nbytes}
    return encode_header(manifest, {name: Pool(nbytes=nbytes, sha256=bytes(32)) for name, nbytes in sizes.items()})
