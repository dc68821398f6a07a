"""The section `eval` of a recipe."""

from dataclasses import dataclass

from stages.compute.devices import require_known
from stages.evaluation.predictions import SUFFIXES
from stages.evaluation.protocols import PROTOCOLS, SURROUNDDEPTH


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """How stage three runs.

    Attributes:
        protocol: a name of PROTOCOLS.
        teacher: also measure the teacher, which needs its weights.
        latency: also time student and teacher.
        flip: average each prediction with that of the mirrored rig (test-time augmentation); recorded in the report.
            For a folder of predictions it only states that they were made this way.
        pictures: number of frames in the report: the worst ones, the median, the best and the middle one of the split.
        save_predictions: png16 or npy, to save the student's depth of every image; empty to save nothing.
        precision, device: auto, or as named in stages/compute/devices.py.
    """

    protocol: str = SURROUNDDEPTH.name
    teacher: bool = True
    latency: bool = True
    flip: bool = False
    pictures: int = 6
    save_predictions: str = ""
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.save_predictions not in ("", *SUFFIXES):
            raise ValueError(
                f"save_predictions: expected {', '.join(SUFFIXES)} or nothing, got {self.save_predictions!r}"
            )
        if self.pictures < 0:
            raise ValueError(f"pictures: expected 0 or more, got {self.pictures}")
