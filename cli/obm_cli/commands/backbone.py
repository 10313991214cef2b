"""`obm backbone`: register backbones, list them, fetch their weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from obm_cli import output
from obm_cli.paths import InputPath, OutputPath
from obm_cli.registry import open_registry, registry_option


@click.group("backbone")
def command() -> None:
    """Register backbones, list them, fetch their weights."""


@command.command("add")
@click.argument("base", metavar="BASE", type=InputPath())
@click.argument("ref", metavar="NS/BACKBONE")
@click.option(
    "--with-weights", is_flag=True, help="Store the weights and tokenizer files too, for `obm backbone pull`."
)
@registry_option
@output.json_option
def add(base: str, ref: str, with_weights: bool, registry: str | None, as_json: bool) -> None:
    """Register a backbone: its tensors' names, shapes and digests.

    Experts need no more than that. With --with-weights the registry keeps the checkpoint itself too; that may be
    asked for later, and sends only what the registry lacks.

    Example: obm backbone add ./minilm acme/minilm
    """
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        added = there.add_backbone(base, ref, with_weights=with_weights, progress=progress)

    def human() -> None:
        output.say(f"registered {added.ref}: {added.n_tensors} tensors")
        output.say(f"  fingerprint  {added.fingerprint}")
        output.say(f"  manifest     {added.manifest_digest}")
        if added.weights_digest:
            output.say(f"  weights      {added.weights_digest}")

    output.emit("backbone-add", dataclasses.asdict(added), as_json=as_json, human=human)


@command.command("pull")
@click.argument("ref", metavar="NS/BACKBONE")
@click.option("-o", "--output", "out", type=OutputPath(), help="The folder to make [default: BACKBONE].")
@registry_option
@output.json_option
def pull(ref: str, out: str | None, registry: str | None, as_json: bool) -> None:
    """Fetch the weights of a backbone that were stored with it.

    Writes a checkpoint folder: safetensors files, configuration and tokenizer. Every tensor is checked against the
    backbone's table, and the folder appears whole or not at all; a pull that broke off goes on where it stopped.

    Example: obm backbone pull acme/minilm -o minilm
    """
    from obm_registry.refs import parse_ref

    target = Path(out) if out else Path(parse_ref(ref).backbone)
    with open_registry(registry, ref) as there, output.progress_bar() as progress:
        pulled = there.pull_backbone(ref, target, progress=progress)

    def human() -> None:
        output.say(f"pulled {pulled.ref} to {target}: {pulled.n_tensors} tensors, each verified")
        output.say(f"  fingerprint  {pulled.fingerprint}")
        output.say(f"  received     {output.nbytes(pulled.received_bytes)}")

    output.emit("backbone-pull", {"folder": str(target), **dataclasses.asdict(pulled)}, as_json=as_json, human=human)


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
        output.say(f"weights     {found.weights_digest or 'not stored'}")
        output.table(("TENSOR", "DTYPE", "SHAPE"), [(t.name, t.dtype, list(t.shape)) for t in found.tensors])

    output.emit("backbone-show", dataclasses.asdict(found), as_json=as_json, human=human)
