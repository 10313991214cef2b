"""What `make fuzz` does, in short and without atheris: every seed and some thousand fixed mutations of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from fuzz.mutator import MUTATORS, mutate
from fuzz.targets import TARGETS, Finding, guarded, seeds
from obm_format import open_expert
from obm_format.errors import ObmError


def mutations(target: str, count: int) -> Iterator[bytes]:
    """Always the same changed seeds."""
    start = seeds(target)
    for seed in range(count):
        rng = random.Random(seed)
        data = rng.choice(start)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = MUTATORS[target](data, rng)
        yield data


@pytest.fixture
def _no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of a compiled kernel may take longer than any input should."""
    monkeypatch.setenv("OBM_KERNELS", "reference")


@pytest.mark.usefixtures("_no_compiling")
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_seeds_and_mutations_are_read_or_refused(target: str) -> None:
    for data in seeds(target):
        guarded(TARGETS[target], data)
    for data in mutations(target, 2000):
        guarded(TARGETS[target], data)


def test_mutations_do_no_harm_in_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the fast kernels need numba")
    monkeypatch.setenv("OBM_KERNELS", "numba")
    for data in mutations("expert", 600):
        with contextlib.suppress(ObmError):
            TARGETS["expert"](data)


def test_mutations_reach_what_lies_behind_the_digests() -> None:
    start, sound = seeds("expert"), 0
    for seed in range(200):
        rng = random.Random(seed)
        try:
            with open_expert(mutate(rng.choice(start), rng)) as expert:
                sound += not expert.verify("parts")
        except ObmError:
            continue
    assert sound >= 20


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\x02" + bytes(7) + b"{}", b"\xff" * 40])
def test_what_is_no_file_is_mutated_too(data: bytes) -> None:
    for seed in range(50):
        assert isinstance(mutate(data, random.Random(seed)), bytes)


def test_a_slow_target_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.targets.MOST_SECONDS", -1.0)
    with pytest.raises(Finding, match="took"):
        guarded(lambda data: None, b"")


def test_only_the_errors_of_bad_input_are_let_pass() -> None:
    def refuse(data: bytes) -> None:
        raise ObmError("io", "as it should be")

    guarded(refuse, b"")
    with pytest.raises(ZeroDivisionError):
        guarded(lambda data: 1 // len(data), b"")  # type: ignore[arg-type, return-value]
