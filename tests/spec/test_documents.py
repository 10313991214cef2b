"""The documents of `spec/` say the same as the code, the vectors and each other."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import generate
import pytest
from spec_readers import SPEC, VECTORS

from obm_format.errors import REASONS

CLAUSES = set(re.findall(r"^(\d+\.\d+) ", (SPEC / "obm-1.md").read_text(), re.MULTILINE))
SCHEMA = json.loads((SPEC / "obm-1.schema.json").read_text())


def test_reason_codes_table_equals_the_code() -> None:
    rows = [line for line in (SPEC / "reason-codes.md").read_text().splitlines() if line.startswith("| `")]
    facts = REASONS.items()
    assert rows == [f"| `{code}` | {r.exit_code} | {r.http_status} | {r.meaning} |" for code, r in facts]


def test_prose_names_only_known_reason_codes() -> None:
    prose = (SPEC / "obm-1.md").read_text()
    marked = {
        code
        for group in re.findall(r"\(([^()]*`[a-z_]+`[^()]*)\)", prose)
        for code in re.findall(r"`([a-z]+_[a-z_]+)`", group)
    }
    named = {code for code in marked if code in REASONS}
    assert len(named) >= 30
    fields = {"value_dtype", "zstd_nbytes", "alpha_dtype", "max_tokens"}
    assert marked - named <= fields


def test_vectors_on_disk_are_what_generate_makes() -> None:
    assert generate.files_on_disk(VECTORS) == generate.all_files()


def test_generate_check_finds_a_changed_vector(tmp_path: Path) -> None:
    assert generate.main([str(tmp_path)]) == 0
    assert generate.main(["--check", str(tmp_path)]) == 0
    victim = tmp_path / "valid" / "sign1-row.obm"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\1")
    (tmp_path / "invalid" / "stale.obm").write_bytes(b"")
    assert generate.main(["--check", str(tmp_path)]) == 1
    assert generate.main([str(tmp_path)]) == 0
    assert generate.main(["--check", str(tmp_path)]) == 0


def test_spec_modules_do_not_import_the_package() -> None:
    imported = set()
    for path in SPEC.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    own = {path.stem for path in SPEC.glob("*.py")}
    assert imported - own <= sys.stdlib_module_names


def test_minimal_reader_is_short_enough_to_read() -> None:
    assert len((SPEC / "minimal_reader.py").read_text().splitlines()) <= 450


@pytest.mark.parametrize("folder", ["valid", "invalid"])
def test_vectors_name_clauses_that_exist(folder: str) -> None:
    assert {json.loads(path.read_text())["clause"] for path in (VECTORS / folder).glob("*.json")} <= CLAUSES


def manifest_of(path: Path) -> Any:  # noqa: ANN401 - JSON
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["obm"])


@pytest.mark.parametrize("path", sorted((VECTORS / "valid").glob("*.obm")), ids=lambda path: path.stem)
def test_schema_takes_valid_manifest(path: Path) -> None:
    assert list(misfits(manifest_of(path), SCHEMA)) == []


# Reasons that a manifest alone can be refused for; and the vectors of them that take more than a schema to see.
OF_MANIFEST = {"manifest_field", "bad_name", "bad_digest", "unknown_encoding", "bad_params", "limit_exceeded"}
OF_MANIFEST |= {"bad_shape", "not_canonical"}
BEYOND_SCHEMA_TEXT = """
    alias-of-alias alias-of-nothing base-dtype-integer prefix-alone prefix-lacking prefix-lacking-in-alias
    router-bias-longer router-layers-broken router-routes-fewer router-scale-longer router-weight-turned
    base-same-dtype base-same-name base-same-shape raw-value-dtype-default rows-default
    affine-no-elements raw-framed-no-elements sign1-no-elements tern1-no-elements
    base-shape-wraps shape-2-to-53 shape-hollow-first-wraps shape-hollow-wraps shape-wraps
    delta-fewer-rows delta-other-columns delta-other-rank delta-scalar delta-turned zero-integer-cast
    blocks-long blocks-neighbours blocks-short rows-beyond rows-columns rows-divisor
    rtvq-no-refs rtvq-ref-beyond sparse-nnz-beyond
"""
BEYOND_SCHEMA = set(BEYOND_SCHEMA_TEXT.split())


def shown_to_schema() -> list[str]:
    """Invalid vectors whose manifest is JSON, and what is wrong with the file is wrong with its manifest."""
    names = []
    for path in sorted((VECTORS / "invalid").glob("*.json")):
        facts = json.loads(path.read_text())
        in_text = facts["clause"] in ("2.2", "2.4", "2.5", "4.1", "14.1")
        if facts["stage"] == "header" and facts["reason"] in OF_MANIFEST and not in_text:
            names.append(path.stem)
    return names


@pytest.mark.parametrize("name", shown_to_schema())
def test_schema_refuses_what_it_can_see(name: str) -> None:
    found = misfits(manifest_of(VECTORS / "invalid" / f"{name}.obm"), SCHEMA)
    assert bool(found) == (name not in BEYOND_SCHEMA)


TYPES: dict[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "integer": int}


def misfits(value: Any, schema: Any, where: str = "$") -> list[str]:  # noqa: ANN401 - JSON
    """Where `value` breaks `schema`: as much of JSON Schema as the schema of the manifest uses."""
    if schema is False:
        return [where]
    if "$ref" in schema:
        return misfits(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]], where)
    found = [f"{where}: {word}" for word, holds in simple_rules(value, schema) if not holds]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, item in value.items():
            found += misfits(item, known[key], f"{where}.{key}") if key in known else []
            if schema.get("additionalProperties") is False and key not in known:
                found.append(f"{where}.{key}: unknown")
            found += misfits(key, schema.get("propertyNames", {}), f"{where}.{key}")
    if "if" in schema:
        chosen = "else" if misfits(value, schema["if"]) else "then"
        found += misfits(value, schema.get(chosen, {}), where)
    for part in schema.get("allOf", []):
        found += misfits(value, part, where)
    if isinstance(value, list) and "items" in schema:
        found += [text for i, item in enumerate(value) for text in misfits(item, schema["items"], f"{where}[{i}]")]
    return found


def simple_rules(value: Any, schema: dict[str, Any]) -> list[tuple[str, bool]]:  # noqa: ANN401 - JSON
    size = len(value) if isinstance(value, str | list | dict) else 0
    number = value if isinstance(value, int) else 0
    rules = {
        "type": lambda t: isinstance(value, TYPES[t]) and not (t == "integer" and isinstance(value, bool)),
        "enum": lambda allowed: value in allowed,
        "const": lambda only: value == only and isinstance(value, bool) == isinstance(only, bool),
        "uniqueItems": lambda _: not isinstance(value, list) or len(set(map(str, value))) == size,
        "not": lambda other: bool(misfits(value, other)),
        "oneOf": lambda cases: sum(not misfits(value, case) for case in cases) == 1,
        "pattern": lambda text: re.search(text, value) is not None,
        "required": lambda keys: set(keys) <= set(value),
        "minimum": lambda low: number >= low,
        "maximum": lambda high: number <= high,
        "multipleOf": lambda of: number % of == 0,
        **dict.fromkeys(("minLength", "minItems", "minProperties"), lambda low: size >= low),
        **dict.fromkeys(("maxLength", "maxItems"), lambda high: size <= high),
    }
    handled = {
        "if",
        "then",
        "else",
        "allOf",
        "properties",
        "additionalProperties",
        "items",
        "propertyNames",
        "$defs",
        "$schema",
        "title",
        "description",
    }
    assert set(schema) <= rules.keys() | handled
    if "type" in schema and not rules["type"](schema["type"]):
        return [("type", False)]
    return [(word, bool(rules[word](schema[word]))) for word in schema if word in rules]
