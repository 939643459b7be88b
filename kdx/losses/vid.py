"""Variational information distillation (1904.05835): the teacher's map as a Gaussian around a prediction."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.losses.objective import Facts, Lesson, Objective, Words, total
from kdx.losses.pairs import check_pairs, one_map_each, to_one_size
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs

EPS = 1e-5  # the least variance


def gaussian_loss(predicted: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """The mean of ((predicted - target)^2 / variance + log variance) / 2; maps (B, C, H, W), variance (C,).

    It falls below 0 where the variance does below 1.
    """
    variance = variance[None, :, None, None]
    return 0.5 * ((predicted - target).square() / variance + variance.log()).mean()


class Predictor(nn.Module):
    """The teacher's map (B, C_t, H, W) from the student's by 1x1 convolutions, and a trained variance a channel."""

    def __init__(self, channels_in: int, hidden: int, channels: int, variance: float) -> None:
        super().__init__()
        sizes = [(channels_in, hidden), (hidden, hidden), (hidden, channels)]
        first, second, last = (nn.Conv2d(a, b, 1, bias=False) for a, b in sizes)
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        above = variance - EPS
        self.log_scale = nn.Parameter(torch.full((channels,), above + math.log(-math.expm1(-above))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss; the larger map is averaged down to the size of the smaller."""
        student, teacher = to_one_size(student, teacher)
        return gaussian_loss(self.regressor(student), teacher, F.softplus(self.log_scale) + EPS)


class VID(Objective):
    """The Gaussian loss of every layer, summed over layers; predictors and variances are trained with the student.

    As published in later comparisons: cross-entropy with weight 1, this with 1, variances from 5. All tasks.
    """

    relates = False

    def __init__(self, layers: Words = "stages", teacher_layers: Words | None = None, variance: float = 5.0) -> None:
        super().__init__()
        check_numbers(variance=variance)
        if variance <= EPS:
            raise ValueError(f"variance={variance}: more than {EPS} is needed")
        self.look_at(layers, teacher_layers)
        self.variance = variance

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        students, teachers = self.maps_of(facts.student, facts.teacher)
        check_pairs(students, teachers, one_map_each(self, facts), dims=4)
        self.predictors = nn.ModuleList(
            Predictor(s.shape[1], t.shape[1], t.shape[1], self.variance).to(s.device)
            for s, t in zip(students, teachers, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        triples = zip(self.predictors, *self.maps_of(student, teacher), strict=True)
        return {"loss": total(predictor(*pair) for predictor, *pair in triples)}
