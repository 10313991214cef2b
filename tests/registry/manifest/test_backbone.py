"""The tensor table of a backbone as a document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from obm_format.digest import fingerprint, sha256
from obm_format.errors import RegistryError
from obm_format.model import DType, TensorSpec
from obm_registry.manifest.backbone import BackboneTensor, package_backbone, parse_backbone, tabulate
from obm_registry.manifest.oci import digest_of, parse_manifest
from obm_registry.manifest.strictjson import encode_json


def rows() -> list[BackboneTensor]:
    return [
        BackboneTensor(spec=TensorSpec(name, DType.BF16, shape), sha256=sha256(name.encode()))
        for name, shape in (("b", (2, 3)), ("a.b", ()), ("B", (0,)))
    ]


def config() -> bytes:
    package = package_backbone(tabulate(rows(), "Tiny"))
    found = parse_manifest(package.body).config
    assert found is not None
    return package.blobs[found.digest]


def test_package_is_the_same_for_any_order_of_tensors() -> None:
    first = package_backbone(tabulate(rows(), "Tiny"))
    assert package_backbone(tabulate(rows()[::-1], "Tiny")) == first
    assert first.digest == digest_of(first.body)
    assert {digest_of(data) for data in first.blobs.values()} == set(first.blobs)
    assert first.descriptor.size == len(first.body)


def test_parse_gives_back_the_table() -> None:
    table = parse_backbone(config())
    assert table == tabulate(rows(), "Tiny")
    assert table.fingerprint == fingerprint(rows())
    assert (table.facts.n_tensors, table.facts.n_params) == (3, 7)


def edit(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(config())
    change(document)
    return encode_json(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(fingerprint="0" * 64),
        lambda d: d.update(n_params=8),
        lambda d: d.update(n_tensors=2),
        lambda d: d.update(schema="obm.backbone/2"),
        lambda d: d.update(extra=1),
        lambda d: d.pop("architecture"),
        lambda d: d["tensors"].reverse(),
        lambda d: d["tensors"].append(d["tensors"][-1]),
        lambda d: d["tensors"][0].append(1),
        lambda d: d["tensors"][0].__setitem__(0, "a\nb"),
        lambda d: d["tensors"][0].__setitem__(0, "\ud800"),
        lambda d: d["tensors"][0].__setitem__(0, ""),
        lambda d: d["tensors"][0].__setitem__(1, "F7"),
        lambda d: d["tensors"][0].__setitem__(2, [-1]),
        lambda d: d["tensors"][0].__setitem__(2, [True]),
        lambda d: d["tensors"][0].__setitem__(2, [1] * 9),
        lambda d: d["tensors"][0].__setitem__(3, "zz"),
        lambda d: d.update(tensors=7),
        lambda d: d.update(architecture=7),
    ],
)
def test_parse_altered_document_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_backbone(edit(change))
    assert caught.value.reason == "bad_manifest"
    assert str(caught.value)
