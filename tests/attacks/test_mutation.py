"""Every byte of a small file, changed, removed or doubled: never accepted for what it was, never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from container_files import header_nbytes, sample, small

from obm_format.container import Container, encode_header
from obm_format.errors import REASONS, FormatError

# What damage to a file may be called; anything else would blame somebody else.
INTEGRITY = {name for name, facts in REASONS.items() if facts.exit_code == 4}


def outcome(data: bytes, expected_id: str | None = None) -> str:
    """The reason for which a file is refused, or its artifact id."""
    try:
        with Container.open(data, expected_id=expected_id) as container:
            defects = container.verify()
            head = encode_header(container.manifest, container.header.pools)
            # Whatever is accepted is canonical; of a newer minor version all but the version is the same.
            if container.header.version == "1.0":
                assert head == data[: len(head)]
            return defects[0].reason if defects else container.id
    except FormatError as error:
        return error.reason


def original() -> str:
    with Container.open(small()) as container:
        return container.id


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_changed_byte_refused_or_another_artifact(mask: int) -> None:
    right, head = original(), header_nbytes(small())
    for at in range(len(small())):
        data = small()[:at] + bytes([small()[at] ^ mask]) + small()[at + 1 :]
        found = outcome(data)
        assert found in INTEGRITY or (at < head and found.startswith("obm1-sha256:") and found != right), at
        if at >= head:
            assert found in {"part_digest", "pad_not_zero"}


def test_with_the_expected_id_every_changed_byte_is_refused() -> None:
    right = original()
    assert outcome(small(), right) == right
    for at in range(len(small())):
        data = small()[:at] + bytes([small()[at] ^ 1]) + small()[at + 1 :]
        assert outcome(data, right) in INTEGRITY, at


def test_removed_or_doubled_byte_refused() -> None:
    for at in range(len(small())):
        assert outcome(small()[:at] + small()[at + 1 :]) in INTEGRITY, at
        assert outcome(small()[:at] + small()[at : at + 1] + small()[at:]) in INTEGRITY, at


def test_every_prefix_refused() -> None:
    for at in range(len(small())):
        assert outcome(small()[:at]) in INTEGRITY, at


def test_random_bytes_in_the_header_refused_or_another_artifact() -> None:
    rng = random.Random(7)
    with Container.open(sample()) as container:
        right = container.id
    alphabet = bytes(range(0x20, 0x7F))
    for _ in range(400):
        data = bytearray(sample())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(8, header_nbytes(sample()))] = rng.choice(alphabet)
        found = outcome(bytes(data))
        assert found in INTEGRITY or found.startswith("obm1-sha256:")
        assert found != right or bytes(data) == sample()


VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
SMALL = sorted(path.stem for path in VECTORS.glob("*.obm") if path.stat().st_size < 4096)


def mutations(data: bytes, at: int) -> tuple[bytes, ...]:
    """The file with the byte `at` changed, taken away, and with another before it."""
    flipped = bytes([data[at] ^ 1 << at % 8])
    return data[:at] + flipped + data[at + 1 :], data[:at] + data[at + 1 :], data[:at] + flipped + data[at:]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_byte_of_a_vector_changed_removed_and_inserted(name: str) -> None:
    """What is accepted is another artifact, so that none is accepted by who knows the id."""
    data = (VECTORS / f"{name}.obm").read_bytes()
    right, head = outcome(data), header_nbytes(data)
    assert right.startswith("obm1-sha256:")
    for at in range(len(data)):
        for changed in mutations(data, at):
            found = outcome(changed)
            assert found in INTEGRITY or (at < head and found.startswith("obm1-sha256:") and found != right), at


@pytest.mark.parametrize("name", SMALL[::7])
def test_some_bytes_of_a_vector_changed_removed_and_inserted(name: str) -> None:
    data = (VECTORS / f"{name}.obm").read_bytes()
    right, head = outcome(data), header_nbytes(data)
    for at in range(0, len(data), 31):
        for changed in mutations(data, at):
            found = outcome(changed)
            assert found in INTEGRITY or (at < head and found.startswith("obm1-sha256:") and found != right), at
            assert outcome(changed, right) in INTEGRITY, at
