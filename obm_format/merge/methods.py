"""The merge methods: what each is made of, which options it has, and what `compat` makes of it.

A recipe says what is wanted in a user's words; an `Arithmetic` says the same in the words of the functions
that compute. Never touches weights. Source: design, "Maths"; reference 1.5 to 1.8.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from obm_format.kernels.contract import Combine


class Method(enum.Enum):
    """How experts become weights."""

    ONE_BIT_MERGING = "1bit-merging"
    ROUTING = "routing"
    TIES = "ties"
    TASK_ARITHMETIC = "task-arithmetic"
    DARE = "dare"
    DARE_TIES = "dare-ties"
    AVERAGE = "average"


class Scope(enum.Enum):
    """What the other experts contribute: the tensors that they store approximately, or all of them."""

    COMPRESSED = "compressed"
    ALL = "all"


class TrimScope(enum.Enum):
    """Among which elements magnitudes are ranked: those of one tensor, or all that an expert contributes."""

    TENSOR = "tensor"
    GLOBAL = "global"


class Cut(enum.Enum):
    """Which elements a density keeps.

    INCLUSIVE: all down to a magnitude. EXACT: a number of them, of equal ones the first. RANDOM: each by
    chance. MATRIX: as INCLUSIVE, but a 1-bit matrix stays or goes as a whole.
    """

    INCLUSIVE = "inclusive"
    EXACT = "exact"
    RANDOM = "random"
    MATRIX = "matrix"


class When(enum.Enum):
    """Whether weights are multiplied before signs are elected, so that they take part, or after."""

    BEFORE = "before"
    AFTER = "after"


class Compat(enum.Enum):
    """Whose results to reproduce."""

    OFFICIAL = "official"
    MERGEKIT = "mergekit"
    PEFT = "peft"


class Rescale(enum.Enum):
    """What survivors are multiplied by: 1; 1 / density; or what restores the sum of magnitudes."""

    NONE = "none"
    DENSITY = "density"
    L1 = "l1"


class Divisor(enum.Enum):
    """What a sum is divided by: 1; the number of those that agree; or the sum of their weights."""

    NONE = "none"
    COUNT = "count"
    WEIGHTS = "weights"


class Count(enum.Enum):
    """How many of n elements a density keeps.

    UP and DOWN round density * n as the density is written. FLOAT_DOWN rounds the float64 product down;
    AT_LEAST_ONE as well, but to no less than 1 above density 0; ONE_MORE adds 1.
    """

    UP = "up"
    DOWN = "down"
    FLOAT_DOWN = "float-down"
    AT_LEAST_ONE = "at-least-one"
    ONE_MORE = "one-more"


@dataclass(frozen=True, slots=True)
class MethodRules:
    """What one method is made of.

    Args:
        routes: whether one expert is applied whole and the others are combined; else all are combined.
        combine: how task vectors become one; None when only the routed one counts.
        lam: default of `lam`.
        density: default of `density`.
        scope: default of `scope`.
        options: the recipe fields that mean something to this method.
        compat: whose results it can reproduce.
    """

    routes: bool
    combine: Combine | None
    lam: float
    scope: Scope = Scope.ALL
    density: float = 1.0
    options: frozenset[str] = frozenset()
    compat: frozenset[Compat] = frozenset()

    @property
    def drops(self) -> bool:
        """Whether elements go by chance rather than by magnitude."""
        return "seed" in self.options and "cut" not in self.options


_SHARED = frozenset({"lambda", "scope", "weight", "compat", "normalize"})
_TRIMS = _SHARED | {"density", "densities", "trim_scope", "cut", "weights", "seed", "rescale"}
_DROPS = _SHARED | {"density", "densities", "seed", "rescale"}
_PEERS = frozenset(Compat)

METHODS: dict[Method, MethodRules] = {
    Method.ONE_BIT_MERGING: MethodRules(
        True, Combine.TIES, 0.1, Scope.COMPRESSED, options=_TRIMS | {"route"}, compat=_PEERS
    ),
    Method.ROUTING: MethodRules(True, None, 0.0, options=frozenset({"route"})),
    Method.TIES: MethodRules(False, Combine.TIES, 1.0, options=_TRIMS, compat=_PEERS),
    Method.TASK_ARITHMETIC: MethodRules(False, Combine.SUM, 0.4, options=_SHARED, compat=_PEERS),
    Method.DARE: MethodRules(False, Combine.SUM, 0.4, density=0.8, options=_DROPS, compat=_PEERS),
    Method.DARE_TIES: MethodRules(
        False,
        Combine.TIES,
        1.0,
        density=0.8,
        options=_DROPS | {"weights"},
        compat=frozenset({Compat.MERGEKIT, Compat.PEFT}),
    ),
    Method.AVERAGE: MethodRules(False, Combine.MEAN, 1.0, options=_SHARED, compat=frozenset({Compat.MERGEKIT})),
}
# every expert by a weight, none whole: what `route: soft` makes of routing
SOFT_ROUTING = MethodRules(False, Combine.SUM, 1.0, options=frozenset({"route", "weight"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How the task vectors of the (other) experts become one.

    Args:
        combine: sum, mean or elected mean; None where nothing is combined.
        cut: how a density keeps elements.
        trim_scope: among which elements it ranks them.
        count: how many that are.
        rescale: what the kept ones are multiplied by.
        when: whether weights take part in the election.
        divisor: what the sum of those that agree, or of all, is divided by.
        zero_is_positive: whether the sign of a sum of 0 is +; else it is that of most elements of the model.
        whole: whether whole weights are summed rather than task vectors, so that no backbone is added.
        as_given: whether sums run in the order in which experts are given, not by artifact id.
    """

    combine: Combine | None
    cut: Cut = Cut.INCLUSIVE
    trim_scope: TrimScope = TrimScope.TENSOR
    count: Count = Count.UP
    rescale: Rescale = Rescale.NONE
    when: When = When.BEFORE
    divisor: Divisor = Divisor.NONE
    zero_is_positive: bool = True
    whole: bool = False
    as_given: bool = False


def own_arithmetic(rules: MethodRules) -> Arithmetic:
    """What a method does by default, before its options."""
    divisor = {Combine.TIES: Divisor.COUNT, Combine.MEAN: Divisor.WEIGHTS}
    found = Arithmetic(
        combine=rules.combine,
        divisor=Divisor.NONE if rules.combine is None else divisor.get(rules.combine, Divisor.NONE),
    )
    return replace(found, cut=Cut.RANDOM, rescale=Rescale.DENSITY) if rules.drops else found


def peer_arithmetic(rules: MethodRules, compat: Compat, normalize: bool | None) -> Arithmetic:
    """What a peer does where it has the method: the table of differences in docs/merging.md.

    Args:
        rules: of the method.
        compat: the peer; one of `rules.compat`.
        normalize: mergekit's parameter of that name; None for its default.
    """
    own = replace(own_arithmetic(rules), as_given=True)
    is_ties = rules.combine is Combine.TIES
    match compat:
        case Compat.OFFICIAL if is_ties:
            return replace(own, trim_scope=TrimScope.GLOBAL, count=Count.ONE_MORE, zero_is_positive=False)
        case Compat.MERGEKIT:
            divides = (
                normalize if normalize is not None else (rules.combine is Combine.MEAN or (is_ties and not rules.drops))
            )
            own = replace(
                own, divisor=Divisor.WEIGHTS if divides else Divisor.NONE, whole=rules.combine is Combine.MEAN
            )
            if rules.drops:
                return replace(own, rescale=Rescale.L1)
            return replace(own, cut=Cut.EXACT, count=Count.AT_LEAST_ONE) if is_ties else own
        case Compat.PEFT if is_ties and rules.drops:
            return replace(own, when=When.AFTER)
        case Compat.PEFT if is_ties:
            return replace(own, cut=Cut.EXACT, count=Count.FLOAT_DOWN, when=When.AFTER)
        case _:
            return own
