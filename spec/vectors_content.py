"""Invalid vectors of what parts hold, and of backbones that do not belong (clauses 6, 8, 9 and 10)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from vector_tensors import (
    Counterpart,
    added,
    affine,
    moved,
    noise,
    pack,
    random_dense,
    raw_delta,
    replaced,
    set_frames,
    sign1,
    sparse,
    sparse_replace,
    tern1,
    xdelta,
    zero,
)
from vector_writer import Backbone, Dense, Draft, Tensor, checkpoint_bytes, frames_of, sha, zstd_frame
from vectors_spoilt import Invalid, lean, refused, signs, sound, with_base
from vectors_valid import BACKBONES

INFINITY, NAN = float("inf"), float("nan")


def _content(name: str, clause: str, reason: str, *tensors: Tensor, base: str = "one") -> Invalid:
    return refused(name, clause, reason, "decode", sound(*tensors, base=base))


def _set_byte(tensor: Tensor, suffix: str, index: int, change: Callable[[int], int]) -> Tensor:
    data = bytearray(tensor.parts[suffix])
    data[index] = change(data[index])
    tensor.parts[suffix] = bytes(data)
    return tensor


def _side() -> tuple[Counterpart, list[float]]:
    return Counterpart(BACKBONES["one"], "w"), noise("content", 210, 0.01)


def content_vectors() -> Iterator[Invalid]:
    """What deep verification finds without a backbone."""
    yield from _bits()
    yield from _alphas()
    yield from _codes()
    yield from _places()
    yield from _frames()
    yield from _stored()


def _bits() -> Iterator[Invalid]:
    # 70 columns: rows of 9 bytes, of which the last has 2 unused bits.
    yield _content("sign1-pad-bit", "6.2", "pad_bits_set", _set_byte(signs(), "bits0", 8, lambda b: b | 0x80))
    yield _content("sign1-pad-bit-last-row", "6.2", "pad_bits_set", _set_byte(signs(), "bits0", 26, lambda b: b | 0x40))
    second = _set_byte(signs(planes=2), "bits1", 17, lambda b: b | 0x40)
    yield _content("sign1-pad-bit-second-plane", "6.2", "pad_bits_set", second)
    for suffix in ("bits0", "mask"):
        tensor = _set_byte(tern1(*_side()), suffix, 8, lambda b: b | 0x40)
        yield _content(f"tern1-pad-bit-{suffix}", "6.2", "pad_bits_set", tensor)
    yield _content(
        "affine-pad-bit", "6.2", "pad_bits_set", _set_byte(affine(*_side(), 3), "codes", 26, lambda b: b | 0x80)
    )
    silent = signs(alpha="row")
    silent.alphas = b"\0\0" + silent.alphas[2:]
    yield _content("sign1-bits-of-zero-alpha", "6.6", "bad_plane", silent)
    unmasked = tern1(*_side())
    unmasked.parts["mask"] = bytes(27)
    yield _content("tern1-bit-outside-mask", "6.6", "bad_plane", unmasked)
    silent = tern1(*_side())
    silent.alphas = bytes(2)
    yield _content("tern1-mask-of-zero-alpha", "6.6", "bad_plane", silent)


def _alphas() -> Iterator[Invalid]:
    for name, alpha in {
        "nan": b"\0\x7e",
        "infinite": b"\0\x7c",
        "negative": b"\0\xbc",
        "minus-zero": b"\0\x80",
    }.items():
        tensor = signs()
        tensor.alphas = tensor.alphas[:4] + alpha
        yield _content(f"alpha-{name}", "6.3", "bad_alpha", tensor)
    for name, value in {"nan": NAN, "infinite": INFINITY, "negative": -1.0, "minus-zero": -0.0}.items():
        tensor = signs(alpha="row", alpha_dtype="F32")
        tensor.alphas = struct.pack("<f", value) + tensor.alphas[4:]
        yield _content(f"alpha-f32-{name}", "6.3", "bad_alpha", tensor)
    tensor = tern1(*_side())
    tensor.alphas = b"\1\x7c"
    yield _content("alpha-tern1-nan", "6.3", "bad_alpha", tensor)
    tensor = signs(alpha="row", planes=2)
    tensor.alphas = tensor.alphas[:-2] + b"\0\xbc"
    yield _content("alpha-second-plane", "6.3", "bad_alpha", tensor)


def _codes() -> Iterator[Invalid]:
    pairs = {"s-zero": (0.0, 0.0), "s-minus-zero": (-0.0, 0.0), "s-negative": (-1.0, 0.0), "s-nan": (NAN, 0.0)}
    pairs |= {"s-infinite": (INFINITY, 0.0), "z-nan": (1.0, NAN), "z-infinite": (1.0, -INFINITY)}
    for name, (s, z) in pairs.items():
        tensor = affine(*_side(), 4)
        tensor.alphas = struct.pack("<2f", s, z)
        yield _content(f"affine-{name}", "6.6", "bad_code", tensor)
    tensor = affine(*_side(), 4)
    tensor.alphas = struct.pack("<2f", 2.0**-140, 0.0)
    yield _content("affine-overflow", "9.3", "not_finite", tensor)


def _places() -> Iterator[Invalid]:
    def listed(name: str, suffix: str, data: bytes, *places: int) -> Invalid:
        tensor = sparse(_side()[0], dict.fromkeys(places, 0.5))
        tensor.parts[suffix] = data
        return _content(f"sparse-{name}", "6.8", "bad_index", tensor)

    yield listed("beyond", "index", struct.pack("<2H", 1, 210), 1, 2)
    yield listed("twice", "index", struct.pack("<2H", 7, 7), 7, 8)
    yield listed("descending", "index", struct.pack("<2H", 8, 7), 7, 8)
    yield listed("count-small", "counts", struct.pack("<I", 1), 7, 8)
    yield listed("count-large", "counts", struct.pack("<I", 3), 7, 8)
    yield listed("count-huge", "counts", struct.pack("<I", 2**32 - 1), 7, 8)
    wide = Counterpart(BACKBONES["wide"], "u8")
    tensor = sparse_replace(wide, {3: 1, 65_536: 2})
    tensor.parts["counts"] = struct.pack("<2I", 0, 2)
    yield _content("sparse-counts-moved", "6.8", "bad_index", _beyond(tensor), base="wide")


def _beyond(tensor: Tensor) -> Tensor:
    """Both places fall into the last block, which has 10 elements; the second does not fit."""
    tensor.parts["index"] = struct.pack("<2H", 3, 10)
    return tensor


def _framed(frame: bytes | list[bytes]) -> Tensor:
    """A tensor of 64 U8 whose data part is these frames."""
    content = Dense(dtype="U8", shape=[64], data=bytes(range(64)))
    return set_frames(added("new", content), [frame] if isinstance(frame, bytes) else frame)


def _alone(tensor: Tensor) -> Draft:
    draft = lean()
    draft.tensors = [tensor]
    return draft


def _frames() -> Iterator[Invalid]:
    body = bytes(range(64))
    magic, block = b"\x28\xb5\x2f\xfd", struct.pack("<I", 64 << 3 | 1)[:3] + body
    size = struct.pack("<I", 64)
    frames = {
        "no-content-size": magic + b"\x00\x00" + block,
        "content-size-larger": magic + b"\xa0" + struct.pack("<I", 65) + block,
        "content-size-smaller": magic + b"\xa0" + struct.pack("<I", 63) + block,
        "content-size-huge": magic + b"\xe0" + struct.pack("<Q", 2**62) + block,
        "cut-larger": zstd_frame(bytes(range(65))),
        "cut-smaller": zstd_frame(bytes(range(63))),
        "cut-empty": magic + b"\x20\x00\x01\x00\x00",
        "block-short": zstd_frame(body)[:-1],
        "block-missing": magic + b"\xa0" + size,
        "not-last": magic + b"\xa0" + size + struct.pack("<I", 64 << 3)[:3] + body,
        "reserved-block": magic + b"\xa0" + size + struct.pack("<I", 64 << 3 | 7)[:3] + body,
        "reserved-bit": magic + b"\xa8" + size + block,
        "two-frames": zstd_frame(body[:32]) + zstd_frame(body[32:]),
        "two-whole-frames": zstd_frame(body) * 2,
        "junk-after": zstd_frame(body) + b"\0",
        "skippable-before": b"\x50\x2a\x4d\x18\0\0\0\0" + zstd_frame(body),
        "window-9-mib": magic + b"\x80\x69" + size + block,
        "too-long": magic + b"\xa0" + size + bytes(3) * 21_843 + block,
        "window-16-mib": magic + b"\x80\x70" + size + block,
        "window-2-tib": magic + b"\x80\xf8" + size + block,
        "dictionary": magic + b"\xa1\x07" + size + block,
        "dictionary-zero": magic + b"\xa1\0" + size + block,
        "checksum": magic + b"\xa4" + size + block + b"\0\0\0\0",
        "magic": b"\x27\xb5\x2f\xfd" + zstd_frame(body)[4:],
        "zlib": zlib.compress(body),
        "lz4": b"\x04\x22\x4d\x18\x60\x40\x82\x40\0\0\x80" + body + bytes(4),
        "not-compressed": body,
        "two-bytes": b"\x28\xb5",
    }
    for name, frame in frames.items():
        yield refused(f"frame-{name}", "8.2", "bad_frame", "decode", _alone(_framed(frame)))
    yield from _frame_pool(zstd_frame(body))
    yield from _blocks(magic)


def _blocks(magic: bytes) -> Iterator[Invalid]:
    """Blocks above the window, or above 128 KiB where the window is larger (RFC 8878, 3.1.1.2.4)."""

    def block(name: str, start: bytes, nbytes: int, kind: int) -> Invalid:
        body = bytes(nbytes if kind == 0 else 1)
        frame = magic + start + struct.pack("<I", nbytes) + struct.pack("<I", nbytes << 3 | kind << 1 | 1)[:3] + body
        tensor = set_frames(added("new", Dense(dtype="U8", shape=[nbytes], data=bytes(nbytes))), [frame])
        return refused(f"frame-block-{name}", "8.2", "bad_frame", "decode", _alone(tensor))

    yield block("above-window", b"\x80\x00", 1025, 0)
    yield block("run-above-window", b"\x80\x00", 1025, 1)
    yield block("run-above-128-kib", b"\xa0", 2**17 + 1, 1)


def _frame_pool(frame: bytes) -> Iterator[Invalid]:
    draft = _alone(_framed(frame))

    def pool(name: str, clause: str, reason: str, nbytes: int, digest: bytes) -> Invalid:
        entry = struct.pack("<I", nbytes) + digest
        return refused(name, clause, reason, "decode", draft, pools=lambda pools: pools | {"frames": entry})

    yield pool("frame-digest", "8.2", "frame_digest", len(frame), sha(b"other"))
    yield pool("frame-length-short", "8.2", "bad_frame", len(frame) - 1, sha(frame[:-1]))
    yield pool("frame-length-beyond", "8.2", "bad_frame", len(frame) + 1, sha(frame))
    cut = Counterpart(BACKBONES["one"], "w")
    tensor = xdelta(cut, cut.base.data[::-1])
    tensor = set_frames(tensor, [tensor.frames[0][:-3]])
    yield _content("xdelta-frame-cut", "8.2", "bad_frame", tensor)


def _stored() -> Iterator[Invalid]:
    side, d = _side()
    for name, value in {"nan": NAN, "infinite": INFINITY, "minus-infinite": -INFINITY}.items():
        data = struct.pack("<2f", 1.0, value)
        tensor = added("new", Dense(dtype="F32", shape=[2], data=data))
        yield refused(f"raw-{name}", "9.4", "not_finite", "decode", _alone(tensor))
    delta = raw_delta(side, d)
    delta.parts["data"] = b"\x80\x7f" + delta.parts["data"][2:]
    yield _content("raw-delta-infinite", "9.4", "not_finite", delta)
    framed = set_frames(raw_delta(side, d), frames_of(delta.parts["data"], 2))
    yield _content("raw-delta-framed-infinite", "9.4", "not_finite", framed)
    listed = sparse(side, {3: 0.5})
    listed.parts["values"] = struct.pack("<f", NAN)
    yield _content("sparse-nan", "9.4", "not_finite", listed)
    whole = replaced(BACKBONES["one"], "w", Dense(dtype="F16", shape=[1], data=b"\0\x7c"))
    yield _content("raw-replace-infinite", "9.4", "not_finite", whole)
    grown = sign1(Counterpart(BACKBONES["one"], "w", tail=random_dense("t", "BF16", [1, 70])), d)
    grown.parts["tail"] = grown.parts["tail"][:-2] + b"\xc0\x7f"
    yield _content("tail-nan", "9.4", "not_finite", grown)
    tensor = added("new", random_dense("new", "F32", [2]))
    tensor.out = random_dense("other", "F32", [2]).data
    yield refused("raw-added-output-digest", "9.4", "output_digest", "decode", _alone(tensor))
    whole = replaced(BACKBONES["one"], "w", random_dense("r", "F16", [2]))
    whole.out = bytes(4)
    yield _content("raw-replace-output-digest", "9.4", "output_digest", whole)


def backbone_vectors() -> Iterator[Invalid]:
    """What only shows with a backbone: `base/` holds spoilt ones beside the sound."""
    one = BACKBONES["one"]
    w = one["w"]
    spoilt: dict[str, tuple[str, str, Backbone]] = {
        "other-dtype": ("10.3", "base_tensor", {"w": Dense(dtype="F16", shape=w.shape, data=w.data)}),
        "other-shape": ("10.3", "base_tensor", {"w": Dense(dtype="BF16", shape=[70, 3], data=w.data)}),
        "other-bytes": ("10.3", "base_digest", {"w": Dense(dtype="BF16", shape=w.shape, data=w.data[:-1] + b"\0")}),
        "one-more": ("10.4", "backbone_mismatch", one | {"x": random_dense("x", "F32", [1])}),
    }
    for name, (clause, reason, tensors) in spoilt.items():
        yield with_base(f"base-{name}", clause, reason, sound(), f"one-{name}", checkpoint_bytes(tensors))
    full = BACKBONES["full"]
    half_full = checkpoint_bytes({"down": full["down"]})
    yield with_base("base-missing", "10.3", "base_tensor", sound(base="full"), "full-without-bias", half_full)
    yield from _results()
    yield from _differences()
    yield from _relations()


def _results() -> Iterator[Invalid]:
    """The backbone's first element is 65504, and 65520 is the least number that F16 rounds to infinity."""
    rough = Counterpart(BACKBONES["rough"], "w")
    signed = sign1(rough, [0.0] * 6)
    signed.alphas, signed.parts["bits0"] = pack("F16", [16.0]), b"\7\7"
    listed = sparse(rough, {0: 0.0})
    listed.parts["values"] = pack("F32", [16.0])
    stored = raw_delta(rough, [0.0] * 6)
    stored.parts["data"] = pack("F16", [0.0, -16.0, 0.0, 0.0, 0.0, 0.0])
    for name, tensor in {"sign1": signed, "sparse": listed, "raw": stored}.items():
        draft = sound(tensor, base="rough")
        yield with_base(f"overflow-{name}", "9.3", "not_finite", draft, "rough")
    far = BACKBONES["far"]
    for name, dtype, value in (("f32-sum", "F32", 1e38), ("bf16-rounding", "BF16", 4e37)):
        tensor = sparse(Counterpart(far, "w", dtype=dtype), {0: value})
        draft = Draft(backbone=far, tensors=[tensor])
        yield with_base(f"overflow-{name}", "9.3", "not_finite", draft, "far")
    nan = BACKBONES["nan"]
    cast = Tensor(record=Counterpart(nan, "w", dtype="F16").record("zero", {}), base=nan["w"].data)
    yield with_base("zero-cast-nan", "9.3", "not_finite", Draft(backbone=nan, tensors=[cast]), "nan")
    side = Counterpart(BACKBONES["one"], "w")
    exact = xdelta(side, pack("BF16", moved(side.base, "x")))
    exact.out = side.base.data
    yield with_base("xdelta-output-digest", "9.4", "output_digest", sound(exact), "one")
    chosen = sparse_replace(Counterpart(BACKBONES["full"], "bias"), {1: 4.0})
    chosen.out = bytes(36)
    yield with_base("sparse-output-digest", "9.4", "output_digest", sound(chosen, base="full"), "full")


def _differences() -> Iterator[Invalid]:
    """Exact tensors that are too far from the backbone for a float32, or not numbers (9.2)."""
    far = BACKBONES["far"]
    tuned = Dense(dtype="F32", shape=[2], data=pack("F32", [-3e38, 1.0]))
    infinite = Dense(dtype="F32", shape=[2], data=pack("F32", [INFINITY, 1.0]))
    side = Counterpart(far, "w")

    def difference(name: str, tensor: Tensor) -> Invalid:
        draft = Draft(backbone=far, tensors=[tensor])
        return with_base(f"difference-{name}", "9.2", "not_finite", draft, "far")

    yield difference("xdelta", xdelta(side, tuned.data))
    yield difference("xdelta-infinite", xdelta(side, infinite.data))
    yield difference("replace", replaced(far, "w", tuned))
    yield difference("sparse", sparse_replace(side, {0: -3e38}))


def _relations() -> Iterator[Invalid]:
    gone = sound(fields={"removed": ["gone"]})
    yield with_base("base-removed-missing", "10.3", "base_tensor", gone, "one")
    tied = BACKBONES["tied"]
    draft = Draft(backbone=tied, tensors=[zero(Counterpart(tied, "embed"))], fields={"alias": [["head", "embed"]]})
    other = {"embed": tied["embed"], "head": random_dense("untied", "BF16", [3, 4])}
    yield with_base("base-alias-differs", "5.8", "base_digest", draft, "tied-not", checkpoint_bytes(other))
    data = tied["embed"].data
    alike = {
        "dtype": Dense(dtype="F16", shape=[3, 4], data=data),
        "shape": Dense(dtype="BF16", shape=[4, 3], data=data),
    }
    for what, head in alike.items():
        other = {"embed": tied["embed"], "head": head}
        yield with_base(
            f"base-alias-other-{what}", "5.8", "base_tensor", draft, f"tied-other-{what}", checkpoint_bytes(other)
        )
    alone = checkpoint_bytes({"embed": tied["embed"]})
    yield with_base("base-alias-missing", "5.8", "base_tensor", draft, "tied-half", alone)
