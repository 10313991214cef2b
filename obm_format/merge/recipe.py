"""Recipes: which method merges which experts, with which numbers; parsed strictly, with a digest.

Every option of a method has its default here. An option that a method does not know, or that is not built, is
refused, never ignored. Never touches weights. Source: design, "Maths"; reference 1.5 to 1.8.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from obm_format.container.canonical import encode_canonical
from obm_format.digest import sha256
from obm_format.errors import UsageError
from obm_format.kernels.contract import Combine
from obm_format.model import DType

NO_ROUTE = "none"  # the explicit route on which no expert is applied whole
RECIPE_NBYTES = 1 << 20
MAX_SEED = 2**64 - 1


class Method(enum.Enum):
    """How experts become weights."""

    ONE_BIT_MERGING = "1bit-merging"
    ROUTING = "routing"
    TIES = "ties"
    TASK_ARITHMETIC = "task-arithmetic"
    DARE = "dare"
    AVERAGE = "average"


class Scope(enum.Enum):
    """What the other experts contribute: the tensors that they store approximately, or all of them."""

    COMPRESSED = "compressed"
    ALL = "all"


class Cut(enum.Enum):
    """Which elements a density keeps where magnitudes are equal; see `ties.trim`."""

    INCLUSIVE = "inclusive"
    EXACT = "exact"


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
    """

    routes: bool
    combine: Combine | None
    lam: float
    scope: Scope = Scope.ALL
    density: float = 1.0
    options: frozenset[str] = frozenset()


_TIES_OPTIONS = frozenset({"lambda", "scope", "density", "weight", "trim_scope", "cut", "weights", "compat"})

METHODS: dict[Method, MethodRules] = {
    Method.ONE_BIT_MERGING: MethodRules(True, Combine.TIES, 0.1, Scope.COMPRESSED, options=_TIES_OPTIONS | {"route"}),
    Method.ROUTING: MethodRules(True, None, 0.0, options=frozenset({"route"})),
    Method.TIES: MethodRules(False, Combine.TIES, 1.0, options=_TIES_OPTIONS),
    Method.TASK_ARITHMETIC: MethodRules(
        False, Combine.SUM, 0.4, options=frozenset({"lambda", "scope", "weight", "compat"})
    ),
    Method.DARE: MethodRules(
        False,
        Combine.SUM,
        0.4,
        density=0.8,
        options=frozenset({"lambda", "scope", "density", "weight", "seed", "compat"}),
    ),
    Method.AVERAGE: MethodRules(False, Combine.MEAN, 1.0, options=frozenset({"lambda", "scope"})),
}

_COMMON = ("backbone", "experts", "method", "dtype")
_NOT_BUILT = {  # option: the values that exist in words, and the one that is built
    "trim_scope": (("tensor", "global"), "tensor"),
    "weights": (("before", "after"), "before"),
    "compat": (("official", "mergekit", "peft"), None),
}
_CUTS_NOT_BUILT = ("matrix", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to merge. `parse_recipe` makes one and checks it; fields have the method's defaults there.

    Args:
        method: how task vectors are combined.
        route: task name or artifact id of the expert that is applied whole, "none" for nobody; None where a
            single expert implies it, and for methods that do not route.
        lam: what the combination of the (other) experts is multiplied by; finite.
        scope: what the others contribute.
        density: share of elements of each task vector that the combination keeps, in (0, 1].
        weight: factors by task name or artifact id, 1 for who is not named; may be negative. An expert's
            weight counts where it is combined, not where it is the routed one.
        cut: how `density` cuts, for ties and 1bit-merging.
        seed: of the random choice of dare, 0 to 2^64-1.
        dtype: F32, F16 or BF16 for all floating tensors of the output; None keeps each tensor's own.
        backbone: path or reference of the backbone, where a recipe file names it.
        experts: paths or references of the experts, where a recipe file names them.
    """

    method: Method = Method.ONE_BIT_MERGING
    route: str | None = None
    lam: float = METHODS[Method.ONE_BIT_MERGING].lam
    scope: Scope = METHODS[Method.ONE_BIT_MERGING].scope
    density: float = 1.0
    weight: Mapping[str, float] = field(default_factory=dict)
    cut: Cut = Cut.INCLUSIVE
    seed: int = 0
    dtype: DType | None = None
    backbone: str | None = None
    experts: tuple[str, ...] = ()

    @property
    def rules(self) -> MethodRules:
        """What the method is made of."""
        return METHODS[self.method]

    def content(self) -> dict[str, object]:
        """The recipe for canonical JSON: numbers as decimal strings, fields without value left out."""
        fields = {
            "backbone": self.backbone,
            "cut": self.cut.value,
            "density": decimal_text(self.density),
            "dtype": None if self.dtype is None else self.dtype.name,
            "experts": list(self.experts),
            "lambda": decimal_text(self.lam),
            "method": self.method.value,
            "route": self.route,
            "scope": self.scope.value,
            "seed": str(self.seed),
            "weight": {name: decimal_text(value) for name, value in self.weight.items()},
        }
        return {name: value for name, value in fields.items() if value not in (None, [], {})}

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the recipe's canonical JSON."""
        return "sha256:" + sha256(encode_canonical(self.content()).encode()).hex()


def decimal_text(value: float) -> str:
    """The shortest decimal string that reads back as `value`, without exponent or trailing zeros."""
    text = format(Decimal(repr(float(value))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_recipe(content: Mapping[str, object]) -> Recipe:
    """Check a recipe and fill in the defaults of its method.

    Args:
        content: the fields of `Recipe`, with plain values; `lambda` is another name of `lam`. Numbers may be
            decimal strings. All fields are optional.

    Returns:
        the recipe.

    Raises:
        UsageError: `bad_recipe`: an unknown field, a value of the wrong type or range, an option that the
            method does not know or that is not built.
    """
    fields = _known_fields(content)
    method = _choice(Method, "method", fields.get("method", Method.ONE_BIT_MERGING.value))
    rules = METHODS[method]
    _refuse_foreign_options(method, fields)
    _refuse_unbuilt(fields)
    lam = _number("lambda", fields.get("lambda", rules.lam))
    return Recipe(
        method=method,
        route=_text("route", fields.get("route")),
        lam=lam,
        scope=_choice(Scope, "scope", fields.get("scope", rules.scope.value)),
        density=_density(fields.get("density", rules.density)),
        weight=_weights(fields.get("weight", {})),
        cut=_choice(Cut, "cut", fields.get("cut", Cut.INCLUSIVE.value)),
        seed=_seed(fields.get("seed", 0)),
        dtype=_dtype(fields.get("dtype")),
        backbone=_text("backbone", fields.get("backbone")),
        experts=_experts(fields.get("experts", [])),
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file, YAML or JSON.

    Raises:
        UsageError: `not_found`, or `bad_recipe` as in `parse_recipe`.
    """
    return parse_recipe(read_mapping(path))


def read_mapping(path: Path) -> Mapping[str, object]:
    """The mapping that a YAML or JSON file holds, without duplicate keys.

    Raises:
        UsageError: `not_found` or `bad_recipe`.
    """
    if not path.is_file():
        raise UsageError("not_found", "there is no such recipe file", where=str(path))
    if path.stat().st_size > RECIPE_NBYTES:
        raise _bad("the file is too large for a recipe", where=str(path), expected=f"{RECIPE_NBYTES} bytes at most")
    import yaml

    try:
        content = yaml.load(path.read_bytes(), Loader=_strict_loader())  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise _bad(f"the recipe cannot be read: {problem}", where=str(path)) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise _bad("a recipe is a mapping of field names to values", where=str(path))
    return content


def _strict_loader() -> type[Any]:
    """A safe YAML loader that refuses a key that occurs twice; yaml itself is loaded only here."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key, _ in node.value:
                if key.value in seen if isinstance(key, yaml.ScalarNode) else True:
                    problem = f"the key {key.value!r} is given twice, or is no text"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return StrictLoader


def _known_fields(content: Mapping[str, object]) -> dict[str, object]:
    if "lam" in content and "lambda" in content:
        raise _bad("lam and lambda are two names of one field", where="lambda")
    fields = {("lambda" if name == "lam" else name): value for name, value in content.items()}
    known = set(_COMMON).union(*(rules.options for rules in METHODS.values()))
    for name in fields:
        if name not in known:
            raise _bad("the recipe has an unknown field", where=str(name), expected=", ".join(sorted(known)))
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_foreign_options(method: Method, fields: Mapping[str, object]) -> None:
    options = METHODS[method].options
    for name in fields:
        if name in _COMMON or name in options:
            continue
        if method is Method.ROUTING and name == "lambda" and _number(name, fields[name]) == 0:
            continue
        known = ", ".join(sorted(options)) or "none"
        raise _bad(f"method {method.value} has no option {name}", where=name, hint=f"its options are: {known}")


def _refuse_unbuilt(fields: Mapping[str, object]) -> None:
    for name, (words, built) in _NOT_BUILT.items():
        value = fields.get(name)
        if value is None or value == built:
            continue
        if value not in words:
            raise _bad(f"{name} is unknown", where=name, expected=" or ".join(words), got=value)
        raise _bad(f"{name} {value} is not built yet", where=name, hint=f"this version has {built or 'none'}")
    if fields.get("cut") in _CUTS_NOT_BUILT:
        raise _bad(f"cut {fields['cut']} is not built yet", where="cut", hint="this version has inclusive and exact")


_E = TypeVar("_E", bound=enum.Enum)


def _choice(kind: type[_E], name: str, value: object) -> _E:
    for member in kind:
        if member.value == value:
            return member
    raise _bad(f"{name} is unknown", where=name, expected=", ".join(str(m.value) for m in kind), got=value)


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and abs(number) < 2.0**100:
            return number
    raise _bad(f"{name} is no finite number", where=name, got=value)


def _density(value: object) -> float:
    density = _number("density", value)
    if not 0 < density <= 1:
        raise _bad("density is a share to keep", where="density", expected="above 0, at most 1", got=value)
    return density


def _seed(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        return value
    raise _bad("seed is no integer from 0 to 2^64-1", where="seed", got=value)


def _weights(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise _bad("weight maps expert names to numbers", where="weight", got=value)
    return {str(name): _number(f"weight of {name}", number) for name, number in value.items()}


def _dtype(value: object) -> DType | None:
    if value is None:
        return None
    aliases = {"FLOAT32": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
    name = aliases.get(str(value).upper(), str(value).upper())
    if name not in {"F32", "F16", "BF16"}:
        raise _bad("dtype is unknown", where="dtype", expected="F32, F16 or BF16", got=value)
    return DType[name]


def _text(name: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise _bad(f"{name} is no text", where=name, got=value)


def _experts(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(x, str) and x for x in value):
        return tuple(value)
    raise _bad("experts is a list of paths or references", where="experts", got=value)


def _bad(
    message: str, *, where: str, expected: object = None, got: object = None, hint: str | None = None
) -> UsageError:
    return UsageError("bad_recipe", message, where=where, expected=expected, got=got, hint=hint)
