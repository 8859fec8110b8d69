"""The processes of one training run, as torchrun starts them: the rank of this one, and what they do together.

A single process, the usual case, pays nothing for any of it. With several, PyTorch's `DistributedDataParallel`
averages the gradients, batch norms take their statistics over the batches of all ranks, and sums are over all ranks.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsgen.errors import DsgenError, InvalidValueError
from dsgen.parallel.devices import pick_device

log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world_size` processes; the first one writes files and logs."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Say whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum values over all ranks; all get the sum, through which no gradient flows."""
        if self.world_size == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise a `DsgenError` that any rank raises in the block in every rank; the lowest rank's, if several do."""
        caught: DsgenError | None = None
        try:
            yield
        except DsgenError as error:
            caught = error
        errors = [error for error in self.gather(caught) if error is not None]
        if errors:
            raise errors[0] from caught

    def synchronise(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Make batch norms take mean and variance over the batches of all ranks in training; parameter names stay."""
        if self.world_size == 1:
            return network
        if device.type == "cuda":
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(network)
        from timm.layers import BatchNormAct2d

        class SyncedBatchNormAct2d(BatchNormAct2d):
            def forward(self, x: Tensor) -> Tensor:
                """Normalise (B,C,H,W), drop, activate."""
                return self.act(self.drop(normalise_over_ranks(self, x)))

        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncedBatchNorm2d
            elif type(module) is BatchNormAct2d:
                module.__class__ = SyncedBatchNormAct2d
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise InvalidValueError(
                    "--encoder",
                    f"got a network with {type(module).__name__}, whose statistics several processes share only on "
                    "CUDA",
                    "use one process or another encoder",
                )
        return network

    def parallelise(self, network: nn.Module, find_unused: bool) -> nn.Module:
        """Make backward average the gradients over all ranks.

        `find_unused` says that some parameters get no gradient.
        """
        if self.world_size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, find_unused_parameters=find_unused)


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, if it did; yield the ranks and this process's device.

    On CUDA each process of a machine has a device of its own. Processes other than the first do not log.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if dist.is_torchelastic_launched() else 1
    if world_size == 1:
        yield Ranks(), pick_device(device)
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    target = _pick_rank_device(device, local_rank)
    level = log.level
    dist.init_process_group("cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo")
    try:
        if rank:
            log.setLevel(logging.CRITICAL)
        yield Ranks(rank, world_size), target
    finally:
        log.setLevel(level)
        dist.destroy_process_group()


def _pick_rank_device(device: str, local_rank: int) -> torch.device:
    """Return the device of one of several processes of a machine; on CUDA make it the current one."""
    target = pick_device(device)
    if target.type == "cuda":
        if target.index is not None:
            raise InvalidValueError(
                "--device", f"got {device}, expected cuda or auto: torchrun gives every process a device of its own"
            )
        if local_rank >= torch.cuda.device_count():
            raise InvalidValueError(
                "torchrun --nproc-per-node",
                f"got more processes than the {torch.cuda.device_count()} CUDA devices of this machine",
                "start fewer, or use --device cpu",
            )
        target = torch.device("cuda", local_rank)
        torch.cuda.set_device(target)
    elif target.type != "cpu":
        raise InvalidValueError(
            "--device", f"got {target.type}, expected cpu or cuda for several processes", "use --device cpu"
        )
    return target


def is_first() -> bool:
    """Say whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class _SumOverRanks(torch.autograd.Function):
    """A sum over all ranks that gradients flow through: a value's gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        """Sum the values."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Sum the gradients."""
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with mean and variance over the batches of all ranks in training.

    PyTorch's `SyncBatchNorm` works on CUDA only; this one works on a CPU too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B,C,H,W)."""
        return normalise_over_ranks(self, x)


def normalise_over_ranks(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply a batch norm to (B,C,H,W); in training over the batches of all ranks."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    dtype, x = x.dtype, x.float()
    count = torch.tensor(float(x.numel() // x.shape[1]))
    dist.all_reduce(count)
    mean = _SumOverRanks.apply(x.sum((0, 2, 3))) / count  # (C,)
    centred = x - mean[:, None, None]
    variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias[:, None, None], centred, scale[:, None, None]).to(dtype)
