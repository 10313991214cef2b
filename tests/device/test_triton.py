"""What the launches do beyond the numbers: storage that exists, the way by table, refusals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels need triton")

import torch
from device_kernels import DEVICE, triton_kernels
from kernel_operands import Maker

from obm_format.device import triton as launchers
from obm_format.device.operands import (
    FLOATS,
    Placed,
    PlacedExact,
    PlacedSign,
    PlacedValue,
    place_sign,
)
from obm_format.errors import UsageError
from obm_format.kernels.contract import Combine, SignOperand
from obm_format.model import DType

SHAPE = (3, 1100)
MAKER = Maker(5)


def upload(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).copy()).to(DEVICE)


def matrix(dtype: DType = DType.BF16, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return upload(MAKER.words(shape, dtype)).view(FLOATS[dtype])


def sign(*, planes: int = 1, group: int = 0, shape: tuple[int, int] = SHAPE) -> PlacedSign:
    return place_sign(MAKER.sign(shape, planes=planes, group=group), upload)


def merge(
    base: torch.Tensor,
    routed: Placed | None,
    others: list[Placed],
    out: torch.Tensor,
    weights: list[float] | None = None,
) -> None:
    triton_kernels().merge(
        base, routed, others, combine=Combine.TIES, weights=weights or [1.0] * len(others), lam=0.3, out=out
    )


def test_a_merge_writes_into_a_piece_of_existing_storage_and_nothing_beside_it() -> None:
    base, routed, others = matrix(), sign(), [sign(), PlacedExact(values=matrix())]
    expected = torch.empty_like(base)
    merge(base, routed, [*others], expected)
    storage = torch.full((base.numel() + 32,), 7.0, dtype=torch.bfloat16, device=DEVICE)
    out = storage[16:-16].view(SHAPE)
    place = out.data_ptr()
    merge(base, routed, [*others], out)
    assert out.data_ptr() == place
    assert torch.equal(storage[16:-16].view(SHAPE), expected)
    assert (storage[:16] == 7).all()
    assert (storage[-16:] == 7).all()


@pytest.mark.parametrize("routed", ["sign", "exact", "none"])
@pytest.mark.parametrize(("planes", "group"), [(1, 0), (2, 0), (1, -1), (2, 64)])
def test_the_way_by_table_gives_the_bits_of_the_fused_one(
    monkeypatch: pytest.MonkeyPatch, routed: str, planes: int, group: int
) -> None:
    base, others = matrix(), [sign(planes=planes, group=group), sign(group=group)]
    chosen: Placed | None = {"sign": sign(), "exact": PlacedExact(values=matrix()), "none": None}[routed]
    ways, results = [], []
    for name in ("_merge", "_merge_by_table"):
        original = getattr(launchers.TritonKernels, name)

        def noted(self: object, *args: object, name: str = name, original: object = original) -> None:
            ways.append(name)
            original(self, *args)  # type: ignore[operator] # the method itself

        monkeypatch.setattr(launchers.TritonKernels, name, noted)
    for worth in (1, 1 << 30):
        monkeypatch.setattr(launchers, "_TABLE_WORTH", worth)
        monkeypatch.setattr(launchers, "TABLE_PLANES", 8 if worth == 1 else 0)
        out = torch.empty_like(base)
        merge(base, chosen, [*others], out, [0.5, -1.25])
        results.append(out)
    assert ways == ["_merge_by_table", "_merge"]
    assert torch.equal(results[0].view(torch.int16), results[1].view(torch.int16))


def test_alphas_that_rows_share_are_placed_once() -> None:
    shared, own = MAKER.sign((4, 64), group=-1), MAKER.sign((4, 64), planes=2, group=8)
    assert tuple(place_sign(shared, upload).alphas.shape) == (1, 1, 1)
    assert tuple(place_sign(own, upload).alphas.shape) == (2, 4, 8)
    copied = SignOperand(bits=shared.bits, alphas=(shared.alphas[0].copy(),), group=64, cols=64)
    assert tuple(place_sign(copied, upload).alphas.shape) == (1, 4, 1)


def broken() -> dict[str, tuple[Placed, str]]:
    good = sign()
    return {
        "bits of another shape": (sign(shape=(3, 1101)), "bad_shape"),
        "alphas missing": (PlacedSign(bits=good.bits, alphas=good.alphas[:, :2], group=0, cols=1100), "bad_shape"),
        "alphas of another type": (
            PlacedSign(bits=good.bits, alphas=good.alphas.double(), group=0, cols=1100),
            "bad_shape",
        ),
        "groups inside a byte": (PlacedSign(bits=good.bits, alphas=good.alphas, group=12, cols=1100), "usage"),
        "exact of another shape": (PlacedExact(values=matrix(shape=(3, 1101))), "bad_shape"),
        "exact and double": (PlacedExact(values=matrix().double()), "unsupported_dtype"),
        "values not in rows": (PlacedValue(values=matrix(DType.F32, (1100, 3)).T), "bad_shape"),
        "values of half": (PlacedValue(values=matrix(DType.F16)), "bad_shape"),
        "on another device": (PlacedExact(values=matrix().to("meta")), "bad_shape"),
    }


@pytest.mark.parametrize("case", broken())
def test_operands_that_do_not_fit_are_refused(case: str) -> None:
    operand, reason = broken()[case]
    base = matrix()
    before = base.clone()
    for routed, others in ((operand, []), (None, [operand])):
        with pytest.raises(UsageError) as caught:
            merge(base, routed, [*others], base)
        assert caught.value.reason == reason
    with pytest.raises(UsageError):
        triton_kernels().absorbed(base, operand, torch.bfloat16)
    assert torch.equal(base, before)


def test_outputs_weights_and_pairs_that_do_not_fit_are_refused() -> None:
    kernels, base = triton_kernels(), matrix()
    with pytest.raises(UsageError):
        merge(base, sign(), [], matrix(shape=(3, 1101)))
    with pytest.raises(UsageError):
        merge(base, sign(), [], matrix().double())
    with pytest.raises(UsageError):
        merge(base, None, [sign()], matrix(), [1.0, 1.0])
    with pytest.raises(UsageError):
        merge(base.reshape(-1), None, [], base.reshape(-1))
    with pytest.raises(UsageError):
        kernels.subtract(base, matrix(shape=(3, 1101)))
    with pytest.raises(UsageError):
        kernels.moved(base, base.float())
