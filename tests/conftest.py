"""For the whole suite.

Under `OBM_CI=1` a skip is a failure, because a missing component would hide there, and hypothesis draws the same
examples each time. No example is too slow: machines are busy. GPU kernels run in Triton's
interpreter on the CPU, unless `OBM_TEST_DEVICE=cuda` (`make test-gpu`) sends them to a device.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "obm",
    deadline=None,
    derandomize=os.environ.get("OBM_CI") == "1",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("obm")

# a shell hands its background jobs an interrupt that is ignored, and tests interrupt what they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not os.environ.get("OBM_TEST_DEVICE", "cpu").startswith("cuda"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Turn a skip into a failure where everything must be installed."""
    report = yield
    if report.skipped and os.environ.get("OBM_CI") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under OBM_CI=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The same for a whole file."""
    report = yield
    if report.skipped and os.environ.get("OBM_CI") == "1":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped under OBM_CI=1: {report.longrepr}"
    return report
