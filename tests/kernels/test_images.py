"""Machine code on disk: run without numba, equal to numba's, and believed only where it may be."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("numba", reason="the fast kernels need numba")

from kernel_operands import Maker

from obm_format.kernels import Combine, ExactOperand, cpu, cpu_flat, cpu_loops, cpu_mixed, cpu_tables
from obm_format.kernels.cpu_compile import Kernel
from obm_format.kernels.cpu_images import SUFFIX, Images, signature_of
from obm_format.model import DType

LOOPS = """
import numpy as np

def weighed(values, weights, start, stop):
    total = np.zeros(4, np.int64)
    for i in range(start, stop):
        total[i % 4] += values[i] * weights[0] * weights[1]
    return total[0] + total[1], total[2] + total[3]

def half(number):
    return number / 2

def filled(values, number):
    for i in range(values.size):
        values[i] = number

def twice(values, number):
    filled(values, number + number)
"""


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of loops, in a folder that takes numba's files."""
    (tmp_path / "machine_loops.py").write_text(LOOPS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("machine_loops")
    del sys.modules["machine_loops"]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """An empty folder for machine code."""
    return Images(tmp_path / "kept", "0" * 64, "sources")


def files(images: Images) -> list[Path]:
    return sorted(images._folder.glob(f"*{SUFFIX}"))


def numba_was_asked(kernel: Kernel) -> bool:
    return "dispatcher" in vars(kernel)


def test_numbers_arrays_and_tuples_go_in_and_come_out(loops: ModuleType, images: Images) -> None:
    values, weights = np.arange(100), (3, np.int64(-2))
    first, second = Kernel(loops.weighed, images), Kernel(loops.weighed, images)
    expected = loops.weighed(values, weights, 10, 90)
    assert first(values, weights, 10, 90) == second(values, weights, 10, 90) == expected
    assert numba_was_asked(first)
    assert not numba_was_asked(second)
    assert len(files(images)) == 1


def test_each_signature_has_a_file_of_its_own(loops: ModuleType, images: Images) -> None:
    kernel = Kernel(loops.filled, images)
    for number in (7, np.uint32(2**32 - 1), np.float32(0.1), 0.25):
        for values in (np.zeros(4, np.float64), np.zeros(8)[::2], np.zeros((2, 4), np.float32)[1]):
            assert kernel(values, number) is None
            assert values.tolist() == np.full(4, number, values.dtype).tolist()
    assert len(files(images)) == 12


def test_a_loop_may_call_another(loops: ModuleType, images: Images) -> None:
    loops.filled = Kernel(loops.filled, images)
    for kernel in (Kernel(loops.twice, images), Kernel(loops.twice, images)):
        values = np.zeros(3, np.int64)
        kernel(values, 4)
        assert values.tolist() == [8, 8, 8]
    assert not numba_was_asked(kernel)


def test_what_only_numba_can_return_stays_with_numba(loops: ModuleType, images: Images) -> None:
    kernel = Kernel(loops.half, images)
    assert [kernel(3), kernel(5), kernel(True), kernel(0.5)] == [1.5, 2.5, 0.5, 0.25]
    assert files(images) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data.replace(b"_", b"-", 1), lambda data: b""])
def test_damaged_machine_code_is_made_anew(loops: ModuleType, images: Images, damage: object) -> None:
    Kernel(loops.filled, images)(np.zeros(3), 1)
    (path,) = files(images)
    sound = path.read_bytes()
    path.write_bytes(damage(sound))  # type: ignore[operator]
    kernel, values = Kernel(loops.filled, images), np.zeros(3)
    kernel(values, 2)
    assert values.tolist() == [2, 2, 2]
    assert numba_was_asked(kernel)
    assert path.read_bytes()[:40] == sound[:40]


def test_machine_code_that_others_may_write_is_not_run(loops: ModuleType, images: Images) -> None:
    Kernel(loops.filled, images)(np.zeros(3), 1)
    (path,) = files(images)
    path.chmod(0o666)
    assert images.load(loops.filled, signature_of((np.zeros(3), 1))[0]) is None
    path.chmod(0o644)
    assert images.load(loops.filled, signature_of((np.zeros(3), 1))[0]) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_machine_code_of_another_user_is_not_run(loops: ModuleType, images: Images) -> None:
    Kernel(loops.filled, images)(np.zeros(3), 1)
    (path,) = files(images)
    os.chown(path, 12345, -1)
    assert images.load(loops.filled, signature_of((np.zeros(3), 1))[0]) is None


def test_a_folder_that_cannot_be_written_is_done_without(loops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kernel, values = Kernel(loops.filled, Images(tmp_path / "file", "0" * 64, "sources")), np.zeros(3)
    for number in (1, 2):
        kernel(values, number)
        assert values.tolist() == [number] * 3


def test_other_sources_are_other_files(loops: ModuleType, tmp_path: Path) -> None:
    for known_by in ("a" * 64, "b" * 64):
        Kernel(loops.filled, Images(tmp_path / "kept", known_by, "sources"))(np.zeros(3), 1)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert Images(tmp_path / "kept", "a" * 64, "sources").are_there
    assert not Images(tmp_path / "kept", "c" * 64, "sources").are_there


WITHOUT_NUMBA = """
import sys
import numpy as np
from obm_format.kernels import select_kernels
from obm_format.model import DType
words = np.arange(5000, dtype=np.uint32)
kernels = select_kernels(1)
print(kernels.name, kernels.moved(words, words[::-1].copy()), "numba" in sys.modules)
"""


def test_loops_that_were_compiled_before_run_without_numba(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OBM_KERNELS": "numba"}
    said = [
        subprocess.run(
            [sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, check=True, env=environment
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["numba", "5000", "True"], ["numba", "5000", "False"]]


def test_merges_need_no_numba_once_they_are_compiled() -> None:
    maker, shape, kernels = Maker(0), (2, 300), cpu.NumbaKernels(1)
    for dtype in (DType.F32, DType.BF16):
        base = maker.words(shape, dtype)
        exact = ExactOperand(words=maker.words(shape, dtype), dtype=dtype)
        for others in ([exact, exact], [maker.sign(shape)], [exact, maker.sign(shape)]):
            kernels.merge(
                base, dtype, None, others,
                combine=Combine.TIES, weights=[1.0] * len(others), lam=1.0, out=base.copy(), out_dtype=dtype,
            )  # fmt: skip
    flat, tables = (cpu_flat.merge_reals, cpu_flat.merge_brains), [cpu_tables.merge_tiles_by_table]
    if cpu.HAS_SHUFFLES:
        tables.append(cpu_tables.add_tiles_by_table)
    for loop in (*flat, *tables, cpu_mixed.merge_mixed_tiles, cpu_loops.merge_tiles):
        assert loop._codes, f"{loop.__name__} was not called"
        assert None not in loop._codes.values(), f"{loop.__name__} goes through numba"
