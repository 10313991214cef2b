"""kill -9 at any step of a push and of a pull: the registry stays whole, and the next try ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from registry_files import REPOSITORY, registry_with_backbone, write_expert

from obm_registry.manifest import segments

KILLER = Path(__file__).parents[1] / "support" / "registry_killer.py"


@pytest.mark.parametrize(
    ("kind", "firsts", "stride", "least"),
    [
        ("push", [5], 23, 100),
        ("pull", [3], 9, 10),
        # all steps, half of them in each of two processes
        pytest.param("push", [0, 1], 2, 100, marks=pytest.mark.slow),
        pytest.param("pull", [0, 1], 2, 10, marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that it forks")
def test_killed_run_leaves_a_usable_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, firsts: list[int], stride: int, least: int
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_NBYTES", 1024)
    with registry_with_backbone(tmp_path) as registry:
        file = write_expert(tmp_path / "x.obm", tmp_path / "base", added_nbytes=1000)
        if kind == "pull":
            registry.push(file, f"{REPOSITORY}:chat")
    (tmp_path / "work").mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, KILLER, kind, str(first), str(stride), tmp_path / "home", file, tmp_path / "work"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for first in firsts
    ]
    ended = [(process.communicate(timeout=1200), process.returncode) for process in running]
    for (said, errors), status in ended:
        assert status == 0, said + errors
        assert int(said) > least
