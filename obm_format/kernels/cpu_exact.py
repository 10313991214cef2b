# ruff: noqa: ANN401 - numba and LLVM objects are untyped
# mypy: allow-untyped-calls, allow-untyped-decorators
"""Merges with exact operands, elements of one kind in and out, as LLVM vector instructions.

Exact operands alone for `cpu_flat`; one of them and a sign operand for `cpu_mixed`. From the words to the output in
registers, 32 elements at a time: what each operand brings is subtracted, trimmed and weighted, combined by a rule,
multiplied by lam, added and rounded (obm-1 clauses 9.2 and 9.3). On the way the largest magnitude of all is noted and
what moved is counted, so that nobody has to look at the same memory again for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped] # it carries no types
from numba import types
from numba.core import cgutils

from obm_format.kernels.cpu_brains import brains_at, rounded, store_brains
from obm_format.kernels.cpu_loops import TRIMMED
from obm_format.kernels.cpu_names import MOST, STEP
from obm_format.kernels.cpu_rules import (
    Rule,
    elected_of_two,
    rule_of_mean,
    rule_of_sum,
    rule_of_ties,
    rule_of_ties_of_two,
    turns,
)
from obm_format.kernels.cpu_vectors import (
    I16,
    I32,
    I64,
    REAL,
    broadcast,
    constant,
    intrinsic,
    like,
    load,
    shuffled,
    store,
)

_LANES = STEP // 2
_REALS = ir.VectorType(REAL, _LANES)
_OP, _WORDS, _LEAST, _HEAD = 40, 8, 24, 32  # bytes: a row of `cpu_loops.Operands.ops`, and where it has what


class _Kind(NamedTuple):
    """How 32 elements lie in memory: their words, how two vectors of them are read and put into words, and places."""

    word: Any
    read: Callable[[Any, Any], list[Any]]
    words: Callable[[Any, list[Any]], Any]
    places: tuple[list[int], list[int]]

    @property
    def nbytes(self) -> int:
        """Of an element."""
        return int(self.word.width) // 8


def _read_reals(builder: Any, address: Any) -> list[Any]:
    return [load(builder, address, _REALS, offset) for offset in (0, 4 * _LANES)]


def _reals(builder: Any, parts: list[Any]) -> Any:
    return builder.bitcast(shuffled(builder, parts[0], parts[1], list(range(STEP))), ir.VectorType(I32, STEP))


_REAL_KIND = _Kind(I32, _read_reals, _reals, (list(range(_LANES)), list(range(_LANES, STEP))))
_BRAIN_KIND = _Kind(
    I16,
    lambda builder, address: brains_at(builder, address, _LANES),
    lambda builder, parts: rounded(builder, parts[0], parts[1]),
    (list(range(0, STEP, 2)), list(range(1, STEP, 2))),
)


class _Sight(NamedTuple):
    """What was seen so far, on the stack: the largest magnitudes as integers, lane by lane, and how many moved."""

    most: Any
    moved: Any

    @classmethod
    def begin(cls, builder: Any) -> _Sight:
        """Nothing yet."""
        most = cgutils.alloca_once_value(builder, constant(I32, 0, _LANES))
        return cls(most, cgutils.alloca_once_value(builder, I64(0)))

    def look(self, builder: Any, values: Any) -> None:
        """Note the magnitudes of 16 floats."""
        most, bits = builder.load(self.most), builder.bitcast(values, ir.VectorType(I32, _LANES))
        magnitude = builder.and_(bits, like(bits, 0x7FFF_FFFF))
        is_larger = builder.icmp_unsigned(">", magnitude, most)
        builder.store(builder.select(is_larger, magnitude, most), self.most)

    def compare(self, builder: Any, before: Any, after: Any) -> None:
        """Count the words of 32 that differ."""
        differ = builder.bitcast(builder.icmp_unsigned("!=", before, after), ir.IntType(STEP))
        count = builder.zext(builder.ctpop(differ), I64)
        builder.store(builder.add(builder.load(self.moved), count), self.moved)

    def results(self, builder: Any) -> list[Any]:
        """The largest magnitude, and how many moved, as int64."""
        most, lanes = builder.load(self.most), _LANES
        while lanes > 1:
            lanes //= 2
            low, high = (shuffled(builder, most, most, list(range(at, at + lanes))) for at in (0, lanes))
            most = builder.select(builder.icmp_unsigned(">", low, high), low, high)
        return [builder.zext(builder.extract_element(most, I32(0)), I64), builder.load(self.moved)]


def _trimmed(builder: Any, row: Any, parts: list[Any], at: Any, kind: _Kind) -> list[Any]:
    """+0 where a magnitude is below the operand's threshold, or equal to it and not before its last place."""
    least = broadcast(builder, builder.trunc(load(builder, row, I64, _LEAST), I32), _LANES)
    left = builder.sub(load(builder, row, I64, _HEAD), at)  # places from here on at which an equal magnitude stays
    left = builder.select(builder.icmp_signed("<", left, I64(0)), I64(0), left)
    left = builder.select(builder.icmp_signed(">", left, I64(STEP)), I64(STEP), left)
    heads = broadcast(builder, builder.trunc(left, I32), _LANES)
    kept = []
    for part, places in zip(parts, kind.places, strict=True):
        bits = builder.bitcast(part, least.type)
        is_late = builder.icmp_signed(">=", ir.Constant(least.type, places), heads)
        wanted = builder.add(least, builder.zext(is_late, least.type))
        magnitude = builder.and_(bits, like(bits, 0x7FFF_FFFF))
        keeps = builder.icmp_signed(">=", magnitude, wanted)
        kept.append(builder.select(keeps, part, like(part, 0.0)))
    return kept


class _Operands(NamedTuple):
    """Addresses of `cpu_loops.Operands`, and how many operands there are."""

    ops: Any
    weights: Any
    count: Any


def _differences(
    builder: Any, kind: _Kind, operands: _Operands, k: Any, at: Any, grounds: list[Any], sight: _Sight
) -> list[Any]:
    """Weighted values of operand k from place `at` on, `grounds` being the backbone's; what is trimmed is looked at."""
    row = builder.add(operands.ops, builder.mul(k, I64(_OP)))
    words = kind.read(builder, builder.add(load(builder, row, I64, _WORDS), builder.mul(at, I64(kind.nbytes))))
    values = [builder.fsub(part, ground) for part, ground in zip(words, grounds, strict=True)]
    kept = [cgutils.alloca_once_value(builder, value) for value in values]
    with builder.if_then(builder.icmp_signed("==", load(builder, row, I64), I64(TRIMMED))):
        for value in values:
            sight.look(builder, value)
        for value, to in zip(_trimmed(builder, row, values, at, kind), kept, strict=True):
            builder.store(value, to)
    weight = load(builder, builder.add(operands.weights, builder.mul(k, I64(4))), REAL)
    return [builder.fmul(builder.load(value), broadcast(builder, weight, _LANES)) for value in kept]


def _row_value(builder: Any, row: Any, k: Any) -> Any:
    return builder.load(builder.gep(row, [k]))


def _merge_step(
    builder: Any, kind: _Kind, rule: Rule, operands: _Operands, places: Any, at: Any, lam: Any, sight: _Sight
) -> None:
    """Merge 32 elements from place `at` on; `places` are the addresses of output, source and backbone there.

    A word that is not finite, the backbone's or an operand's, makes a sum of differences that is not.
    """
    out, source, base = places
    rows = [cgutils.alloca_once(builder, _REALS, size=MOST) for _ in range(2)]
    grounds, before = kind.read(builder, base), load(builder, base, ir.VectorType(kind.word, STEP))
    for k in turns(builder, operands.count):
        values = _differences(builder, kind, operands, k, at, grounds, sight)
        for value, row in zip(values, rows, strict=True):
            builder.store(value, builder.gep(row, [k]))
    merged = []
    for part, row in zip(kind.read(builder, source), rows, strict=True):
        bring = partial(_row_value, builder, row)
        sight.look(builder, rule_of_sum(builder, bring, operands.count))
        total = rule(builder, bring, operands.count)
        merged.append(builder.fadd(part, builder.fmul(total, broadcast(builder, lam, _LANES))))
        sight.look(builder, merged[-1])
    words = kind.words(builder, merged)
    sight.compare(builder, before, words)
    store(builder, words, out)


def _merger(kind: _Kind, rule: Rule, known: int | None = None) -> Any:
    @intrinsic
    def merge(typing: Any, places: Any, ops: Any, weights: Any, count: Any, lam: Any, at: Any, steps: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            places, ops, weights, count, lam, at, steps = args
            places = cgutils.unpack_tuple(builder, places)
            sight = _Sight.begin(builder)
            with cgutils.for_range(builder, steps) as loop:
                done = builder.mul(loop.index, I64(STEP))
                here = [builder.add(place, builder.mul(done, I64(kind.nbytes))) for place in places]
                operands = _Operands(ops, weights, count if known is None else known)
                _merge_step(builder, kind, rule, operands, here, builder.add(at, done), lam, sight)
            return context.make_tuple(builder, signature.return_type, sight.results(builder))

        address, number = types.int64, types.int64
        places_type, seen = types.UniTuple(address, 3), types.UniTuple(types.int64, 2)
        return seen(places_type, address, address, number, types.float32, number, number), build

    return merge


# merge_X(places, ops, weights, count, lam, at, steps): merge `steps` times 32 elements from place `at` on; `places` are
# the addresses of output, source and backbone there, `ops` and `weights` those of `cpu_loops.Operands`, whose operands
# have the address of their place 0. Returns the largest of some magnitudes, as an integer, and how many words are not
# the backbone's; where a word that was read is not finite, or a result before it is rounded, so is that magnitude
sum_reals, mean_reals, elect_reals = (_merger(_REAL_KIND, rule) for rule in (rule_of_sum, rule_of_mean, rule_of_ties))
sum_brains, mean_brains, elect_brains = (
    _merger(_BRAIN_KIND, rule) for rule in (rule_of_sum, rule_of_mean, rule_of_ties)
)
elect_reals_of_two, elect_brains_of_two = (_merger(kind, rule_of_ties_of_two, 2) for kind in (_REAL_KIND, _BRAIN_KIND))
elect_reals_of_three, elect_brains_of_three = (_merger(kind, rule_of_ties, 3) for kind in (_REAL_KIND, _BRAIN_KIND))

# --- one exact and one sign operand -------------------------------------------------------------------------


def _signs(builder: Any, word: Any, low: Any, high: Any) -> list[Any]:
    """The values of 32 sign bits, those at even places and then those at odd ones."""
    bits, zero = broadcast(builder, word, _LANES), constant(I32, 0, _LANES)
    values = []
    for places in _BRAIN_KIND.places:  # each bit is moved to the sign of its lane
        distances = ir.Constant(bits.type, [STEP - 1 - place for place in places])
        is_set = builder.icmp_signed("<", builder.shl(bits, distances), zero)
        values.append(builder.select(is_set, *(broadcast(builder, value, _LANES) for value in (high, low))))
    return values


def _mixed_step(builder: Any, places: list[Any], signs: list[list[Any]], weight: Any, lam: Any) -> None:
    """Merge 32 elements; `signs` are the values of the sign operand and, where there is one, of the routed operand."""
    out, source, base, exact = places
    reads = (brains_at(builder, place, _LANES) for place in (source, base, exact))
    merged = []
    for start, ground, tuned, sign, *routed in zip(*reads, *signs, strict=True):
        d = builder.fmul(builder.fsub(tuned, ground), broadcast(builder, weight, _LANES))
        shift = builder.fmul(elected_of_two(builder, d, sign), broadcast(builder, lam, _LANES))
        for value in routed:
            shift = builder.fadd(value, shift)
        merged.append(builder.fadd(start, shift))
    store_brains(builder, merged[0], merged[1], out)


@intrinsic
def merge_mixed(typing: Any, places: Any, bits: Any, choices: Any, weight: Any, lam: Any, words: Any) -> Any:
    """Merge `words` times 32 BF16 elements under TIES of one exact and one sign operand, with or without a routed sign.

    `places` are the addresses of output, source, backbone and the exact operand's words; `bits` those of the sign
    operand's bits, then of the routed one's; `choices` their values for a clear and a set bit, the sign operand's times
    its weight; `weight` that of the exact operand.
    """
    experts = len(bits)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places, bits, choices = (cgutils.unpack_tuple(builder, one) for one in args[:3])
        weight, lam, words = args[3:]
        with cgutils.for_range(builder, words) as loop:
            at = builder.mul(loop.index, I64(2 * STEP))
            signs = [
                _signs(builder, load(builder, builder.add(place, builder.mul(loop.index, I64(4))), I32), low, high)
                for place, low, high in zip(bits, choices[0::2], choices[1::2], strict=True)
            ]
            _mixed_step(builder, [builder.add(place, at) for place in places], signs, weight, lam)
        return context.get_dummy_value()

    real, address, tuple_of = types.float32, types.int64, types.UniTuple
    numbers = tuple_of(address, experts), tuple_of(real, 2 * experts), real, real, types.int64
    return types.void(tuple_of(address, 4), *numbers), build
