"""Recipe files: YAML or JSON to one mapping, with nothing in it that could surprise.

No aliases, no anchors, no key twice, no number but plain decimal ones, bounded in size and depth. Never looks at what
fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from obm_format.errors import UsageError

RECIPE_NBYTES = 1 << 20
RECIPE_DEPTH = 16
DECIMAL = re.compile(r"[-+]?(?!0[0-9])(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def read_mapping(path: Path) -> Mapping[str, object]:
    """The mapping that a YAML or JSON file holds.

    Raises:
        UsageError: `not_found` or `bad_recipe`.
    """
    if not path.is_file():
        raise UsageError("not_found", "there is no such recipe file", where=str(path))
    if path.stat().st_size > RECIPE_NBYTES:
        raise UsageError(
            "bad_recipe",
            "the file is too large for a recipe",
            where=str(path),
            expected=f"{RECIPE_NBYTES} bytes at most",
        )
    return parse_mapping(path.read_bytes(), str(path))


def parse_mapping(data: bytes, where: str) -> Mapping[str, object]:
    """The mapping that YAML or JSON text holds.

    Args:
        data: the text, UTF-8 or UTF-16 with its mark.
        where: what messages call it.

    Raises:
        UsageError: `bad_recipe`.
    """
    import yaml

    try:
        content = yaml.load(data, Loader=_strict_loader())  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UsageError("bad_recipe", f"the recipe cannot be read: {problem}", where=where) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError("bad_recipe", "a recipe is a mapping of field names to values", where=where)
    return content


def _strict_loader() -> type[Any]:
    """A safe YAML loader that refuses what no recipe needs; yaml itself is loaded only here."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise yaml.composer.ComposerError(None, None, "anchors and aliases are not used", event.start_mark)
            self.depth += 1
            if self.depth > RECIPE_DEPTH:
                problem = f"nested more than {RECIPE_DEPTH} deep"
                raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key, _ in node.value:
                plain = isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
                if not plain or key.value in seen:
                    name = repr(key.value) if isinstance(key, yaml.ScalarNode) else "that is a list or a mapping"
                    problem = f"the key {name} is given twice, or is no text"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_number(self, node: yaml.ScalarNode) -> int | float:
            """YAML 1.1 would read 010 as 8 and 1:30 as 90."""
            if DECIMAL.fullmatch(node.value) is None:
                problem = f"{node.value[:40]!r} is no plain decimal number"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return int(node.value) if node.value.lstrip("+-").isdigit() else float(node.value)

    for kind in ("int", "float"):
        StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", StrictLoader.construct_number)
    return StrictLoader
