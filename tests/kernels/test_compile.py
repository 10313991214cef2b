"""Compiled loops on disk are used again only while no source that they hold has changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

numba = pytest.importorskip("numba", reason="the fast kernels need numba")

from obm_format.kernels import cpu_loops  # noqa: E402 - needs numba
from obm_format.kernels.cpu_compile import bound_to, sources_digest  # noqa: E402


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with a loop, in a folder that takes the cache beside it."""
    (tmp_path / "loops_of_a_test.py").write_text("def loop(n):\n    return n + n\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("loops_of_a_test")
    del sys.modules["loops_of_a_test"]


def test_the_cache_is_used_again_while_the_sources_are_the_same(module: ModuleType) -> None:
    hits = []
    for sources in ("a", "a", "b", "b", "a"):
        loop = numba.njit(cache=True)(bound_to(module.loop, sources))
        assert loop(3) == 6
        hits.append(sum(loop.stats.cache_hits.values()))
    assert hits == [0, 1, 0, 1, 1]


def test_every_source_counts(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "b.py").write_text("y = 1")
    before = sources_digest(tmp_path)
    (tmp_path / "b.py").write_text("y = 2")
    assert sources_digest(tmp_path) != before


def test_the_kernels_are_bound_to_their_sources() -> None:
    cells = [cell.cell_contents for cell in cpu_loops.merge_tiles.dispatcher.py_func.__closure__]
    assert cells == [sources_digest(Path(cpu_loops.__file__).parent)]
