"""Which tensors belong together, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import Tensors, write_checkpoint

from obm_format.checkpoint import open_checkpoint
from obm_format.errors import ObmError
from obm_format.kernels import select_kernels
from obm_format.model import DType, Prefix
from obm_format.taskvector import Relation, TaskVectorPlan, check_finite, difference, find_prefix, pair

F16, BF16, F32, I64, F64 = DType.F16, DType.BF16, DType.F32, DType.I64, DType.F64
MATRIX = (F32, np.arange(6.0).reshape(2, 3))
BASE: Tensors = {"a.w": MATRIX, "b.w": (F32, np.ones((2, 3))), "c": (F32, np.ones(3)), "d": (F32, np.ones(3))}


def plan_of(tmp_path: Path, base: Tensors, tuned: Tensors, *, allow_removed: bool = False) -> TaskVectorPlan:
    old = open_checkpoint(write_checkpoint(tmp_path / "base", base))
    return pair(old, open_checkpoint(write_checkpoint(tmp_path / "tuned", tuned)), allow_removed=allow_removed)


def refused(tmp_path: Path, base: Tensors, tuned: Tensors) -> ObmError:
    with pytest.raises(ObmError) as caught:
        plan_of(tmp_path, base, tuned)
    assert "\n" not in str(caught.value)
    return caught.value


def test_pair_same_names(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE, BASE)
    assert [found.name for found in plan.pairs] == ["a.w", "b.w", "c", "d"]
    assert {found.relation for found in plan.pairs} == {Relation.SAME}
    assert plan.prefix is None
    assert plan.removed == ()


def test_pair_added_and_other_dtype(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE, {**BASE, "a.w": (BF16, MATRIX[1]), "x": MATRIX})
    found = {item.name: item for item in plan.pairs}
    assert found["x"].relation is Relation.ADDED
    assert found["x"].base is None
    assert found["a.w"].spec.dtype is BF16
    assert found["a.w"].base is not None
    assert found["a.w"].base.dtype is F32


@pytest.mark.parametrize("lost", ["b.w", "c"])
def test_pair_missing_float_refused(tmp_path: Path, lost: str) -> None:
    tuned = {name: tensor for name, tensor in BASE.items() if name != lost}
    error = refused(tmp_path, BASE, tuned)
    assert error.reason == "tensor_missing"
    assert error.where == lost
    assert "--allow-removed" in str(error)


def test_pair_missing_float_allowed_is_removed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**BASE, "z": (F64, [1])}, {"c": BASE["c"]}, allow_removed=True)
    assert plan.removed == ("a.w", "b.w", "d", "z")


def test_pair_missing_float64_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {**BASE, "z": (F64, [1])}, BASE).where == "z"


@pytest.mark.parametrize("dtype", [I64, DType.BOOL, DType.U8])
def test_pair_missing_integers_are_removed(tmp_path: Path, dtype: DType) -> None:
    assert plan_of(tmp_path, {**BASE, "ids": (dtype, [1, 0])}, BASE).removed == ("ids",)


def test_pair_missing_tied_tensor_is_removed(tmp_path: Path) -> None:
    head = (F32, np.arange(20.0).reshape(4, 5))
    plan = plan_of(tmp_path, {**BASE, "embed": head, "lm_head": head}, {**BASE, "embed": (F32, np.zeros((4, 5)))})
    assert plan.removed == ("lm_head",)


def test_pair_missing_twin_of_another_missing_tensor_refused(tmp_path: Path) -> None:
    head = (F32, np.arange(20.0).reshape(4, 5))
    assert refused(tmp_path, {**BASE, "embed": head, "lm_head": head}, BASE).reason == "tensor_missing"


def test_pair_grown_rows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, BASE, {**BASE, "a.w": (F32, np.zeros((5, 3))), "c": (F32, np.zeros(4))})
    found = {item.name: item for item in plan.pairs}
    assert found["a.w"].relation is Relation.GROWN
    assert found["a.w"].encoded_shape == (2, 3)
    assert found["c"].relation is Relation.GROWN
    assert found["b.w"].relation is Relation.SAME


@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (2, 2), (6,), (3, 3, 1), ()])
def test_pair_other_shape_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    error = refused(tmp_path, BASE, {**BASE, "a.w": (F32, np.zeros(shape))})
    assert error.reason == "shape_differs"
    assert error.where == "a.w"
    assert error.expected == "[2, 3]"
    assert error.got == str(list(shape))


def test_pair_integers_of_other_shape_are_replaced(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**BASE, "ids": (I64, [1, 2, 3])}, {**BASE, "ids": (I64, [1, 2])})
    assert {item.name: item.relation for item in plan.pairs}["ids"] is Relation.RESHAPED


def test_pair_nothing_in_common_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, {**BASE, "ids": (I64, [1])}, {"x": MATRIX, "ids": (I64, [1])})
    assert error.reason == "nothing_in_common"


@pytest.mark.parametrize(
    ("old", "new", "prefix"),
    [
        (["w", "v"], ["w", "v"], None),
        (["w", "v"], ["bert.w", "bert.v", "classifier.w"], Prefix(side="tuned", text="bert.")),
        (["model.w", "model.v", "lm_head"], ["w", "v"], Prefix(side="backbone", text="model.")),
        (["w", "v"], ["a.b.w", "a.b.v"], Prefix(side="tuned", text="a.b.")),
        (["w", "v"], ["w", "a.v"], None),
        (["w", "v"], ["x", "y"], None),
        (["a.w", "b.w"], ["c.w"], None),
        (["w"], ["b.w", "a.w"], Prefix(side="tuned", text="a.")),
        (["x.w", "w", "v", "u"], ["x.w", "x.v", "x.u"], Prefix(side="tuned", text="x.")),
    ],
)
def test_find_prefix(old: list[str], new: list[str], prefix: Prefix | None) -> None:
    assert find_prefix(old, new) == prefix


def test_pair_takes_off_the_prefix_of_the_fine_tune(tmp_path: Path) -> None:
    tuned = {**{f"bert.{name}": tensor for name, tensor in BASE.items()}, "classifier": MATRIX}
    plan = plan_of(tmp_path, BASE, tuned)
    assert [(found.name, found.source) for found in plan.pairs] == [
        ("a.w", "bert.a.w"),
        ("b.w", "bert.b.w"),
        ("c", "bert.c"),
        ("classifier", "classifier"),
        ("d", "bert.d"),
    ]
    assert plan.prefix == Prefix(side="tuned", text="bert.")


def test_pair_puts_on_the_prefix_of_the_backbone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {f"model.{name}": tensor for name, tensor in BASE.items()}, {**BASE, "x": MATRIX})
    assert [(found.name, found.source) for found in plan.pairs] == [
        ("model.a.w", "a.w"),
        ("model.b.w", "b.w"),
        ("model.c", "c"),
        ("model.d", "d"),
        ("x", "x"),
    ]


def test_pair_added_tensor_that_takes_a_backbone_name_refused(tmp_path: Path) -> None:
    tuned = {**{f"bert.{name}": tensor for name, tensor in BASE.items()}, "a.w": MATRIX}
    error = refused(tmp_path, BASE, tuned)
    assert error.reason == "duplicate_name"
    assert error.where == "a.w"


@pytest.mark.parametrize("name", ["../x", "a b", "é", "a//b", "x" * 513])
def test_pair_name_that_the_format_lacks_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, BASE, {**BASE, name: MATRIX}).reason == "bad_name"


# base and fine-tune of one element, exact difference (N12 of the algorithms page)
@pytest.mark.parametrize(
    ("dtype", "old", "new", "d"),
    [(BF16, 0.1, 0.1015625, 0.00146484375), (F16, 1.0, 0.0, -1.0), (F32, 0.5, 0.75, 0.25)],
)
def test_difference_is_exact(tmp_path: Path, dtype: DType, old: float, new: float, d: float) -> None:
    base = open_checkpoint(write_checkpoint(tmp_path / "base", {"w": (dtype, [old])}))
    tuned = open_checkpoint(write_checkpoint(tmp_path / "tuned", {"w": (dtype, [new])}))
    found = pair(base, tuned).pairs[0]
    assert difference(found, base, tuned, select_kernels()).tolist() == [d]


def test_difference_of_grown_tensor_covers_the_old_rows(tmp_path: Path) -> None:
    base = open_checkpoint(write_checkpoint(tmp_path / "base", {"w": (F32, np.ones((2, 2)))}))
    tuned = open_checkpoint(write_checkpoint(tmp_path / "tuned", {"w": (F16, np.full((3, 2), 1.5))}))
    found = pair(base, tuned).pairs[0]
    assert difference(found, base, tuned, select_kernels()).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_difference_beyond_float32_refused(tmp_path: Path) -> None:
    most = float(np.finfo(np.float32).max)
    base = open_checkpoint(write_checkpoint(tmp_path / "base", {"w": (F32, [0, most])}))
    tuned = open_checkpoint(write_checkpoint(tmp_path / "tuned", {"w": (F32, [0, -most])}))
    with pytest.raises(ObmError) as caught:
        difference(pair(base, tuned).pairs[0], base, tuned, select_kernels())
    assert caught.value.reason == "not_finite_input"
    assert caught.value.where == "w"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_check_finite_names_tensor_and_index(tmp_path: Path, dtype: DType, value: float) -> None:
    values = np.zeros((2, 3))
    values[1, 0] = value
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "x", {"w": (dtype, values)}))
    with pytest.raises(ObmError) as caught:
        check_finite(checkpoint, "w", "fine-tune")
    assert caught.value.reason == "not_finite_input"
    assert caught.value.where == "w"
    assert "flat index 3 (1, 0)" in str(caught.value)
    assert "fine-tune" in str(caught.value)


def test_check_finite_passes_integers(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "x", {"w": (I64, [2**63 - 1])}))
    check_finite(checkpoint, "w", "backbone")
