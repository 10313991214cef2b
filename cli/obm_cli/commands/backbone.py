"""`obm backbone`: register backbones and list them."""

from __future__ import annotations

import dataclasses

import click

from obm_cli import output
from obm_cli.registry import open_registry, registry_option


@click.group("backbone")
def command() -> None:
    """Register backbones and list them."""


@command.command("add")
@click.argument("base", metavar="BASE", type=click.Path())
@click.argument("ref", metavar="NS/BACKBONE")
@click.option("--with-weights", is_flag=True, help="Store the weights too (not built yet).")
@registry_option
@output.json_option
def add(base: str, ref: str, with_weights: bool, registry: str | None, as_json: bool) -> None:
    """Register a backbone: its tensors' names, shapes and digests.

    Example: obm backbone add ./minilm acme/minilm
    """
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        added = there.add_backbone(base, ref, with_weights=with_weights, progress=progress)

    def human() -> None:
        output.say(f"registered {added.ref}: {added.n_tensors} tensors")
        output.say(f"  fingerprint  {added.fingerprint}")
        output.say(f"  manifest     {added.manifest_digest}")

    output.emit("backbone-add", dataclasses.asdict(added), as_json=as_json, human=human)


@command.command("ls")
@registry_option
@output.json_option
def ls(registry: str | None, as_json: bool) -> None:
    """List the registered backbones."""
    with open_registry(registry) as there:
        backbones = there.backbones()

    def human() -> None:
        if not backbones:
            output.note("no backbones here; `obm backbone add BASE NAMESPACE/BACKBONE` registers one")
            return
        rows = [(b.ref, b.architecture or "-", b.n_tensors, b.n_params, b.fingerprint[:12]) for b in backbones]
        output.table(("REF", "ARCHITECTURE", "TENSORS", "PARAMETERS", "FINGERPRINT"), rows)

    payload = {"backbones": [dataclasses.asdict(b) for b in backbones]}
    output.emit("backbone-ls", payload, as_json=as_json, human=human)


@command.command("show")
@click.argument("ref", metavar="NS/BACKBONE")
@registry_option
@output.json_option
def show(ref: str, registry: str | None, as_json: bool) -> None:
    """Show one backbone and its tensors."""
    with open_registry(registry, ref) as there:
        found = there.backbone(ref)

    def human() -> None:
        output.say(f"{found.ref}  {found.architecture or '-'}  {found.n_params} parameters")
        output.say(f"fingerprint {found.fingerprint}")
        output.table(("TENSOR", "DTYPE", "SHAPE"), [(t.name, t.dtype, list(t.shape)) for t in found.tensors])

    output.emit("backbone-show", dataclasses.asdict(found), as_json=as_json, human=human)
