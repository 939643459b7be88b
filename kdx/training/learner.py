"""What is trained: a network together with the objective that looks at it."""

from collections.abc import Sequence

from torch import Tensor, nn

from kdx.losses.distillation import Distillation
from kdx.losses.objective import Lesson
from kdx.models.features import Layers, Outputs, Watched
from kdx.models.networks import set_training_mode
from kdx.training.runtime import Precision


class Learner(nn.Module):
    """Network and objective as one module: one optimizer trains it, clipping measures it. Teachers stay outside."""

    def __init__(
        self, network: nn.Module, objective: Distillation, precision: Precision, layers: Layers | None = None
    ) -> None:
        super().__init__()
        self.network, self.objective, self.precision = network, objective, precision
        self.watched = Watched(network, layers)

    def forward(self, images: Tensor, teachers: Sequence[Outputs], lesson: Lesson) -> dict[str, Tensor]:
        """The student's `logits`, without gradient, `loss` and its named parts; losses in float32 at any precision."""
        with self.precision.autocast():
            student = self.watched(images)
        return {"logits": student.logits.detach(), **self.objective(student, teachers, lesson)}

    def train(self, mode: bool = True) -> "Learner":
        """As ever, but layers whose weights are all frozen stay in eval mode."""
        super().train(mode)
        if mode:
            set_training_mode(self.network)
        return self

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer changes, the network's first."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
