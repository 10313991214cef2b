"""`obm verify`: check every byte of an expert."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obm_cli import output, settings
from obm_cli.paths import InputPath, NeededPath
from obm_cli.registry import expert_source, open_registry, registry_option
from obm_format.container.reader import Defect
from obm_format.errors import FormatError, ObmError, UsageError

if TYPE_CHECKING:
    from obm_format.verify import Verification


@click.command("verify")
@click.argument("expert", metavar="X")
@click.option("--base", metavar="BASE", type=InputPath(), help="Also check that this is its backbone.")
@click.option("--deep", is_flag=True, help="Also decode every tensor and check every frame.")
@click.option(
    "--ref", "refs", metavar="FILE", multiple=True, type=NeededPath(),
    help="The base vector that an rtvq expert refers to [default: looked for beside it]; repeatable.",
)  # fmt: skip
@click.option("--id", "expected_id", metavar="ID", help="The artifact id that the file must have.")
@click.option("--signature", is_flag=True, help="Also ask for the signature of a trusted key.")
@click.option(
    "--key", "keys", metavar="FILE", multiple=True, type=InputPath(path_type=Path),
    help="Public keys to trust, instead of those in trusted_keys in OBM_HOME; implies --signature; repeatable.",
)  # fmt: skip
@click.option(
    "--mmap", "mapped", is_flag=True,
    help="Hash the file through a memory map instead of reading it, which saves a copy. If the file shrinks meanwhile,"
    " or the disk fails, the system kills the command (SIGBUS, status 135 in a shell) and nothing is reported.",
)  # fmt: skip
@registry_option
@output.json_option
@click.pass_context
def command(
    ctx: click.Context,
    expert: str,
    base: str | None,
    deep: bool,
    refs: tuple[str, ...],
    expected_id: str | None,
    signature: bool,
    keys: tuple[Path, ...],
    mapped: bool,
    registry: str | None,
    as_json: bool,
) -> None:
    """Check every byte of an expert, and its backbone.

    X is a file, an http(s) address, or a reference to a published expert.
    Lists all defects. Exit status 4 if there is one, 5 if the file is sound but BASE is not its backbone.

    Example: obm verify sentiment.obm --base ./minilm
    """
    from obm_format.remote import is_url
    from obm_format.verify import verify_expert

    path = expert_source(expert, registry)
    if mapped and is_url(path):
        raise UsageError("usage", "an address cannot be mapped", where=str(path), hint="leave out --mmap")
    with output.progress_bar() as progress:
        result = verify_expert(
            path, base=base, deep=deep, expected_id=expected_id, refs=refs, mapped=mapped, progress=progress
        )
    signed_by: list[str] = []
    if (signature or keys) and result.id is not None:
        signed_by = _signers(expert, result.id, keys, registry)
        if not signed_by:
            unsigned = Defect(reason="bad_signature", where=result.id, detail="no signature of a trusted key holds")
            result = dataclasses.replace(result, defects=[*result.defects, unsigned])

    payload: dict[str, object] = {
        "ok": result.ok,
        "id": result.id,
        "level": result.level,
        "defects": [dataclasses.asdict(defect) for defect in result.defects],
    }
    if signature or keys:
        payload["signed_by"] = signed_by
    output.emit("verify", payload, as_json=as_json, human=lambda: _say(path, result, signed_by))
    if not result.ok:
        ctx.exit(_exit_code(result.defects))


def _say(path: str | Path, result: Verification, signed_by: list[str]) -> None:
    for defect in result.defects:
        place = "" if defect.detail.startswith(defect.where) else f"{defect.where}: "
        output.say(f"{defect.reason}: {output.printable(place + defect.detail)}")
    if not result.ok:
        count = len(result.defects)
        output.say(f"{path}: {count} defect{'s' if count > 1 else ''}")
        return
    output.say(f"{path}: sound ({result.level})")
    output.say(f"  id  {result.id}")
    for name in signed_by:
        output.say(f"  signed by  {output.printable(name)}")


def _signers(expert: str, artifact_id: str, keys: tuple[Path, ...], registry: str | None) -> list[str]:
    """Whose trusted keys signed; signatures are looked for where the expert is."""
    from obm_registry.manifest.signature import read_signatures, read_trusted, signers

    trusted = [key for path in keys or (settings.home() / "trusted_keys",) for key in read_trusted(path)]
    if expert.endswith(".obm") or Path(expert).exists():
        found = read_signatures(Path(expert))
    else:
        with open_registry(registry, expert) as there:
            found = there.signatures(expert)
    return signers(artifact_id, found, trusted)


def _exit_code(defects: list[Defect]) -> int:
    """Integrity comes before the backbone: a damaged file says nothing about what it belongs to."""
    codes = {ObmError(defect.reason, "").exit_code for defect in defects}
    integrity = FormatError("part_digest", "").exit_code
    return integrity if integrity in codes else min(codes)
