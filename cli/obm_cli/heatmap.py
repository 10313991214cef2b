"""The page of `obm stats --html`: one file without scripts and without anything from elsewhere.

Turns the numbers of `obm stats --json` into HTML with inline SVG. Never measures and never writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from obm_cli.output import nbytes

_LAYER = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>[0-9]+)\.(?P<matrix>.+)")
_EXACT = frozenset({"raw", "sparse", "xdelta", "zero"})
_WIDE_COLUMNS = 16  # up to so many columns a cell is wide enough for its number

_CSS = """
:root { --page: #fcfcfb; --text: #1b1f24; --soft: #5c6570; --line: #d9dde2; --none: #eceef0;
        --low: #d8e6f5; --high: #0b3d78; --on-low: #10263f; --on-high: #ffffff; --bar: #2f6fb3; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --text: #e6e9ec; --soft: #9aa4ae; --line: #333a42; --none: #22272d;
          --low: #1d3450; --high: #a9d1ff; --on-low: #dce9f8; --on-high: #0b1a2b; --bar: #6aa5e6; } }
:root { color-scheme: light dark; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--page); color: var(--text);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p, caption { color: var(--soft); text-align: left; } code { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th { color: var(--soft); } th:first-child, td:first-child, .facts td { text-align: left; }
.scroll td, .scroll th { white-space: nowrap; } summary { cursor: pointer; }
dl { color: var(--soft); display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dt { color: var(--text); } dd { margin: 0; }
.scroll { overflow-x: auto; } svg { display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } svg text.soft { fill: var(--soft); }
.none { fill: var(--none); } .bar { fill: var(--bar); }
svg text.low { fill: var(--on-low); } svg text.high { fill: var(--on-high); } .low, .high { text-anchor: middle; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """Values by row (layer) and column (matrix); rows and columns in the order they are drawn."""

    rows: Sequence[tuple[str, int]]
    columns: Sequence[str]
    cells: Mapping[tuple[tuple[str, int], str], tuple[str, float]]


def stats_page(found: Mapping[str, Any], title: str) -> str:
    """The page of one expert.

    Args:
        found: what `ExpertStats.as_json` gives.
        title: what to call the expert, such as its file name.

    Returns:
        a whole HTML document; all text in it is escaped.
    """
    tensors = found["tensors"]
    sections = [
        f"<h1>{escape(title)}</h1>",
        "<p>What a fine-tune adds to its backbone, as this expert stores it.</p>",
        _facts(found),
        "<h2>Bytes by class</h2>",
        _bars(found["bytes"]),
        "<h2>By role</h2>",
        _roles(found),
        _glossary(found["with_base"]),
        *_map("Mean alpha", "how far one bit moves a weight", tensors, _alpha_mean, "{:.2g}"),
    ]
    if found["with_base"]:
        about = "share of the non-zero values that rounding to the output dtype swallows"
        sections += _map("Absorbed fraction", about, tensors, _absorbed, "{:.1%}", from_zero=True)
    sections += ["<h2>Tensor by tensor</h2>", _tensors(found)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: obm stats</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


# --- facts and sums -----------------------------------------------------------------------------------------


def _facts(found: Mapping[str, Any]) -> str:
    backbone = found["backbone"]
    total = found["total"]
    bits = total["bits_per_weight"]
    facts = {
        "Artifact id": found["id"],
        "Holds": f"{found['kind']}, task {found['task'] or '-'}, position {found['position']}",
        "Backbone": f"{backbone['architecture'] or '-'} {backbone['fingerprint']}",
        "Size": f"{nbytes(found['nbytes'])} ({found['nbytes']} bytes)",
        "Tensors": f"{total['tensors']} with {total['numel']} weights"
        + (f", {bits:.2f} bits per weight" if bits is not None else ""),
    }
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>" for name, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>'


def _bars(classes: Mapping[str, int]) -> str:
    total = sum(classes.values())
    largest = max(classes.values())
    lines = []
    for place, (kind, count) in enumerate((kind, count) for kind, count in classes.items() if count):
        top = 26 * place
        label = f"{nbytes(count)}, {count / total:.1%}"
        width = max(1.0, 460 * count / largest)
        lines.append(
            f'<text x="70" y="{top + 15}" text-anchor="end">{escape(kind)}</text>'
            f'<rect class="bar" x="80" y="{top + 2}" width="{width:.1f}" height="18" rx="3"/>'
            f'<text class="soft" x="{88 + width:.1f}" y="{top + 15}">{escape(label)}</text>'
        )
    return _svg(720, 26 * len(lines), f"bytes by class, {nbytes(total)} in all", "".join(lines))


_WORDS = {
    "bits/weight": "bytes of the parts and alphas, times 8, over the weights",
    "alphas": "how many there are; then the least, mean and greatest: the step that one sign bit stands for",
}
_WORDS_WITH_BASE = {
    "zero": "share of weights that the expert does not change",
    "absorbed": "share of the non-zero values that are lost when the sum is rounded to the output dtype",
    "moved": "share of weights whose stored value changes",
    "|d|/|w|": "length of the change over the length of the weights",
    "1-bit error": "relative error that one bit and one mean alpha would have, for tensors that are stored exactly",
}


def _glossary(with_base: bool) -> str:
    words = _WORDS | (_WORDS_WITH_BASE if with_base else {})
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{text}</dd>" for word, text in words.items()) + "</dl>"


def _heads(with_base: bool) -> list[str]:
    return ["bytes", "bits/weight", "alphas", "min", "mean", "max", "zero"] + (
        ["absorbed", "moved", "|d|/|w|"] if with_base else []
    )


def _cells_of(one: Mapping[str, Any], with_base: bool) -> list[str]:
    """The cells under `_heads`, of one tensor or of several."""
    alpha = one["alpha"] or {}
    cells = [nbytes(one["nbytes"]), _text(one["bits_per_weight"], "{:.2f}"), str(alpha.get("count", "-"))]
    cells += [_text(alpha.get(key), "{:.3g}") for key in ("min", "mean", "max")]
    cells.append(_text(one["zero_fraction"], "{:.1%}"))
    if with_base:
        cells += [_text(one[key], "{:.1%}") for key in ("absorbed_fraction", "moved_fraction")]
        cells.append(_text(one["norm_ratio"], "{:.2g}"))
    return cells


def _roles(found: Mapping[str, Any]) -> str:
    with_base = found["with_base"]
    rows = [(role, totals) for role, totals in found["roles"].items()] + [("all", found["total"])]
    lines = [[role, str(totals["tensors"]), *_cells_of(totals, with_base)] for role, totals in rows]
    return _table(["role", "tensors", *_heads(with_base)], lines)


def _tensors(found: Mapping[str, Any]) -> str:
    with_base = found["with_base"]
    lines = []
    for one in found["tensors"]:
        last = [_text(one["sign1_error"], "{:.3f}")] if with_base else []
        lines.append([one["name"], one["encoding"], *_cells_of(one, with_base), *last])
    heads = ["tensor", "encoding", *_heads(with_base), *(["1-bit error"] if with_base else [])]
    return f"<details><summary>{len(lines)} tensors</summary>{_table(heads, lines)}</details>"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


# --- the heat map -------------------------------------------------------------------------------------------


def _alpha_mean(tensor: Mapping[str, Any]) -> float | None:
    return tensor["alpha"]["mean"] if tensor["alpha"] else None


def _absorbed(tensor: Mapping[str, Any]) -> float | None:
    rounded = tensor["mode"] == "delta" and tensor["encoding"] not in _EXACT
    return tensor["absorbed_fraction"] if rounded else None


def _map(
    title: str,
    about: str,
    tensors: Sequence[Mapping[str, Any]],
    value_of: Callable[[Mapping[str, Any]], float | None],
    how: str,
    *,
    from_zero: bool = False,
) -> list[str]:
    """A heading and the heat map of one value, with those of tensors that no layer has below it."""
    grid, others = _grid(tensors, value_of)
    lines = [f"<h2>{escape(title)}, layer by matrix</h2>", f"<p>{escape(title)}: {escape(about)}.</p>"]
    if grid.cells:
        lines.append(_draw(grid, title, how, from_zero=from_zero))
    elif not others:
        lines.append("<p>No tensor of this expert has one.</p>")
    if others:
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{how.format(value)}</td></tr>" for name, value in others)
        lines.append(f"<table><caption>Outside the layers</caption>{rows}</table>")
    return lines


def _grid(
    tensors: Sequence[Mapping[str, Any]], value_of: Callable[[Mapping[str, Any]], float | None]
) -> tuple[_Grid, list[tuple[str, float]]]:
    cells: dict[tuple[tuple[str, int], str], tuple[str, float]] = {}
    others = []
    for tensor in tensors:
        value = value_of(tensor)
        if value is None:
            continue
        match = _LAYER.fullmatch(tensor["name"])
        if match is None:
            others.append((tensor["name"], value))
        else:
            row = (match["stack"].removesuffix("."), int(match["layer"]))
            cells[row, match["matrix"].removesuffix(".weight")] = (tensor["name"], value)
    rows = sorted({row for row, _ in cells})
    return _Grid(rows=rows, columns=list(dict.fromkeys(column for _, column in cells)), cells=cells), others


def _draw(grid: _Grid, title: str, how: str, *, from_zero: bool) -> str:
    values = [value for _, value in grid.cells.values()]
    least, most = 0.0 if from_zero else min(values), max(values)
    wide = len(grid.columns) <= _WIDE_COLUMNS
    width, height = (64, 22) if wide else (12, 12)
    labels = [f"{stack} {layer}".strip() for stack, layer in grid.rows]
    left = 12 + 7 * max(map(len, labels))
    top = 12 + int(5 * max(map(len, grid.columns)))
    lines = [
        f'<text class="soft" transform="translate({left + width * (place + 0.5):.0f} {top - 6}) rotate(-35)">'
        f"{escape(column)}</text>"
        for place, column in enumerate(grid.columns)
    ]
    for down, (row, label) in enumerate(zip(grid.rows, labels, strict=True)):
        y = top + height * down
        middle = y + height / 2 + 4
        lines.append(f'<text class="soft" x="{left - 8}" y="{middle:.0f}" text-anchor="end">{escape(label)}</text>')
        for across, column in enumerate(grid.columns):
            box = (left + width * across, y, width - 2, height - 2)
            found = grid.cells.get((row, column))
            lines.append(_cell(box, found, (least, most), how, wide=wide))
    bottom = top + height * len(grid.rows)
    ends = (how.format(least), how.format(most))
    lines.append(
        _legend(left, bottom + 16, ends, title) if most > least else _legend_of_one(left, bottom + 16, ends[0])
    )
    reach = left + max(width * len(grid.columns), 330) + int(4.5 * max(map(len, grid.columns)))
    return _svg(reach, bottom + 60, f"{title}, rows are layers, columns are matrices", "".join(lines))


def _cell(
    box: tuple[int, int, int, int],
    found: tuple[str, float] | None,
    scale: tuple[float, float],
    how: str,
    *,
    wide: bool,
) -> str:
    x, y, width, height = box
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="2"'
    if found is None:
        return f'<rect class="none" {place}/>'
    name, value = found
    least, most = scale
    share = (value - least) / (most - least) if most > least else 0.0
    text = how.format(value)
    fill = f"color-mix(in oklab, var(--low), var(--high) {100 * share:.0f}%)"
    drawn = f'<rect {place} style="fill: {fill}"><title>{escape(name)}: {text}</title></rect>'
    if not wide:
        return drawn
    side = "high" if share > 0.5 else "low"
    middle = f'x="{x + width / 2:.0f}" y="{y + height / 2 + 4:.0f}"'
    return f'{drawn}<text class="{side}" pointer-events="none" {middle}>{text}</text>'


def _legend(x: int, y: int, ends: tuple[str, str], title: str) -> str:
    """The scale in steps, with its ends, and what an empty cell means."""
    steps = "".join(
        f'<rect x="{x + 10 * step}" y="{y}" width="10" height="12" '
        f'style="fill: color-mix(in oklab, var(--low), var(--high) {100 * step / 15:.0f}%)"/>'
        for step in range(16)
    )
    return (
        f"{steps}"
        f'<text class="soft" x="{x}" y="{y + 28}">{ends[0]}</text>'
        f'<text class="soft" x="{x + 160}" y="{y + 28}" text-anchor="end">{ends[1]}</text>'
        f'<rect class="none" x="{x + 184}" y="{y}" width="12" height="12"/>'
        f'<text class="soft" x="{x + 202}" y="{y + 11}">no {escape(title.lower())}</text>'
    )


def _legend_of_one(x: int, y: int, value: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="12" height="12" style="fill: var(--low)"/>'
        f'<text class="soft" x="{x + 18}" y="{y + 11}">{value} everywhere</text>'
    )


def _svg(width: int, height: int, label: str, content: str) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<div class="scroll"><svg {size} role="img" aria-label="{escape(label)}">{content}</svg></div>'


def _text(value: float | None, how: str) -> str:
    return "-" if value is None else how.format(value)
