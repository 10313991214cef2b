"""For the whole suite: under `OBM_CI=1` a skip is a failure, because a missing component would hide there."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Turn a skip into a failure where everything must be installed."""
    report = yield
    if report.skipped and os.environ.get("OBM_CI") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under OBM_CI=1: {report.longrepr}"
    return report
