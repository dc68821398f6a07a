"""How threads of PyTorch wait for each other. Imports no torch, so that it can be decided before torch is loaded."""

import os

from stages.compute.cpu import computes_bf16

BRIEFLY = {"GOMP_SPINCOUNT": "1000"}
"""For GNU's OpenMP, which PyTorch brings. Its own 300,000 rounds last for milliseconds. Alone in fp32 a job
loses 13 % of its steps with 0, and nothing with 1,000 (docs/results/speed.md)."""
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_briefly() -> None:
    """Let threads of this process, and of those that it starts, spin only briefly at barriers before they sleep.

    A thread that spins takes the core from the one it waits for as soon as another program runs on the machine: two
    jobs of two threads on two cores then run at a fifth of their speed. What the user has set in one of DECIDED_BY is
    kept. Without effect once torch is loaded.

    Not on a CPU with bf16: oneDNN's kernels for it spin in loops of their own, so a job beside another one gains
    nothing, and one that is alone loses 5 to 13 %.
    """
    if not any(name in os.environ for name in DECIDED_BY) and not computes_bf16():
        os.environ.update(BRIEFLY)
