"""The architecture of the student: the section `student` of a recipe."""

from dataclasses import dataclass

from stages.student.encoder import ENCODERS


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """The student's architecture; part of every checkpoint.

    Attributes:
        encoder: a key of ENCODERS.
        pretrained: start from ImageNet weights (`surround weights`), else from random weights.
        input_size: (H, W) of its images, multiples of 32.
        near_m, far_m: range of the canonical bin centres.
        focal_px: f0, the focal length in input pixels at which canonical centres are in metres.
        decoder_channels: channels of the decoder.
        attention_width: channels of the attention between neighbouring views, 0 for no attention.
    """

    encoder: str = "mobilenet-v2"
    pretrained: bool = True
    input_size: tuple[int, int]
    near_m: float
    far_m: float
    focal_px: float
    decoder_channels: int = 96
    attention_width: int = 0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder: expected one of {', '.join(ENCODERS)}, got {self.encoder!r}")
        if any(side < 32 or side % 32 for side in self.input_size):
            raise ValueError(f"input_size: expected positive multiples of 32, got {list(self.input_size)}")
        if not 0 < self.near_m < self.far_m < float("inf"):
            raise ValueError(f"expected 0 < near_m < far_m, got near_m={self.near_m}, far_m={self.far_m}")
        if not 0 < self.focal_px < float("inf"):
            raise ValueError(f"focal_px: expected a positive number of pixels, got {self.focal_px}")
        if self.decoder_channels < 8 or self.attention_width < 0 or self.attention_width % 16:
            raise ValueError(
                "expected decoder_channels >= 8 and attention_width a multiple of 16, or 0 for no attention,"
                f" got {self.decoder_channels} and {self.attention_width}"
            )
