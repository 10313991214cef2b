"""Numbers and names as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def size(nbytes: int) -> str:
    """A number of bytes: `22.7 MB`, with powers of 1000."""
    count = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: int) -> str:
    """A large number: `22.7 M`; a small one as it is."""
    value = float(number)
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} T"


def plural(number: int, word: str) -> str:
    """`1 expert`, `3 experts`."""
    return f"{count(number)} {word}" + ("" if number == 1 else "s")


def short(digest: str) -> str:
    """The first twelve digits of a digest or fingerprint."""
    return digest.rpartition(":")[2][:12]


def number(value: float | None) -> str:
    """A measured number with three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def rough(value: float) -> str:
    """A measured number with two digits."""
    return f"{value:.2g}"


def day(milliseconds: int) -> str:
    """A date: `25 Nov 2026`."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%-d %b %Y")
