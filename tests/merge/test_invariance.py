"""A merge gives the same bytes whatever windows, threads, kernels, order of experts, and after a pull as before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_experts import MATRIX, fine_tune, save, tiny_backbone, write_expert

from obm_format.checkpoint import open_checkpoint
from obm_format.expert import open_expert
from obm_format.kernels import select_kernels
from obm_format.kernels.contract import Kernels
from obm_format.kernels.reference import ReferenceKernels
from obm_format.merge import WeightStream, parse_recipe, windows
from obm_format.merge.dense import Source, open_dense
from obm_format.model import DType
from obm_registry.embedded import open_embedded

LINEAR = ("l.attn.weight", "l.mlp.weight")
RECIPES: list[dict[str, object]] = [
    {"method": "1bit-merging", "route": "one", "lam": 0.3},
    {"method": "1bit-merging", "route": "dense", "scope": "all", "density": 0.5, "lam": 0.7},
    {"method": "ties"},
    {"method": "ties", "density": 0.3, "weight": {"one": -1, "rows": 2.5}},
    {"method": "ties", "density": 0.3, "cut": "exact", "weights": "after", "weight": {"one": 3}},
    {"method": "ties", "density": 0.3, "rescale": "l1"},
    {"method": "ties", "density": 0.3, "cut": "random", "seed": 11},
    {"method": "ties", "density": 0.3, "trim_scope": "global"},
    {"method": "ties", "density": 0.3, "trim_scope": "global", "cut": "exact", "densities": {"one": 0.6}},
    {"method": "ties", "density": 0.3, "trim_scope": "global", "cut": "matrix"},
    {"method": "ties", "density": 0.4, "compat": "official"},
    {"method": "ties", "density": 0.4, "compat": "mergekit", "weight": {"one": 0.25, "dense": 3}},
    {"method": "ties", "density": 0.4, "compat": "peft", "weight": {"one": 0.25, "dense": -3}},
    {"method": "task-arithmetic", "weight": {"one": -2}},
    {"method": "dare", "density": 0.4, "seed": 5},
    {"method": "dare", "density": 0.4, "seed": 5, "compat": "mergekit"},
    {"method": "dare-ties", "density": 0.4, "seed": 5},
    {"method": "average", "weight": {"one": 2}},
    {"method": "average", "compat": "mergekit", "weight": {"rows": 2}},
    {"route": "soft", "weight": {"one": 0.25, "dense": 0.5, "rows": 0.25}},
]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, a mixed 1-bit expert, one with an alpha per matrix over one row, an exact one, a dense fine-tune."""
    folder = tmp_path_factory.mktemp("family")
    base = tiny_backbone(DType.BF16)
    save(folder / "base", base)
    write_expert(folder / "one.obm", base, fine_tune(base, 1), compressed=LINEAR, task="one")
    tuned = fine_tune(base, 2)
    write_expert(folder / "rows.obm", base, tuned, compressed=LINEAR[:1], task="rows", alpha=MATRIX, rows=1)
    write_expert(folder / "exact.obm", base, fine_tune(base, 3), task="exact")
    save(folder / "dense", fine_tune(base, 4))
    return folder


def merged(
    folder: Path,
    content: Mapping[str, object],
    kernels: Kernels | None = None,
    order: tuple[str, ...] = ("one.obm", "rows.obm", "exact.obm", "dense"),
    piece_nbytes: int = 1 << 30,
) -> dict[str, bytes]:
    with open_checkpoint(folder / "base") as base:
        sources: list[Source] = []
        for name in order:
            sources.append(open_dense(folder / name, base) if name == "dense" else open_expert(folder / name))
        recipe = parse_recipe(content)
        stream = WeightStream(base, sources, recipe, kernels=kernels, piece_nbytes=piece_nbytes)
        found = {spec.name: words.tobytes() for spec, words in stream}
        for one in sources:
            one.close()
    return found


@pytest.mark.parametrize("content", RECIPES, ids=str)
def test_same_bytes_for_all_kernels_threads_and_windows(
    family: Path, content: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = merged(family, content, ReferenceKernels())
    assert merged(family, content, select_kernels(1)) == wanted
    assert merged(family, content, select_kernels(2)) == wanted
    for piece in (1, 100):
        assert merged(family, content, ReferenceKernels(), piece_nbytes=piece) == wanted, piece
        cheap = merged(family, content, ReferenceKernels(), ("one.obm", "rows.obm", "dense"), piece)
        assert cheap == merged(family, content, ReferenceKernels(), ("one.obm", "rows.obm", "dense")), piece
    for window in (1, 13, 100):
        monkeypatch.setattr(windows, "WINDOW", window)
        assert merged(family, content, ReferenceKernels()) == wanted, window


@pytest.mark.parametrize("content", [one for one in RECIPES if "compat" not in one], ids=str)
def test_same_bytes_in_any_order_of_experts(family: Path, content: dict[str, object]) -> None:
    wanted = merged(family, content, ReferenceKernels())
    assert merged(family, content, ReferenceKernels(), ("dense", "exact.obm", "rows.obm", "one.obm")) == wanted


@pytest.mark.parametrize("content", RECIPES[:9], ids=str)
def test_same_bytes_before_and_after_the_registry(
    family: Path, content: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del monkeypatch
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name in ("base", "dense"):
        (pulled / name).symlink_to(family / name)
    with open_embedded(tmp_path / "home") as registry:
        registry.add_backbone(family / "base", "acme/tiny")
        for name in ("one", "rows", "exact"):
            registry.push(family / f"{name}.obm", f"acme/tiny:{name}")
            registry.pull(f"acme/tiny:{name}", pulled / f"{name}.obm")
    assert merged(pulled, content, ReferenceKernels()) == merged(family, content, ReferenceKernels())


# --- what holds for any numbers -----------------------------------------------------------------------------


def numbers() -> st.SearchStrategy[np.ndarray]:
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-40, -1e-40])
    return st.lists(special | st.floats(-4, 4, width=32), min_size=12, max_size=12).map(
        lambda values: np.array(values, np.float32)
    )


def combined(vectors: list[np.ndarray], **options: object) -> np.ndarray:
    """T of some vectors, by the slow twin."""
    from obm_format.merge.ties import combine

    recipe = parse_recipe({"method": "ties", **options})
    return combine(vectors, [1.0] * len(vectors), recipe.arithmetic)


@given(numbers(), st.sampled_from([1, 2]))
def test_ties_of_one_or_two_copies_is_the_vector(vector: np.ndarray, copies: int) -> None:
    assert np.array_equal(combined([vector] * copies), vector)


@given(st.lists(numbers(), min_size=1, max_size=4))
def test_ties_is_bounded_by_the_largest(vectors: list[np.ndarray]) -> None:
    largest = np.max(np.abs(vectors), axis=0)
    assert (np.abs(combined(vectors)) <= largest * np.float32(1 + 2**-20) + np.float32(1e-43)).all()


@given(st.lists(numbers(), min_size=1, max_size=4))
def test_ties_turns_with_its_signs_but_where_they_cancel(vectors: list[np.ndarray]) -> None:
    total = np.zeros(12, np.float32)
    for vector in vectors:
        total = total + vector
    turned = combined([-vector for vector in vectors])
    assert np.array_equal(turned[total != 0], -combined(vectors)[total != 0])


@given(st.lists(numbers(), min_size=1, max_size=4))
def test_ties_scales_with_powers_of_two(vectors: list[np.ndarray]) -> None:
    normal = [np.where(np.abs(vector) < 1e-30, 0, vector).astype(np.float32) for vector in vectors]
    assert np.array_equal(combined([4 * vector for vector in normal]), 4 * combined(normal))


@given(numbers(), st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=60)
def test_inclusive_trim_is_monotone_in_density(vector: np.ndarray, one: int, other: int) -> None:
    from thinning import trim

    from obm_format.merge.methods import Cut

    low, high = sorted((one, other))
    kept = trim(vector, low / 100, Cut.INCLUSIVE) != 0
    assert (trim(vector, high / 100, Cut.INCLUSIVE) != 0)[kept].all()
