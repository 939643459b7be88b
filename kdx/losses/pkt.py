"""Probabilistic knowledge transfer (1803.10837): each image's neighbourhood, as probabilities from cosines."""

from torch import Tensor

from kdx.losses.objective import Facts, Lesson, Objective, Words
from kdx.losses.pairs import one_pair
from kdx.models.features import Outputs

EPS = 1e-7


def neighbourhood_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over pairs of q log(q / p); p and q are rows of (cos + 1) / 2 that sum to 1; features (B, D).

    A mean, not a sum over neighbours: hence its large weight. One image has itself as neighbour: 0.
    """
    p, q = _neighbours(student), _neighbours(teacher)
    return (q * ((q + EPS) / (p + EPS)).log()).mean()


def _neighbours(features: Tensor) -> Tensor:
    unit = features / (features.norm(dim=1, keepdim=True) + EPS)
    alike = (unit @ unit.T + 1) / 2
    return alike / alike.sum(dim=1, keepdim=True)


class PKT(Objective):
    """The neighbourhoods' loss (as published: cross-entropy with weight 1, this with 30000).

    All tasks. It depends on what is together in a batch: with micro_batches, in each part.
    """

    def __init__(self, layers: Words = "pooled", teacher_layers: Words | None = None) -> None:
        super().__init__()
        self.look_at(layers, teacher_layers)

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        one_pair(*self.maps_of(facts.student, facts.teacher))

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        return {"loss": neighbourhood_loss(*one_pair(*self.maps_of(student, teacher)))}
