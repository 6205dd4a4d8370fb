"""JSON from a stranger, and checks of single fields that name the field when they fail.

What :mod:`json` accepts is more than what a format can mean: a key that stands twice, a list nested
until Python's stack ends, numbers of any length. Here all of it is a :class:`GraphFormatError`.
"""

from __future__ import annotations

import collections
import json
from typing import TYPE_CHECKING, Any

from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Set

MAX_INT = (1 << 63) - 1
MAX_DIMENSIONS = 64
"""Most numbers in a list of sizes; torch's own operators go no further."""


def parse_json(text: bytes, what: str) -> Any:
    """The value of ``text``.

    Raises:
        GraphFormatError: It is not JSON in UTF-8, is nested too deeply or holds a key twice; says
            ``what`` it should have been.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise GraphFormatError(f"{what} holds the key {twice!r:.200} twice")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except GraphFormatError:
        raise
    except RecursionError:
        raise GraphFormatError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise GraphFormatError(f"{what} is not JSON: {error!s:.200}") from None


def shown(value: Any) -> str:
    """``value`` for a message. Never goes deep: a stranger chose how far it is nested."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list) and (
        len(value) > MAX_DIMENSIONS or any(isinstance(item, (dict, list)) for item in value)
    ):
        return f"a list of {len(value)}"
    return repr(value)[:200]


def require_fields(value: Any, expected: Set[str], where: str) -> None:
    """Raise :class:`GraphFormatError` unless ``value`` is an object with exactly these fields."""
    if type(value) is not dict:
        raise GraphFormatError(f"{where} is {shown(value)}, expected an object")
    if value.keys() != expected:
        raise GraphFormatError(
            f"{where} has the fields {sorted(value)!r:.200}, expected {sorted(expected)}"
        )


def require_list(value: Any, where: str) -> list[Any]:
    """``value`` if it is a list.

    Raises:
        GraphFormatError: It is not.
    """
    if type(value) is not list:
        raise GraphFormatError(f"{where} is {shown(value)}, expected a list")
    return value


def require_integer(value: Any, where: str) -> int:
    """``value`` if it is a number from 0 to the largest that 64 bits hold.

    Raises:
        GraphFormatError: It is not.
    """
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise GraphFormatError(f"{where} is {shown(value)}, expected a whole number from 0 up")
    return value


def require_integers(value: Any, where: str) -> tuple[int, ...]:
    """``value`` as a tuple if it is a list of at most 64 such numbers.

    Raises:
        GraphFormatError: It is not.
    """
    if type(value) is not list or len(value) > MAX_DIMENSIONS:
        raise GraphFormatError(
            f"{where} is {shown(value)}, expected a list of at most {MAX_DIMENSIONS} numbers"
        )
    for n in value:
        if type(n) is not int or not 0 <= n <= MAX_INT:
            raise GraphFormatError(f"{where} is {shown(value)}, expected whole numbers from 0 up")
    return tuple(value)
