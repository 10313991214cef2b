"""When there are fused kernels, and what is said where there are none."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable

import pytest
import torch

from obm_format.device import device_kernels

CUDA = torch.device("cuda")


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *args: object, **kwargs: object) -> object:
        if name == "triton":
            raise ImportError("no triton here")
        return real(name, *args, **kwargs)  # type: ignore[arg-type] # passed through as they came

    monkeypatch.setattr(builtins, "__import__", refusing)


def old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("triton", reason="the GPU kernels need triton"), "__version__", "3.5.1")


def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def nothing(_: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("device", "prepare", "reason"),
    [
        ("cpu", nothing, "the fused kernels are for CUDA"),
        ("mps", nothing, "the fused kernels are for CUDA"),
        ("cuda:1", interpreter, "TRITON_INTERPRET is set"),
        ("cuda", without_triton, "triton cannot be used (no triton here); pip install 'obm-format[triton]'"),
        ("cuda", old_triton, "triton 3.5.1 does not divide exactly; 3.6 does"),
    ],
)
def test_without_fused_kernels_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    prepare: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    prepare(monkeypatch)
    with caplog.at_level(logging.INFO, logger="obm_format.device"):
        assert device_kernels(torch.device(device)) is None
    assert [record.getMessage() for record in caplog.records] == [f"merging on the CPU for {device}: {reason}"]


def test_cuda_with_a_recent_triton_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the GPU kernels need triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels = device_kernels(CUDA)
    assert kernels is not None
    assert kernels.name == "triton"
