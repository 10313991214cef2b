"""Typed access to the fields of one JSON object of the manifest.

What is missing, unknown or of the wrong type is refused. Source: obm-1 clauses 4.2 and 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
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
        raise mistyped(value, kind, where)
    return value


def mistyped(value: object, kind: type, where: str) -> FormatError:
    """The error for a value that is not of the JSON type `kind`."""
    got = _TYPE_NAMES.get(type(value), "nothing")
    return FormatError("manifest_field", f"the value is not {_TYPE_NAMES[kind]}", where=where, got=got)


class Fields:
    """One JSON object, read field by field.

    A field that was written with its default is taken out of the object, so that an object that was read is in
    canonical form, and the text that it came from was not if writing it again gives another one (obm-1 clause 4.2).

    Args:
        value: what was parsed: nothing in it is None.
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

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A value of the JSON type `kind`; without a default the field is required."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not kind:
            raise self._mistyped(key, kind)
        if value == default:
            del self._values[key]
        return value

    def _mistyped(self, key: str, kind: type) -> FormatError:
        if key in self._values:
            return mistyped(self._values[key], kind, self.path(key))
        return FormatError("manifest_field", "a required field is missing", where=self.path(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings; empty by default."""
        return self._all_typed(key, self.get(key, list, []), str)

    def numbers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """An array of integers; without a default the field is required."""
        items = self.get(key, list, None if default is None else list(default))
        return tuple(items) if set(map(type, items)) <= {int} else self._all_typed(key, items, int)

    def _all_typed(self, key: str, items: list[object], kind: type[T]) -> tuple[T, ...]:
        where = self.path(key)
        return tuple([typed(item, kind, where) for item in items])

    def value(self, key: str) -> object:
        """A value of any type; an empty object by default."""
        return self._values.get(key, {})

    def settle(self, key: str) -> None:
        """Take out an object that is empty by default, once it has been read and nothing is left of it."""
        if self._values.get(key) == {}:
            del self._values[key]

    def choice(self, key: str, allowed: Mapping[str, T], reason: str, default: T | None = None) -> T:
        """What a string out of `allowed` stands for; another one is refused with `reason`."""
        text = self._values.get(key)
        if text is None and default is not None:
            return default
        if type(text) is not str:
            raise self._mistyped(key, str)
        chosen = allowed.get(text)
        if chosen is None:
            expected = " | ".join(sorted(allowed))
            raise self.refuse(key, "there is no such value", expected=expected, got=ascii(text[:80]), reason=reason)
        if chosen == default:
            del self._values[key]
        return chosen

    def refuse(
        self, key: str, message: str, *, expected: object, got: object, reason: str = "bad_params"
    ) -> FormatError:
        """The error for a value outside its range."""
        return FormatError(reason, message, where=self.path(key), expected=expected, got=got)
