"""Compiles what `TritonKernels` launches, for GPUs that are not there: `python compile_kernels.py CAPABILITY [FUSED]`.

Triton brings its own assembler, so the way from the kernels to machine code can be gone on any machine. The launches of
a few calls on CPU tensors are compiled instead of run. Prints JSON: kernel name to the PTX instructions in it. With
FUSED the launches may fuse, to show that the test can see it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict

import numpy as np
import torch
import triton
from kernel_operands import Maker
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime import jit

from obm_format.device import triton as launchers
from obm_format.device.operands import FLOATS, Placed, PlacedExact, PlacedValue, place_operand
from obm_format.kernels.contract import Combine, ZeroOperand
from obm_format.model import DType

TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
FOUND: defaultdict[str, set[str]] = defaultdict(set)
INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z]+(?:\.[a-z0-9_:]+)+)\s", re.M)


def compile_only(self: jit.JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
    """Stands in for `JITFunction.run`: the same binding of arguments, and no launch."""
    kwargs |= {"debug": False, "instrumentation_mode": ""}
    backend = make_backend(TARGET)
    binder = jit.create_function_from_signature(self.signature, self.params, backend)
    bound, specialization, options = binder(*args, **kwargs)
    options, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
    compiled = triton.compile(
        ASTSource(self, signature, constants, attributes), target=TARGET, options=options.__dict__
    )
    assert compiled.asm["cubin"]
    FOUND[self.__name__].update(INSTRUCTION.findall(compiled.asm["ptx"]))


def launch_all() -> None:
    """Every kernel, and of merge every kind of operand, combination and dtype at least once."""
    launch((32, 1040), list(FLOATS))
    for shape in ((1, 1), (1, 1040), (40, 1), (3, 7)):  # a size of 1 is a constant of the compiled kernel
        launch(shape, [DType.BF16])


def launch(shape: tuple[int, int], dtypes: list[DType]) -> None:
    """The launches of all calls for one shape."""
    kernels, maker, (rows, cols) = launchers.TritonKernels(), Maker(1), shape
    makings = ((1, 0), (2, 64), (1, -1), (1, 256))  # planes and group: by row, by columns, one for all, and wide ones
    row, narrow, one, wide = (
        place_operand(maker.sign(shape, planes=planes, group=group), torch.from_numpy) for planes, group in makings
    )
    tensors = {dtype: torch.from_numpy(maker.words(shape, dtype)).view(FLOATS[dtype]) for dtype in FLOATS}
    base, value = tensors[DType.BF16], PlacedValue(values=tensors[DType.F32])
    exact = PlacedExact(values=tensors[DType.F16])
    mixed: list[Placed] = [row, narrow, exact, value, ZeroOperand()]
    cases: list[tuple[Combine, Placed | None, list[Placed], DType]] = [
        *((combine, narrow, mixed, DType.BF16) for combine in list(Combine)[-len(dtypes) :]),
        *((Combine.TIES, exact, [row, wide], out) for out in dtypes),
        (Combine.TIES, None, [one, one], DType.BF16),
        (Combine.SUM, one, [], DType.F16),
        (Combine.SUM, None, [], DType.F32),
    ]
    for combine, routed, others, out_dtype in cases:
        out = torch.empty(shape, dtype=FLOATS[out_dtype])
        kernels.merge(base, routed, others, combine=combine, weights=[0.3] * len(others), lam=0.1, out=out)
    for operand in mixed:
        kernels.absorbed(base, operand, torch.bfloat16)
    kernels.sign_values(narrow)
    kernels.pack_signs(tensors[DType.F32])
    for bounds in (np.arange(rows + 1) * cols, np.array([0, min(5, rows * cols), rows * cols])):
        kernels.pack(tensors[DType.F32], base, bounds)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        launchers._EXACTLY["enable_fp_fusion"] = True
    jit.JITFunction.run = compile_only
    launch_all()
    sys.stdout.write(json.dumps({name: sorted(found) for name, found in FOUND.items()}))
