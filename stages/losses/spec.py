"""The weight of each loss term: the section `losses` of a recipe, and the weighted sum."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stages.losses.terms import LossTerms

FRAMES = ("lidar", "student", "literal")
WITHOUT_LIDAR = ("motion", "refined", "student")


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """One weight per field of LossTerms, under the same name, and settings. A term of weight 0 is not computed.

    Attributes:
        supervised: depth against LiDAR.
        kl: bin probabilities against the teacher's.
        cross: the teacher's probabilities with the student's centres, against LiDAR.
        relation: relations of ring neighbours against the teacher's.
        output: baseline, depth against the teacher's map fitted to LiDAR.
        logit: baseline, softened bin probabilities against the teacher's.
        feature: baseline, tokens against the teacher's (`teacher_cache.tokens`).
        all_relation: baseline, relations of all pairs of views, including each with itself (`teacher_cache.tokens`).
        completion: depth against LiDAR spread along the teacher's map (completion.py).
        photometric: colours against those of ring neighbours and of the same camera a moment earlier or later
            (photometric.py).
        agreement: depths of ring neighbours where they see the same surface (agreement.py).
        bin_relation: the same where the teacher finds the surface: relations of bin probabilities (bin_relation.py).
        completion_radius_px: how far LiDAR is spread; take the distance between its rings.
        frame: where `kl` and `cross` place the teacher's bins among the student's: by a fit to LiDAR (lidar,
            `targets/lidar_frame.py`), by the student's own mean and spread (student, `student_frame` in
            `targets/bins.py`), or unchanged (literal). With lidar, images without a usable fit are treated as student.
        without_lidar: where the metres of training frames outside `data.lidar_drives` come from: the teacher's depth,
            fitted to what other cameras and moments see, is taken in place of LiDAR (motion, `targets/motion_fit.py`);
            the same where returns would fall, corrected by a network that has learnt to from the frames with LiDAR
            (refined, `training/refined_metres.py`); or from nowhere (student, as `frame`).
    """

    supervised: float = 1.0
    kl: float = 0.3
    cross: float = 0.0
    relation: float = 1.0
    output: float = 0.0
    logit: float = 0.0
    feature: float = 0.0
    all_relation: float = 0.0
    completion: float = 1.0
    photometric: float = 1.0
    agreement: float = 0.0
    bin_relation: float = 3.0
    completion_radius_px: int = 3
    frame: str = "lidar"
    without_lidar: str = "refined"

    def __post_init__(self) -> None:
        for field in fields(LossTerms):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name}: expected a weight >= 0, got {getattr(self, field.name)}")
        if not any(getattr(self, field.name) for field in fields(LossTerms)):
            raise ValueError("every weight is 0; give at least one loss a weight")
        if self.completion_radius_px < 1:
            raise ValueError(f"completion_radius_px: expected at least 1, got {self.completion_radius_px}")
        if self.frame not in FRAMES:
            raise ValueError(f"frame: expected one of {', '.join(FRAMES)}, got {self.frame!r}")
        if self.without_lidar not in WITHOUT_LIDAR:
            raise ValueError(f"without_lidar: expected one of {', '.join(WITHOUT_LIDAR)}, got {self.without_lidar!r}")

    @property
    def lidar_alone(self) -> bool:
        """Whether frames without LiDAR teach nothing: no term but `supervised` has a weight."""
        return not any(getattr(self, field.name) for field in fields(LossTerms) if field.name != "supervised")


def supervised_alone(spec: LossSpec) -> LossSpec:
    """The same settings with no term but `supervised`; raises ValueError if that has no weight."""
    off: dict[str, Any] = {field.name: 0.0 for field in fields(LossTerms) if field.name != "supervised"}
    return replace(spec, **off)


def weighted_sum(terms: LossTerms, spec: LossSpec) -> Float[Tensor, ""]:
    """Sum of weight * term over the terms that were computed, at least one."""
    found = {f.name: term for f in fields(terms) if (term := getattr(terms, f.name)) is not None}
    return torch.stack([getattr(spec, name) * term for name, term in found.items()]).sum()
