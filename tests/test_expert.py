"""Experts on disk: every encoding and mode, refusals, verification (obm-1 clauses 5, 9, 10, 14)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_parts import random_words

from obm_format.codecs import affine, catalogue, raw, rtvq, sign1, sparse, tern1, xdelta
from obm_format.codecs.alphas import AlphaChoice
from obm_format.codecs.base import Encoded, with_tail
from obm_format.container.header import Header
from obm_format.container.sources import BytesSource
from obm_format.errors import BackboneMismatch, FormatError, ObmError, UsageError
from obm_format.expert import Expert, ExpertWriter, open_expert
from obm_format.kernels import ReferenceKernels
from obm_format.kernels.contract import ExactOperand, SignOperand, ValueOperand, ZeroOperand
from obm_format.kernels.words import Float32, Words, from_float32, to_float32, words_dtype
from obm_format.model import BackboneId, DType, Granularity, Kind, Mode, TensorSpec, ZeroParams

KERNELS = ReferenceKernels()
BACKBONE = BackboneId(fingerprint="ab" * 32, n_tensors=3, n_params=99, architecture="TinyForTests")
BF16, F16, F32 = DType.BF16, DType.F16, DType.F32
ROW = AlphaChoice(granularity=Granularity.ROW)
ZERO = Encoded(params=ZeroParams(), parts=())


def sha(words: Words) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(words).tobytes()).digest()


def nudge(base: Words, dtype: DType = BF16, sigma: float = 1e-2, seed: int = 7) -> Words:
    noise = np.random.default_rng(seed).normal(0, sigma, base.shape).astype(np.float32)
    return from_float32(to_float32(base, dtype) + noise, dtype)


def write(path: Path, tensors: dict[str, Any], **manifest: object) -> Header:
    """Write an expert; `tensors`: name -> (tuned words, dtype, base words, base dtype, mode, encoded)."""
    with ExpertWriter(path) as writer:
        for name in sorted(tensors):
            tuned, dtype, base, base_dtype, mode, encoded = tensors[name]
            spec = TensorSpec(name, dtype, tuned.shape)
            counterpart = None if base is None else TensorSpec(name, base_dtype, base.shape)
            exact = mode is not Mode.DELTA or encoded.params.__class__.__name__ == "XdeltaParams"
            writer.add(
                spec,
                counterpart,
                mode,
                encoded,
                base_sha256=None if base is None else sha(base),
                out_sha256=sha(tuned) if exact else None,
            )
        for attachment, data in manifest.pop("attachments", {}).items():
            writer.attach(attachment, data)
        return writer.commit(**({"backbone": BACKBONE} | manifest))


def one(
    path: Path,
    tuned: Words,
    base: Words | None,
    encoded: Encoded,
    mode: Mode = Mode.DELTA,
    dtype: DType = BF16,
    base_dtype: DType = BF16,
    **manifest: object,
) -> Expert:
    write(path, {"w": (tuned, dtype, base, base_dtype, mode, encoded)}, **manifest)
    return open_expert(path, kernels=KERNELS)


BASE = random_words(1, (8, 24), BF16)
TUNED = nudge(BASE)
D = KERNELS.subtract(TUNED, BF16, BASE, BF16)

APPROXIMATE = {
    "sign1": sign1.encode(D, ROW, rows=8, kernels=KERNELS),
    "planes": sign1.encode(D, AlphaChoice(), rows=8, planes=3, kernels=KERNELS),
    "tern1": tern1.encode(D, ROW, rows=8, kernels=KERNELS),
    "affine": affine.encode(D, bits=3, rows=8),
    "sparse": sparse.encode_delta(D),
    "raw": raw.encode(D.view(np.uint32), F32, framed=True),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_record_round_trips(tmp_path: Path, name: str) -> None:
    with one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE[name]) as expert:
        values = expert.values("w")
        assert values.shape == (8, 24)
        assert np.abs(values - D).mean() < np.abs(D).mean()
        rows = expert.values("w", rows=slice(3, 6))
        assert np.array_equal(rows, values[3:6])
        expected = from_float32(to_float32(BASE, BF16) + values, BF16)
        assert np.array_equal(expert.rebuild("w", BASE), expected)
        assert expert.verify("deep", base={"w": BASE}.get) == []
        with pytest.raises(UsageError):
            expert.exact("w", BASE)


EXACT = {
    "xdelta": (Mode.DELTA, xdelta.encode(TUNED, BASE, BF16)),
    "bucket": (Mode.DELTA, xdelta.encode(TUNED, BASE, BF16, bucket=True)),
    "sparse": (Mode.REPLACE, sparse.encode_replace(TUNED, BASE, BF16)),
    "raw": (Mode.REPLACE, raw.encode(TUNED, BF16)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_record_round_trips(tmp_path: Path, name: str) -> None:
    mode, encoded = EXACT[name]
    with one(tmp_path / "x.obm", TUNED, BASE, encoded, mode) as expert:
        assert np.array_equal(expert.exact("w", BASE), TUNED)
        assert np.array_equal(expert.rebuild("w", BASE), TUNED)
        assert np.array_equal(expert.values("w", BASE), D)
        assert np.array_equal(expert.values("w", BASE, slice(2, 5)), D[2:5])
        assert np.array_equal(expert.operand("w", BASE).words, TUNED)
        assert expert.verify("deep", base={"w": BASE}.get) == []
        assert expert.verify("deep") == []


def test_added_tensor_needs_no_backbone(tmp_path: Path) -> None:
    with one(tmp_path / "x.obm", TUNED, None, raw.encode(TUNED, BF16), Mode.ADDED) as expert:
        assert np.array_equal(expert.rebuild("w"), TUNED)
        assert np.array_equal(expert.values("w", rows=slice(0, 3)), to_float32(TUNED, BF16)[:3])
        assert expert.digests("w").base is None
        assert expert.digests("w").out == sha(TUNED)


def test_unchanged_tensor_is_the_backbones(tmp_path: Path) -> None:
    base = BASE.copy()
    base[0, 0] = 0x8000
    with one(tmp_path / "x.obm", base, base, ZERO) as expert:
        assert np.array_equal(expert.rebuild("w", base), base)
        assert np.array_equal(expert.exact("w", base), base)
        assert not expert.values("w").any()
        assert isinstance(expert.operand("w"), ZeroOperand)
        with pytest.raises(BackboneMismatch):
            expert.rebuild("w", TUNED)


def test_zero_in_another_dtype_adds_positive_zero(tmp_path: Path) -> None:
    base = from_float32(np.array([[-0.0, 0.5]], np.float32), F32)
    with one(tmp_path / "x.obm", np.zeros((1, 2), np.uint16), base, ZERO, base_dtype=F32) as expert:
        assert expert.rebuild("w", base).tolist() == [[0, 0x3F00]]


@pytest.mark.parametrize("exact", [True, False])
def test_grown_tensor_has_its_tail(tmp_path: Path, exact: bool) -> None:
    tail = random_words(5, (2, 24), BF16)
    tuned = np.concatenate((TUNED, tail))
    old = xdelta.encode(TUNED, BASE, BF16) if exact else APPROXIMATE["sign1"]
    with one(tmp_path / "x.obm", tuned, BASE, with_tail(old, tail)) as expert:
        values = expert.values("w", BASE)
        assert values.shape == (10, 24)
        assert np.array_equal(values[8:], to_float32(tail, BF16))
        assert np.array_equal(expert.values("w", BASE, slice(6, 9)), values[6:9])
        assert np.array_equal(expert.values("w", BASE, slice(9, None)), values[9:])
        assert np.array_equal(expert.tail("w"), tail)
        assert np.array_equal(expert.rebuild("w", BASE)[8:], tail)
        assert expert.operand("w", BASE).shape == (8, 24)
        assert not exact or np.array_equal(expert.rebuild("w", BASE), tuned)


def test_operands_stay_packed_in_their_own_view_only(tmp_path: Path) -> None:
    with one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE["sign1"]) as expert:
        packed = expert.operand("w")
        assert isinstance(packed, SignOperand)
        other = expert.operand("w", rows=4)
        assert isinstance(other, ValueOperand)
        assert np.array_equal(other.values, KERNELS.sign_values(packed).reshape(4, 48))
        with pytest.raises(UsageError):
            expert.operand("w", rows=5)
    with one(tmp_path / "y.obm", TUNED, BASE, EXACT["raw"][1], Mode.REPLACE) as expert:
        assert isinstance(expert.operand("w"), ExactOperand)


def test_other_dtype_is_compared_in_float32(tmp_path: Path) -> None:
    tuned = random_words(2, (8, 24), F32)
    with one(tmp_path / "x.obm", tuned, BASE, raw.encode(tuned, F32), Mode.REPLACE, dtype=F32) as expert:
        assert np.array_equal(expert.values("w", BASE), tuned.view(np.float32) - to_float32(BASE, BF16))


def test_replaced_tensor_of_another_shape_has_no_task_vector(tmp_path: Path) -> None:
    tuned = random_words(2, (5, 3), BF16)
    with one(tmp_path / "x.obm", tuned, BASE, raw.encode(tuned, BF16), Mode.REPLACE) as expert:
        assert np.array_equal(expert.rebuild("w", BASE), tuned)
        with pytest.raises(UsageError) as error:
            expert.values("w", BASE)
        assert error.value.reason == "bad_shape"


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (BASE ^ np.uint16(1), "base_digest"),
        (BASE[:7], "base_tensor"),
        (BASE.reshape(24, 8), "base_tensor"),
        (BASE.astype(np.uint32), "base_tensor"),
    ],
)
def test_wrong_backbone_tensor_is_refused(tmp_path: Path, base: Words, reason: str) -> None:
    for name, encoded in (("x", APPROXIMATE["affine"]), ("y", EXACT["xdelta"][1])):
        with one(tmp_path / f"{name}.obm", TUNED, BASE, encoded) as expert:
            with pytest.raises(BackboneMismatch) as error:
                expert.rebuild("w", base)
            assert error.value.reason == reason


def test_checked_backbone_is_not_hashed_again(tmp_path: Path) -> None:
    base = BASE ^ np.uint16(1)
    with one(tmp_path / "x.obm", TUNED, BASE, EXACT["xdelta"][1]) as expert:
        with pytest.raises(FormatError) as error:
            expert.exact("w", base, base_checked=True)
        assert error.value.reason == "output_digest"
        with pytest.raises(BackboneMismatch):
            expert.check_base("w", TensorSpec("w", BF16, (8, 24)), sha(base))
        expert.check_base("w", TensorSpec("w", BF16, (8, 24)), sha(BASE))


def test_wrong_output_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.obm"
    with ExpertWriter(path) as writer:
        spec = TensorSpec("w", BF16, (8, 24))
        writer.add(spec, None, Mode.ADDED, raw.encode(TUNED, BF16), out_sha256=sha(BASE))
        writer.commit(backbone=BACKBONE)
    with open_expert(path) as expert:
        with pytest.raises(FormatError) as error:
            expert.rebuild("w")
        assert error.value.reason == "output_digest"
        assert expert.verify("parts") == []
        assert [defect.reason for defect in expert.verify("deep")] == ["output_digest"]


def test_result_that_overflows_is_refused(tmp_path: Path) -> None:
    base = from_float32(np.full((1, 8), 3.3e38, np.float32), BF16)
    encoded = sparse.encode_delta(np.full((1, 8), 2e38, np.float32))
    with one(tmp_path / "x.obm", base, base, encoded) as expert, np.errstate(over="ignore"):
        with pytest.raises(FormatError) as error:
            expert.rebuild("w", base)
        assert error.value.reason == "not_finite"


def test_nan_that_xdelta_makes_is_refused(tmp_path: Path) -> None:
    tuned = TUNED.copy()
    tuned[1, 1] = 0x7FC0
    with one(tmp_path / "x.obm", tuned, BASE, xdelta.encode(tuned, BASE, BF16)) as expert:
        with pytest.raises(FormatError) as error:
            expert.exact("w", BASE)
        assert error.value.reason == "not_finite"


def test_scalars_vectors_and_odd_slices(tmp_path: Path) -> None:
    scalar, vector = random_words(1, (), F32), random_words(2, (50,), F32)
    tensors = {
        "s": (
            scalar,
            F32,
            np.zeros((), np.uint32),
            F32,
            *catalogue.encode_exact(scalar, np.zeros((), np.uint32), F32, F32),
        ),
        "v": (
            vector,
            F32,
            vector,
            F32,
            Mode.DELTA,
            sign1.encode(vector.view(np.float32), AlphaChoice(), rows=1, kernels=KERNELS),
        ),
    }
    write(tmp_path / "x.obm", tensors)
    with open_expert(tmp_path / "x.obm") as expert:
        assert expert.rebuild("s", np.zeros((), np.uint32)).shape == ()
        values = expert.values("v")
        assert np.array_equal(expert.values("v", rows=slice(9, 33)), values[9:33])
        assert np.array_equal(expert.values("v", rows=slice(-7, 99)), values[-7:])
        assert expert.values("v", rows=slice(7, 7)).shape == (0,)
        assert expert.values("v", rows=slice(9, 3)).shape == (0,)
        for name, rows in (("s", slice(0, 1)), ("v", slice(0, 9, 2))):
            with pytest.raises(UsageError):
                expert.values(name, np.zeros((), np.uint32), rows)


def test_manifest_and_attachments_come_back(tmp_path: Path) -> None:
    tensors = {
        "a": (TUNED, BF16, BASE, BF16, Mode.DELTA, APPROXIMATE["sign1"]),
        "b": (TUNED, BF16, BASE, BF16, *EXACT["raw"]),
    }
    header = write(
        tmp_path / "x.obm",
        tensors,
        task="math",
        position="attention",
        aliases=[("z", "b"), ("c", "a")],
        removed=["y", "x"],
        ext={"acme.note": "hello"},
        attachments={"tokenizer.json": b"{}", "config.json": b"[]"},
    )
    with open_expert(tmp_path / "x.obm", expected_id=header.id) as expert:
        manifest = expert.manifest
        assert (manifest.kind, manifest.task, manifest.position) == (Kind.TASK_VECTOR, "math", "attention")
        assert manifest.backbone == BACKBONE
        assert manifest.aliases == (("c", "a"), ("z", "b"))
        assert manifest.removed == ("x", "y")
        assert [item.name for item in expert.attachments] == ["config.json", "tokenizer.json"]
        assert expert.attachment("config.json") == b"[]"
        assert list(expert.records) == ["a", "b"]
        assert expert.nbytes == (tmp_path / "x.obm").stat().st_size
        assert expert.id == header.id
        with pytest.raises(ObmError) as error:
            expert.values("nothing")
        assert error.value.reason == "not_found"


def test_safetensors_opens_the_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    with one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE["sign1"]):
        found = load_file(tmp_path / "x.obm")
    assert found["w#bits0"].tobytes()[:24] == bytes(APPROXIMATE["sign1"].parts[0].chunks[0])
    assert found["w#bits0"].dtype == np.uint8


def test_same_input_gives_the_same_file(tmp_path: Path) -> None:
    for name in "xy":
        write(tmp_path / name, {"w": (TUNED, BF16, BASE, BF16, *EXACT["bucket"])}, task="t")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("name", ["sign1", "affine", "sparse", "raw"])
def test_any_flipped_byte_is_refused_when_read(tmp_path: Path, name: str) -> None:
    encoded = APPROXIMATE[name]
    with one(tmp_path / "x.obm", TUNED, BASE, encoded) as expert:
        start = expert.header.nbytes
    data = (tmp_path / "x.obm").read_bytes()
    wanted = {"part_digest", "pad_not_zero", "frame_digest", "bad_frame"}
    for index in range(start, len(data), 37):
        damaged = bytearray(data)
        damaged[index] ^= 0x10
        with open_expert(bytes(damaged), kernels=KERNELS) as expert:
            assert {defect.reason for defect in expert.verify("deep")} <= wanted
            assert expert.verify("parts")


def test_tensors_out_of_order_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    spec = TensorSpec("b", BF16, (8, 24)), TensorSpec("a", BF16, (8, 24))
    with ExpertWriter(tmp_path / "x.obm") as writer:
        writer.add(spec[0], None, Mode.ADDED, raw.encode(TUNED, BF16), out_sha256=sha(TUNED))
        with pytest.raises(UsageError):
            writer.add(spec[1], None, Mode.ADDED, raw.encode(TUNED, BF16), out_sha256=sha(TUNED))
    assert list(tmp_path.iterdir()) == []


# --- rtvq ---------------------------------------------------------------------------------------------------


def shared_base(path: Path, d: Float32 = D, kind: Kind = Kind.RTVQ_BASE, backbone: BackboneId = BACKBONE) -> Expert:
    encoded = affine.encode(d, bits=3, rows=d.shape[0])
    base = BASE if d.shape == BASE.shape else random_words(1, d.shape, BF16)
    return one(path, base, base, encoded, kind=kind, backbone=backbone)


def offset_on(path: Path, reference_id: str, reference: Float32) -> Header:
    encoded = rtvq.encode(D, reference, bits=2, rows=8)
    return write(path, {"w": (TUNED, BF16, BASE, BF16, Mode.DELTA, encoded)}, refs=[reference_id])


def test_rtvq_adds_its_base_vector(tmp_path: Path) -> None:
    with shared_base(tmp_path / "base.obm") as shared:
        reference = shared.values("w")
        offset_on(tmp_path / "x.obm", shared.id, reference)
        with open_expert(tmp_path / "x.obm", refs={shared.id: shared}, kernels=KERNELS) as expert:
            values = expert.values("w")
            assert np.abs(values - D).max() < np.abs(reference - D).max()
            assert np.array_equal(expert.values("w", rows=slice(1, 4)), values[1:4])
            assert np.array_equal(expert.rebuild("w", BASE), from_float32(to_float32(BASE, BF16) + values, BF16))
            assert expert.verify("deep", base={"w": BASE}.get) == []


def test_missing_base_vector_is_not_found(tmp_path: Path) -> None:
    offset_on(tmp_path / "x.obm", "obm1-sha256:" + "0" * 64, np.zeros_like(D))
    with open_expert(tmp_path / "x.obm") as expert:
        with pytest.raises(ObmError) as error:
            expert.values("w")
        assert error.value.reason == "not_found"
        assert expert.verify("deep") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": Kind.TASK_VECTOR},
        {"backbone": BackboneId(fingerprint="cd" * 32, n_tensors=3, n_params=99)},
        {"d": D[:4]},
    ],
)
def test_wrong_base_vector_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with shared_base(tmp_path / "base.obm", **wrong) as shared:
        offset_on(tmp_path / "x.obm", shared.id, np.zeros_like(D))
        with open_expert(tmp_path / "x.obm", refs={shared.id: shared}) as expert:
            with pytest.raises(FormatError) as error:
                expert.values("w")
            assert error.value.reason == "bad_reference"


def test_other_artifact_under_the_id_is_refused(tmp_path: Path) -> None:
    other = "obm1-sha256:" + "0" * 64
    with shared_base(tmp_path / "base.obm") as shared:
        offset_on(tmp_path / "x.obm", other, shared.values("w"))
        with open_expert(tmp_path / "x.obm", refs={other: shared}) as expert:
            with pytest.raises(FormatError) as error:
                expert.values("w")
            assert error.value.reason == "bad_reference"


def test_words_have_the_dtype_of_the_record(tmp_path: Path) -> None:
    for dtype in (F16, BF16, F32):
        base = random_words(1, (4, 8), dtype)
        tuned = nudge(base, dtype)
        d = KERNELS.subtract(tuned, dtype, base, dtype)
        encoded = sign1.encode(d, AlphaChoice(), rows=4, kernels=KERNELS)
        with one(tmp_path / f"{dtype.name}.obm", tuned, base, encoded, dtype=dtype, base_dtype=dtype) as expert:
            assert expert.rebuild("w", base).dtype == words_dtype(dtype)


# --- some planes of several ---


class _Watched(BytesSource):
    """Bytes that remember which of them were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, nbytes: int) -> bytes:
        self.reads.append((offset, offset + nbytes))
        return super().read(offset, nbytes)


PLANES = {
    "matrix": AlphaChoice(granularity=Granularity.MATRIX),
    "row": ROW,
    "group": AlphaChoice(granularity=Granularity.GROUP, group=64),
}


@pytest.mark.parametrize("grain", PLANES)
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_first_planes_alone_are_what_they_encode(tmp_path: Path, grain: str, planes: int) -> None:
    base = random_words(1, (6, 200), BF16)
    tuned = nudge(base)
    d = KERNELS.subtract(tuned, BF16, base, BF16)
    one(tmp_path / "x.obm", tuned, base, sign1.encode(d, PLANES[grain], rows=6, planes=3, kernels=KERNELS)).close()
    alone = sign1.encode(d, PLANES[grain], rows=6, planes=planes, kernels=KERNELS)
    expected = one(tmp_path / "y.obm", tuned, base, alone).values("w")
    source = _Watched((tmp_path / "x.obm").read_bytes())
    with open_expert(source, kernels=KERNELS) as expert:
        later = [expert.header.parts[f"w#bits{plane}"] for plane in range(planes, 3)]
        source.reads.clear()
        np.testing.assert_array_equal(expert.values("w", planes=planes), expected)
        np.testing.assert_array_equal(expert.values("w", rows=slice(2, 5), planes=planes), expected[2:5])
        assert expert.operand("w", planes=planes).bits[0].shape == (6, 25)
        assert len(expert.operand("w", planes=planes).bits) == planes
        for part in later:
            assert all(stop <= part.offset or start >= part.offset + part.padded_nbytes for start, stop in source.reads)
        assert not np.array_equal(expert.values("w"), expected) or planes == 3
        np.testing.assert_array_equal(expert.values("w", planes=9), expert.values("w"))


def test_damage_in_a_later_plane_is_no_matter_for_the_first(tmp_path: Path) -> None:
    one(tmp_path / "x.obm", TUNED, BASE, sign1.encode(D, ROW, rows=8, planes=2, kernels=KERNELS)).close()
    data = bytearray((tmp_path / "x.obm").read_bytes())
    with open_expert(bytes(data)) as expert:
        data[expert.header.parts["w#bits1"].offset] ^= 1
    with open_expert(bytes(data)) as expert:
        expert.values("w", planes=1)
        with pytest.raises(FormatError):
            expert.values("w")


def test_planes_are_at_least_one_and_only_of_signs(tmp_path: Path) -> None:
    expert = one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE["sign1"])
    with pytest.raises(UsageError):
        expert.values("w", planes=0)
    other = one(tmp_path / "y.obm", TUNED, BASE, affine.encode(D, bits=4, rows=8))
    np.testing.assert_array_equal(other.values("w", planes=1), other.values("w"))


# --- into arrays that exist -------------------------------------------------------------------------------

ROW_RANGES = (None, slice(0, 8), slice(3, 6), slice(7, 8), slice(2, 2))


def same_into(expert: Expert, base: Words | None, rows: slice | None) -> Float32:
    """What `values` gives, after it was found in an array full of NaN too."""
    expected = expert.values("w", base, rows)
    out = np.full(expected.shape, np.nan, np.float32)
    assert expert.values("w", base, rows, out=out) is out
    assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))
    return out


@pytest.mark.parametrize("rows", ROW_RANGES)
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_values_are_written_where_asked(tmp_path: Path, name: str, rows: slice | None) -> None:
    with one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE[name]) as expert:
        same_into(expert, None, rows)


@pytest.mark.parametrize("rows", ROW_RANGES)
@pytest.mark.parametrize("name", EXACT)
def test_exact_differences_are_written_where_asked(tmp_path: Path, name: str, rows: slice | None) -> None:
    mode, encoded = EXACT[name]
    with one(tmp_path / "x.obm", TUNED, BASE, encoded, mode) as expert:
        assert np.array_equal(same_into(expert, BASE, rows), D[rows or slice(None)])


def test_added_and_unchanged_tensors_are_written_too(tmp_path: Path) -> None:
    with one(tmp_path / "a.obm", TUNED, None, raw.encode(TUNED, BF16), Mode.ADDED) as expert:
        assert np.array_equal(same_into(expert, None, None), to_float32(TUNED, BF16))


@pytest.mark.parametrize("rows", [None, slice(0, 6), slice(4, 8), slice(6, 8)])
def test_grown_rows_are_written_behind_the_others(tmp_path: Path, rows: slice | None) -> None:
    encoded = with_tail(sign1.encode(D[:6], ROW, rows=6, kernels=KERNELS), TUNED[6:])
    with one(tmp_path / "x.obm", TUNED, BASE[:6], encoded) as expert:
        same_into(expert, None, rows)


def test_part_of_a_matrix_that_no_byte_begins_is_written_alone(tmp_path: Path) -> None:
    encoded = sign1.encode(D, AlphaChoice(), rows=1, kernels=KERNELS)
    with one(tmp_path / "x.obm", TUNED.reshape(64, 3), BASE.reshape(64, 3), encoded) as expert:
        for rows in (slice(1, 2), slice(5, 20), slice(8, 16)):
            same_into(expert, None, rows)


@pytest.mark.parametrize("kind", ["dtype", "shape", "order", "read-only"])
@pytest.mark.parametrize("name", ["sign1", "raw"])
def test_other_arrays_are_refused_and_stay_as_they_are(tmp_path: Path, name: str, kind: str) -> None:
    wrong = {
        "dtype": np.ones((8, 24), np.float64),
        "shape": np.ones((24, 8), np.float32),
        "order": np.ones((8, 24), np.float32, order="F"),
        "read-only": np.ones((8, 24), np.float32),
    }[kind]
    wrong.flags.writeable = kind != "read-only"
    with one(tmp_path / "x.obm", TUNED, BASE, APPROXIMATE[name]) as expert:
        with pytest.raises(UsageError) as caught:
            expert.values("w", out=wrong)
        assert (caught.value.reason, caught.value.where) == ("bad_shape", "out")
    assert (wrong == 1).all()
