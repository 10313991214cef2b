"""`obm_format` encodes, bit for bit, what clause 11 says as plain Python has it in `spec/vector_tensors.py`."""

from typing import Any

import numpy as np
import pytest
from vector_tensors import Counterpart, affine, noise, sign1, tern1
from vector_writer import Dense, Tensor

from obm_format.codecs import affine as affine_codec
from obm_format.codecs import sign1 as sign1_codec
from obm_format.codecs import tern1 as tern1_codec
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded
from obm_format.kernels import select_kernels
from obm_format.model import AlphaRule, Granularity

CHOICES: list[dict[str, Any]] = [
    {"rule": "mean"},
    {"rule": "rms", "gain": "1.25"},
    {"rule": "proj", "alpha": "row"},
    {"rule": "mean", "alpha": "group", "group": 64},
    {"rule": "proj", "alpha": "group", "group": 128},
    {"rule": "rms", "alpha": "block", "blocks": [[2, 1], [1, 3]]},
]


def side(rows: int, cols: int) -> Counterpart:
    dense = Dense(dtype="F32", shape=[rows, cols], data=bytes(4 * rows * cols))
    return Counterpart({"w": dense}, "w")


def ours(choice: dict[str, Any]) -> AlphaChoice:
    return AlphaChoice(
        granularity=Granularity(choice.get("alpha", "matrix")),
        group=choice.get("group", 0),
        blocks=tuple(map(tuple, choice.get("blocks", []))),
        rule=AlphaRule(choice["rule"]),
        gain=choice.get("gain", "1"),
    )


def assert_same(encoded: Encoded, tensor: Tensor) -> None:
    parts = {part.suffix: b"".join(bytes(chunk) for chunk in part.chunks) for part in encoded.parts}
    assert parts == tensor.parts
    assert encoded.alphas == tensor.alphas


def vector(scale: float, rows: int, cols: int) -> list[float]:
    d = noise(f"writer/{scale}", rows * cols, scale)
    d[3:5] = [0.0, -0.0]
    return d


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("scale", [0.01, 1e-6])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_sign1_encoded_as_the_prose_says(choice: dict[str, Any], scale: float, planes: int) -> None:
    d, kernels = vector(scale, 5, 150), select_kernels()
    expected = sign1(side(5, 150), d, **choice, **({"planes": planes} if planes > 1 else {}))
    array = np.array(d, dtype=np.float32)
    assert_same(sign1_codec.encode(array, ours(choice), rows=5, planes=planes, kernels=kernels), expected)


@pytest.mark.parametrize("scale", [0.01, 1e-6])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_tern1_encoded_as_the_prose_says(choice: dict[str, Any], scale: float) -> None:
    d, kernels = vector(scale, 5, 150), select_kernels()
    array = np.array(d, dtype=np.float32)
    encoded = tern1_codec.encode(array, ours(choice), rows=5, kernels=kernels)
    assert_same(encoded, tern1(side(5, 150), d, **choice))


def test_sign1_sums_blocks_of_65536_elements_in_order() -> None:
    d, kernels = vector(0.01, 3, 30_011), select_kernels()
    array = np.array(d, dtype=np.float32)
    choice = {"rule": "proj"}
    assert_same(sign1_codec.encode(array, ours(choice), rows=3, kernels=kernels), sign1(side(3, 30_011), d, **choice))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "d", [vector(0.01, 5, 15), [0.375] * 75, [0.0, 1.0, 2.0] * 25, [-abs(x) for x in vector(1.0, 5, 15)]]
)
def test_affine_encoded_as_the_prose_says(d: list[float], bits: int) -> None:
    array = np.array(d, dtype=np.float32)
    assert_same(affine_codec.encode(array, bits=bits, rows=5), affine(side(5, 15), d, bits))
