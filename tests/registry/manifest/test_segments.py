"""The fixed rule by which a file becomes blobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_files import write_backbone, write_expert

from obm_format.container.reader import Container
from obm_format.limits import MIB
from obm_format.model import Part, padded
from obm_registry.manifest import segments
from obm_registry.manifest.segments import Segment, cut

HEADER = 640


@dataclass
class FakeContainer:
    """Parts of any size without a file; frames as they are given."""

    sizes: list[int]
    framed: dict[int, list[int]]

    @property
    def header(self) -> SimpleNamespace:
        parts, offset = {}, HEADER
        for i, nbytes in enumerate(self.sizes):
            raw = 1 if i in self.framed else None
            parts[f"t{i}#data"] = Part(name=f"t{i}#data", offset=offset, nbytes=nbytes, raw_nbytes=raw)
            offset += padded(nbytes)
        return SimpleNamespace(nbytes=HEADER, parts=parts, file_nbytes=offset)

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(tensors=[SimpleNamespace(name=f"t{i}", i=i) for i in range(len(self.sizes))])

    def frames(self, record: SimpleNamespace, suffix: str) -> list[SimpleNamespace]:
        assert suffix == "data"
        return [SimpleNamespace(nbytes=nbytes) for nbytes in self.framed[record.i]]


def cut_sizes(sizes: list[int], framed: dict[int, list[int]] | None = None) -> list[int]:
    container = FakeContainer(sizes, framed or {})
    found = cut(cast(Container, container))
    assert found[0] == Segment(0, HEADER)
    ends = [segment.offset + segment.nbytes for segment in found]
    assert [segment.offset for segment in found] == [0, *ends[:-1]]
    assert ends[-1] == container.header.file_nbytes
    assert all(0 < segment.nbytes <= 64 * MIB for segment in found)
    return [segment.nbytes for segment in found[1:]]


def test_cut_small_parts_share_a_segment() -> None:
    assert cut_sizes([100, 64, 1]) == [128 + 64 + 64]


def test_cut_without_parts_is_the_header_alone() -> None:
    assert cut_sizes([]) == []


def test_cut_consecutive_parts_fill_up_to_the_limit_exactly() -> None:
    assert cut_sizes([32 * MIB, 32 * MIB, 64]) == [64 * MIB, 64]
    assert cut_sizes([32 * MIB, 32 * MIB + 1, 64]) == [32 * MIB, 32 * MIB + 128]
    assert cut_sizes([64 * MIB]) == [64 * MIB]


def test_cut_larger_part_stands_alone_in_pieces() -> None:
    assert cut_sizes([64, 130 * MIB + 5, 64]) == [64, 64 * MIB, 64 * MIB, 2 * MIB + 64, 64]
    assert cut_sizes([64 * MIB + 1]) == [64 * MIB, 64]


def test_cut_larger_framed_part_ends_pieces_with_frames() -> None:
    frames = [30 * MIB, 30 * MIB, 30 * MIB, 5]
    assert cut_sizes([sum(frames)], {0: frames}) == [60 * MIB, 30 * MIB + 64]


@given(st.lists(st.integers(1, 200 * MIB), max_size=12))
def test_cut_any_sizes_covers_the_file_within_the_limit(sizes: list[int]) -> None:
    pieces = cut_sizes(sizes)
    assert sum(pieces) == sum(map(padded, sizes))


def test_cut_real_file_is_the_same_for_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 1024)
    base = write_backbone(tmp_path / "base")
    found = []
    for name in ("a.obm", "b.obm"):
        with Container.open(write_expert(tmp_path / name, base, added_nbytes=700)) as container:
            found.append(cut(container))
    assert found[0] == found[1]
    assert len(found[0]) > 1
