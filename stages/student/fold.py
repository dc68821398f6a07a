"""Preparing a student for inference: batch norms folded, activations in place."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.student.model import Student


def folded(student: Student) -> Student:
    """A faster copy for inference with the same output, up to rounding.

    Every batch norm after a convolution is folded into its weights (in their own precision, float32), and ReLUs,
    those that end at 6 too, work in place. The copy has other tensors than a checkpoint and must not be trained or
    saved.

    Args:
        student: a student in evaluation mode; not changed.

    Raises:
        ValueError: if it is in training mode, where batch norms depend on the batch.
    """
    if any(module.training for module in student.modules()):
        raise ValueError("expected a student in evaluation mode, found one in training mode; call .eval() first")
    ready = copy.deepcopy(student).requires_grad_(False)
    for module in ready.modules():
        for (name, convolution), (follower, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(convolution, norm))
                setattr(module, follower, nn.Identity())
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = True
    return ready
