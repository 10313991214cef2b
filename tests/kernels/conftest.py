"""The kernels under test."""

from __future__ import annotations

import pytest
from kernel_operands import IMPLEMENTATIONS, make_kernels

from obm_format.kernels import Kernels


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each implementation in turn."""
    return make_kernels(request.param)
