"""Curriculum temperature (2211.16231): the temperature is learnt, against the student, more and more strongly."""

import math

import torch
from torch import Tensor, nn

from kdx.losses.hinton import soft_loss, soft_loss_per_label
from kdx.losses.objective import Lesson, Objective
from kdx.losses.standardisation import compared_logits, refusal_of_standardised
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs


def curriculum(progress: float, ramp: float) -> float:
    """What the temperature's gradient is multiplied by: from 0 to -1 on a cosine, reached at `ramp` of all steps."""
    done = min(progress / ramp, 1.0) if ramp else 1.0
    return (math.cos(math.pi * done) + 1) / 2 - 1


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself; its gradient is multiplied by the factor."""
    fixed = tensor.detach()
    return fixed + factor * (tensor - fixed)


class CTKD(Objective):
    """T^2 KL at T = start + span * sigmoid(theta); theta is trained by the student's optimizer to raise the loss.

    As published: cross-entropy with weight 0.1, this with 0.9 (ImageNet 1 and 1), T from 1 to 21, theta from 1 (T =
    15.6), ramp 10 of 240 epochs. For multi-label sets per label, as Hinton's.
    """

    relates = False

    def __init__(
        self,
        start: float = 1.0,
        span: float = 20.0,
        theta: float = 1.0,
        ramp: float = 10 / 240,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        check_numbers(start=start, span=span, theta=theta, ramp=ramp)
        self.start, self.span, self.ramp, self.standardise = start, span, ramp, standardise
        self.theta = nn.Parameter(torch.tensor(float(theta)))

    def refusal(self, task: str, num_classes: int) -> str | None:
        refused = super().refusal(task, num_classes)
        return refused or refusal_of_standardised(self.standardise, task, num_classes)

    def temperature(self, progress: float) -> Tensor:
        """The temperature, a scalar with a gradient to theta."""
        theta = scale_gradient(self.theta, curriculum(progress, self.ramp))
        return self.start + self.span * torch.sigmoid(theta)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        by, under = compared_logits(student, teacher, self.standardise)
        temperature = self.temperature(lesson.progress)
        soften = soft_loss_per_label if self.multi_label else soft_loss
        return {"loss": soften(by, under, temperature), "temperature": temperature.detach()}
