"""The section `cluster` of a recipe: the workers of stage one."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Workers of `--scheduler local` and `slurm`. One worker process holds one teacher.

    Attributes:
        workers: number of processes; for slurm, of jobs. 0 means one per GPU, else one per core; for slurm one.
        cores, memory, walltime: of one SLURM job; memory as in "16GB", walltime as in "04:00:00" or "1-12:00:00".
        partition, account: of SLURM; empty for the site's defaults.
        directives: further #SBATCH lines, such as "--gres=gpu:1".
        prologue: shell lines to run before the worker starts, such as "module load cuda".
    """

    workers: int = 0
    cores: int = 4
    memory: str = "16GB"
    walltime: str = "04:00:00"
    partition: str = ""
    account: str = ""
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cores < 1:
            raise ValueError(f"expected workers >= 0 and cores >= 1, got {self.workers} and {self.cores}")
        if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)? ?[KMGT](i?B)?", self.memory, re.IGNORECASE):
            raise ValueError(f'memory: expected a size like "24GB", got {self.memory!r}')
        if not re.fullmatch(r"(\d+-)?\d+:[0-5]\d:[0-5]\d", self.walltime):
            raise ValueError(f"walltime: expected HH:MM:SS or D-HH:MM:SS, got {self.walltime!r}")
