"""Knowledge review (2104.09044): deep features of the student, fused into shallower ones, are to give the teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.losses.objective import Facts, Lesson, Objective, Words, total
from kdx.losses.pairs import averaged, check_pairs, fitting_mode, one_map_each
from kdx.method_numbers import check_numbers
from kdx.models.features import LAST_MAP, POOLED, Outputs

LEVELS = (4, 2, 1)  # sides of the averaged maps that count too, each half as much as the one before


def pyramid_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The weighted mean of the squared errors of maps (B, C, H, W) and of these averaged to sides 4, 2, 1 below H."""
    loss, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in LEVELS:
        if side < student.shape[2]:
            weight /= 2
            weights += weight
            small, target = (averaged(maps, (side, side)) for maps in (student, teacher))
            loss = loss + weight * F.mse_loss(small, target)
    return loss / weights


class Fusion(nn.Module):
    """A student's map, mixed by attention with what comes from the deeper one, in the teacher's channels and size."""

    def __init__(self, channels_in: int, hidden: int, channels: int, fuse: bool) -> None:
        super().__init__()
        first = nn.Conv2d(channels_in, hidden, 1, bias=False)
        last = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        for convolution in (first, last):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.conv1 = nn.Sequential(first, nn.BatchNorm2d(hidden))
        self.conv2 = nn.Sequential(last, nn.BatchNorm2d(channels))
        self.attend = nn.Conv2d(2 * hidden, 2, 1) if fuse else None

    def forward(self, maps: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher's (B, channels, *size), and what the next shallower one is fused with."""
        mixed = self.conv1(maps)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            shares = torch.sigmoid(self.attend(torch.cat([mixed, deeper], dim=1)))
            mixed = mixed * shares[:, :1] + deeper * shares[:, 1:]
        if list(mixed.shape[2:]) != list(size):
            mixed = F.interpolate(mixed, list(size), mode="nearest")
        return self.conv2(mixed), mixed


def reviewed(fusions: nn.ModuleList, maps: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """What fusions make of maps; all three from deep to shallow."""
    results, deeper = [], None
    for fusion, features, size in zip(fusions, maps, sizes, strict=True):
        result, deeper = fusion(features, deeper, size)
        results.append(result)
    return results


class ReviewKD(Objective):
    """The pyramid loss of every reviewed map, summed over layers; the last of them has the deepest features.

    As published: cross-entropy with weight 1, this with 1 (0.6 to 8 by pair), rising from 0 over 20 of 240 epochs, at
    all stages and the pooled features, and with the teacher's maps before their ReLU; here they are what the layers
    give, as in the paper's own code for most networks. All tasks.
    """

    relates = False

    def __init__(
        self, layers: Words = ("stages", "pooled"), teacher_layers: Words | None = None, hidden: int = 512
    ) -> None:
        super().__init__()
        check_numbers(hidden=hidden)
        self.look_at(layers, teacher_layers)
        self.hidden = hidden

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        students, teachers = self._deep_to_shallow(facts.student, facts.teacher)
        check_pairs(students, teachers, one_map_each(self, facts, layers=f"'[{LAST_MAP},{POOLED}]'"), dims=4)
        hidden = min(self.hidden, students[0].shape[1])
        self.fusions = nn.ModuleList(
            Fusion(s.shape[1], hidden, t.shape[1], fuse=number > 0).to(s.device)
            for number, (s, t) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        students, teachers = self._deep_to_shallow(student, teacher)
        fitting_mode(self.fusions, self.training, len(students[0]))
        results = reviewed(self.fusions, students, [target.shape[2:] for target in teachers])
        return {"loss": total(pyramid_loss(*pair) for pair in zip(results, teachers, strict=True))}

    def _deep_to_shallow(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        """Both networks' maps; vectors (B, D) as maps of one pixel."""
        found = self.maps_of(student, teacher)
        students, teachers = ([f[:, :, None, None] if f.ndim == 2 else f for f in maps[::-1]] for maps in found)
        return students, teachers
