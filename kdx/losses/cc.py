"""Correlation congruence (1904.01802, as its usual code has it): what neighbours in a batch miss together."""

from torch import Tensor, nn

from kdx.losses.objective import Facts, Lesson, Objective, Words, no_loss
from kdx.losses.pairs import one_pair
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs


def congruence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over n of sum |d_n| |d_n+1|, d = student - teacher; embeddings (B, D). One image: 0."""
    if len(student) < 2:
        return no_loss(student)
    missed = (student - teacher).abs()
    return (missed[:-1] * missed[1:]).sum(dim=1).mean()


class CorrelationCongruence(Objective):
    """The congruence of both networks' features in a linear embedding, which is trained for both.

    As published in later comparisons: cross-entropy with weight 1, this with 0.02, 128 dimensions. All tasks. It
    depends on the order of the images in a batch.
    """

    def __init__(self, layers: Words = "pooled", teacher_layers: Words | None = None, dim: int = 128) -> None:
        super().__init__()
        check_numbers(dim=dim)
        self.look_at(layers, teacher_layers)
        self.dim = dim

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        student, teacher = one_pair(*self.maps_of(facts.student, facts.teacher))
        self.embed_student = nn.Linear(student.shape[1], self.dim).to(student.device)
        self.embed_teacher = nn.Linear(teacher.shape[1], self.dim).to(student.device)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        features, target = one_pair(*self.maps_of(student, teacher))
        return {"loss": congruence_loss(self.embed_student(features), self.embed_teacher(target))}
