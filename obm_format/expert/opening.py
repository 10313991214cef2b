"""Open an expert from where it lies: a path, bytes, an http(s) address, any source."""

from __future__ import annotations

from collections.abc import Mapping

from obm_format.container.reader import Container
from obm_format.container.sources import AnySource
from obm_format.expert.reader import Expert
from obm_format.kernels.contract import Kernels
from obm_format.limits import DEFAULT_LIMITS, Limits
from obm_format.remote import reachable


def open_expert(
    source: AnySource,
    *,
    expected_id: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    refs: Mapping[str, Expert] | None = None,
    kernels: Kernels | None = None,
    mapped: bool = False,
) -> Expert:
    """Open an expert; its header is checked, its parts are read when they are needed.

    Args:
        source: a path, an http(s) address, the bytes of a file, or a source, which then belongs to the expert. Of an
            address, only what is needed is fetched.
        expected_id: artifact id that the file must have.
        limits: bounds on what is accepted.
        refs: open artifacts that `rtvq` records may refer to, by artifact id; they stay the caller's.
        kernels: the arithmetic; None: the fastest that this machine has.
        mapped: map a path into memory instead of reading it.

    Raises:
        FormatError: the header is not sound, or not that of `expected_id` (`artifact_id`).
        ObmError: the file cannot be read (`not_found`, `io`, `network`, `denied`).
    """
    container = Container.open(reachable(source), expected_id=expected_id, limits=limits, mapped=mapped)
    return Expert(container, refs, kernels)
