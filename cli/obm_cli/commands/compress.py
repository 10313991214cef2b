"""`obm compress`: a fine-tune into an expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obm_cli import output

if TYPE_CHECKING:
    from obm_format.compress import CompressReport


@click.command("compress")
@click.argument("base", metavar="BASE", type=click.Path())
@click.argument("tuned", metavar="TUNED", type=click.Path())
@click.option("-o", "--output", "out", metavar="X.obm", required=True, type=click.Path(), help="The file to write.")
@click.option("--task", default="", metavar="NAME", help="Name of the task, by which a route finds the expert.")
@click.option("--preset", metavar="chat|math|code", help="The paper's position and alpha for this kind of expert.")
@click.option(
    "--position",
    metavar="P",
    help="attention, mlp, linear [default], none, or a pattern (globs, or re:EXPRESSION).",
)
@click.option(
    "--rest", default="exact", show_default=True, metavar="R",
    help="The other tensors: exact, raw, affine8, affine4, affine3, affine2 or drop.",
)  # fmt: skip
@click.option(
    "--encoding", default="sign1", show_default=True, metavar="E",
    help="The position's tensors: sign1, tern1, sparse, affine8, affine4, affine3 or affine2.",
)  # fmt: skip
@click.option("--planes", type=int, default=1, show_default=True, metavar="N", help="Planes of sign bits, 1 to 4.")
@click.option("--alpha", metavar="RULE[/GRAIN]", help="mean|rms|proj / matrix|row|group:N [default: proj/row].")
@click.option("--gain", metavar="F", help="Multiply the alphas: below 1 shrinks the expert [default: 1].")
@click.option("--allow-removed", is_flag=True, help="Accept that the fine-tune lacks tensors of the backbone.")
@output.json_option
def command(
    base: str,
    tuned: str,
    out: str,
    task: str,
    preset: str | None,
    position: str | None,
    rest: str,
    encoding: str,
    planes: int,
    alpha: str | None,
    gain: str | None,
    allow_removed: bool,
    as_json: bool,
) -> None:
    """Compress a fine-tune into an expert.

    BASE and TUNED are checkpoint folders or safetensors files. The position's matrices are stored with 1 bit per
    weight and one alpha per row, everything else bit for bit.

    \b
    Examples:
      obm compress ./minilm ./minilm-sentiment -o sentiment.obm --task sentiment
      obm compress ./base ./math -o math.obm --task math --preset math
    """  # noqa: D301 - \b is click's
    from obm_format.compress import compress_checkpoint, parse_compress_options

    options = parse_compress_options(
        preset=preset,
        position=position,
        encoding=encoding,
        planes=planes,
        alpha=alpha,
        gain=gain,
        rest=rest,
        task=task,
        allow_removed=allow_removed,
    )
    with output.progress_bar() as progress:
        report = compress_checkpoint(base, tuned, out, options, progress=progress)
    output.emit("compress", report.as_json(), as_json=as_json, human=lambda: _print(report))


def _print(report: CompressReport) -> None:
    size = f"{output.nbytes(report.nbytes)}, {report.ratio:.1%} of the dense {output.nbytes(report.dense_nbytes)}"
    output.say(f"wrote {report.file}: {size}")
    output.say(f"  id        {report.id}")
    output.say(f"  position  {report.position}, task {report.task or '-'}")
    output.say("  tensors   " + ", ".join(f"{count} {name}" for name, count in report.encodings.items()))
    output.say("  bytes     " + ", ".join(f"{name} {output.nbytes(n)}" for name, n in report.bytes.items() if n))
    if report.bytes["sign"]:
        output.say(f"  error     {report.rel_error:.3f} relative (L2); {report.kept:.1%} of the shift along d is kept")
