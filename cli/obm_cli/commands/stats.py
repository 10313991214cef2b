"""`obm stats`: measure every tensor of an expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from obm_cli import output
from obm_cli.paths import InputPath, OutputPath
from obm_cli.registry import expert_source, registry_option


@click.command("stats")
@click.argument("expert", metavar="X")
@click.option("--base", metavar="BASE", type=InputPath(), help="Its backbone: also measure how far weights move.")
@click.option("--html", metavar="F", type=OutputPath(), help="Also write a page with a layer by matrix heat map.")
@registry_option
@output.json_option
def command(expert: str, base: str | None, html: str | None, registry: str | None, as_json: bool) -> None:
    """Measure every tensor of an expert: bytes, alphas, signs, shift.

    X is a file, an http(s) address, or a reference to a published expert. BITS counts parts and alphas per weight,
    SET the share of set sign bits. With BASE: ABSORBED is the share of the non-zero values that rounding to the
    output dtype swallows, MOVED the share of weights that change, |d|/|w| the length of the shift over that of the
    weights, SIGN1 the relative error that one bit and one mean alpha would have on a tensor that is stored exactly.

    Example: obm stats sentiment.obm --base ./minilm --html sentiment.html
    """
    from obm_format.stats import expert_stats

    path = expert_source(expert, registry)
    with output.progress_bar() as progress:
        found = expert_stats(path, base=base, progress=progress).as_json()
    if html is not None:
        _write_page(Path(html), found, path.name if isinstance(path, Path) and path == Path(expert) else expert)
    output.emit("stats", found, as_json=as_json, human=lambda: _print(found, html))


def _write_page(target: Path, found: dict[str, Any], title: str) -> None:
    from obm_cli.heatmap import stats_page
    from obm_registry.durable import replaced_file

    with replaced_file(target) as file:
        file.write(stats_page(found, title).encode("ascii", "xmlcharrefreplace"))


def _print(found: dict[str, Any], html: str | None) -> None:
    output.say(f"id     {found['id']}")
    sizes = ", ".join(f"{kind} {output.nbytes(count)}" for kind, count in found["bytes"].items() if count)
    output.say(f"bytes  {output.nbytes(found['nbytes'])} ({sizes})")
    output.say()
    with_base = found["with_base"]
    columns: tuple[str, ...] = ("BYTES", "BITS", "ALPHAS", "MIN", "MEAN", "MAX", "ZERO")
    columns += ("ABSORBED", "MOVED", "|d|/|w|") if with_base else ()
    rows = [(role, totals["tensors"], *_cells(totals, with_base)) for role, totals in found["roles"].items()]
    rows.append(("all", found["total"]["tensors"], *_cells(found["total"], with_base)))
    output.table(("ROLE", "TENSORS", *columns), rows)
    output.say()
    last = ("SET", "SIGN1") if with_base else ("SET",)
    output.table(
        ("TENSOR", "ROLE", "ENCODING", *columns, *last),
        [
            (one["name"], one["role"], one["encoding"], *_cells(one, with_base), *_last_cells(one, with_base))
            for one in found["tensors"]
        ],
    )
    if html is not None:
        output.note(f"wrote {html}")


def _cells(one: dict[str, Any], with_base: bool) -> tuple[str, ...]:
    alpha = one["alpha"] or {}
    cells: tuple[str, ...] = (
        output.nbytes(one["nbytes"]),
        _number(one["bits_per_weight"], ".2f"),
        str(alpha.get("count", "-")),
        *(_number(alpha.get(key), ".3g") for key in ("min", "mean", "max")),
        _number(one["zero_fraction"], ".1%"),
    )
    if with_base:
        cells += (
            _number(one["absorbed_fraction"], ".1%"),
            _number(one["moved_fraction"], ".1%"),
            _number(one["norm_ratio"], ".2g"),
        )
    return cells


def _last_cells(one: dict[str, Any], with_base: bool) -> tuple[str, ...]:
    cells = (_number(one["sign_set"], ".1%"),)
    return (*cells, _number(one["sign1_error"], ".3f")) if with_base else cells


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
