"""What the methods share that compare features: maps that must come in pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.losses.objective import Facts, Objective
from kdx.models.features import LAST_MAP


def one_map_each(method: Objective, facts: Facts, **keys: object) -> str:
    """The keys with which a method compares the last maps alone: a CNN has a stage a resolution, a ViT has four."""
    given = {"layers": LAST_MAP, **keys} | ({} if method.teacher_layers is None else {"teacher_layers": "null"})
    return " ".join(f"{facts.key}.{name}={value}" for name, value in given.items())


def check_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor], instead: str, dims: int | None = None) -> None:
    """Raise `KdxError` unless there are as many features of both networks, of so many dimensions (4: maps).

    `instead` says with which keys any two networks have as many.
    """
    if len(student) != len(teacher):
        told = f"{len(student)} in the student, {len(teacher)} in the teacher"
        raise KdxError(f"layers: {told}; set {instead}, or name as many of each in layers and teacher_layers")
    for features in (*student, *teacher):
        if dims is not None and features.ndim != dims:
            wanted = "maps (B, C, H, W)" if dims == 4 else "vectors (B, D)"
            hint = "; num_prefix_tokens of the network has to say how many of them stand for no place"
            told = f"a layer gives {tuple(features.shape)}{hint if features.ndim == 3 else ''}"
            raise KdxError(f"layers: {wanted} are needed, {told}")


def one_pair(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The features of a method that looks at one layer, flattened to (B, D); `KdxError` where there are several."""
    if len(student) != 1 or len(teacher) != 1:
        raise KdxError(
            f"layers: one layer of each network is needed, not {len(student)} and {len(teacher)}; choose pooled"
        )
    return student[0].flatten(1), teacher[0].flatten(1)


def to_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) averaged down to the smaller height and width of the two."""
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return averaged(student, size), averaged(teacher, size)


def averaged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) averaged to (height, width), as adaptive pooling does; themselves where they have that size.

    By matrices: the gradient of torch's own has other bits in every run on CUDA.
    """
    if list(maps.shape[2:]) == list(size):
        return maps
    rows, columns = (_windows(side, parts, maps) for side, parts in zip(maps.shape[2:], size, strict=True))
    return rows @ maps @ columns.T


def _windows(side: int, parts: int, like: Tensor) -> Tensor:
    """The weights (parts, side) of the means over as many windows, which overlap where they cannot be equal."""
    part, place = torch.arange(parts, device=like.device)[:, None], torch.arange(side, device=like.device)
    first, last = part * side // parts, ((part + 1) * side - 1) // parts
    inside = ((place >= first) & (place <= last)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def fitting_mode(adapters: nn.Module, training: bool, images: int) -> None:
    """Training mode for adapters, but never for a single image: batch-norm has no statistics of one value."""
    adapters.train(training and images > 1)
