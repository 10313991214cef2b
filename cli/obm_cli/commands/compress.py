"""`obm compress`: a fine-tune into an expert, or several into experts that share a base vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from obm_cli import output
from obm_cli.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from obm_format.compress import Chosen, CompressOptions, CompressReport, Fitted, RtvqReport


@click.command("compress")
@click.argument("base", metavar="BASE", type=InputPath())
@click.argument("tuned", metavar="TUNED...", nargs=-1, required=True, type=InputPath())
@click.option(
    "-o", "--output", "out", metavar="X.obm", required=True, type=OutputPath(),
    help="The file to write; with --rtvq the folder.",
)  # fmt: skip
@click.option(
    "--task", "tasks", metavar="NAME", multiple=True,
    help="Name of the task, by which a route finds the expert; with --rtvq one for each TUNED.",
)  # fmt: skip
@click.option(
    "--rtvq", metavar="B+O",
    help="Several fine-tunes: a base vector of B bits that they share, and offsets of O bits; each 2, 3, 4 or 8.",
)  # fmt: skip
@click.option("--preset", metavar="chat|math|code", help="The paper's position and alpha for this kind of expert.")
@click.option(
    "--position",
    metavar="P",
    help="attention, mlp, linear [default], none, or a pattern (globs, or re:EXPRESSION).",
)
@click.option(
    "--rest", metavar="R",
    help="The other tensors: exact [default], raw, affine8, affine4, "
    "affine3, affine2 or drop.",
)  # fmt: skip
@click.option(
    "--encoding", metavar="E",
    help="The position's tensors: sign1 [default], tern1, sparse, affine8, affine4, affine3 or affine2.",
)  # fmt: skip
@click.option("--planes", type=int, metavar="N", help="Planes of sign bits, 1 to 4 [default: 1].")
@click.option("--alpha", metavar="RULE[/GRAIN]", help="mean|rms|proj / matrix|row|group:N [default: proj/row].")
@click.option("--gain", metavar="F", help="Multiply the alphas: below 1 shrinks the expert [default: 1].")
@click.option(
    "--budget", metavar="BYTES|RATIO",
    help="Choose encodings so that the file fits: 12MB, or 0.05 of the dense fine-tune.",
)  # fmt: skip
@click.option("--allow-removed", is_flag=True, help="Accept that the fine-tune lacks tensors of the backbone.")
@output.json_option
def command(
    base: str,
    tuned: tuple[str, ...],
    out: str,
    tasks: tuple[str, ...],
    rtvq: str | None,
    preset: str | None,
    position: str | None,
    rest: str | None,
    encoding: str | None,
    planes: int | None,
    alpha: str | None,
    gain: str | None,
    budget: str | None,
    allow_removed: bool,
    as_json: bool,
) -> None:
    """Compress a fine-tune into an expert.

    BASE and TUNED are checkpoint folders or safetensors files. The position's matrices are stored with 1 bit per
    weight and one alpha per row, everything else bit for bit. With --rtvq, several fine-tunes make a folder with
    base.obm and one expert each, named by --task or by the folder of the fine-tune. With --budget, every tensor is
    measured first; then encodings are chosen that keep the shift along the task vector, and as much beside it as the
    budget allows. Without --rest that goes for the tensors outside the position too, which are never dropped.

    \b
    Examples:
      obm compress ./minilm ./minilm-sentiment -o sentiment.obm --task sentiment
      obm compress ./base ./math -o math.obm --task math --preset math
      obm compress ./base ./math -o math.obm --budget 0.05
      obm compress ./base ./math ./code ./chat --rtvq 3+2 -o experts/
    """  # noqa: D301 - \b is click's
    from obm_format.compress import parse_compress_options

    if rtvq is not None and any(given is not None for given in (encoding, planes, alpha, gain, budget)):
        others = "--encoding, --planes, --alpha, --gain and --budget"
        raise click.UsageError(f"--rtvq says the encoding: it goes without {others}.")
    if budget is not None and any(given is not None for given in (encoding, planes, gain)):
        raise click.UsageError("--budget chooses the encoding: it goes without --encoding, --planes and --gain.")
    if rtvq is None and max(len(tuned), len(tasks)) > 1:
        raise click.UsageError("Several fine-tunes, or several task names, need --rtvq.")
    options = parse_compress_options(
        preset=preset,
        position=position,
        encoding=encoding,
        planes=planes,
        alpha=alpha,
        gain=gain,
        rest=rest,
        task="" if rtvq is not None else "".join(tasks),
        allow_removed=allow_removed,
        budget=budget,
    )
    if rtvq is None:
        _compress_one(base, tuned[0], out, options, as_json=as_json)
    else:
        _compress_rtvq(base, tuned, out, (rtvq, tasks, options), as_json=as_json)


def _compress_one(base: str, tuned: str, out: str, options: CompressOptions, *, as_json: bool) -> None:
    from obm_format.compress import compress_checkpoint

    with output.progress_bar() as progress:
        report = compress_checkpoint(base, tuned, out, options, progress=progress)
    output.emit("compress", report.as_json(), as_json=as_json, human=lambda: _print(report))


def _compress_rtvq(
    base: str,
    tuned: tuple[str, ...],
    out: str,
    words: tuple[str, tuple[str, ...], CompressOptions],
    *,
    as_json: bool,
) -> None:
    from obm_format.compress import compress_rtvq, parse_rtvq_options

    options = parse_rtvq_options(*words)
    with output.progress_bar() as progress:
        report = compress_rtvq(base, tuned, out, options, progress=progress)
    output.emit("compress", report.as_json(), as_json=as_json, human=lambda: _print_rtvq(report))


def _print_rtvq(report: RtvqReport) -> None:
    size = f"{output.nbytes(report.nbytes)}, {report.ratio:.1%} of the dense {output.nbytes(report.dense_nbytes)}"
    output.say(f"wrote {report.folder}: {size}")
    for one in (report.base, *report.experts):
        output.say(f"  {one.file}  {output.nbytes(one.nbytes)}, error {one.rel_error:.3f} relative (L2)")


def _print(report: CompressReport) -> None:
    size = f"{output.nbytes(report.nbytes)}, {report.ratio:.1%} of the dense {output.nbytes(report.dense_nbytes)}"
    output.say(f"wrote {report.file}: {size}")
    output.say(f"  id        {report.id}")
    output.say(f"  position  {report.position}, task {report.task or '-'}")
    output.say("  tensors   " + ", ".join(f"{count} {name}" for name, count in report.encodings.items()))
    output.say("  bytes     " + ", ".join(f"{name} {output.nbytes(n)}" for name, n in report.bytes.items() if n))
    if report.fitted is not None:
        _print_fitted(report.fitted)
    if report.bytes["sign"]:
        output.say(f"  error     {report.rel_error:.3f} relative (L2); {report.kept:.1%} of the shift along d is kept")


def _print_fitted(fitted: Fitted) -> None:
    from obm_format.compress.measure import total

    sizes = f"{output.nbytes(fitted.smallest)} is the least, {output.nbytes(fitted.largest)} the most of use"
    output.say(f"  budget    {output.nbytes(fitted.limit)}; {sizes}")
    output.say("  choices   first the whole shift along d for every tensor, then the most error per byte")
    classes: dict[tuple[str, str], list[Chosen]] = {}
    for one in fitted.chosen:
        classes.setdefault((one.role, str(one.choice).partition(" gain")[0]), []).append(one)
    rows = []
    for (role, stored), some in sorted(classes.items()):
        nbytes, fidelity = sum(one.nbytes for one in some), total(one.fidelity for one in some)
        bits = f"{8 * nbytes / sum(one.numel for one in some):.2f}"
        share = f"{fidelity.shift / fitted.fidelity.shift:.1%}"
        kept, error = f"{fidelity.kept:.1%}", f"{fidelity.rel_error:.3f}"
        rows.append((f"    {role}", stored, len(some), output.nbytes(nbytes), bits, share, kept, error))
    output.table(("    ROLE", "STORED AS", "TENSORS", "BYTES", "BITS", "OF SHIFT", "KEPT", "ERROR"), rows)
    if fitted.refused is not None:
        step = fitted.refused
        output.say(f"  next      {step.name} as {step.choice}, for {output.nbytes(step.nbytes)} more")
