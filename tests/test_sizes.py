"""What things cost in bytes: the exact difference of fine-tunes, 1-bit payloads, shared base vectors, the header."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from memory_parts import record_of

from obm_format import compress_checkpoint, open_expert
from obm_format.codecs import affine, sign1, sparse, tern1, xdelta
from obm_format.codecs.alphas import AlphaChoice
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.words import from_float32, to_float32
from obm_format.layout import SPARSE_BLOCK, alpha_nbytes, part_layouts
from obm_format.model import (
    AffineParams,
    DType,
    Granularity,
    Mode,
    RtvqParams,
    TensorRecord,
    TensorSpec,
)

NUMEL = 1 << 22  # four frames
KERNELS = ReferenceKernels()
ROW = AlphaChoice(granularity=Granularity.ROW)


@pytest.mark.parametrize(
    ("sigma", "bucket_percent", "plain_percent"),
    # backbone N(0, 0.02), fine-tune = BF16(backbone + N(0, sigma)); percent of the 16-bit tensor, frames of 2 MiB
    [(1e-5, 4.47, 9.51), (1e-4, 20.75, 24.37), (3e-4, 29.15, 33.50), (1e-3, 40.47, 45.63)],
)
def test_xdelta_of_bf16_fine_tunes(sigma: float, bucket_percent: float, plain_percent: float) -> None:
    draw = np.random.default_rng(0)
    base = from_float32(draw.normal(0, 0.02, NUMEL).astype(np.float32), DType.BF16)
    noise = draw.normal(0, sigma, NUMEL).astype(np.float32)
    tuned = from_float32(to_float32(base, DType.BF16) + noise, DType.BF16)
    for bucket, percent in ((True, bucket_percent), (False, plain_percent)):
        encoded = xdelta.encode(tuned, base, DType.BF16, bucket=bucket)
        assert 100 * encoded.nbytes / base.nbytes <= percent * 1.005, bucket


@pytest.mark.parametrize("shape", [(3, 9), (64, 64), (7, 1000)])
def test_payloads_are_those_of_the_formulas(shape: tuple[int, int]) -> None:
    rows, cols = shape
    d = np.random.default_rng(cols).normal(0, 1, shape).astype(np.float32)
    plane = rows * math.ceil(cols / 8)
    expected = [
        (plane + 2 * rows, sign1.encode(d, ROW, rows=rows, kernels=KERNELS)),
        (3 * (plane + 2), sign1.encode(d, AlphaChoice(), rows=rows, planes=3, kernels=KERNELS)),
        (2 * (plane + rows), tern1.encode(d, ROW, rows=rows, kernels=KERNELS)),
        (rows * math.ceil(3 * cols / 8) + 8, affine.encode(d, bits=3, rows=rows)),
        (4 * math.ceil(d.size / SPARSE_BLOCK) + (2 + 4) * d.size, sparse.encode_delta(d)),
    ]
    for nbytes, encoded in expected:
        record = record_of(encoded, shape)
        assert encoded.nbytes == nbytes
        assert sum(part.nbytes for part in part_layouts(record)) + alpha_nbytes(record) == encoded.nbytes


def test_eight_tasks_over_a_shared_base_vector_take_seven_and_a_half_percent_from_1e8_parameters() -> None:
    for shape in ((10_000, 10_000), (14_336, 8_192), (131_072, 4_096)):
        spec = TensorSpec("w", DType.F32, shape)

        def nbytes(params: AffineParams | RtvqParams, spec: TensorSpec = spec) -> int:
            record = TensorRecord(spec=spec, base=spec, mode=Mode.DELTA, params=params)
            return sum(part.nbytes for part in part_layouts(record)) + alpha_nbytes(record)

        rows = shape[0]
        total = nbytes(AffineParams(bits=3, rows=rows)) + 8 * nbytes(RtvqParams(bits=2, rows=rows, ref=0))
        assert total / (8 * spec.nbytes) <= 0.075


def test_a_header_takes_at_most_400_bytes_per_tensor(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = [
        f"model.layers.{layer}.{kind}.weight"
        for layer in range(40)
        for kind in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
    ]
    shapes = {name: (8,) if "norm" in name else (8, 16) for name in names}
    base = {name: (DType.BF16, draw.normal(0, 0.02, shape)) for name, shape in shapes.items()}
    tuned = {name: (dtype, values + draw.normal(0, 0.01, values.shape)) for name, (dtype, values) in base.items()}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "tuned", tuned)
    compress_checkpoint(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.obm")
    with open_expert(tmp_path / "x.obm") as expert:
        assert len(expert.records) == len(names)
        assert expert.header.nbytes <= 400 * len(names)
