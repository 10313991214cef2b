"""`obm materialize`: backbone and experts into a checkpoint folder."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obm_cli import output
from obm_cli.paths import InputPath, NeededPath, OutputPath, require_folder
from obm_cli.registry import expert_path, registry_option
from obm_format.errors import UsageError

if TYPE_CHECKING:
    from obm_format.merge import MergeReport, Recipe


OUTPUT_REASONS = frozenset({"exists", "not_found", "disk_full"})  # what has nothing to do with the plan


@click.command("materialize")
@click.argument("recipe", metavar="[RECIPE.yaml]", required=False, type=InputPath())
@click.option("--base", metavar="BASE", type=InputPath(), help="The backbone: a folder or a safetensors file.")
@click.option(
    "--expert",
    "experts",
    metavar="X",
    multiple=True,
    help="An expert: a file, a reference, or a dense fine-tune's folder or safetensors file; repeatable.",
)
@click.option(
    "--ref", "refs", metavar="FILE", multiple=True, type=NeededPath(),
    help="The base vector that rtvq experts refer to [default: looked for beside them]; repeatable.",
)  # fmt: skip
@click.option(
    "--route", metavar="NAME",
    help="The expert to apply whole: its task or id; `none` for nobody, `soft` for all by weight.",
)  # fmt: skip
@click.option("--router", metavar="R", help="Let this router choose, by the text of --input.")
@click.option("--input", "text", metavar="TEXT", help="The text that --router looks at.")
@click.option(
    "--method",
    metavar="METHOD",
    help="1bit-merging [default], routing, ties, task-arithmetic, dare, dare-ties, average.",
)
@click.option("--lam", type=float, metavar="F", help="Factor of the merged others [default: by method].")
@click.option("--scope", metavar="SCOPE", help="What others contribute: compressed or all [default: by method].")
@click.option(
    "--density",
    "densities",
    metavar="F|X=F",
    multiple=True,
    help="Share of elements to keep, 0 to 1, of all experts or of one; repeatable.",
)
@click.option(
    "--weight",
    "weights",
    metavar="X=F",
    multiple=True,
    help="Factor of one expert (task, id, or #N for the N-th), may be negative; repeatable.",
)
@click.option("--trim-scope", metavar="SCOPE", help="Where density ranks magnitudes: tensor [default] or global.")
@click.option("--cut", metavar="CUT", help="What density keeps: inclusive [default], exact, random or matrix.")
@click.option("--weights", "weights_when", metavar="WHEN", help="Weights before [default] or after the election.")
@click.option("--rescale", metavar="HOW", help="What kept elements are multiplied by: none, density or l1.")
@click.option("--compat", metavar="PEER", help="Reproduce the results of official, mergekit or peft.")
@click.option("--seed", type=int, metavar="N", help="Seed of dare, dare-ties and random cuts.")
@click.option("--dtype", metavar="DTYPE", help="F32, F16 or BF16 for all floating tensors [default: each its own].")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads to use [default: all].")
@click.option("--report", metavar="F.json", type=InputPath(), help="Also write the report to a file.")
@click.option("--dry-run", is_flag=True, help="Say what would be read and written, from headers only.")
@click.option("-o", "--output", "out", metavar="DIR", type=OutputPath(), help="The folder to write.")
@registry_option
@output.json_option
def command(
    recipe: str | None,
    base: str | None,
    experts: tuple[str, ...],
    refs: tuple[str, ...],
    route: str | None,
    router: str | None,
    text: str | None,
    threads: int | None,
    report: str | None,
    dry_run: bool,
    out: str | None,
    registry: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Rebuild a checkpoint folder from a backbone and experts.

    The default method is 1bit-merging: the routed expert is applied whole, and the compressed parts of the
    others are TIES-merged in with a factor of 0.1. One expert implies its route.

    Errors and Ctrl-C leave nothing half written. A run that was killed leaves a hidden .partial folder beside DIR that
    does not load; the next run for the same DIR, recipe and files continues there.

    \b
    Examples:
      obm materialize --base ./minilm --expert a.obm --expert b.obm --route a -o merged/
      obm materialize --base ./minilm --expert a.obm --method routing -o merged/
    """  # noqa: D301 - \b is click's
    if out is None and not dry_run:
        raise click.UsageError("Missing option '-o'.")
    from obm_format.merge.recipe import SOFT_ROUTE

    chosen = _recipe(recipe, base, experts, route, options)
    backbone = chosen.backbone
    if backbone is None or not chosen.experts:
        raise click.UsageError("Name a backbone (--base) and at least one expert (--expert), or a recipe that does.")
    paths = [expert_path(name, registry) for name in chosen.experts]
    if (router is None) != (text is None):
        raise click.UsageError("--router and --input go together.")
    if route not in (None, SOFT_ROUTE) and router is not None:
        output.note(f"--route {route} goes before --router")
    elif router is not None and text is not None:
        chosen = _routed_by(chosen, expert_path(router, registry), text)
    if dry_run:
        _dry_run(chosen, paths, refs, out, threads, as_json=as_json)
        return
    _check_report(report, str(out))
    from obm_format.merge import materialize

    with output.progress_bar() as progress:
        made = materialize(backbone, paths, chosen, str(out), refs=refs, threads=threads, progress=progress)
    payload = dataclasses.asdict(made)
    if report is not None:
        Path(report).write_text(json.dumps({"schema": "obm.materialize/1", **payload}, indent=2) + "\n")
    output.emit("materialize", payload, as_json=as_json, human=lambda: _print(made, chosen, str(out)))


def _recipe(
    path: str | None, base: str | None, experts: tuple[str, ...], route: str | None, options: dict[str, Any]
) -> Recipe:
    """The recipe that file and flags make together; a flag wins over the file."""
    from obm_format.merge.recipe import parse_recipe, read_fields

    fields: dict[str, Any] = dict(read_fields(Path(path))) if path is not None else {}
    flags = {
        "backbone": base,
        "experts": list(experts) or None,
        "route": route,
        "method": options["method"],
        "lambda": options["lam"],
        "scope": options["scope"],
        **_densities(options["densities"]),
        "weight": _weights(options["weights"], "--weight") or None,
        "trim_scope": options["trim_scope"],
        "cut": options["cut"],
        "weights": options["weights_when"],
        "rescale": options["rescale"],
        "compat": options["compat"],
        "seed": options["seed"],
        "dtype": options["dtype"],
    }
    if flags["lambda"] is not None:
        fields.pop("lam", None)
    return parse_recipe({**fields, **{name: value for name, value in flags.items() if value is not None}})


def _weights(pairs: tuple[str, ...], flag: str) -> dict[str, str]:
    weights = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        if not equals or not name:
            raise UsageError("usage", "a number of one expert is NAME=NUMBER", where=flag, got=pair)
        weights[name] = value
    return weights


def _densities(values: tuple[str, ...]) -> dict[str, Any]:
    """The density of all, and those of single experts."""
    plain = [value for value in values if "=" not in value]
    if len(plain) > 1:
        raise UsageError("usage", "the density of all experts is given twice", where="--density", got=plain[1])
    single = _weights(tuple(value for value in values if "=" in value), "--density")
    return {"density": plain[0] if plain else None, "densities": single or None}


def _check_report(report: str | None, out: str) -> None:
    """Refuse a report that cannot be written before the work; it may lie in the folder that is to be made."""
    if report is None:
        return
    if Path(report).is_dir():
        raise UsageError("usage", "the report is a folder", where=report, hint="name a file in it")
    folder = Path(report).parent
    if folder.absolute() != Path(out).absolute():
        require_folder(folder)


def _routed_by(recipe: Recipe, router: Path, text: str) -> Recipe:
    """The recipe with what a router says: the most probable expert, or for route soft the weights of all."""
    from obm_format.merge.recipe import SOFT_ROUTE
    from obm_format.route import load_router

    if recipe.weight and recipe.route == SOFT_ROUTE:
        output.note("the recipe's weights go before --router")
        return recipe
    (decision,) = load_router(router).route([text], str(recipe.backbone))
    if recipe.route == SOFT_ROUTE:
        output.note("router: " + ", ".join(f"{name} {p:.3f}" for name, p in decision.probabilities.items()))
        return dataclasses.replace(recipe, weight=decision.weights)
    output.note(f"router: {decision.route} ({decision.probabilities[decision.route]:.3f})")
    return dataclasses.replace(recipe, route=decision.route)


def _dry_run(
    recipe: Recipe, paths: list[Path], refs: tuple[str, ...], out: str | None, threads: int | None, *, as_json: bool
) -> None:
    from obm_format.merge import plan_merge
    from obm_format.merge.execute import PIECE_NBYTES
    from obm_format.merge.folder import open_sources
    from obm_format.merge.preview import needs, refusals

    threads = threads or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        base, experts = open_sources(str(recipe.backbone), paths, stack, refs)
        refused = refusals(base.tensors, experts, recipe, None if out is None else Path(out).absolute())
        if any(error.reason not in OUTPUT_REASONS for error in refused):
            plan, would = None, {}
        else:
            plan = plan_merge(base.tensors, experts, recipe)
            would = dataclasses.asdict(needs(plan, threads=threads, piece_nbytes=PIECE_NBYTES))
    payload = {
        "dry_run": True,
        "method": recipe.method.value,
        "route": None if plan is None else plan.route,
        "lam": recipe.lam,
        "threads": threads,
        **would,
        "refused": [{"reason": one.reason, "where": one.where, "message": one.message} for one in refused],
    }
    output.emit("materialize", payload, as_json=as_json, human=lambda: _print_preview(payload))
    if refused:
        raise refused[0]


def _print_preview(payload: dict[str, Any]) -> None:
    if "tensors" in payload:
        how = f"{payload['method']}, route {payload['route'] or 'none'}, lam {payload['lam']:g}"
        output.say(f"would write {payload['tensors']} tensors by {how}")
        looked = f", {payload['looks']} looks at the experts first among them" if payload["looks"] else ""
        output.say(f"  read      {output.nbytes(payload['bytes_read'])}{looked}")
        output.say(f"  write     {output.nbytes(payload['bytes_written'])}")
        output.say(
            f"  memory    about {output.nbytes(payload['peak_private_bytes'])} at most for tensors"
            f" on {payload['threads']} threads"
        )
        if payload["left_out"]:
            output.say(f"  left out  {len(payload['left_out'])} task vectors: another shape, or no floating dtype")
    for one in payload["refused"]:
        output.say(f"  refused   {one['where'] or ''}: {one['message']} ({one['reason']})")
    if not payload["refused"]:
        output.say("  refused   nothing that headers tell; weights are checked as they are read")


def _print(made: MergeReport, recipe: Recipe, out: str) -> None:
    route = f", route {made.route}" if made.route else ""
    others = f" (lam {made.lam:g}, scope {recipe.scope.value})" if recipe.rules.combine is not None else ""
    output.say(f"wrote {out} by {made.method}{others}{route}")
    output.say(f"  moved     {made.moved_fraction:.1%} of the weights")
    for expert in made.experts:
        label = expert.task or expert.id[12:24]
        output.say(f"  absorbed  {expert.absorbed:.1%} of what {label} would move is lost in the output dtype")
    if made.layers:
        worst = max(made.layers, key=lambda layer: layer.conflict)
        mean = sum(layer.agreement for layer in made.layers) / len(made.layers)
        output.say(f"  signs     {mean:.1%} agree where experts meet; least in {worst.layer}, {worst.agreement:.1%}")
    if made.resumed_bytes:
        output.say(f"  resumed   {output.nbytes(made.resumed_bytes)} of a run that was killed were taken over")
    output.say(
        f"  bytes     {output.nbytes(made.bytes_read)} read, {output.nbytes(made.bytes_written)} written, "
        f"{output.nbytes(made.peak_private_bytes)} of memory at most"
    )
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in made.seconds.items() if seconds >= 0.05)
    output.say(
        f"  seconds   {made.wall_seconds:.1f} on {made.threads} threads ({made.kernel} kernels)"
        f"{'; summed over threads: ' + phases if phases else ''}"
    )
