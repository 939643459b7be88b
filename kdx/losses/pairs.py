"""What the methods share that compare features: the words for layers, and maps that must come in pairs."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdx.errors import KdxError


def words(layers: str | Sequence[str]) -> tuple[str, ...]:
    """The words that `layers` names, one or several; `ValueError` where it names none."""
    found = (layers,) if isinstance(layers, str) else tuple(layers)
    if not found or not all(isinstance(word, str) and word for word in found):
        raise ValueError(f"layers={layers}: names of layers are needed, or stages, last_map, pooled")
    return found


def check_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor], dims: int | None = None) -> None:
    """Raise `KdxError` unless there are as many features of both networks, of so many dimensions (4: maps)."""
    if len(student) != len(teacher):
        told = f"{len(student)} in the student, {len(teacher)} in the teacher"
        raise KdxError(f"kd.layers: {told}; name as many of each in kd.layers and kd.teacher_layers")
    for features in (*student, *teacher):
        if dims is not None and features.ndim != dims:
            wanted = "maps (B, C, H, W)" if dims == 4 else "vectors (B, D)"
            raise KdxError(f"kd.layers: {wanted} are needed, a layer gives {tuple(features.shape)}")


def one_pair(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The features of a method that looks at one layer, flattened to (B, D); `KdxError` where there are several."""
    if len(student) != 1 or len(teacher) != 1:
        raise KdxError(f"kd.layers: one layer of each network is needed, not {len(student)} and {len(teacher)}")
    return student[0].flatten(1), teacher[0].flatten(1)


def to_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) averaged down to the smaller height and width of the two."""
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return resized(student, size), resized(teacher, size)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps averaged to (height, width); themselves where they have it."""
    return maps if list(maps.shape[2:]) == list(size) else F.adaptive_avg_pool2d(maps, (size[0], size[1]))


def fitting_mode(adapters: nn.Module, training: bool, images: int) -> None:
    """Training mode for adapters, but never for a single image: batch-norm has no statistics of one value."""
    adapters.train(training and images > 1)
