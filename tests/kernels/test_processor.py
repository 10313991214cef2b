"""The processor as it is asked without numba is the one that numba compiles for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="the fast kernels need numba")

from obm_format.kernels.cpu_processor import has, processor_features

BOTH = """
from obm_format.kernels.cpu_processor import processor_features, processor_name
import sys
assert "numba" not in sys.modules
from numba.core.registry import cpu_target
name, features = cpu_target.target_context.codegen().magic_tuple()[1:3]
assert (processor_name(), processor_features()) == (name, features), (name, features)
"""


@pytest.mark.parametrize(
    "wishes",
    [{}, {"NUMBA_ENABLE_AVX": "0"}, {"NUMBA_CPU_NAME": "nocona"}, {"NUMBA_CPU_FEATURES": "+sse2,-avx2"}],
    ids=["as it is", "without AVX", "another name", "other features"],
)
def test_numba_sees_the_same(wishes: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOTH], env=os.environ | wishes, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stderr == ""


def test_a_feature_is_there_or_not() -> None:
    there = {feature[1:] for feature in processor_features().split(",") if feature[0] == "+"}
    assert there
    assert all(has(feature) for feature in there)
    assert not has("no-such-feature")
