"""Relational distillation (1904.05068): distances between images and angles between three of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.losses.objective import Facts, Lesson, Objective, Words, no_loss
from kdx.losses.pairs import one_pair
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs

EPS = 1e-12  # of a squared distance


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of all pairs' distances, each network's over its mean; features (B, D) of any D, two images or more."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of the cosines at every image between every two; features (B, D). Takes B B D floats a network."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _distances(features: Tensor) -> Tensor:
    """Squares by products, not differences: B B floats instead of B B D."""
    squares = features.square().sum(dim=1)
    pairs = (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp(min=EPS).sqrt()
    pairs = pairs.masked_fill(torch.eye(len(pairs), dtype=torch.bool, device=pairs.device), 0.0)
    return pairs / (pairs.sum() / (len(pairs) * (len(pairs) - 1)))


def _cosines(features: Tensor) -> Tensor:
    directions = F.normalize(features[None, :] - features[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


class RKD(Objective):
    """25 times the distances' loss plus 50 times the angles' (as published, with weight 1 beside cross-entropy).

    All tasks. A part of one image has no relation: 0. It depends on what is together in a batch: with micro_batches, in
    each part. Angles cost B B D floats: 512 images of 512 features are 537 MB.
    """

    def __init__(
        self,
        layers: Words = "pooled",
        teacher_layers: Words | None = None,
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        super().__init__()
        check_numbers(distance=distance, angle=angle)
        self.look_at(layers, teacher_layers)
        self.distance, self.angle = distance, angle

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        one_pair(*self.maps_of(facts.student, facts.teacher))

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        features, target = one_pair(*self.maps_of(student, teacher))
        distances = angles = no_loss(features)
        if len(features) > 1 and self.distance:
            distances = distance_loss(features, target)
        if len(features) > 1 and self.angle:
            angles = angle_loss(features, target)
        loss = self.distance * distances + self.angle * angles
        return {"loss": loss, "distance_loss": distances, "angle_loss": angles}
