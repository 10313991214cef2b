"""`obm sign`: sign an expert, or make a key to sign with."""

from __future__ import annotations

from pathlib import Path

import click

from obm_cli import output
from obm_cli.paths import InputPath, OutputPath
from obm_cli.registry import open_registry, registry_option
from obm_format.errors import FormatError, UsageError


@click.command("sign")
@click.argument("expert", metavar="[X]", required=False)
@click.option("--key", type=InputPath(path_type=Path), help="The private key to sign with.")
@click.option("--new-key", type=OutputPath(path_type=Path), help="Write a new private key, and FILE.pub beside it.")
@registry_option
@output.json_option
def command(expert: str | None, key: Path | None, new_key: Path | None, registry: str | None, as_json: bool) -> None:
    r"""Sign an expert, or make a key to sign with.

    X is a file, whose signatures are kept beside it in X.sig and go along with `obm push`; or a reference, and the
    signature is published there. Signed is the artifact id, from which every byte hangs.

    \b
    Examples:
      obm sign --new-key alice.key
      obm sign sentiment.obm --key alice.key
    """
    if (new_key is None) == (key is None) or (expert is None) != (key is None):
        raise UsageError("usage", "name an expert and --key, or --new-key alone")
    if new_key is not None:
        _make_key(new_key, as_json=as_json)
    elif key is not None and expert is not None:
        _sign(expert, key, registry, as_json=as_json)


def _make_key(path: Path, *, as_json: bool) -> None:
    from obm_registry.manifest import signature

    public = signature.new_key(path)

    def human() -> None:
        output.say(f"wrote {path} (keep it to yourself) and {path}.pub")
        output.say(f"  key  {public}")

    output.emit("sign", {"key": public, "file": str(path)}, as_json=as_json, human=human)


def _sign(expert: str, key: Path, registry: str | None, *, as_json: bool) -> None:
    from obm_registry.manifest import signature

    path = Path(expert)
    if expert.endswith(".obm") or path.exists():
        from obm_format.verify import verify_expert

        checked = verify_expert(path)
        if not checked.ok or checked.id is None:
            defect = checked.defects[0]
            raise FormatError(defect.reason, defect.detail, where=f"{path}: {defect.where}", hint="it is not signed")
        made = signature.sign(checked.id, key)
        others = [line for line in signature.read_signatures(path) if line != made.encode()]
        signature.write_signatures(path, [*others, made.encode()])
        where = str(signature.signature_file(path))
    else:
        with open_registry(registry, expert) as there:
            made = signature.sign(there.resolve(expert).id, key)
            where = there.add_signature(expert, made.encode()).ref
    payload = {"id": made.id, "key": made.key, "where": where}

    def human() -> None:
        output.say(f"signed {made.id}")
        output.say(f"  key    {made.key}")
        output.say(f"  where  {where}")

    output.emit("sign", payload, as_json=as_json, human=human)
