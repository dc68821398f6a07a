"""Foreign names of tensors, and what they become here."""

import re

import numpy as np

Tensors = dict[str, np.ndarray]
Names = list[tuple[re.Pattern[str], str]]
"""Patterns of foreign names, and what they become."""


def renamed(name: str, table: Names) -> str:
    """The name that the first fitting pattern gives.

    Raises:
        ValueError: if no pattern fits.
    """
    for pattern, replacement in table:
        match = pattern.fullmatch(name)
        if match is not None:
            return match.expand(replacement)
    raise ValueError(f"unexpected tensor {name!r}: not a tensor of this model")
