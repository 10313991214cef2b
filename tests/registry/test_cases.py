"""docs/registry-cases.md names a test for each case of the registry, and every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLES = (HERE.parent.parent / "docs" / "registry-cases.md").read_text(encoding="utf-8")
CASES = {f"S-{i:02}" for i in range(1, 34)} | {f"I-{i:02}" for i in range(1, 17)}
WITHOUT = {"S-23", "I-13"}  # what they are about is not there


def test_every_case_has_its_row_and_its_tests() -> None:
    rows = re.findall(r"^\| ([SI]-[0-9]{2}) \| .* \| (.*) \|$", TABLES, re.MULTILINE)
    assert [name for name, _ in rows] == sorted(CASES, key=lambda name: (name[0] == "I", name))
    for name, tests in rows:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert bool(found) != (name in WITHOUT), name
        for file, test in found:
            assert f"\ndef {test}(" in (HERE / file).read_text(encoding="utf-8"), (name, file, test)


def test_every_numbered_test_has_its_row() -> None:
    for path in HERE.rglob("test_*.py"):
        for test in re.findall(r"^def (test_[si][0-9]{2}_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            case = f"{test[5].upper()}-{test[6:8]}"
            assert re.search(rf"^\| {case} \|", TABLES, re.MULTILINE), test
