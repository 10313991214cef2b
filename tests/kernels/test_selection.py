"""Which kernels are chosen, what they refuse, and how they live with threads and processes."""

from __future__ import annotations

import builtins
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_operands import Maker, make_kernels

import obm_format.kernels as package
from obm_format.errors import UsageError
from obm_format.kernels import Combine, ExactOperand, Kernels, Operand, SignOperand, ValueOperand, select_kernels
from obm_format.model import DType

GOOD = Maker(0).sign((2, 16))


def test_numba_is_preferred_and_the_environment_can_overrule(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    monkeypatch.delenv("OBM_KERNELS", raising=False)
    assert select_kernels().name == "numba"
    assert select_kernels(threads=5).threads == 5
    assert select_kernels(prefer="reference").name == "reference"
    monkeypatch.setenv("OBM_KERNELS", "reference")
    assert select_kernels().name == "reference"
    assert select_kernels(prefer="numba").name == "numba"


def test_without_numba_the_reference_is_taken_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def refusing(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith(("obm_format.kernels.cpu", "numba")):
            raise ImportError("no numba here")
        return real(name, *args, **kwargs)  # type: ignore[arg-type] # passed through as they came

    monkeypatch.setattr(builtins, "__import__", refusing)
    monkeypatch.setattr(package, "_told", set())
    monkeypatch.delenv("OBM_KERNELS", raising=False)
    with caplog.at_level(logging.WARNING, logger="obm_format.kernels"):
        assert [select_kernels().name, select_kernels().name] == ["reference", "reference"]
    (record,) = caplog.records
    assert record.getMessage() == "numba cannot be used: no numba here; NumPy does its work, many times slower"
    with pytest.raises(UsageError) as caught:
        select_kernels(prefer="numba")
    assert caught.value.reason == "missing_dependency"


@pytest.mark.parametrize(("threads", "prefer"), [(0, None), (-1, None), (1, "cuda")])
def test_nonsense_choices_are_refused(threads: int, prefer: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        select_kernels(threads, prefer)
    assert caught.value.reason == "usage"


def test_calls_from_many_threads_at_once_do_not_disturb_each_other() -> None:
    kernels, maker, shape = make_kernels("numba-3-threads"), Maker(1), (64, 4096)
    base, operand = maker.words(shape, DType.BF16), maker.sign(shape)

    def merge(_: int) -> bytes:
        out = np.zeros_like(base)
        kernels.merge(
            base, DType.BF16, operand, [], combine=Combine.TIES, weights=[], lam=0.1, out=out, out_dtype=DType.BF16
        )
        return out.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(merge, range(16)))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_kernels_work_in_a_forked_child() -> None:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    script = """
import os, numpy as np
from obm_format.kernels import select_kernels
kernels, d = select_kernels(2), np.ones((600, 600), np.float32)
kernels.pack_signs(d)
pid = os.fork()
if pid == 0:
    kernels.pack_signs(d)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "7", done.stderr


def broken(**changes: object) -> SignOperand:
    fields = {"bits": GOOD.bits, "alphas": GOOD.alphas, "group": GOOD.group, "cols": GOOD.cols} | changes
    return SignOperand(**fields)  # type: ignore[arg-type] # broken on purpose


BAD_OPERANDS: dict[str, tuple[Operand, str]] = {
    "no planes": (broken(bits=(), alphas=()), "usage"),
    "alphas missing": (broken(alphas=()), "usage"),
    "group zero": (broken(group=0), "usage"),
    "group inside a byte": (broken(group=4), "usage"),
    "bits too short": (broken(bits=(GOOD.bits[0][:, :1],)), "bad_shape"),
    "bits of another type": (broken(bits=(GOOD.bits[0].astype(np.int16),)), "bad_shape"),
    "alphas too many": (broken(group=8), "bad_shape"),
    "alphas of another type": (broken(alphas=(GOOD.alphas[0].astype(np.float64),)), "bad_shape"),
    "other columns": (Maker(0).sign((2, 15)), "bad_shape"),
    "values of another type": (ValueOperand(values=np.zeros((2, 16), np.float64)), "bad_shape"),
    "values of another shape": (ValueOperand(values=np.zeros((2, 8), np.float32)), "bad_shape"),
    "words of another width": (ExactOperand(words=np.zeros((2, 16), np.uint32), dtype=DType.BF16), "bad_shape"),
    "words not contiguous": (ExactOperand(words=np.zeros((2, 32), np.uint16)[:, ::2], dtype=DType.F16), "bad_shape"),
    "integers": (ExactOperand(words=np.zeros((2, 16), np.uint16), dtype=DType.I16), "unsupported_dtype"),
}


@pytest.mark.parametrize("case", BAD_OPERANDS)
def test_operands_that_do_not_fit_are_refused(kernels: Kernels, case: str) -> None:
    operand, reason = BAD_OPERANDS[case]
    base = np.zeros((2, 16), np.uint16)
    for routed, others in ((operand, []), (None, [operand])):
        with pytest.raises(UsageError) as caught:
            kernels.merge(
                base, DType.BF16, routed, others, combine=Combine.SUM, weights=[1] * len(others), lam=1,
                out=base.copy(), out_dtype=DType.BF16,
            )  # fmt: skip
        assert caught.value.reason == reason
    with pytest.raises(UsageError):
        kernels.absorbed(base, DType.BF16, operand, DType.BF16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": []}, "usage"),
        ({"out": np.zeros((2, 15), np.uint16)}, "bad_shape"),
        ({"out": np.zeros((2, 16), np.uint32)}, "bad_shape"),
        ({"out_dtype": DType.F64}, "unsupported_dtype"),
    ],
)
def test_outputs_and_weights_that_do_not_fit_are_refused(
    kernels: Kernels, change: dict[str, object], reason: str
) -> None:
    base = np.zeros((2, 16), np.uint16)
    arguments = {
        "combine": Combine.SUM, "weights": [1.0], "lam": 1.0, "out": base.copy(), "out_dtype": DType.BF16,
    } | change  # fmt: skip
    with pytest.raises(UsageError) as caught:
        kernels.merge(base, DType.BF16, None, [GOOD], **arguments)  # type: ignore[arg-type] # wrong on purpose
    assert caught.value.reason == reason


def test_a_read_only_output_is_refused(kernels: Kernels) -> None:
    out = np.zeros((2, 16), np.uint16)
    out.flags.writeable = False
    with pytest.raises(UsageError):
        kernels.merge(out, DType.BF16, GOOD, [], combine=Combine.SUM, weights=[], lam=1, out=out, out_dtype=DType.BF16)


@pytest.mark.parametrize("bounds", [[], [0, 5], [-1, 2], [0, 3, 1]])
def test_group_bounds_outside_the_values_are_refused(kernels: Kernels, bounds: list[int]) -> None:
    with pytest.raises(UsageError):
        kernels.group_sums(np.zeros(4, np.float32), np.array(bounds, np.int64))


@pytest.mark.parametrize("bounds", [[], [0, 5], [-1, 4], [0, 3, 1, 4], [1, 4], [0, 3]])
def test_packing_groups_that_do_not_cover_the_matrix_is_refused(kernels: Kernels, bounds: list[int]) -> None:
    words = np.zeros((2, 2), np.uint16)
    with pytest.raises(UsageError):
        kernels.pack(words, DType.F16, words, DType.F16, np.array(bounds, np.int64))


@pytest.mark.parametrize(("tuned", "base"), [((2, 3), (3, 2)), ((6,), (6,)), ((1, 2, 3), (1, 2, 3))])
def test_packing_anything_but_two_matrices_of_one_shape_is_refused(
    kernels: Kernels, tuned: tuple[int, ...], base: tuple[int, ...]
) -> None:
    a, b = np.zeros(tuned, np.uint16), np.zeros(base, np.uint16)
    with pytest.raises(UsageError) as caught:
        kernels.pack(a, DType.F16, b, DType.F16, np.array([0, 6]))
    assert caught.value.reason == "bad_shape"


def test_tensors_of_different_shape_are_refused(kernels: Kernels) -> None:
    a, b = np.zeros((2, 3), np.uint16), np.zeros((3, 2), np.uint16)
    for call in (lambda: kernels.subtract(a, DType.F16, b, DType.F16), lambda: kernels.moved(a, b)):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.reason == "bad_shape"
