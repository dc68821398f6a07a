"""A report.json that somebody passes: it holds what its readers rely on, or it is one clear error."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_cache.errors import SourceError
from data_cache.sources import strict
from data_cache.sources.metadata import read_text

_BYTE_LIMIT = 64 * 2**20
_COUNT_LIMIT = 2**62
_COUNTS = ("frames", "images", "valid_pixels")


def read_report(path: Path, alignments: Iterable[str], errors: Iterable[str]) -> dict[str, Any]:
    """The content of a report.json whose frame of reference, counts and mean errors of the student were checked.

    Args:
        path: the file.
        alignments: of the student, whose means are looked at.
        errors: by name, that every mean must have; a number, or null for none.

    Raises:
        SourceError: naming the file and the key, if it is missing, no JSON, or lacks a value of the right kind.
    """
    if not path.exists():
        raise SourceError(f"no report at {path}; pass run folders after `surround eval`")
    where = f"{path}: expected a report of `surround eval`"
    report = dict(strict.entries(strict.parse(read_text(path, _BYTE_LIMIT), where), where))
    for key in ("dataset", "split", "protocol"):
        if not isinstance(_member(report, key, where), str):
            raise SourceError(f"{where}: {key}: expected text, found {report[key]!r:.80}")
    if not isinstance(_member(report, "flip", where), bool):
        raise SourceError(f"{where}: flip: expected true or false, found {report['flip']!r:.80}")
    if len(strict.numbers(_member(report, "range_m", where), f"{where}: range_m", 2)) != 2:
        raise SourceError(f"{where}: range_m: expected two numbers, found one")
    for key in (*_COUNTS, *({"masked_images"} & report.keys())):  # there are reports from before there were masks
        strict.whole(_member(report, key, where), f"{where}: {key}", 0, _COUNT_LIMIT)
    student = strict.entries(_member(report, "student", where), f"{where}: student")
    for name in alignments:
        at = f"{where}: student.{name}"
        mean = strict.entries(_member(strict.entries(_member(student, name, where), at), "mean", at), f"{at}.mean")
        _require_numbers(mean, errors, f"{at}.mean")
    consistency = strict.entries(_member(report, "consistency", where), f"{where}: consistency")
    _require_numbers(consistency, ("overlap_abs_rel",), f"{where}: consistency")
    return report


def _require_numbers(table: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    for name in names:
        if _member(table, name, where) is not None:
            strict.numbers([table[name]], f"{where}.{name}", 1)


def _member(table: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise SourceError(f"{where}: expected the key {key!r}, found none")
    return table[key]
