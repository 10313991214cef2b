"""Small backbones and experts for registry tests: random bytes in the right places, no arrays."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

from obm_format.checkpoint import open_checkpoint
from obm_format.container.writer import ContainerWriter
from obm_format.layout import PartData, packed_row_nbytes
from obm_format.model import (
    AlphaLayout,
    BackboneId,
    DType,
    Granularity,
    Kind,
    Manifest,
    Mode,
    RawParams,
    SignParams,
    TensorRecord,
    TensorSpec,
)
from obm_registry.embedded import EmbeddedRegistry, open_embedded

ROWS, COLS = 12, 16
REPOSITORY = "acme/tiny"


def write_backbone(folder: Path, *, seed: int = 0, n_tensors: int = 3, architecture: str = "TinyModel") -> Path:
    """A checkpoint folder with F32 matrices `w0`, `w1`, ... of `ROWS` x `COLS`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = random.Random(seed).randbytes(n_tensors * ROWS * COLS * 4)
    size = ROWS * COLS * 4
    table = {
        f"w{i}": {"dtype": "F32", "shape": [ROWS, COLS], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(n_tensors)
    }
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


def write_expert(
    path: Path,
    backbone: Path,
    *,
    task: str = "math",
    seed: int = 1,
    added_nbytes: int = 0,
    n_added: int = 1,
    leave_out: str = "",
) -> Path:
    """An expert of `backbone`: every matrix with 1 bit and an alpha per row, and new tensors of any size."""
    draw = random.Random(seed)
    alpha = AlphaLayout(granularity=Granularity.ROW)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(backbone) as base, ContainerWriter(path) as writer:
        records = []
        for name, spec in base.tensors.items():
            if name == leave_out:
                continue
            params = SignParams(alpha=alpha, rows=ROWS)
            record = TensorRecord(spec=spec, base=spec, mode=Mode.DELTA, params=params)
            bits = PartData("bits0", [draw.randbytes(ROWS * packed_row_nbytes(COLS, 1))])
            alphas = struct.pack(f"<{ROWS}e", *(draw.uniform(0.001, 0.01) for _ in range(ROWS)))
            writer.add(record, [bits], alphas=alphas, base_sha256=base.sha256(name), out_sha256=None)
            records.append(record)
        for i in range(n_added if added_nbytes else 0):
            spec = TensorSpec(f"z{i or ''}", DType.U8, (added_nbytes,))
            record = TensorRecord(spec=spec, base=None, mode=Mode.ADDED, params=RawParams(value_dtype=DType.U8))
            data = draw.randbytes(added_nbytes)
            digest = hashlib.sha256(data).digest()
            writer.add(record, [PartData("data", [data])], alphas=b"", base_sha256=None, out_sha256=digest)
            records.append(record)
        n_params = sum(spec.numel for spec in base.tensors.values())
        backbone_id = BackboneId(
            fingerprint=base.fingerprint(),
            n_tensors=len(base.tensors),
            n_params=n_params,
            architecture=base.architecture,
        )
        writer.commit(
            Manifest(
                kind=Kind.TASK_VECTOR,
                task=task,
                position="linear",
                backbone=backbone_id,
                tensors=tuple(records),
            )
        )
    return path


def registry_with_backbone(folder: Path) -> EmbeddedRegistry:
    """An embedded registry in `folder / home` that has the backbone `folder / base` as `REPOSITORY`."""
    registry = open_embedded(folder / "home", actor="tester")
    registry.add_backbone(write_backbone(folder / "base"), REPOSITORY)
    return registry
