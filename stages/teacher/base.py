"""What a teacher is: images in, a relative or metric map and a feature grid out."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from stages.targets.space import Space


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """One batch of images seen by a teacher.

    Attributes:
        prediction: in the teacher's `space`, at the size the model gives.
        features: tokens of the last backbone layer as a grid.
    """

    prediction: Float[Tensor, "N h w"]
    features: Float[Tensor, "N C gh gw"]


@runtime_checkable
class Teacher(Protocol):
    """Any object with these is a teacher; nothing to inherit. Must be deterministic.

    Weights hash, preprocessing, input size, precision and runtime are its fingerprint: equal ones promise equal
    predictions. They stand in the cache one by one, so that a difference can be named.
    """

    @property
    def name(self) -> str:
        """Name of the weights."""
        ...

    @property
    def licence(self) -> str:
        """Licence of the weights; written into cache and checkpoint."""
        ...

    @property
    def space(self) -> Space:
        """What the prediction means.

        disparity: relative inverse depth, larger is nearer; depth, log_depth: of metres; affine_depth: depth up to
        scale and shift, 0 the nearest and 1 the farthest of the image.
        """
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file."""
        ...

    @property
    def preprocessing(self) -> str:
        """What is done to an image before the model sees it, in words that change when it changes."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the images it takes."""
        ...

    @property
    def precision(self) -> str:
        """fp32 or bf16, resolved."""
        ...

    @property
    def runtime(self) -> str:
        """What computes it: torch or openvino, resolved."""
        ...

    def __call__(self, images: UInt8[Tensor, "N H W 3"]) -> TeacherOutput:
        """Look at RGB images of `input_size`."""
        ...
