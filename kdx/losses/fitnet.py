"""FitNets (1412.6550): an adapter of a student's map is to give the teacher's map."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.losses.objective import Facts, Lesson, Objective, Words
from kdx.losses.pairs import averaged, check_pairs, fitting_mode, one_map_each
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs

LARGEST_KERNEL = 7  # without padding, to shrink a map by up to 6 pixels; beyond that the map is averaged down


class Regressor(nn.Module):
    """From a student's map (B, C_s, H, W) to one of the teacher's shape: a convolution, batch-norm and ReLU."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.size = list(teacher[2:])
        self.conv = _convolution(student[1], teacher[1], list(student[2:]), self.size)
        self.bn = nn.BatchNorm2d(teacher[1])

    def forward(self, maps: Tensor) -> Tensor:
        if isinstance(self.conv, nn.Conv2d) and self.conv.kernel_size == (1, 1):
            maps = _averaged_or_enlarged(maps, self.size)
        return F.relu(self.bn(self.conv(maps)))


def _convolution(channels_in: int, channels: int, size: Sequence[int], target: Sequence[int]) -> nn.Module:
    if list(size) == [2 * side for side in target]:
        return nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
    if [2 * side for side in size] == list(target):
        return nn.ConvTranspose2d(channels_in, channels, 4, stride=2, padding=1)
    kernel = [1 + s - t for s, t in zip(size, target, strict=True)]
    if all(1 <= side <= LARGEST_KERNEL for side in kernel):
        return nn.Conv2d(channels_in, channels, (kernel[0], kernel[1]))
    return nn.Conv2d(channels_in, channels, 1)


def _averaged_or_enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    if any(side < target for side, target in zip(maps.shape[2:], size, strict=True)):
        return F.interpolate(maps, list(size), mode="nearest")
    return averaged(maps, size)


class FitNet(Objective):
    """Mean squared error of the adapted map with the teacher's, at one of the layers: the hint.

    As published in later comparisons: cross-entropy with weight 1, this with 100, the hint the last stage but one; the
    paper's two-stage start is not done there either. The teacher's map should be behind its ReLU. All tasks.
    """

    relates = False

    def __init__(self, layers: Words = "stages", teacher_layers: Words | None = None, hint: int = -2) -> None:
        super().__init__()
        check_numbers(hint=hint)
        self.look_at(layers, teacher_layers)
        self.hint = hint

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        students, teachers = self.maps_of(facts.student, facts.teacher)
        check_pairs(students, teachers, one_map_each(self, facts, hint=-1), dims=4)
        if not -len(students) <= self.hint < len(students):
            raise KdxError(f"hint={self.hint}: layers gives {len(students)} map(s); hint=-1 is the last")
        student, teacher = students[self.hint], teachers[self.hint]
        self.regressor = Regressor(student.shape, teacher.shape).to(student.device)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        students, teachers = self.maps_of(student, teacher)
        maps, target = students[self.hint], teachers[self.hint]
        fitting_mode(self.regressor, self.training, len(maps))
        return {"loss": F.mse_loss(self.regressor(maps), target)}
