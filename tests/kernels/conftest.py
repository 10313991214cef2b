"""The kernels under test."""

from __future__ import annotations

import math
import os
from collections import defaultdict

import pytest
from kernel_operands import IMPLEMENTATIONS, make_kernels

from obm_format.kernels import Kernels

# Triton's interpreter takes a tenth of a second per merge. Of tests with so many cases it sees a sample, at a stride
# that is prime to the number of each parameter's values, so that all of those are in it; a GPU sees every case.
MANY = 100
QUICK, SLOW = 11, 3
LONG = 20_000  # elements from which on it takes many seconds to add them in order


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each implementation in turn."""
    return make_kernels(request.param)


@pytest.fixture(params=[1, 3])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """The compiled kernels on so many threads, which share small tensors too."""
    from obm_format.kernels import cpu

    monkeypatch.setattr(cpu, "_INLINE", 64)
    return cpu.NumbaKernels(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the interpreter needs long for are slow tests, or none."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    cases: defaultdict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and "triton" in implementations(item):
            cases[item.originalname].append(item)
    left_out = [item for name, same in cases.items() for item in sampled(name, same)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def sampled(name: str, same: list[pytest.Function]) -> list[pytest.Function]:
    """Mark the slow cases of one test; those that are left out."""
    left_out = []
    for place, item in enumerate(same):
        is_long = ("pack" in name or "sums" in name) and elements(item) > LONG
        is_quick = len(same) <= MANY or place % QUICK == 0
        if not is_quick and (is_long or place % SLOW):
            left_out.append(item)
        elif not is_quick or is_long:
            item.add_marker(pytest.mark.slow)
    return left_out


def parameters(item: pytest.Function) -> dict[str, object]:
    """The parameters of a test case."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def implementations(item: pytest.Function) -> list[str]:
    """The kernels that a test case is about."""
    return [value for value in parameters(item).values() if isinstance(value, str)]


def elements(item: pytest.Function) -> int:
    """Elements of the matrix, or of all groups, that a case is about."""
    sizes, shape = parameters(item).get("sizes", ()), parameters(item).get("shape", (0,))
    return max(sum(sizes), math.prod(shape))
