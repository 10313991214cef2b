"""The GPU kernels compile for real GPUs, into instructions that round once per operation and flush nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the GPU kernels need triton")

SCRIPT = Path(__file__).parents[1] / "support/compile_kernels.py"
KERNELS = {
    "merge_tiles",
    "make_tables",
    "merge_tiles_by_table",
    "value_tiles",
    "absorbed_tiles",
    "pack_runs",
    "pack_tiles",
}
INEXACT = re.compile(r"^(fma|mad)\.(rn\.)?(ftz\.)?f(32|64)|\.ftz|\.approx|^div\.full")


def compiled(folder: Path, *arguments: str) -> dict[str, list[str]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_to_exact_instructions(tmp_path: Path, capability: str) -> None:
    found = compiled(tmp_path, capability)
    assert found.keys() == KERNELS
    assert not {name: bad for name, all_ in found.items() if (bad := [op for op in all_ if INEXACT.search(op)])}
    for name in ("merge_tiles", "make_tables"):
        assert {"add.rn.f32", "mul.rn.f32", "div.rn.f32"} <= set(found[name])
    assert {"add.rn.f64", "mul.rn.f64"} <= set(found["pack_runs"])


@pytest.mark.slow
def test_a_fused_multiply_add_would_be_seen(tmp_path: Path) -> None:
    assert any(INEXACT.search(op) for op in compiled(tmp_path, "90", "fused")["merge_tiles"])
