"""Writes and reads report.json: what stage three has measured, for machines."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cattrs

from data_cache.errors import SourceError
from data_cache.files import write_atomically
from data_cache.sources.parsing import strict_json
from data_cache.sources.parsing.metadata import read_text
from stages.evaluation.protocols import PROTOCOLS
from stages.evaluation.results import EvaluateReport

NAME = "report.json"
_BYTE_LIMIT = 64 * 2**20
_NAMES = {int: "a whole number", float: "a number or null", str: "text", bool: "true or false"}


@dataclass(frozen=True, eq=False)
class ReportFile:
    """A report.json that was read.

    Attributes:
        path: of the file.
        report: what was measured; a number that was not finite is NaN.
        provenance: where the numbers come from.
    """

    path: Path
    report: EvaluateReport
    provenance: Mapping[str, object]

    @property
    def name(self) -> str:
        """Name of the run: of the folder above that of the report."""
        return self.path.resolve().parents[1].name


def write_report_file(folder: Path, report: EvaluateReport, provenance: Mapping[str, object]) -> Path:
    """Write report.json in one step; a number that is not finite becomes null: JSON has no NaN."""
    path = folder / NAME
    write_atomically(path, json_text({**asdict(report), "provenance": provenance}))
    return path


def find_report(path: Path) -> Path:
    """The report.json of a run folder, or the file itself."""
    return path / "eval" / NAME if path.is_dir() else path


def read_report_file(path: Path) -> ReportFile:
    """Read a report.json of this version, or of an older one with fewer keys.

    Raises:
        SourceError: if it is missing or no report, or its protocol is unknown.
    """
    if not path.exists():
        raise SourceError(f"no report at {path}; pass run folders after `surround eval`")
    where = f"{path}: expected a report of `surround eval`"
    content = strict_json.entries(strict_json.parse(read_text(path, _BYTE_LIMIT), where), where)
    try:
        report = _converter().structure(content, EvaluateReport)
    except cattrs.BaseValidationError as error:
        first, *_ = cattrs.transform_error(error, format_exception=_reason)
        raise SourceError(f"{where}: {first}; pass run folders") from error
    if report.protocol not in PROTOCOLS:
        raise SourceError(f"{path}: protocol {report.protocol!r} is none of {', '.join(PROTOCOLS)}")
    return ReportFile(path, report, dict(strict_json.entries(content.get("provenance"), f"{where}: provenance")))


def json_text(content: Mapping[str, object]) -> str:
    """JSON that any program reads: numbers that are not finite become null, values that JSON lacks become text."""
    return json.dumps(_json_safe(content), indent=2, allow_nan=False) + "\n"


def _json_safe(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_structure_hook(
        float, lambda value, _: math.nan if value is None else float(_plain(value, float))
    )
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _plain)
    return converter


def _plain(value: Any, kind: type) -> Any:
    """Take only JSON's own values of a kind: a text is no number, and neither is true or false."""
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {_NAMES[kind]}, found {value!r:.80}")
    return value


def _reason(error: BaseException, _: object) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
