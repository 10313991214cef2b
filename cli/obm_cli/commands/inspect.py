"""`obm inspect`: show what is in an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from obm_cli import output
from obm_cli.registry import expert_source, registry_option

if TYPE_CHECKING:
    from obm_format.expert import Expert
    from obm_format.model import TensorRecord


@click.command("inspect")
@click.argument("expert", metavar="X")
@registry_option
@output.json_option
def command(expert: str, registry: str | None, as_json: bool) -> None:
    """Show what is in an expert, from its header.

    X is a file, an http(s) address, or a reference to a published expert. Of an address, little more than the header
    is fetched.

    Example: obm inspect sentiment.obm
    """
    from obm_format.expert import open_expert

    with open_expert(expert_source(expert, registry)) as opened:
        payload = describe(opened)
    output.emit("inspect", payload, as_json=as_json, human=lambda: _print(payload))


def describe(expert: Expert) -> dict[str, Any]:
    """An expert as the JSON of `obm inspect`, without the schema."""
    manifest = expert.manifest
    backbone = manifest.backbone
    return {
        "id": expert.id,
        "nbytes": expert.nbytes,
        "header_nbytes": expert.header.nbytes,
        "kind": manifest.kind.value,
        "task": manifest.task,
        "position": manifest.position,
        "backbone": {
            "fingerprint": backbone.fingerprint,
            "architecture": backbone.architecture,
            "n_tensors": backbone.n_tensors,
            "n_params": backbone.n_params,
        },
        "aliases": [list(pair) for pair in manifest.aliases],
        "removed": list(manifest.removed),
        "attachments": [{"name": a.name, "nbytes": a.nbytes} for a in manifest.attachments],
        "tensors": [_tensor(expert, record) for record in manifest.tensors],
    }


def _tensor(expert: Expert, record: TensorRecord) -> dict[str, Any]:
    from obm_format.container.params import params_object
    from obm_format.layout import part_layouts

    digests = expert.digests(record.name)
    parts = []
    for layout, sha256 in zip(part_layouts(record), digests.parts, strict=True):
        part = expert.header.parts[f"{record.name}#{layout.suffix}"]
        parts.append({"name": part.name, "offset": part.offset, "nbytes": part.nbytes, "sha256": sha256.hex()})
    return {
        "name": record.name,
        "dtype": record.spec.dtype.name,
        "shape": list(record.spec.shape),
        "mode": record.mode.value,
        "encoding": record.encoding,
        "params": params_object(record),
        "parts": parts,
        "base_sha256": digests.base.hex() if digests.base else None,
        "out_sha256": digests.out.hex() if digests.out else None,
    }


def _print(found: dict[str, Any]) -> None:
    output.say(f"id        {found['id']}")
    output.say(f"holds     {found['kind']} for task {found['task'] or '-'}, position {found['position']}")
    backbone = found["backbone"]
    output.say(f"backbone  {backbone['architecture'] or '-'}  {backbone['fingerprint']}")
    header = f"header {output.nbytes(found['header_nbytes'])}"
    output.say(f"size      {output.nbytes(found['nbytes'])} ({header}, {len(found['tensors'])} tensors)")
    for attachment in found["attachments"]:
        output.say(f"attached  {attachment['name']}  {output.nbytes(attachment['nbytes'])}")
    output.say()
    rows = [
        (
            tensor["name"],
            tensor["dtype"],
            "x".join(map(str, tensor["shape"])) or "scalar",
            tensor["encoding"] if tensor["mode"] == "delta" else f"{tensor['encoding']} ({tensor['mode']})",
            output.nbytes(sum(part["nbytes"] for part in tensor["parts"])),
        )
        for tensor in found["tensors"]
    ]
    output.table(("TENSOR", "DTYPE", "SHAPE", "ENCODING", "PARTS"), rows)
