"""Batch-norm over the images of all ranks, on any device: torch's own has kernels for CUDA alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as CudaKernels
from torch.nn.modules.batchnorm import _BatchNorm

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WITH_ACTIVATION = "BatchNormAct2d"  # of timm: a batch-norm, then its children


def unknown_norms(module: nn.Module) -> list[str]:
    """The batch-norms that compute something of their own, by their types: they cannot be replaced."""
    types = {type(norm) for norm in module.modules() if isinstance(norm, _BatchNorm)}
    return sorted(one.__name__ for one in types if one not in KNOWN and one.__name__ != WITH_ACTIVATION)


class SyncedBatchNorm(_BatchNorm):
    """Batch-norm whose statistics in training are those of all ranks' images; one reduction a layer."""

    divided: Callable[[], bool]  # whether each rank has other images at the moment

    @classmethod
    def of(cls, norm: _BatchNorm, divided: Callable[[], bool]) -> "SyncedBatchNorm":
        """The same layer, with the same weights and buffers."""
        synced = cls.__new__(cls)
        nn.Module.__init__(synced)
        synced.__dict__.update(norm.__dict__)
        synced.divided = divided
        return synced

    def __deepcopy__(self, memo: dict[int, Any]) -> "SyncedBatchNorm":
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: v if k == "divided" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return twin

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        over_all = self._by_kernels if input.is_cuda else self._over_all_ranks
        normed = over_all(input) if self.training and self.divided() else super().forward(input)
        for child in self.children():
            normed = child(normed)
        return normed

    def _by_kernels(self, input: Tensor) -> Tensor:
        """What `_over_all_ranks` computes, by torch's kernels: a fraction of the passes over the images."""
        running, momentum, group = (self.running_mean, self.running_var), self._count_batch(), dist.group.WORLD
        world = dist.get_world_size()
        return CudaKernels.apply(input, self.weight, self.bias, *running, self.eps, momentum, group, world)

    def _over_all_ranks(self, input: Tensor) -> Tensor:
        images = input.float()
        dims = [dim for dim in range(images.ndim) if dim != 1]
        variance, mean = torch.var_mean(images, dims, correction=0)
        count = mean.new_full((1,), images.numel() / len(mean), dtype=torch.float64)
        moments = torch.cat([mean.double() * count, (variance.double() + mean.double().square()) * count, count])
        total: Tensor = _SumOverRanks.apply(moments)
        first, second, count = total.split([len(mean), len(mean), 1])
        mean, variance = first / count, second / count - (first / count).square()
        self._move(mean.detach(), variance.detach(), count.detach(), self._count_batch())
        scale = torch.rsqrt(variance + self.eps).float()
        offset = -mean.float() * scale
        if self.affine:
            scale, offset = scale * self.weight, offset * self.weight + self.bias
        shape = [1, -1, *[1] * (images.ndim - 2)]
        return (images * scale.view(shape) + offset.view(shape)).to(input.dtype)

    def _count_batch(self) -> float:
        """Count one more batch; its share of the running statistics."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor, momentum: float) -> None:
        """Move the running statistics as torch does."""
        if self.running_mean is None or self.running_var is None:
            return
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; so is its gradient, since every rank's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
