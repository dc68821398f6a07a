"""The interface of a teacher: images in, a relative or metric map and a feature grid out."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from stages.targets.space import Space


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """A teacher's output for a batch of images.

    Attributes:
        prediction: the map in the teacher's `space`, at the model's output size.
        features: tokens of the last backbone layer as a grid.
    """

    prediction: Float[Tensor, "N h w"]
    features: Float[Tensor, "N C gh gw"]


@runtime_checkable
class Teacher(Protocol):
    """Any object with these members is a teacher; nothing is inherited. It must be deterministic.

    Weights hash, preprocessing, input size, precision and runtime are its fingerprint: if they are equal, predictions
    are equal. The cache stores them one by one, so that a difference can be named.
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
        """The meaning of the prediction.

        disparity: relative inverse depth, larger is nearer; depth: metres; log_depth: logarithm of metres;
        affine_depth: depth up to scale and shift, 0 the nearest and 1 the farthest in the image.
        """
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file."""
        ...

    @property
    def preprocessing(self) -> str:
        """A text that identifies the preprocessing of images and changes with it."""
        ...

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of its input images."""
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
        """Run the model on RGB images of `input_size`."""
        ...
