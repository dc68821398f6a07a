"""How threads of PyTorch wait for each other. Imports nothing, so that it can be decided before torch is loaded."""

import os

PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""For OpenMP of any vendor, and for GNU's, whose threads otherwise spin for milliseconds at each barrier."""


def wait_passively() -> None:
    """Let the threads of this process and of those that it starts sleep at barriers instead of spinning.

    A thread that spins takes the core from the one it waits for, as soon as another program runs on the machine: two
    jobs of two threads on two cores then run at a seventh of their speed (bench_neighbours.py). A value of
    OMP_WAIT_POLICY or GOMP_SPINCOUNT that the user has set is kept. Without effect once torch is loaded.
    """
    if not PASSIVE.keys() & os.environ.keys():
        os.environ.update(PASSIVE)
