# ruff: noqa: ANN401 - numba and LLVM objects are untyped
# mypy: allow-untyped-calls, allow-untyped-decorators
"""Vectors in LLVM's own language: types, constants, loads and stores, for the steps of `cpu_lanes` and its siblings.

No operation here carries a fast-math flag.
"""

from __future__ import annotations

from typing import Any

import numba.extending
from llvmlite import ir  # type: ignore[import-untyped] # it carries no types

intrinsic: Any = numba.extending.intrinsic  # what it returns takes other arguments than what it is given
I1, I8, I16, I32, I64, REAL = (*map(ir.IntType, (1, 8, 16, 32, 64)), ir.FloatType())


def constant(kind: Any, number: float, lanes: int) -> Any:
    """A number in all lanes."""
    return ir.Constant(ir.VectorType(kind, lanes), [number] * lanes)


def like(vector: Any, number: float) -> Any:
    """A number in all lanes of a vector of the same type."""
    return constant(vector.type.element, number, vector.type.count)


def shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """The lanes of `a` and `b`, counted on, at these places."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


def broadcast(builder: Any, value: Any, lanes: int) -> Any:
    """A scalar in all lanes."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    return shuffled(builder, builder.insert_element(nothing, value, I32(0)), nothing, [0] * lanes)


def pointer_at(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    """A pointer to what is `offset` bytes after an address."""
    return builder.inttoptr(builder.add(address, I64(offset)) if offset else address, kind.as_pointer())


def load(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    """What is at an address, of any alignment."""
    return builder.load(pointer_at(builder, address, kind, offset), align=1)


def store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    """Put a value at an address, of any alignment."""
    builder.store(value, pointer_at(builder, address, value.type, offset), align=1)
