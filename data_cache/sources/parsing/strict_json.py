"""Strict reading of hand-written JSON: every value is checked, errors name its place, unknown keys are errors."""

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float

from data_cache.errors import SourceError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def digest(value: Any) -> bytes:
    """SHA-256 of the content of JSON, whatever its layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def parse(text: str, where: str) -> Any:
    """Parse JSON; duplicate keys, NaN and Infinity are refused.

    Raises:
        SourceError: naming `where`.
    """

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(members)
        if len(value) != len(members):
            twice, _ = Counter(name for name, _ in members).most_common(1)[0]
            raise SourceError(f"{where}: expected each key once, found {shown(twice)} twice")
        return value

    def constant(word: str) -> NoReturn:
        raise SourceError(f"{where}: expected finite numbers, found {word}")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: expected JSON, found {error}") from error


def fields(value: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Check that a value is an object with all required keys and, beyond them, only optional ones.

    Raises:
        SourceError: naming `where`, the key, and the nearest known key.
    """
    known = [*required, *optional]
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected an object with {', '.join(known)}, found {shown(value)}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key[:64], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise SourceError(f"{where}: no key {shown(key)}; {hint}")
    for key in required:
        if key not in value:
            raise SourceError(f"{where}: expected the key {key!r}, found {', '.join(value) or 'none'}")
    return value


def entries(value: Any, where: str) -> Mapping[str, Any]:
    """Check that a value is an object; its keys are free names. Raises SourceError."""
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected an object, found {shown(value)}")
    return value


def items(value: Any, where: str, at_most: int) -> list[Any]:
    """Check that a value is a list of 1 to `at_most` values. Raises SourceError."""
    if not isinstance(value, list) or not 1 <= len(value) <= at_most:
        found = f"{len(value)} values" if isinstance(value, list) else shown(value)
        raise SourceError(f"{where}: expected a list of 1 to {at_most} values, found {found}")
    return value


def string(value: Any, where: str) -> str:
    """Check that a value is text of 1 to 1024 printable characters. Raises SourceError."""
    if not isinstance(value, str) or not 1 <= len(value) <= 1024 or not value.isprintable():
        raise SourceError(f"{where}: expected text of 1 to 1024 printable characters, found {shown(value)}")
    return value


def name(value: Any, where: str) -> str:
    """Check that a value is text that can be part of a file name. Raises SourceError."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise SourceError(
            f"{where}: expected a name of at most 64 letters, digits and . _ - that does not start with . or -,"
            f" found {shown(value)}"
        )
    return value


def whole(value: Any, where: str, lowest: int, highest: int) -> int:
    """Check that a value is a whole number in [lowest, highest]. Raises SourceError."""
    if type(value) is not int or not lowest <= value <= highest:
        raise SourceError(f"{where}: expected a whole number from {lowest} to {highest}, found {shown(value)}")
    return value


def numbers(value: Any, where: str, at_most: int) -> tuple[float, ...]:
    """Check that a value is a list of 1 to `at_most` finite numbers. Raises SourceError."""
    return tuple(_number(item, f"{where}[{i}]") for i, item in enumerate(items(value, where, at_most)))


def matrix(value: Any, where: str, size: int) -> Float[np.ndarray, "N N"]:
    """Check that a value is a square matrix of finite numbers, a list of rows. Raises SourceError."""
    rows = value if isinstance(value, list) else []
    if len(rows) != size or any(not isinstance(row, list) or len(row) != size for row in rows):
        raise SourceError(f"{where}: expected {size} rows of {size} numbers, found {shown(value)}")
    return np.array([[_number(item, f"{where}[{i}][{j}]") for j, item in enumerate(row)] for i, row in enumerate(rows)])


def _number(value: Any, where: str) -> float:
    # In Python a bool is an int, and a whole number may be too large for a float.
    if type(value) not in (int, float) or abs(value) > 1e300 or not math.isfinite(value):
        raise SourceError(f"{where}: expected a finite number, found {shown(value)}")
    return float(value)


def shown(value: Any) -> str:
    """A value as JSON writes it, short enough for an error message."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= 80 else f"{text[:77]}..."
