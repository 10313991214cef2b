"""Headers: the way there and back, and that every kind of fault has its reason."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_files import (
    add_all,
    dumps,
    frame,
    header_nbytes,
    manifest_of,
    manifest_tree,
    reason_of,
    record,
    records,
    sample,
    sample_manifest,
    sound_header,
    tree_of,
    with_manifest,
)

from obm_format.container import ContainerWriter, encode_header, parse_header
from obm_format.container.header import read_header
from obm_format.container.manifest import manifest_object
from obm_format.container.sources import BytesSource
from obm_format.digest import artifact_id
from obm_format.errors import FormatError
from obm_format.limits import Limits
from obm_format.model import (
    AffineParams,
    AlphaLayout,
    DType,
    Kind,
    Manifest,
    Mode,
    RawParams,
    RouterInfo,
    SignParams,
    TensorRecord,
    TensorSpec,
    XdeltaParams,
    ZeroParams,
)

Change = Callable[[dict[str, Any]], object]
VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "valid"


def forge(change: Change) -> str:
    """The reason for which the sample is refused when `change` has been at its manifest."""
    tree: dict[str, Any] = manifest_tree(sample())
    change(tree)
    table = {key: value for key, value in tree_of(sample()).items() if key != "__metadata__"}
    return reason_of(with_manifest(dumps(tree), table))


def tensor(tree: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in tree["tensors"] if item["name"] == name)
    return found


def test_parse_gives_what_was_written() -> None:
    header = parse_header(sample(), file_nbytes=len(sample()))
    assert header.manifest == sample_manifest()
    assert header.nbytes == header_nbytes(sample())
    assert header.file_nbytes == len(sample())
    assert header.id == artifact_id(sample()[: header.nbytes])


def test_encode_of_parsed_header_gives_the_same_bytes() -> None:
    header = parse_header(sample(), file_nbytes=len(sample()))
    assert encode_header(header.manifest, header.pools) == sample()[: header.nbytes]


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.obm")), ids=lambda path: path.stem)
def test_manifest_of_a_parsed_vector_is_written_as_it_stood(path: Path) -> None:
    data = path.read_bytes()
    header = parse_header(data, file_nbytes=len(data))
    assert manifest_object(header.manifest, header.pools) == manifest_tree(data)


def test_parts_are_aligned_and_without_holes() -> None:
    header = parse_header(sample(), file_nbytes=None)
    at = header.nbytes
    for part in header.parts.values():
        assert part.offset == at
        assert at % 64 == 0
        at += part.padded_nbytes
    assert at == len(sample())


def test_forge_without_change_is_accepted() -> None:
    assert forge(lambda tree: None) == "accepted"


def test_sample_leaves_defaults_out() -> None:
    text = json.dumps(manifest_tree(sample()))
    assert '"mode": "delta"' not in text
    assert tensor(manifest_tree(sample()), "m/zero").keys() == {"dtype", "encoding", "name", "shape"}
    assert tensor(manifest_tree(sample()), "c.raw")["base"] == {"dtype": "F16"}


DEFAULTS: list[Change] = [
    lambda tree: tree.update(requires=[]),
    lambda tree: tensor(tree, "a.affine").update(mode="delta"),
    lambda tree: tensor(tree, "a.affine")["params"].update(rows=4),
    lambda tree: tensor(tree, "h.planes")["params"].update(alpha_dtype="F16"),
    lambda tree: tensor(tree, "h.planes")["params"].update(group=0),
    lambda tree: tensor(tree, "m/zero").update(params={}),
    lambda tree: tensor(tree, "m/zero").update(base={}),
    lambda tree: tensor(tree, "m/zero").update(base={"dtype": "I64"}),
    lambda tree: tensor(tree, "l.exact")["params"].update(bucket=False),
    lambda tree: tensor(tree, "i.sparse")["params"].update(value_dtype="F32"),
    lambda tree: tensor(tree, "e.rtvq")["params"].update(ref=0),
    lambda tree: tensor(tree, "f.blocks")["params"].update(planes=1),
    lambda tree: tensor(tree, "f.blocks")["params"].update(gain="1"),
    lambda tree: tensor(tree, "f.blocks")["params"].update(rule="mean"),
    lambda tree: tensor(tree, "g.groups")["params"].update(blocks=[]),
    lambda tree: tensor(tree, "k.tern").update(params={"alpha": "matrix"}),
    lambda tree: tensor(tree, "n.embed")["base"].update(name="n.embed"),
    lambda tree: tensor(tree, "c.raw")["base"].update(shape=[4, 70]),
    lambda tree: tree.update(position="none"),
    lambda tree: tree.update(task=""),
    lambda tree: tree["backbone"].update(architecture=""),
]


@pytest.mark.parametrize("change", DEFAULTS)
def test_parse_default_written_out_refused(change: Change) -> None:
    assert forge(change) == "not_canonical"


@pytest.mark.parametrize("field", ["alias", "attach", "ext", "pools", "refs", "removed", "requires"])
def test_parse_empty_field_written_out_refused(field: str) -> None:
    empty: dict[str, Any] = manifest_tree(sound_header(manifest_of(())))
    assert reason_of(with_manifest(dumps(empty))) == "accepted"
    empty[field] = {} if field in {"ext", "pools"} else []
    assert reason_of(with_manifest(dumps(empty))) == "not_canonical"


FAULTS: list[tuple[str, Change]] = [
    ("manifest_field", lambda tree: tree.pop("kind")),
    ("manifest_field", lambda tree: tree.pop("backbone")),
    ("manifest_field", lambda tree: tree.pop("tensors")),
    ("manifest_field", lambda tree: tree.update(stamp="today")),
    ("manifest_field", lambda tree: tree.update(kind="lora")),
    ("manifest_field", lambda tree: tree.update(kind=1)),
    ("manifest_field", lambda tree: tree.update(kind="router")),
    ("manifest_field", lambda tree: tree.update(router={"max_tokens": 1, "routes": ["a"]})),
    ("manifest_field", lambda tree: tree.update(task="-x")),
    ("manifest_field", lambda tree: tree.update(task="x" * 129)),
    ("manifest_field", lambda tree: tree.update(position="")),
    ("manifest_field", lambda tree: tree.update(position="x" * 513)),
    ("manifest_field", lambda tree: tree.update(prefix={})),
    ("manifest_field", lambda tree: tree["prefix"].update(side="left")),
    ("manifest_field", lambda tree: tree["prefix"].update(text="model")),
    ("manifest_field", lambda tree: tree["backbone"].pop("n_params")),
    ("manifest_field", lambda tree: tree["backbone"].update(n_params="1")),
    ("manifest_field", lambda tree: tree["backbone"].update(n_params=True)),
    ("manifest_field", lambda tree: tree["backbone"].update(architecture="a b")),
    ("bad_digest", lambda tree: tree["backbone"].update(fingerprint="AB" * 32)),
    ("bad_digest", lambda tree: tree["backbone"].update(fingerprint="ab" * 31 + "a")),
    ("bad_digest", lambda tree: tree["pools"]["alphas"].update(sha256="zz" * 32)),
    ("bad_digest", lambda tree: tree.update(refs=["sha256:" + "ab" * 32])),
    ("bad_digest", lambda tree: tree.update(refs=["obm1-sha256:" + "AB" * 32])),
    ("bad_params", lambda tree: tree.update(refs=[])),
    ("limit_exceeded", lambda tree: tree.update(refs=["obm1-sha256:" + "ab" * 32] * 5)),
    ("unsupported_feature", lambda tree: tree.update(requires=["lowrank"])),
    ("unsupported_feature", lambda tree: tree.update(requires=["lowrank"], unknown=1)),
    ("manifest_field", lambda tree: tree.update(requires=["Low Rank"])),
    ("manifest_field", lambda tree: tree.update(ext={"note": 1})),
    ("limit_exceeded", lambda tree: tree.update(ext={"a.b": "x" * 65536})),
    ("manifest_field", lambda tree: tree["alias"].append(["x"])),
    ("manifest_field", lambda tree: tree.update(alias=[["lm_head", "nowhere"]])),
    ("bad_name", lambda tree: tree.update(alias=[["../x", "n.embed"]])),
    ("duplicate_name", lambda tree: tree.update(alias=[["n.embed", "n.embed"]])),
    ("duplicate_name", lambda tree: tree.update(alias=[["z", "n.embed"], ["y", "n.embed"]])),
    ("duplicate_name", lambda tree: tree.update(removed=["lm_head"])),
    ("duplicate_name", lambda tree: tree["tensors"].reverse()),
    ("duplicate_name", lambda tree: tree["tensors"].insert(0, tree["tensors"][0])),
    ("bad_name", lambda tree: tree["attach"][0].update(name="run.py")),
    ("bad_name", lambda tree: tree["attach"][0].update(name="../config.json")),
    ("bad_name", lambda tree: tree["attach"][0].update(name=".json")),
    ("bad_name", lambda tree: tree["attach"][0].update(name="x" * 128 + ".json")),
    ("limit_exceeded", lambda tree: tree["attach"][0].update(nbytes=2**26 + 1)),
    (
        "limit_exceeded",
        lambda tree: tree.update(attach=[{"name": f"a{i:02}.md", "nbytes": 0} for i in range(65)]),
    ),
    ("manifest_field", lambda tree: tensor(tree, "a.affine").update(dtype="F12")),
    ("manifest_field", lambda tree: tensor(tree, "a.affine").update(shape=["4", 70])),
    ("manifest_field", lambda tree: tensor(tree, "a.affine").update(shape=4)),
    ("manifest_field", lambda tree: tensor(tree, "a.affine").pop("encoding")),
    ("manifest_field", lambda tree: tensor(tree, "b.added").update(base={"dtype": "F32"})),
    ("manifest_field", lambda tree: tensor(tree, "c.raw")["base"].update(mode="delta")),
    ("bad_name", lambda tree: tensor(tree, "c.raw")["base"].update(name="a/../b")),
    ("limit_exceeded", lambda tree: tensor(tree, "a.affine").update(shape=[1] * 9)),
    ("bad_shape", lambda tree: tensor(tree, "a.affine").update(shape=[2**27, 2**26])),
    ("bad_shape", lambda tree: tensor(tree, "a.affine").update(shape=[2**40, 2**40, 2**40])),
    ("bad_shape", lambda tree: tensor(tree, "a.affine").update(shape=[0, 70])),
    ("bad_shape", lambda tree: tensor(tree, "n.embed").update(base={"shape": [6, 8]})),
    ("bad_shape", lambda tree: tensor(tree, "n.embed").update(base={"shape": [3, 9]})),
    ("bad_shape", lambda tree: tensor(tree, "n.embed").update(base={"shape": [24]})),
    ("bad_shape", lambda tree: tensor(tree, "j.sparse").update(base={"shape": [3, 70]})),
    ("bad_params", lambda tree: tensor(tree, "j.sparse").update(base={"dtype": "F32"})),
    ("bad_params", lambda tree: tensor(tree, "l.exact").update(base={"dtype": "F16"})),
    ("bad_params", lambda tree: tensor(tree, "l.exact").update(dtype="I16")),
    ("bad_params", lambda tree: tensor(tree, "a.affine").update(dtype="I32")),
    ("bad_params", lambda tree: tensor(tree, "a.affine").update(base={"dtype": "F64"})),
    ("bad_params", lambda tree: tensor(tree, "m/zero").update(base={"dtype": "I32"})),
    ("unknown_encoding", lambda tree: tensor(tree, "a.affine").update(encoding="lowrank")),
    ("unknown_encoding", lambda tree: tensor(tree, "a.affine").update(mode="append")),
    ("unknown_encoding", lambda tree: tensor(tree, "a.affine").update(mode="replace")),
    ("unknown_encoding", lambda tree: tensor(tree, "l.exact").update(mode="replace")),
    ("unknown_encoding", lambda tree: tensor(tree, "i.sparse").update(mode="added")),
    ("manifest_field", lambda tree: tensor(tree, "a.affine")["params"].update(group=64)),
    ("manifest_field", lambda tree: tensor(tree, "a.affine").pop("params")),
    ("manifest_field", lambda tree: tensor(tree, "k.tern").update(params={"planes": 2})),
    ("manifest_field", lambda tree: tensor(tree, "m/zero").update(params={"rows": 4})),
    ("manifest_field", lambda tree: tensor(tree, "l.exact")["params"].update(bucket=1)),
    ("manifest_field", lambda tree: tensor(tree, "i.sparse")["params"].pop("nnz")),
    ("bad_params", lambda tree: tensor(tree, "i.sparse")["params"].update(nnz=281)),
    ("manifest_field", lambda tree: tensor(tree, "j.sparse")["params"].update(value_dtype="BF16")),
    ("bad_params", lambda tree: tensor(tree, "c.raw")["params"].update(value_dtype="F64")),
    ("bad_params", lambda tree: tensor(tree, "l.exact")["params"].update(zstd_nbytes=0)),
    *[("bad_params", lambda tree, b=b: tensor(tree, "a.affine")["params"].update(bits=b)) for b in (0, 1, 5, 9)],
    ("bad_params", lambda tree: tensor(tree, "a.affine")["params"].update(rows=70)),
    ("bad_params", lambda tree: tensor(tree, "a.affine")["params"].update(rows=0)),
    ("bad_params", lambda tree: tensor(tree, "e.rtvq")["params"].update(ref=1)),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(planes=5)),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(planes=0)),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(alpha="column")),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(alpha_dtype="BF16")),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(rule="max")),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(gain="1e3")),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(group=64)),
    ("bad_params", lambda tree: tensor(tree, "h.planes")["params"].update(blocks=[[4, 1]])),
    ("bad_params", lambda tree: tensor(tree, "g.groups")["params"].update(group=65)),
    ("bad_params", lambda tree: tensor(tree, "g.groups")["params"].pop("group")),
    ("bad_params", lambda tree: tensor(tree, "f.blocks")["params"].update(blocks=[[1, 2], [1, 1]])),
    ("bad_params", lambda tree: tensor(tree, "f.blocks")["params"].update(blocks=[[1, 2], [1, 2]])),
    ("bad_params", lambda tree: tensor(tree, "f.blocks")["params"].update(blocks=[[0, 9], [4, 1]])),
    ("manifest_field", lambda tree: tensor(tree, "f.blocks")["params"].update(blocks=[[4]])),
    ("part_table", lambda tree: tree["pools"].pop("alphas")),
    ("part_table", lambda tree: tree["pools"]["alphas"].update(nbytes=1)),
    ("part_table", lambda tree: tree["pools"].update(sums={"nbytes": 32, "sha256": "ab" * 32})),
    ("manifest_field", lambda tree: tree["pools"].update(names={"nbytes": 32, "sha256": "ab" * 32})),
    ("part_table", lambda tree: tree["attach"][0].update(nbytes=65)),
    ("part_table", lambda tree: tree["tensors"].pop(0)),
]


@pytest.mark.parametrize(("reason", "change"), FAULTS, ids=[f"{i}-{r}" for i, (r, _) in enumerate(FAULTS)])
def test_parse_faulty_manifest_refused(reason: str, change: Change) -> None:
    assert forge(change) == reason


TENSOR_NAMES = [
    ("", "bad_name"),
    (".", "bad_name"),
    ("..", "bad_name"),
    ("a//b", "bad_name"),
    ("/a", "bad_name"),
    ("a/", "bad_name"),
    ("a/./b", "bad_name"),
    ("a\\b", "bad_name"),
    ("a b", "bad_name"),
    ("a#b", "bad_name"),
    ("__metadata__", "bad_name"),
    ("x" * 513, "bad_name"),
    ("x" * 512, "accepted"),
    ("a..b/c-d+e:f", "accepted"),
    ("...", "accepted"),
]


@pytest.mark.parametrize(("name", "outcome"), TENSOR_NAMES, ids=range(len(TENSOR_NAMES)))
def test_parse_tensor_name_grammar(name: str, outcome: str) -> None:
    tensor_record = record(name, RawParams(value_dtype=DType.U8), shape=(0,), dtype=DType.U8, mode=Mode.ADDED)
    manifest = manifest_of((tensor_record,))
    assert reason_of(sound_header(manifest)) == outcome


def zero(shape: tuple[int, ...], dtype: DType = DType.BF16) -> TensorRecord:
    return record("w", ZeroParams(), shape=shape, dtype=dtype)


@pytest.mark.parametrize("shape", [(), (0,), (2**52, 0), (1,) * 8, (2**53 - 1,)])
def test_parse_extreme_shapes_of_zero_accepted(shape: tuple[int, ...]) -> None:
    assert reason_of(sound_header(manifest_of((zero(shape),)))) == "accepted"


def test_parse_grown_integer_zero_refused() -> None:
    grown = record("w", ZeroParams(), shape=(3, 2), dtype=DType.I64, base=TensorSpec("w", DType.I64, (2, 2)))
    assert reason_of(sound_header(manifest_of((grown,)))) == "bad_params"


def test_parse_empty_xdelta_refused() -> None:
    empty = record("w", XdeltaParams(zstd_nbytes=9), shape=(0, 2))
    assert reason_of(sound_header(manifest_of((empty,)))) == "bad_shape"


def test_parse_framed_part_of_no_elements_refused() -> None:
    empty = record("w", RawParams(value_dtype=DType.BF16, zstd_nbytes=9), shape=(0,), mode=Mode.ADDED)
    assert reason_of(sound_header(manifest_of((empty,)))) == "bad_params"


def router_manifest(shapes: dict[str, tuple[int, ...]], routes: tuple[str, ...] = ("a", "b")) -> Manifest:
    tensors = tuple(
        record(name, RawParams(value_dtype=DType.F32), shape=shape, dtype=DType.F32, mode=Mode.ADDED)
        for name, shape in sorted(shapes.items())
    )
    return manifest_of(tensors, kind=Kind.ROUTER, router=RouterInfo(routes=routes, max_tokens=128))


LINEAR = {"mean": (8,), "scale": (8,), "0.weight": (2, 8), "0.bias": (2,)}
ROUTERS = [
    (LINEAR, ("a", "b"), "accepted"),
    (
        {**LINEAR, "0.weight": (5, 8), "0.bias": (5,), "1.weight": (2, 5), "1.bias": (2,)},
        ("a", "b"),
        "accepted",
    ),
    (LINEAR, ("a",), "manifest_field"),
    (LINEAR, ("a", "a"), "manifest_field"),
    (LINEAR, ("a", ""), "manifest_field"),
    ({**LINEAR, "scale": (7,)}, ("a", "b"), "manifest_field"),
    ({**LINEAR, "mean": (8, 1), "scale": (8, 1)}, ("a", "b"), "manifest_field"),
    ({**LINEAR, "0.bias": (2, 1)}, ("a", "b"), "manifest_field"),
    ({**LINEAR, "extra": (1,)}, ("a", "b"), "manifest_field"),
    ({**LINEAR, "1.weight": (2, 2)}, ("a", "b"), "manifest_field"),
]


@pytest.mark.parametrize(("shapes", "routes", "outcome"), ROUTERS, ids=range(len(ROUTERS)))
def test_parse_router(shapes: dict[str, tuple[int, ...]], routes: tuple[str, ...], outcome: str) -> None:
    assert reason_of(sound_header(router_manifest(shapes, routes))) == outcome


def test_parse_router_of_other_dtype_refused() -> None:
    manifest = router_manifest(LINEAR)
    first = record("0.bias", RawParams(value_dtype=DType.F16), shape=(2,), dtype=DType.F16, mode=Mode.ADDED)
    forged = manifest_of((first, *manifest.tensors[1:]), kind=Kind.ROUTER, router=manifest.router)
    assert reason_of(sound_header(forged)) == "manifest_field"


def test_parse_newer_minor_version_accepted() -> None:
    head = sound_header(manifest_of(()))
    newer = head.replace(b'"obm_version":"1.0"', b'"obm_version":"1.7"')
    header = parse_header(newer, file_nbytes=len(newer))
    assert header.version == "1.7"


def test_parse_without_parts_accepted() -> None:
    head = sound_header(manifest_of(()))
    assert parse_header(head, file_nbytes=len(head)).parts == {}


def test_parse_minimal_padding_required() -> None:
    head = sound_header(manifest_of(()))
    longer = head + b" " * 64
    assert reason_of((len(longer) - 8).to_bytes(8, "little") + longer[8:]) == "not_canonical"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(header_nbytes=64), "header_too_large"),
        (Limits(tensors=15), "limit_exceeded"),
        (Limits(parts=20), "limit_exceeded"),
        (Limits(rank=1), "limit_exceeded"),
        (Limits(numel=280), "bad_shape"),
        (Limits(name_nbytes=6), "bad_name"),
        (Limits(json_depth=2), "json_depth"),
        (Limits(json_values=50), "limit_exceeded"),
        (Limits(ext_nbytes=10), "limit_exceeded"),
        (Limits(attachments=1), "limit_exceeded"),
        (Limits(attachment_nbytes=1), "limit_exceeded"),
        (Limits(refs=0), "limit_exceeded"),
    ],
)
def test_parse_lower_limits_apply(limits: Limits, reason: str) -> None:
    assert reason_of(sample(), len(sample()), limits) == reason


class CountingSource(BytesSource):
    """Counts the bytes that are read."""

    total = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        self.total += nbytes
        return super().read(offset, nbytes)


def test_read_header_reads_little_of_a_file_that_is_no_obm() -> None:
    head = frame(b'{"__metadata__":{"format":"pt"},' + b" " * 300_000)
    source = CountingSource(head + bytes(1_000_000))
    with pytest.raises(FormatError) as caught:
        read_header(source)
    assert caught.value.reason == "not_obm"
    assert source.total <= 65_536


def test_read_header_reads_at_most_the_header_and_64_kib() -> None:
    head = with_manifest(dumps({"task": "x" * 200_000}))
    source = CountingSource(head + bytes(1_000_000))
    with pytest.raises(FormatError):
        read_header(source)
    assert source.total <= len(head) + 65_536


def test_read_header_checks_the_expected_id_before_the_content() -> None:
    with pytest.raises(FormatError) as caught:
        read_header(BytesSource(with_manifest("no json")), expected_id="obm1-sha256:" + "0" * 64)
    assert caught.value.reason == "artifact_id"


@pytest.mark.slow
def test_many_tensors_parse() -> None:
    signs = SignParams(alpha=AlphaLayout(), rows=4)
    tensors = tuple(record(f"model.layers.{i:05}.mlp.gate_proj.weight", signs) for i in range(50_000))
    head = sound_header(manifest_of(tensors))
    assert len(head) < 400 * 50_000
    assert len(parse_header(head, file_nbytes=None).parts) == 50_002


def test_parse_calls_grow_no_faster_than_the_records() -> None:
    few, twice = (_calls_of_parsing(count) for count in (100, 200))
    assert twice <= 2 * few


def _calls_of_parsing(count: int) -> int:
    """Calls of functions, compiled ones too, while a header of `count` records and as many aliases is parsed."""
    tensors = tuple(record(f"w{i:05}", SignParams(alpha=AlphaLayout(), rows=4, planes=2)) for i in range(count))
    head = sound_header(manifest_of(tensors, aliases=tuple((f"x{i:05}", f"w{i:05}") for i in range(count))))
    calls = 0

    def see(_frame: object, event: str, _detail: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(see)
    try:
        parse_header(head, file_nbytes=None)
    finally:
        sys.setprofile(None)
    return calls


def test_writer_and_header_agree_on_a_record_of_every_encoding(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "x.obm") as writer:
        add_all(writer, records()[:1])
        header = writer.commit(manifest_of(records()[:1]))
    assert isinstance(header.manifest.tensors[0].params, AffineParams)
