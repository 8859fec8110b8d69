"""The processes of one training run, as torchrun starts them: which one this is, and what they do together.

Alone, which is the rule, all of it costs nothing. With others, gradients are averaged by PyTorch's
`DistributedDataParallel`, batch norms take their statistics over the batches of all, and sums go over all.
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
    """Process `rank` of `count`; the first one writes and speaks."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Say whether this is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add values up over all processes; all get the sum, which no gradient flows through."""
        if self.count == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def gather(self, thing: Any) -> list[Any]:
        """Give all processes the things of all."""
        if self.count == 1:
            return [thing]
        things: list[Any] = [None] * self.count
        dist.all_gather_object(things, thing)
        return things

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process the `DsgenError` that any of them meets in the block; the first rank's, if several."""
        caught: DsgenError | None = None
        try:
            yield
        except DsgenError as error:
            caught = error
        errors = [error for error in self.gather(caught) if error is not None]
        if errors:
            raise errors[0] from caught

    def synchronise(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Let batch norms in training take mean and variance over the batches of all processes; names stay."""
        if self.count == 1:
            return network
        if device.type == "cuda":
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(network)
        from timm.layers import BatchNormAct2d

        class SyncedBatchNormAct2d(BatchNormAct2d):
            def forward(self, x: Tensor) -> Tensor:
                """Normalise (B,C,H,W), drop, activate."""
                return self.act(self.drop(normalise_together(self, x)))

        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncedBatchNorm2d
            elif type(module) is BatchNormAct2d:
                module.__class__ = SyncedBatchNormAct2d
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise DsgenError(
                    "torchrun",
                    f"got a network with {type(module).__name__}, whose statistics processes share on CUDA alone",
                    "take one process or another encoder",
                )
        return network

    def parallel(self, network: nn.Module, unused: bool) -> nn.Module:
        """Let backward average gradients over all processes; `unused` says that parts get none."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, find_unused_parameters=unused)


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, or stay alone; yield which one this is and its device.

    On CUDA each process of a machine takes a device of its own. Processes after the first keep their notices to
    themselves.
    """
    count = int(os.environ.get("WORLD_SIZE", 1)) if dist.is_torchelastic_launched() else 1
    if count == 1:
        yield Ranks(), pick_device(device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    target = pick_device(device)
    if target.type == "cuda":
        if target.index is not None:
            raise InvalidValueError(
                "--device", f"got {device}, torchrun gives every process its own", "take cuda or auto"
            )
        if local >= torch.cuda.device_count():
            raise DsgenError(
                "torchrun",
                f"got more processes than the {torch.cuda.device_count()} CUDA devices there are",
                "start fewer, or give --device cpu",
            )
        target = torch.device("cuda", local)
        torch.cuda.set_device(target)
    elif target.type != "cpu":
        raise InvalidValueError(
            "--device", f"got {target.type}, several processes need cpu or cuda", "give --device cpu"
        )
    level = log.level
    dist.init_process_group("cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo")
    try:
        if rank:
            log.setLevel(logging.CRITICAL)
        yield Ranks(rank, count), target
    finally:
        log.setLevel(level)
        dist.destroy_process_group()


def is_first() -> bool:
    """Say whether this process is the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes, through which gradients flow: each value's is the sum of all processes' gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        """Add up."""
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Add up the gradients."""
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose mean and variance, in training, are those over the batches of all processes, on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B,C,H,W)."""
        return normalise_together(self, x)


def normalise_together(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Do what a batch norm does, in training over the batches of all processes; (B,C,H,W)."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    kind, x = x.dtype, x.float()
    count = torch.tensor(float(x.numel() // x.shape[1]))
    dist.all_reduce(count)
    mean = _SumOverRanks.apply(x.sum((0, 2, 3))) / count
    off = x - mean[:, None, None]
    variance = _SumOverRanks.apply(off.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias[:, None, None], off, scale[:, None, None]).to(kind)
