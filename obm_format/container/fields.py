"""Typed access to the fields of one JSON object of the manifest.

What is missing, unknown or of the wrong type is refused. Source: obm-1 clauses 4.2 and 5.1.
"""

from __future__ import annotations

from typing import Final, TypeVar

from obm_format.errors import FormatError

T = TypeVar("T")

_TYPE_NAMES: Final[dict[type, str]] = {
    str: "a string",
    int: "a number",
    bool: "true or false",
    list: "an array",
    dict: "an object",
}


def typed(value: object, kind: type[T], where: str) -> T:
    """`value`, when it is of exactly the JSON type `kind` (so that true is no number).

    Raises:
        FormatError: it is of another type (reason `manifest_field`).
    """
    if type(value) is not kind:
        raise FormatError(
            "manifest_field",
            f"the value is not {_TYPE_NAMES[kind]}",
            where=where,
            got=_TYPE_NAMES.get(type(value), "nothing"),
        )
    return value


class Fields:
    """One JSON object, read field by field.

    Args:
        value: what was parsed.
        where: what messages call the object.
        known: every key that the object may have.

    Raises:
        FormatError: not an object, or an unknown key (reason `manifest_field`).
    """

    __slots__ = ("_values", "where")

    def __init__(self, value: object, where: str, known: frozenset[str]) -> None:
        self.where = where
        self._values: dict[str, object] = typed(value, dict, where)
        # obm-1 clause 4.2
        if not self._values.keys() <= known:
            raise FormatError(
                "manifest_field",
                "there is no such field here",
                where=where,
                expected=", ".join(sorted(known)) or "no field",
                got=ascii(min(self._values.keys() - known)),
            )

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def path(self, key: str) -> str:
        """What messages call the field `key`."""
        return f"{self.where}.{key}" if self.where else key

    def _get(self, key: str, kind: type[T], default: T | None) -> T:
        if key in self._values:
            return typed(self._values[key], kind, self.path(key))
        if default is None:
            raise FormatError("manifest_field", "a required field is missing", where=self.path(key))
        return default

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default the field is required."""
        return self._get(key, str, default)

    def number(self, key: str, default: int | None = None) -> int:
        """An integer, at least 0; without a default the field is required."""
        return self._get(key, int, default)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        return self._get(key, bool, default)

    def array(self, key: str, default: list[object] | None = None) -> list[object]:
        """An array; without a default the field is required."""
        return self._get(key, list, default)

    def numbers(self, key: str) -> tuple[int, ...]:
        """A required array of integers."""
        where = self.path(key)
        return tuple([typed(item, int, where) for item in self.array(key)])

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty by default."""
        where = self.path(key)
        return tuple([typed(item, str, where) for item in self.array(key, [])])

    def value(self, key: str) -> object:
        """A value of any type; an empty object by default."""
        return self._values.get(key, {})

    def choice(self, key: str, allowed: frozenset[str], reason: str, default: str | None = None) -> str:
        """A string out of `allowed`; another one is refused with `reason`."""
        text = self.text(key, default)
        if text not in allowed:
            raise FormatError(
                reason,
                "there is no such value",
                where=self.path(key),
                expected=" | ".join(sorted(allowed)),
                got=ascii(text[:80]),
            )
        return text
