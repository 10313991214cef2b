"""`obm convert`: a fine-tune of another format into an expert, or an expert back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obm_cli import output
from obm_cli.paths import InputPath, NeededPath, OutputPath

if TYPE_CHECKING:
    from obm_format.convert import ConvertReport, ExportReport


@click.command("convert")
@click.argument("source", metavar="SRC", type=InputPath())
@click.option("-o", "--output", "out", metavar="OUT", required=True, type=OutputPath(), help="What to write.")
@click.option("--from", "from_kind", metavar="KIND", help="SRC is: delta, peft-lora or bitdelta.")
@click.option("--to", "to_kind", metavar="KIND", help="SRC is an expert; OUT: delta (folder) or bitdelta (file).")
@click.option("--base", metavar="BASE", required=True, type=InputPath(), help="The backbone that SRC belongs to.")
@click.option("--task", metavar="NAME", help="Name of the task, by which a route finds the expert.")
@click.option("--encoding", metavar="E", help="A LoRA's matrices: sign1 [default] or raw.")
@click.option(
    "--ref", "refs", metavar="FILE", multiple=True, type=NeededPath(),
    help="The base vector that an rtvq expert refers to [default: looked for beside it]; repeatable.",
)  # fmt: skip
@output.json_option
def command(
    source: str,
    out: str,
    from_kind: str | None,
    to_kind: str | None,
    base: str,
    task: str | None,
    encoding: str | None,
    refs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert a fine-tune of another format into an expert, or back.

    delta: safetensors, a file or folder of what to add to the backbone's tensors. peft-lora: an adapter folder with
    adapter_model.safetensors; what its options ask for beyond LoRA is refused. bitdelta: a torch file, read without
    running what is in it; matrices keep their signs bit for bit, other parameters are stored whole.

    \b
    Examples:
      obm convert ./lora -o math.obm --from peft-lora --base ./base --task math
      obm convert diff.pt -o chat.obm --from bitdelta --base ./base
      obm convert chat.obm -o ./deltas --to delta --base ./base
    """  # noqa: D301 - \b is click's
    from obm_format.convert import convert_from, convert_to

    if (from_kind is None) == (to_kind is None):
        raise click.UsageError("Give one of --from and --to.")
    if to_kind is not None and (task is not None or encoding is not None):
        raise click.UsageError("--task and --encoding go with --from.")
    if from_kind is not None and refs:
        raise click.UsageError("--ref goes with --to.")
    with output.progress_bar() as progress:
        report: ConvertReport | ExportReport
        if from_kind is not None:
            report = convert_from(from_kind, source, base, out, task=task or "", encoding=encoding, progress=progress)
        else:
            report = convert_to(to_kind or "", source, base, out, refs=refs, progress=progress)
    output.emit("convert", report.as_json(), as_json=as_json, human=lambda: _print(report))


def _print(report: ConvertReport | ExportReport) -> None:
    from obm_format.convert import ConvertReport

    if not isinstance(report, ConvertReport):
        output.say(f"wrote {report.out}: {report.n_tensors} tensors as {report.target}")
        return
    output.say(f"wrote {report.file}: {output.nbytes(report.nbytes)}, {report.n_changed} tensors from {report.source}")
    output.say(f"  id        {report.id}")
    output.say(f"  position  {report.position}, task {report.task or '-'}")
    output.say("  tensors   " + ", ".join(f"{count} {name}" for name, count in report.encodings.items()))
