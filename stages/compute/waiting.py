"""How threads of PyTorch wait for each other. Imports nothing, so that it can be decided before torch is loaded."""

import os

BRIEFLY = {"GOMP_SPINCOUNT": "1000"}
"""For GNU's OpenMP, which PyTorch brings. Its own 300,000 rounds last for milliseconds. A job that is alone loses 13 to
25 % of its steps with 0, and about 5 % with 1,000 (bench_neighbours.py)."""
DECIDED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_briefly() -> None:
    """Let threads of this process, and of those that it starts, spin only briefly at barriers before they sleep.

    A thread that spins takes the core from the one it waits for as soon as another program runs on the machine: two
    jobs of two threads on two cores then run at a fifth of their speed. What the user has set in one of DECIDED_BY is
    kept. Without effect once torch is loaded.
    """
    if not any(name in os.environ for name in DECIDED_BY):
        os.environ.update(BRIEFLY)
