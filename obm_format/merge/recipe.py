"""Recipes: which method merges which experts, with which numbers; parsed strictly, with a digest.

Every option of a method has its default here. An option that a method does not know is refused, never
ignored. Never touches weights. Source: design, "Maths"; reference 1.5 to 1.8.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from obm_format.container.canonical import encode_canonical
from obm_format.digest import sha256
from obm_format.errors import UsageError
from obm_format.kernels.contract import Combine
from obm_format.merge.methods import (
    METHODS,
    SOFT_ROUTING,
    Arithmetic,
    Compat,
    Count,
    Cut,
    Method,
    MethodRules,
    Rescale,
    Scope,
    TrimScope,
    When,
    own_arithmetic,
    peer_arithmetic,
)
from obm_format.merge.recipe_file import DECIMAL, read_mapping
from obm_format.model import DType

NO_ROUTE = "none"  # the explicit route on which no expert is applied whole
SOFT_ROUTE = "soft"  # every expert is applied, by its weight
MAX_SEED = 2**64 - 1

_COMMON = ("backbone", "experts", "method", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to merge. `parse_recipe` makes one and checks it; fields have the method's defaults there.

    Experts go by task name, artifact id, or `#N`, the N-th as they are given.

    Args:
        method: how task vectors are combined.
        route: the expert that is applied whole, "none" for nobody, "soft" for all by their weights; None where
            a single expert implies it, and for methods that do not route.
        lam: what the combination of the (other) experts is multiplied by; finite.
        scope: what the others contribute.
        density: share of elements of each task vector that the combination keeps, from 0 to 1.
        densities: the same for single experts.
        weight: factors by expert, 1 (soft: 0) for who is not named; may be negative. An expert's weight counts
            where it is combined, not where it is the routed one.
        trim_scope: among which elements a density ranks magnitudes.
        cut: how a density keeps elements.
        weights: whether weights take part in the election of signs.
        compat: whose arithmetic to reproduce, or None.
        normalize: whether compat mergekit divides by the sum of weights; None: as mergekit's method does.
        rescale: what the kept elements are multiplied by.
        seed: of the random choice, 0 to 2^64-1.
        dtype: F32, F16 or BF16 for all floating tensors of the output; None keeps each tensor's own.
        backbone: path or reference of the backbone, where a recipe file names it.
        experts: paths or references of the experts, where a recipe file names them.
    """

    method: Method = Method.ONE_BIT_MERGING
    route: str | None = None
    lam: float = METHODS[Method.ONE_BIT_MERGING].lam
    scope: Scope = METHODS[Method.ONE_BIT_MERGING].scope
    density: float = 1.0
    densities: Mapping[str, float] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)
    trim_scope: TrimScope = TrimScope.TENSOR
    cut: Cut = Cut.INCLUSIVE
    weights: When = When.BEFORE
    compat: Compat | None = None
    normalize: bool | None = None
    rescale: Rescale = Rescale.NONE
    seed: int = 0
    dtype: DType | None = None
    backbone: str | None = None
    experts: tuple[str, ...] = ()

    @property
    def rules(self) -> MethodRules:
        """What the method is made of."""
        return SOFT_ROUTING if self.route == SOFT_ROUTE else METHODS[self.method]

    @property
    def own_weight(self) -> float:
        """The factor of an expert that `weight` does not name."""
        return 0.0 if self.route == SOFT_ROUTE else 1.0

    @property
    def arithmetic(self) -> Arithmetic:
        """How the (other) task vectors become one."""
        if self.compat is not None:
            found = peer_arithmetic(self.rules, self.compat, self.normalize)
        else:
            found = replace(own_arithmetic(self.rules), count=Count.DOWN if self.cut is Cut.EXACT else Count.UP)
        return replace(found, cut=self.cut, trim_scope=self.trim_scope, when=self.weights, rescale=self.rescale)

    def content(self) -> dict[str, object]:
        """The recipe for canonical JSON: numbers as decimal strings, fields without value left out.

        What is not the least of an option's choices is named; so recipes keep their digest when options are
        added.
        """
        fields = {
            "backbone": self.backbone,
            "compat": None if self.compat is None else self.compat.value,
            "cut": self.cut.value,
            "densities": {name: decimal_text(value) for name, value in self.densities.items()},
            "density": decimal_text(self.density),
            "dtype": None if self.dtype is None else self.dtype.name,
            "experts": list(self.experts),
            "lambda": decimal_text(self.lam),
            "method": self.method.value,
            "normalize": self.normalize,
            "rescale": None if self.rescale is Rescale.NONE else self.rescale.value,
            "route": self.route,
            "scope": self.scope.value,
            "seed": str(self.seed),
            "trim_scope": None if self.trim_scope is TrimScope.TENSOR else self.trim_scope.value,
            "weight": {name: decimal_text(value) for name, value in self.weight.items()},
            "weights": None if self.weights is When.BEFORE else self.weights.value,
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
        content: the fields of `Recipe`, with plain values; `lambda` is another name of `lam`, `dare-linear` of
            `dare`. Numbers may be decimal strings. All fields are optional.

    Returns:
        the recipe.

    Raises:
        UsageError: `bad_recipe`: an unknown field, a value of the wrong type or range, an option that the
            method does not know, or options that contradict each other.
    """
    fields = _known_fields(content)
    recipe = Recipe(
        method=_method(fields),
        route=_text("route", fields.get("route")),
        compat=_optional(Compat, fields, "compat"),
        normalize=_boolean("normalize", fields.get("normalize")),
        weight=_numbers("weight", fields.get("weight", {})),
        densities={
            name: _share(f"density of {name}", value)
            for name, value in _numbers("densities", fields.get("densities", {})).items()
        },
        seed=_seed(fields.get("seed", 0)),
        dtype=_dtype(fields.get("dtype")),
        backbone=_text("backbone", fields.get("backbone")),
        experts=_experts(fields.get("experts", [])),
    )
    rules = recipe.rules
    _refuse_foreign_options(recipe, fields)
    recipe = replace(
        recipe,
        lam=_number("lambda", fields.get("lambda", rules.lam)),
        scope=_choice(Scope, "scope", fields.get("scope", rules.scope.value)),
        density=_share("density", _number("density", fields.get("density", rules.density))),
    )
    return _with_arithmetic(recipe, fields)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file, YAML or JSON, ours or mergekit's.

    Raises:
        UsageError: `not_found`, or `bad_recipe` as in `parse_recipe`.
    """
    return parse_recipe(read_fields(path))


def read_fields(path: Path) -> Mapping[str, object]:
    """The fields of a recipe file, ours or mergekit's, for `parse_recipe`.

    Raises:
        UsageError: `not_found` or `bad_recipe`.
    """
    from obm_format.merge.mergekit import is_mergekit, translate

    content = read_mapping(path)
    return translate(content) if is_mergekit(content) else content


# --- options that depend on each other ----------------------------------------------------------------------


def _with_arithmetic(recipe: Recipe, fields: Mapping[str, object]) -> Recipe:
    """Settle trim scope, cut, weights and rescale; with `compat` they are the peer's and may only agree."""
    rules = recipe.rules
    if recipe.normalize is not None and recipe.compat is not Compat.MERGEKIT:
        raise _bad("normalize is mergekit's", where="normalize", hint="add compat: mergekit")
    if recipe.compat is not None:
        if recipe.compat not in rules.compat:
            known = ", ".join(sorted(one.value for one in rules.compat))
            raise _bad(f"{recipe.compat.value} has no {recipe.method.value}", where="compat", hint=f"there is {known}")
        own = peer_arithmetic(rules, recipe.compat, recipe.normalize)
    else:
        own = own_arithmetic(rules)
    cut = _optional(Cut, fields, "cut") or own.cut
    if cut is Cut.RANDOM and own.cut is not Cut.RANDOM:
        own = replace(own, rescale=Rescale.DENSITY)
    found = replace(
        recipe,
        cut=cut,
        trim_scope=_optional(TrimScope, fields, "trim_scope") or own.trim_scope,
        weights=_optional(When, fields, "weights") or own.when,
        rescale=_optional(Rescale, fields, "rescale") or own.rescale,
    )
    _refuse_contradictions(found, own, fields)
    return found


def _refuse_contradictions(recipe: Recipe, own: Arithmetic, fields: Mapping[str, object]) -> None:
    if recipe.cut is Cut.MATRIX and recipe.trim_scope is TrimScope.TENSOR:
        raise _bad(
            "cut matrix ranks a matrix against the others",
            where="cut",
            hint="add trim_scope: global (--trim-scope global)",
        )
    if recipe.compat is None:
        random = recipe.cut is Cut.RANDOM
        if recipe.rescale is Rescale.DENSITY and not random:
            raise _bad("rescale density is for random cuts", where="rescale", hint="use l1 or none")
        if "seed" in fields and not random:
            raise _bad("nothing is random here", where="seed", hint="a seed belongs to dare, dare-ties or cut random")
        return
    decided = {"cut": own.cut, "trim_scope": own.trim_scope, "weights": own.when}
    if recipe.compat is not Compat.MERGEKIT:
        decided["rescale"] = own.rescale
    for name, value in decided.items():
        if getattr(recipe, name) is not value:
            raise _bad(f"compat decides {name}", where=name, expected=value.value, got=fields[name])
    if recipe.compat is Compat.OFFICIAL and recipe.rules.combine is Combine.TIES and recipe.weight:
        raise _bad("the official code of TIES has no weights", where="weight", hint="leave out compat")


def _refuse_foreign_options(recipe: Recipe, fields: Mapping[str, object]) -> None:
    options = recipe.rules.options
    for name in fields:
        if name in _COMMON or name in options:
            continue
        if recipe.rules is METHODS[Method.ROUTING] and name == "lambda" and _number(name, fields[name]) == 0:
            continue
        known = ", ".join(sorted(options)) or "none"
        raise _bad(f"method {recipe.method.value} has no option {name}", where=name, hint=f"its options are: {known}")
    if recipe.route == SOFT_ROUTE and recipe.method is not Method.ROUTING:
        raise _bad("route soft weighs all experts and leaves no others", where="route", hint="use method routing")


# --- single fields ------------------------------------------------------------------------------------------


def _known_fields(content: Mapping[str, object]) -> dict[str, object]:
    if "lam" in content and "lambda" in content:
        raise _bad("lam and lambda are two names of one field", where="lambda")
    fields = {("lambda" if name == "lam" else name): value for name, value in content.items()}
    known = set(_COMMON).union(*(rules.options for rules in METHODS.values()))
    for name in fields:
        if name not in known:
            raise _bad("the recipe has an unknown field", where=str(name), expected=", ".join(sorted(known)))
    return {name: value for name, value in fields.items() if value is not None}


def _method(fields: Mapping[str, object]) -> Method:
    value = fields.get("method", Method.ONE_BIT_MERGING.value)
    if "method" not in fields and fields.get("route") == SOFT_ROUTE:
        return Method.ROUTING
    return Method.DARE if value == "dare-linear" else _choice(Method, "method", value)


_E = TypeVar("_E", bound=enum.Enum)


def _choice(kind: type[_E], name: str, value: object) -> _E:
    for member in kind:
        if member.value == value:
            return member
    raise _bad(f"{name} is unknown", where=name, expected=", ".join(str(m.value) for m in kind), got=value)


def _optional(kind: type[_E], fields: Mapping[str, object], name: str) -> _E | None:
    return _choice(kind, name, fields[name]) if name in fields else None


def _number(name: str, value: object) -> float:
    is_other_text = isinstance(value, str) and DECIMAL.fullmatch(value) is None
    if isinstance(value, (int, float, str)) and not (isinstance(value, bool) or is_other_text):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and abs(number) < 2.0**100:
            return number
    raise _bad(f"{name} is no finite number", where=name, got=value)


def _share(name: str, density: float) -> float:
    if not 0 <= density <= 1:
        raise _bad("density is a share to keep", where=name, expected="from 0 to 1", got=density)
    return density


def _seed(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        return value
    raise _bad("seed is no integer from 0 to 2^64-1", where="seed", got=value)


def _boolean(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise _bad(f"{name} is true or false", where=name, got=value)


def _numbers(field_name: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise _bad(f"{field_name} maps expert names to numbers", where=field_name, got=value)
    return {str(name): _number(f"{field_name} of {name}", number) for name, number in value.items()}


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
