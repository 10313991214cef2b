"""The plan of a merge, from headers alone: who takes part, which tensor comes from what, how many bytes.

Everything that can be refused without reading weights is refused here, before anything is written.
Source: obm-1 clauses 5.5 to 5.8, 10.3, 10.4; design, "Maths".
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from obm_format.errors import BackboneMismatch, UsageError
from obm_format.layout import part_layouts
from obm_format.merge.methods import Method, Scope
from obm_format.merge.recipe import NO_ROUTE, SOFT_ROUTE, Recipe
from obm_format.model import Kind, Manifest, Prefix, TensorRecord, TensorSpec

SMALL_WEIGHTS = 1e-8  # a sum of weights below it cannot divide


class Header(Protocol):
    """What a plan reads of an expert."""

    @property
    def id(self) -> str:
        """The artifact id."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One expert of a merge.

    Args:
        id: artifact id.
        manifest: its manifest.
        given: its place among the experts as they were given, from 1.
        weight: its factor where it is combined with others.
        density: share of its elements that are combined.
    """

    id: str
    manifest: Manifest
    given: int = 1
    weight: float = 1.0
    density: float = 1.0

    @property
    def label(self) -> str:
        """Task name, or the artifact id where there is none."""
        return self.manifest.task or self.id

    @property
    def vouches(self) -> bool:
        """Whether it has digests of the backbone; a dense fine-tune has none."""
        return self.manifest.backbone.fingerprint != ""


@dataclass(frozen=True, slots=True)
class Contribution:
    """The record of an expert (by its place in `MergePlan.participants`) that is combined into a tensor."""

    participant: int
    record: TensorRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How one tensor of the output comes to be.

    Args:
        spec: name, dtype and shape in the output.
        base: the backbone's tensor; None for added tensors.
        routed: the routed expert's record; None without a routed expert.
        others: what is combined into it, in the order of the participants.
        witnesses: every expert's record for the backbone tensor: the digests of those that vouch for it say
            which bytes it must have.
        copies: further output names with the same content (aliases, clause 5.8).
    """

    spec: TensorSpec
    base: TensorSpec | None
    routed: TensorRecord | None = None
    others: tuple[Contribution, ...] = ()
    witnesses: tuple[Contribution, ...] = ()
    copies: tuple[str, ...] = ()

    @property
    def is_arithmetic(self) -> bool:
        """Whether the kernels make it; else it is a copy of the backbone's or the routed expert's bits."""
        if self.base is None or not (self.base.dtype.is_float and self.spec.dtype.is_float):
            return False
        return self.routed is None or can_combine(self.routed)

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """The output tensors that it makes."""
        for name in (self.spec.name, *self.copies):
            yield replace(self.spec, name=name)

    @property
    def bytes_read(self) -> int:
        """Bytes of backbone and experts that go into it."""
        records = [*([] if self.routed is None else [self.routed]), *(other.record for other in self.others)]
        parts = sum(layout.nbytes for record in records for layout in part_layouts(record))
        return parts + (self.base.nbytes if self.base is not None else 0)

    @property
    def bytes_combined(self) -> int:
        """Bytes of backbone and experts that one look at what is combined into it reads."""
        if self.base is None or not self.others:
            return 0
        parts = sum(layout.nbytes for other in self.others for layout in part_layouts(other.record))
        return parts + self.base.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """What `WeightStream` will do.

    Args:
        recipe: as asked for.
        participants: the experts by ascending artifact id; where a peer's results are wanted, as they were given.
        routed: place of the routed expert among them, or None.
        steps: sorted by output name.
        left_out: (artifact id, tensor name) of task vectors that cannot be combined: another shape, no float
            dtype.
    """

    recipe: Recipe
    participants: tuple[Participant, ...]
    routed: int | None
    steps: tuple[Step, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def route(self) -> str | None:
        """Task name or artifact id of the routed expert; "soft" where all count by their weights."""
        if self.recipe.route == SOFT_ROUTE:
            return SOFT_ROUTE
        return None if self.routed is None else self.participants[self.routed].label

    @property
    def digest(self) -> str:
        """Digest of the recipe with fingerprint and artifact ids in it: of all that decides the output.

        Dense fine-tunes are in it by place alone, and without experts that vouch for it so is the backbone.
        """
        return replace(
            self.recipe,
            backbone=self.fingerprint or None,
            experts=tuple(one.id for one in self.participants),
            route=self.participants[self.routed].id if self.routed is not None else self.route,
            weight={one.id: one.weight for one in self.participants if one.weight != 1},
            densities={one.id: one.density for one in self.participants if one.density != self.recipe.density},
        ).digest

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone by the experts that vouch for it; "" where none does."""
        return next((one.manifest.backbone.fingerprint for one in self.participants if one.vouches), "")

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors of the output, in the order in which they are made."""
        return [spec for step in self.steps for spec in step.specs]

    @property
    def bytes_read(self) -> int:
        """Bytes of backbone and experts that will be read."""
        return sum(step.bytes_read for step in self.steps)

    @property
    def bytes_written(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(spec.nbytes for spec in self.specs)


def plan_merge(base: Mapping[str, TensorSpec], experts: Sequence[Header], recipe: Recipe) -> MergePlan:
    """Plan a merge.

    Args:
        base: the backbone's tensors by name.
        experts: in any order; at least one.
        recipe: how.

    Returns:
        the plan.

    Raises:
        UsageError: `route_needed`; `bad_recipe` for a route or weight that names no expert, or an artifact
            that is no task vector; `usage` without experts or with one twice.
        BackboneMismatch: experts of different backbones, or `base` is not theirs (`backbone_mismatch`,
            `base_tensor`).
    """
    participants = _participants(experts, recipe)
    for participant in participants:
        check_backbone(base, participant)
    routed = _routed(participants, recipe)
    views = [RecordView(participant.manifest) for participant in participants]
    outline = _expert_steps(views[routed].manifest) if routed is not None else _backbone_steps(base)
    steps, left_out = [], []
    for step in outline:
        witnesses = _witnesses(step, views)
        others, missed = _others(replace(step, witnesses=witnesses), routed, recipe)
        left_out += [(participants[place].id, step.spec.name) for place in missed]
        steps.append(_with_dtype(replace(step, witnesses=witnesses, others=others), recipe))
    steps.sort(key=lambda step: step.spec.name)
    return MergePlan(
        recipe=recipe, participants=participants, routed=routed, steps=tuple(steps), left_out=tuple(left_out)
    )


class RecordView:
    """An expert's records by the name of the backbone tensor that they are taken against."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._by_name = {record.name: record for record in manifest.tensors}
        self._by_base: dict[str, TensorRecord] = {}
        for record in manifest.tensors:
            # an untied head has the embedding as its counterpart too: the record of that name goes first
            if record.base is not None and (record.base.name == record.name or record.base.name not in self._by_base):
                self._by_base[record.base.name] = record
        for name, target in manifest.aliases:
            if self._by_name[target].base is not None:
                self._by_base[name] = self._by_name[target]

    def against(self, name: str, base: TensorSpec) -> TensorRecord | None:
        """The record for backbone tensor `base`; of several the one called `name`."""
        same = self._by_name.get(name)
        if same is not None and same.base is not None and same.base.name == base.name:
            return same
        return self._by_base.get(base.name)


def check_backbone(base: Mapping[str, TensorSpec], participant: Participant) -> None:
    """Refuse a checkpoint that cannot be the expert's backbone: names, dtypes, shapes and counts.

    Raises:
        BackboneMismatch: `base_tensor` or `backbone_mismatch`.
    """
    manifest = participant.manifest
    where, hint = f"expert {participant.label}", "use the backbone that the expert was made against"
    for record in manifest.tensors:
        # obm-1 clause 10.3
        if record.base is not None and base.get(record.base.name) != record.base:
            raise BackboneMismatch(
                "base_tensor",
                f"backbone tensor {record.base.name} is missing or differs",
                where=where,
                expected=_describe(record.base),
                got=_describe(base.get(record.base.name)),
                hint=hint,
            )
    # obm-1 clause 10.4
    known = {record.base.name for record in manifest.tensors if record.base is not None}
    known |= {name for name, _ in manifest.aliases} | set(manifest.removed)
    unknown = sorted(base.keys() - known)
    n_params = sum(spec.numel for spec in base.values())
    if unknown or (len(base), n_params) != (manifest.backbone.n_tensors, manifest.backbone.n_params):
        extra = f", among them {unknown[0]}, which the expert does not know" if unknown else ""
        raise BackboneMismatch(
            "backbone_mismatch",
            "the checkpoint is not the backbone of this expert",
            where=where,
            expected=f"{manifest.backbone.n_tensors} tensors of {manifest.backbone.n_params} elements",
            got=f"{len(base)} tensors of {n_params} elements{extra}",
            hint=hint,
        )


def covered_shape(record: TensorRecord) -> tuple[int, ...]:
    """The shape that stands against the backbone tensor: without grown rows, however they are stored."""
    if record.base is None or not record.is_exact:
        return record.encoded_shape
    rows, shape = record.base.shape[:1], record.spec.shape
    return rows + shape[1:] if rows and shape and shape[0] > rows[0] else shape


def can_combine(record: TensorRecord) -> bool:
    """Whether a record's task vector can be added to its backbone tensor: floats of equal shape."""
    return (
        record.base is not None
        and record.base.dtype.is_float
        and record.spec.dtype.is_float
        and covered_shape(record) == record.base.shape
    )


def output_name(name: str, prefix: Prefix | None) -> str:
    """What the fine-tune calls a tensor that has a counterpart (obm-1 clause 5.7)."""
    if prefix is None:
        return name
    return prefix.text + name if prefix.side == "tuned" else name.removeprefix(prefix.text)


def find_expert(name: str, participants: Sequence[Participant], field: str) -> int:
    """The place of the expert called `name`, by task, artifact id, or `#N` for the N-th that was given.

    Raises:
        UsageError: `bad_recipe`, naming the nearest.
    """
    found = [place for place, one in enumerate(participants) if name in (one.manifest.task, one.id, f"#{one.given}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            "bad_recipe",
            f"{len(found)} experts have the task name {name}",
            where=field,
            hint="use the artifact id",
        )
    labels = [participant.label for participant in participants]
    nearest = difflib.get_close_matches(name, labels, n=3, cutoff=0.5) or labels[:3]
    raise UsageError("bad_recipe", f"no expert is called {name}", where=field, hint=f"there is {', '.join(nearest)}")


def _participants(experts: Sequence[Header], recipe: Recipe) -> tuple[Participant, ...]:
    if not experts:
        raise UsageError("usage", "a merge needs at least one expert")
    found = [
        Participant(id=one.id, manifest=one.manifest, given=place, weight=recipe.own_weight, density=recipe.density)
        for place, one in enumerate(experts, 1)
    ]
    if not recipe.arithmetic.as_given:
        found.sort(key=lambda one: one.id)
    for before, after in itertools.pairwise(sorted(found, key=lambda one: one.id)):
        if before.id == after.id:
            raise UsageError("usage", "an expert is given twice", where=after.label, got=after.id)
    first = next((one for one in found if one.vouches), found[0])
    for one in found:
        if one.manifest.kind is not Kind.TASK_VECTOR:
            raise UsageError("bad_recipe", f"is a {one.manifest.kind.value}, no task vector", where=one.label)
        if one.vouches and one.manifest.backbone.fingerprint != first.manifest.backbone.fingerprint:
            raise BackboneMismatch(
                "backbone_mismatch",
                f"has another backbone than {first.label}",
                where=one.label,
                expected=first.manifest.backbone.fingerprint,
                got=one.manifest.backbone.fingerprint,
            )
    for place, weight in _by_place(recipe.weight, found, "weight").items():
        found[place] = replace(found[place], weight=weight)
    for place, density in _by_place(recipe.densities, found, "densities").items():
        found[place] = replace(found[place], density=density)
    _check_weights(found, recipe)
    return tuple(found)


def _by_place(numbers: Mapping[str, float], participants: Sequence[Participant], field: str) -> dict[int, float]:
    """A number for each expert that one is named for, by the expert's place."""
    found: dict[int, float] = {}
    for name, number in numbers.items():
        place = find_expert(name, participants, field)
        if place in found:
            raise UsageError("bad_recipe", f"{participants[place].label} has two", where=field, got=name)
        found[place] = number
    return found


def _check_weights(participants: Sequence[Participant], recipe: Recipe) -> None:
    if recipe.method is Method.AVERAGE and recipe.normalize is not False:
        total = sum(one.weight for one in participants)
        if abs(total) < SMALL_WEIGHTS:
            raise UsageError("bad_recipe", "the weights of an average sum to 0", where="weight", got=total)
    if recipe.route == SOFT_ROUTE and not recipe.weight:
        hint = "give weights, or a router and a text (--router R --input TEXT)"
        raise UsageError("route_needed", "route soft needs the weights of the experts", hint=hint)


def _routed(participants: Sequence[Participant], recipe: Recipe) -> int | None:
    if recipe.route == SOFT_ROUTE:
        return None
    if not recipe.rules.routes and recipe.route is not None:
        raise UsageError("bad_recipe", f"method {recipe.method.value} has no route", where="route", got=recipe.route)
    if not recipe.rules.routes or recipe.route == NO_ROUTE:
        return None
    if recipe.route is not None:
        return find_expert(recipe.route, participants, "route")
    if len(participants) > 1:
        raise UsageError(
            "route_needed",
            f"{len(participants)} experts and no route",
            hint="name a route: " + ", ".join(one.label for one in participants),
        )
    return 0


def _backbone_steps(base: Mapping[str, TensorSpec]) -> Iterator[Step]:
    """Without a routed expert the output has the backbone's tensors."""
    for spec in base.values():
        yield Step(spec=spec, base=spec)


def _expert_steps(manifest: Manifest) -> Iterator[Step]:
    """With one it has that expert's tensors, by the names that the fine-tune gave them."""
    aliases: dict[str, list[str]] = {}
    for alias, target in manifest.aliases:
        aliases.setdefault(target, []).append(alias)
    for record in manifest.tensors:
        mine = aliases.get(record.name, [])
        if record.base is None:
            # obm-1 clause 5.8: nobody else brings anything to an added tensor, so its aliases are copies
            yield Step(spec=record.spec, base=None, routed=record, copies=tuple(mine))
            continue
        for name in (record.name, *mine):
            # the others may be untied: what they bring to an alias is looked up by its own name
            counterpart = record.base if name == record.name else replace(record.base, name=name)
            spec = replace(record.spec, name=output_name(name, manifest.prefix))
            yield Step(spec=spec, base=counterpart, routed=record)


def _witnesses(step: Step, views: Sequence[RecordView]) -> tuple[Contribution, ...]:
    if step.base is None:
        return ()
    name = step.spec.name if step.routed is None else step.routed.name
    found = ((place, view.against(name, step.base)) for place, view in enumerate(views))
    return tuple(Contribution(place, record) for place, record in found if record is not None)


def _others(step: Step, routed: int | None, recipe: Recipe) -> tuple[tuple[Contribution, ...], list[int]]:
    """Who is combined into a tensor, and who would be, were its task vector not of another shape or kind."""
    if recipe.rules.combine is None or recipe.lam == 0:
        return (), []
    able, missed = [], []
    for other in step.witnesses:
        if other.participant == routed or _brings_nothing(other.record, recipe):
            continue
        if step.is_arithmetic and can_combine(other.record):
            able.append(other)
        else:
            missed.append(other.participant)
    return tuple(able), missed


def _brings_nothing(record: TensorRecord, recipe: Recipe) -> bool:
    if record.is_unchanged:
        return True
    return recipe.scope is Scope.COMPRESSED and record.is_exact


def _with_dtype(step: Step, recipe: Recipe) -> Step:
    if recipe.dtype is None or not step.spec.dtype.is_float:
        return step
    return replace(step, spec=replace(step.spec, dtype=recipe.dtype))


def _describe(spec: TensorSpec | None) -> str:
    return "no such tensor" if spec is None else f"{spec.dtype.name} {list(spec.shape)}"
