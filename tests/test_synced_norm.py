"""Batch-norm over two ranks: torch's CUDA kernels, stood in for on the CPU, give what kdx's own gives."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdx.training.synced_norm import SyncedBatchNorm

SIZES = (5, 3)  # images of each rank


def _spread(values: Tensor) -> Tensor:
    return values[None, :, None, None]


def _stats(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def _gather(
    images: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    shares, whole = counts[:, None] / counts.sum(), float(counts.sum())
    mean = (shares * means).sum(0)
    variance = (shares * (invstds**-2 - eps + means.square())).sum(0) - mean.square()
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * whole / (whole - 1), momentum)
    return mean, (variance + eps).rsqrt()


def _normed(
    images: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    normed = (images - _spread(mean)) * _spread(invstd)
    return normed if weight is None or bias is None else normed * _spread(weight) + _spread(bias)


def _reduce(
    gradient: Tensor,
    images: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    for_images: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plain, with_images = gradient.sum((0, 2, 3)), (gradient * (images - _spread(mean))).sum((0, 2, 3))
    return plain, with_images, with_images * invstd, plain.clone()


def _back(
    gradient: Tensor,
    images: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    plain: Tensor,
    with_images: Tensor,
    count: Tensor,
) -> Tensor:
    whole = float(count.sum())
    centred = images - _spread(mean)
    moved = gradient - _spread(plain / whole) - centred * _spread(with_images / whole * invstd.square())
    return moved * _spread(invstd if weight is None else invstd * weight)


KERNELS = {
    "batch_norm_stats": _stats,
    "batch_norm_gather_stats_with_counts": _gather,
    "batch_norm_elemt": _normed,
    "batch_norm_backward_reduce": _reduce,
    "batch_norm_backward_elemt": _back,
}


def _rank(rank: int, folder: Path, layer: nn.BatchNorm2d, way: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / way), 2), rank=rank, world_size=2)
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    images = torch.randn(sum(SIZES), 4, 3, 3, generator=torch.Generator().manual_seed(0)).split(SIZES)[rank]
    images.requires_grad_()
    synced, seen = SyncedBatchNorm.of(layer, lambda: True).train(), []
    for _ in range(2):
        seen.append(getattr(synced, way)(images))
    ((seen[1] ** 3).sum() * (rank + 1)).backward()
    told = {"out": seen[1].detach(), "images": images.grad} | {f"+{k}": p.grad for k, p in layer.named_parameters()}
    torch.save(told | synced.state_dict(), folder / f"{way}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_kernels_and_own_computation_agree(options: dict[str, bool | None], tmp_path: Path) -> None:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(4, **options)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter)
    context, processes = multiprocessing.get_context("fork"), []
    for way in ("_by_kernels", "_over_all_ranks"):
        processes += [context.Process(target=_rank, args=(rank, tmp_path, layer, way)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    for rank in range(2):
        by_kernels, own = (torch.load(tmp_path / f"{way}{rank}.pt") for way in ("_by_kernels", "_over_all_ranks"))
        assert by_kernels.keys() == own.keys()
        for name in own:
            assert torch.allclose(by_kernels[name].float(), own[name].float(), atol=1e-4), name
