"""Attention transfer (1612.03928): where in the image a layer is active, whatever its channels."""

import torch.nn.functional as F
from torch import Tensor

from kdx.losses.objective import Facts, Lesson, Objective, Words, total
from kdx.losses.pairs import check_pairs, one_map_each, to_one_size
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs


def attention_loss(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """Mean squared difference of the normalised maps of the channels' mean f^power; maps (B, C, H, W) of any channels.

    The larger map is averaged down to the size of the smaller.
    """
    student, teacher = to_one_size(student, teacher)
    return (_attention(student, power) - _attention(teacher, power)).square().mean()


def _attention(maps: Tensor, power: float) -> Tensor:
    return F.normalize(maps.pow(power).mean(dim=1).flatten(1))


class AttentionTransfer(Objective):
    """The loss of every layer's attention, summed over layers.

    As published in later comparisons: cross-entropy with weight 1, this with 1000, the last map of each stage, of 32,
    16 and 8 pixels a side: it is a mean over the pixels of maps of length 1, so that smaller maps need less. All tasks;
    maps of another aspect ratio are squeezed.
    """

    relates = False

    def __init__(self, layers: Words = "stages", teacher_layers: Words | None = None, power: int = 2) -> None:
        super().__init__()
        check_numbers(power=power)
        if not isinstance(power, int):
            raise ValueError(f"power={power}: a whole number is needed, of which maps below 0 have powers, too")
        self.look_at(layers, teacher_layers)
        self.power = power

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        check_pairs(*self.maps_of(facts.student, facts.teacher), one_map_each(self, facts), dims=4)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        pairs = zip(*self.maps_of(student, teacher), strict=True)
        return {"loss": total(attention_loss(*pair, self.power) for pair in pairs)}
