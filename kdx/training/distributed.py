"""One training on several ranks: all see the same epoch, each computes its share of every batch.

With one rank every method here is an identity, so that the training step is written once.
"""

import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdx.data.batches import Batch
from kdx.losses.objective import Objective
from kdx.reproducibility import derive_seed
from kdx.training.synced_norm import SyncedBatchNorm

FEWEST = 2  # images a rank that batch-norm needs


@dataclass
class Ranks:
    """This process among the `world` that train one learner, connected by torch's default process group.

    `synchronised`: batch-norm, and losses that relate images, see the images of all ranks, else each rank its own.
    """

    rank: int = 0
    world: int = 1
    synchronised: bool = True
    sizes: list[int] = field(default_factory=list)  # each rank's images of those under way; empty: each has all of them

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return self  # the process group is one

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module with batch-norms and losses that, where wanted, see all ranks' images; all names stay."""
        return module if self.world == 1 else self._prepared(module, {})

    def _prepared(self, module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
        if module in done:  # it stands in several places
            return done[module]
        done[module] = module
        if isinstance(module, _BatchNorm) and self.synchronised:
            done[module] = SyncedBatchNorm.of(module, lambda: self.sizes != [])
            return done[module]
        if isinstance(module, Objective) and self.synchronised:
            module.gather = self.gather
        for name, child in module.named_children():
            setattr(module, name, self._prepared(child, done))
        return module

    def wrap(self, learner: nn.Module) -> nn.Module:
        """What is called in the place of the learner: its backward pass averages gradients over the ranks."""
        if self.world == 1:
            return learner
        # the learner may hold weights that one batch does not reach; buffers are kept equal by `statistics`
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
        no_buffers: dict[str, Any] = {name: False}
        alone = _LossAlone(learner).to(next(learner.parameters()).device)
        return DistributedDataParallel(alone, find_unused_parameters=True, **no_buffers)

    def parts(self, batch: Batch, micro_batches: int) -> Iterator[Batch]:
        """This rank's images of each part of a batch; all of them where they are too few to be divided.

        Without synchronisation they are those of `micro_batches` times as many parts as there are ranks.
        """
        if self.world == 1:
            yield from parts_of(batch, micro_batches)
        elif self.synchronised:
            for part in parts_of(batch, micro_batches):
                fewer = list(parts_of(part, self.world))
                yield self._own(fewer) if len(fewer) == self.world else self._all(part)
        else:
            parts = list(parts_of(batch, micro_batches * self.world))
            if len(parts) % self.world:
                yield from map(self._all, parts)
            for first in range(0, len(parts) if len(parts) % self.world == 0 else 0, self.world):
                yield self._own(parts[first : first + self.world])

    def _own(self, pieces: list[Batch]) -> Batch:
        self.sizes = [len(piece.labels) for piece in pieces]
        return pieces[self.rank]

    def _all(self, part: Batch) -> Batch:
        self.sizes = []
        return part

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
        return 1 if self.sizes else self.world

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (N, ...) of all ranks, in their order; each has rows for other images, or all have the same ones.

        The gradient of a rank's own rows is that of a loss that every rank computes of all rows.
        """
        return _Gathered.apply(rows, self.rank, tuple(self.sizes)) if self.sizes and self.world > 1 else rows

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, without gradient."""
        if self.world == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    @contextmanager
    def statistics(self, module: nn.Module) -> Iterator[None]:
        """Within, each rank's batch-norm sees its own images; then all have the running statistics of one device.

        That one would see the ranks' images one after the other, as parts of a batch: r + sum of (1 - m)^(ranks to
        come) (r_rank - r), m the momentum.
        """
        norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and _moves(norm)]
        if self.world == 1 or self.synchronised or not self.sizes or not norms:
            yield
            return
        running = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        before = torch.cat(running)  # type: ignore[arg-type]
        counts = [int(norm.num_batches_tracked or 0) if norm.momentum is None else 0 for norm in norms]
        yield
        shares = [self._share(norm.momentum, count) for norm, count in zip(norms, counts, strict=True) for _ in (0, 1)]
        sizes = [len(buffer) for buffer in running]  # type: ignore[arg-type]
        moves = [(now - old) * s for now, old, s in zip(running, before.split(sizes), shares, strict=True)]
        for buffer, value in zip(running, (before + self.sum(torch.cat(moves))).split(sizes), strict=True):
            buffer.copy_(value)  # type: ignore[union-attr]
        for norm in norms:
            norm.num_batches_tracked.add_(self.world - 1)  # type: ignore[union-attr]

    def _share(self, momentum: float | None, count: int) -> float:
        """What this rank's move of a running statistic counts; without a momentum it is the mean of all batches."""
        return (
            (count + 1) / (count + self.world) if momentum is None else (1 - momentum) ** (self.world - 1 - self.rank)
        )

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
            torch.save({name: part.state_dict() for name, part in state.items() if name != "random"}, buffer)
            return buffer.getvalue()

        said = self.first_says(tell)
        if self.rank > 0:
            kept = torch.load(io.BytesIO(said), map_location="cpu", weights_only=True)
            for name, content in kept.items():
                state[name].load_state_dict(content)


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in up to `count` nearly equal parts of at least two images."""
    count = max(1, min(count, len(batch.labels) // FEWEST))
    pieces = [[None] * count if field is None else field.tensor_split(count) for field in batch]
    for fields in zip(*pieces, strict=True):
        yield Batch(*fields)


def _moves(norm: _BatchNorm) -> bool:
    return norm.training and norm.running_mean is not None and norm.running_var is not None


class _LossAlone(nn.Module):
    """A learner of whose terms only the loss has a gradient: else weights that others reach would be waited for."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner
        self.unused = nn.Parameter(torch.zeros(()))  # DDP is told to look for such ones, and warns where it finds none

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        terms = self.learner(*inputs)
        return {name: term if name == "loss" else term.detach() for name, term in terms.items()}


class _Gathered(torch.autograd.Function):
    """The rows of all ranks, `sizes` of each.

    Every rank computes the same loss of them, and each loss is weighted by its rank's share of the images: hence a
    gradient that is larger by the inverse of that share.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, sizes: tuple[int, ...]) -> Tensor:
        ctx.rank, ctx.sizes = rank, sizes
        padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])]).contiguous()
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([theirs[:size] for theirs, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        own = gradient.split(ctx.sizes)[ctx.rank]
        return own * (sum(ctx.sizes) / ctx.sizes[ctx.rank]), None, None
