"""Similarity-preserving distillation (1907.09682): images alike to the teacher should be to the student."""

import torch.nn.functional as F
from torch import Tensor

from kdx.losses.objective import Facts, Lesson, Objective, Words, total
from kdx.losses.pairs import check_pairs, one_map_each
from kdx.models.features import Outputs


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||rows of F_s F_s^T normalised - those of F_t F_t^T||_F^2 / B^2 of flattened features (B, ...).

    One image is like itself: 0.
    """
    return (_similarities(student) - _similarities(teacher)).square().sum() / len(student) ** 2


def _similarities(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)


class SimilarityPreserving(Objective):
    """The loss of the images' similarities, summed over layers.

    As published in later comparisons: cross-entropy with weight 1, this with 3000, the last map. All tasks. It depends
    on what is together in a batch: with micro_batches, in each part.
    """

    def __init__(self, layers: Words = "last_map", teacher_layers: Words | None = None) -> None:
        super().__init__()
        self.look_at(layers, teacher_layers)

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        check_pairs(*self.maps_of(facts.student, facts.teacher), one_map_each(self, facts))

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        pairs = zip(*self.maps_of(student, teacher), strict=True)
        return {"loss": total(similarity_loss(*pair) for pair in pairs)}
