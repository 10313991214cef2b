"""`obm diff`: show how two experts differ."""

from __future__ import annotations

import json
from typing import Any

import click

from obm_cli import output
from obm_cli.registry import expert_source, registry_option

_VALUE_WIDTH = 60  # characters of a manifest field that people are shown
_LEFT_OUT = {"position": "none"}  # what a manifest says by leaving a field out, where that is not nothing


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@registry_option
@output.json_option
def command(a: str, b: str, registry: str | None, as_json: bool) -> None:
    """Show how two experts differ.

    A and B are files, http(s) addresses or references. Exit status 0 whether they differ or not: the first line
    says so, and `identical` of --json. EQUAL is the share of equal sign bits, ALPHA the mean alpha of B over that
    of A, where both sides store a tensor as sign1 in the same matrix view.

    Example: obm diff sentiment-v1.obm sentiment-v2.obm
    """
    from obm_format.diff import diff_experts

    found = diff_experts(expert_source(a, registry), expert_source(b, registry)).as_json()
    output.emit("diff", found, as_json=as_json, human=lambda: _print(found))


def _print(found: dict[str, Any]) -> None:
    if found["identical"]:
        output.say(f"identical: {found['ids'][0]}")
        return
    output.say("the experts differ")
    for side, artifact in zip("AB", found["ids"], strict=True):
        output.say(f"  {side}         {artifact}")
    output.say(f"  backbone  {'the same' if found['same_backbone'] else 'another one'}")
    for name, pair in found["fields"].items():
        before, after = (_short(_LEFT_OUT.get(name) if value is None else value) for value in pair.values())
        output.say(f"  {name}: {before} -> {after}")
    for name in found["attachments"]:
        output.say(f"  attachment {name}: other bytes")
    counts = ((len(found["only_a"]), "only in A"), (len(found["only_b"]), "only in B"))
    others = "".join(f", {count} {where}" for count, where in counts if count)
    output.say(f"  tensors   {found['same']} the same, {len(found['differ'])} differ{others}")
    if found["signs"]:
        equal, ratio = _signs(found["signs"])
        output.say(f"  signs     {equal} equal where they differ, alpha B/A {ratio}")
    rows = [(name, "only in A", "-", "-") for name in found["only_a"]]
    rows += [(name, "only in B", "-", "-") for name in found["only_b"]]
    rows += [(one["name"], _what(one), *_signs(one["signs"])) for one in found["differ"]]
    if rows:
        output.say()
        output.table(("TENSOR", "DIFFERS IN", "EQUAL", "ALPHA"), sorted(rows))


def _what(one: dict[str, Any]) -> str:
    return ", ".join([*one["fields"], *one["parts"]])


def _signs(signs: dict[str, Any] | None) -> tuple[str, str]:
    if signs is None:
        return "-", "-"
    ratio = signs["alpha_ratio"]
    return f"{signs['equal_fraction']:.1%}", "-" if ratio is None else f"{ratio:.3f}"


def _short(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 3]}..."
