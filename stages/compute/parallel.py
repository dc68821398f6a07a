"""Several processes that train one student. With a single process every function here does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_cache.errors import SettingError
from stages.compute.devices import resolve_device

PATIENCE = timedelta(minutes=30)
"""How long processes wait for one that is evaluating, staging or compiling."""
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Join the processes that `torchrun` (or a job that sets the same variables) has started, inside the context.

    Each process has the GPU of its LOCAL_RANK (nccl), or they share the CPU (gloo). Without these variables the process
    is the only one.

    Yields:
        The device of this process.

    Raises:
        SettingError: if some of the variables are missing, or this machine has fewer GPUs than processes.
    """
    device = resolve_device(device_name)
    found = {name: os.environ[name] for name in LAUNCH if os.environ.get(name)}
    if not {"RANK", "WORLD_SIZE"} & found.keys():
        yield device
        return
    missing = [name for name in LAUNCH if name not in found]
    wrong = [name for name in found.keys() - {"MASTER_ADDR"} if not found[name].isdigit()]
    if missing or wrong:
        raise SettingError(
            f"expected the variables that torchrun sets, found {', '.join(found)};"
            f" missing: {', '.join(missing) or 'nothing'}; not a number: {', '.join(wrong) or 'none'}. Start with"
            " torchrun or set all of them, or unset RANK and WORLD_SIZE for a single process"
        )
    if device.type == "cuda":
        # A job may show each of its tasks only the task's own GPU.
        local = int(found["LOCAL_RANK"]) if torch.cuda.device_count() > 1 else 0
        if local >= torch.cuda.device_count():
            raise SettingError(
                f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()};"
                " start one process per GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process writes and prints for all; the launcher's variable tells it outside `joined`, too."""
    return os.environ.get("RANK", "") in ("", "0")


def process_count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in each of them."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean_count(count: Tensor) -> Tensor:
    """The divisor of a process's sum that makes the mean over processes the mean over all; at least 1 in total."""
    return summed(count).clamp(min=1) / process_count()


def any_says(answer: bool, device: torch.device) -> bool:
    """Whether `answer` is True in any process."""
    return bool(summed(torch.tensor(answer, dtype=torch.int32, device=device))) if dist.is_initialized() else answer


def meet() -> None:
    """Wait until every process is here: one that ends early may end the others."""
    if dist.is_initialized():
        dist.barrier()


def everybody(value: object) -> list[object]:
    """The value of each process, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[object] = [None] * process_count()
    dist.all_gather_object(found, value)
    return found


def share_batch_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """Share batch norm statistics between processes, as if one had all frames; names of weights do not change."""
    if not dist.is_initialized():
        return module
    if device.type == "cuda":
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return shared
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = _SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared.to(child.weight.device))
        else:
            share_batch_statistics(child, device)
    return module


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.SyncBatchNorm for CPUs, which torch's lacks. All processes must have the same number of images."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = values.numel() // values.shape[1] * process_count()
        mean = _summed_with_gradient(values.sum((0, 2, 3))) / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = _summed_with_gradient(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
            assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: PT018
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        normed: Tensor = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normed.to(input.dtype)


def _summed_with_gradient(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient in each process is the sum of the gradients of all."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return summed(gradient)
