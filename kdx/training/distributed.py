"""One training on several ranks: all see the same epoch, each computes its share of every batch.

With one rank every method here is an identity, so that the training step is written once.
"""

import copy
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdx.data.batches import Batch
from kdx.losses.objective import Objective
from kdx.reproducibility import derive_seed

FEWEST = 2  # images a rank that batch-norm needs


@dataclass
class Ranks:
    """This process among the `world` that train one learner, connected by torch's default process group.

    `synchronised`: batch-norm takes its statistics over the images of all ranks, else over each rank's own.
    """

    rank: int = 0
    world: int = 1
    synchronised: bool = True
    split: bool = True  # whether the images under way are divided among the ranks; else each computes all of them

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module with batch-norms, where wanted, and memories that see all ranks' images; all names stay."""
        if self.world == 1:
            return module
        if isinstance(module, _BatchNorm) and self.synchronised:
            return SyncedBatchNorm.of(module, self)
        if isinstance(module, Objective):
            module.gather = self.gather
        for name, child in module.named_children():
            setattr(module, name, self.prepare(child))
        return module

    def wrap(self, learner: nn.Module) -> nn.Module:
        """What is called in the place of the learner: its backward pass averages gradients over the ranks."""
        if self.world == 1:
            return learner
        # the learner may hold weights that one batch does not reach; buffers are kept equal by `level`
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
        no_buffers: dict[str, Any] = {name: False}
        return DistributedDataParallel(learner, find_unused_parameters=True, **no_buffers)

    def share(self, part: Batch) -> Batch:
        """This rank's images of a part of a batch; all of them where they are too few to be divided."""
        self.split = self.world > 1 and len(part.labels) >= FEWEST * self.world
        if not self.split:
            return part
        pieces = ([None] * self.world if field is None else field.tensor_split(self.world) for field in part)
        return Batch(*(fields[self.rank] for fields in pieces))  # type: ignore[arg-type]

    def backward(self, loss: Tensor) -> None:
        """The backward pass; on several ranks gradients are averages over them after it."""
        if self.world == 1:
            loss.backward()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Grad strides do not match")  # 1 x 1 convolutions: a small copy
            loss.backward()

    @property
    def copies(self) -> int:
        """How many ranks compute each of the images under way."""
        return 1 if self.split else self.world

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) of all ranks, in their order; each has rows for other images, or all have the same ones."""
        if self.world == 1 or not self.split:
            return rows
        counts = [rows.new_zeros((), dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(counts, counts[0].new_tensor(len(rows)))
        most = int(torch.stack(counts).max())
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]).contiguous()
        everyone = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(everyone, padded)
        return torch.cat([theirs[: int(count)] for theirs, count in zip(everyone, counts, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, without gradient."""
        if self.world == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def level(self, module: nn.Module) -> None:
        """Average the running statistics that each rank took of its own images."""
        if self.world == 1 or self.synchronised:
            return
        norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
        running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
        if running:
            mean = self.sum(torch.cat(running)) / self.world
            for buffer, value in zip(running, mean.split([len(buffer) for buffer in running]), strict=True):
                buffer.copy_(value)

    def seed_step(self, seed: int, name: str, epoch: int, step: int) -> None:
        """Let each rank draw its own numbers, such as those of dropout, also after a resume with other ranks."""
        if self.world > 1:
            torch.manual_seed(derive_seed(seed, name, "rank", self.rank, epoch, step))

    def first_says(self, ask: Callable[[], Any]) -> Any:
        """What rank 0 answers; the others do not ask."""
        if self.world == 1:
            return ask()
        answer = [ask() if self.rank == 0 else None]
        dist.broadcast_object_list(answer)
        return answer[0]

    def follow(self, state: Mapping[str, Any]) -> None:
        """Bring every rank's training into the state that rank 0's has."""
        if self.world == 1:
            return

        def tell() -> bytes:
            buffer = io.BytesIO()
            torch.save({name: part.state_dict() for name, part in state.items()}, buffer)
            return buffer.getvalue()

        said = self.first_says(tell)
        if self.rank > 0:
            kept = torch.load(io.BytesIO(said), map_location="cpu", weights_only=True)
            for name, part in state.items():
                part.load_state_dict(kept[name])


class SyncedBatchNorm(_BatchNorm):
    """Batch-norm whose statistics in training are those of all ranks' images; on any device, one reduction a layer."""

    ranks: Ranks

    @classmethod
    def of(cls, norm: _BatchNorm, ranks: Ranks) -> "SyncedBatchNorm":
        """The same layer, with the same weights and buffers."""
        synced = cls.__new__(cls)
        nn.Module.__init__(synced)
        synced.__dict__.update(norm.__dict__)
        synced.ranks = ranks
        return synced

    def __deepcopy__(self, memo: dict[int, Any]) -> "SyncedBatchNorm":
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({k: v if k == "ranks" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return twin

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.ranks.split:
            return super().forward(input)
        images = input.float()
        dims = [dim for dim in range(images.ndim) if dim != 1]
        variance, mean = torch.var_mean(images, dims, correction=0)
        count = mean.new_full((1,), images.numel() / len(mean), dtype=torch.float64)
        moments = torch.cat([mean.double() * count, (variance.double() + mean.double().square()) * count, count])
        total = _SumOverRanks.apply(moments)
        first, second, count = total.split([len(mean), len(mean), 1])
        mean, variance = first / count, second / count - (first / count).square()
        self._move(mean.detach(), variance.detach(), count.detach())
        scale = torch.rsqrt(variance + self.eps).float()
        offset = -mean.float() * scale
        if self.affine:
            scale, offset = scale * self.weight, offset * self.weight + self.bias
        shape = [1, -1, *[1] * (images.ndim - 2)]
        return (images * scale.view(shape) + offset.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
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
