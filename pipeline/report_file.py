"""report.json: what stage three has measured, for machines, and the way back from it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cattrs

from data_cache.errors import SourceError
from data_cache.files import write_atomically
from stages.protocols import PROTOCOLS
from stages.results import EvaluateReport

NAME = "report.json"


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
        """Of its run: the folder above that of the report."""
        return self.path.resolve().parents[1].name


def write_report_file(folder: Path, report: EvaluateReport, provenance: Mapping[str, object]) -> Path:
    """Write report.json in one step; a number that is not finite becomes null, for JSON knows no NaN."""
    path = folder / NAME
    write_atomically(path, json_text({**asdict(report), "provenance": provenance}))
    return path


def find_report(path: Path) -> Path:
    """The report.json that a run folder or a file means."""
    return path / "eval" / NAME if path.is_dir() else path


def read_report_file(path: Path) -> ReportFile:
    """Read a report.json, of this version or an older one that has less in it.

    Raises:
        SourceError: if it is none, or of a protocol that is unknown here.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        report = _converter().structure(content, EvaluateReport)
        provenance = content["provenance"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, cattrs.BaseValidationError) as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):  # of what is wrong in many places, the first one is told
            cause = cause.exceptions[0]
        raise SourceError(
            f"{path}: expected a report of `surround eval`, found {type(cause).__name__}: {cause}; pass run folders"
        ) from error
    if report.protocol not in PROTOCOLS:
        raise SourceError(f"{path}: protocol {report.protocol!r} is none of {', '.join(PROTOCOLS)}")
    return ReportFile(path, report, dict(provenance))


def json_text(content: Mapping[str, object]) -> str:
    """JSON that any program reads: what is not finite is null, what JSON does not know is text."""
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
    converter.register_structure_hook(float, lambda value, _: math.nan if value is None else float(value))
    converter.register_structure_hook(str, _text)
    return converter


def _text(value: Any, _: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value
