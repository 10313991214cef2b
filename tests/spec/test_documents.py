"""The documents of `spec/` say the same as the code, the vectors and each other."""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate
import minimal_reader
import pytest
from jsonschema import Draft202012Validator
from spec_readers import SPEC, VECTORS

from obm_format.errors import REASONS

CLAUSES = set(re.findall(r"^(\d+\.\d+) ", (SPEC / "obm-1.md").read_text(), re.MULTILINE))
SCHEMA = json.loads((SPEC / "obm-1.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


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
    assert (SPEC / "minimal_reader.py").read_bytes().count(
        b"\n"
    ) <= 300  # blank lines, comments and all, as `wc -l` counts


def test_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def rules(schema: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Every object inside the schema."""
    if isinstance(schema, dict):
        yield schema
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from rules(inner)


def test_schema_refuses_what_is_its_default_and_names_known_reasons() -> None:
    defaults = [rule for rule in rules(SCHEMA) if "default" in rule]
    assert len(defaults) == 20
    assert all(rule["not"] == {"const": rule["default"]} and "x-absent" not in rule for rule in defaults)
    assert {rule["x-reason"] for rule in rules(SCHEMA) if "x-reason" in rule} <= set(REASONS)


def test_minimal_reader_knows_every_word_of_the_schema() -> None:
    known = set(re.findall(r'"([A-Za-z-]+)"', inspect.getsource(minimal_reader.faults)))
    for_people_and_validators = {"$schema", "title", "description", "not", "uniqueItems"}
    for_records = {"x-absent", "x-parts", "x-tensors"}
    assert words_of(SCHEMA) <= known | for_people_and_validators | for_records | {"$ref", "$defs"}


def words_of(schema: Any) -> set[str]:  # noqa: ANN401 - JSON
    """The keywords of a schema and of all schemas inside it."""
    if not isinstance(schema, dict):
        return set()
    inner = [schema[word] for word in ("if", "then", "else", "items", "not", "propertyNames") if word in schema]
    inner += [rule for word in ("$defs", "properties") for rule in schema.get(word, {}).values()]
    return set(schema) - {"const"} | {word for rule in [*inner, *schema.get("allOf", [])] for word in words_of(rule)}


@pytest.mark.parametrize("folder", ["valid", "invalid"])
def test_vectors_name_clauses_that_exist(folder: str) -> None:
    assert {json.loads(path.read_text())["clause"] for path in (VECTORS / folder).glob("*.json")} <= CLAUSES


def manifest_of(path: Path) -> Any:  # noqa: ANN401 - JSON
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["obm"])


@pytest.mark.parametrize("path", sorted((VECTORS / "valid").glob("*.obm")), ids=lambda path: path.stem)
def test_schema_takes_valid_manifest(path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(manifest_of(path))] == []


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
    assert VALIDATOR.is_valid(manifest_of(VECTORS / "invalid" / f"{name}.obm")) == (name in BEYOND_SCHEMA)
