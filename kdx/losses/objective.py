"""What a method of distillation is: a module that compares a student with a teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdx.models.features import Outputs
from kdx.tasks import MULTI_LABEL, TASKS

Words = str | Sequence[str]  # for layers: dotted names, or "stages", "last_map", "pooled"


class Lesson(NamedTuple):
    """What a loss may know of a batch beside the networks' outputs.

    `targets` are class numbers int64 (B,), shares float (B, C) where images were mixed, or 0 and 1 (B, L) of a
    multi-label set. `known` (B,) is False where an image's label must not be used; None where all may be. `indices`
    (B,) are the images' numbers in the training split. `progress` is the share of all training steps done, 0 to 1.
    `share`: a part of a batch holds so much more (or less) of what its labels count than of its images.
    """

    targets: Tensor
    indices: Tensor
    progress: float = 0.0
    known: Tensor | None = None
    share: Tensor | float = 1.0

    def classes(self, teacher_logits: Tensor) -> Tensor:
        """Class numbers (B,): of mixed images the largest share, the teacher's choice where no label is known."""
        classes = self.targets if self.targets.ndim == 1 else self.targets.argmax(dim=1)
        return classes if self.known is None else classes.where(self.known, teacher_logits.argmax(dim=1))

    def labels(self, teacher_logits: Tensor) -> Tensor:
        """0 and 1 of a multi-label set (B, L), shares between where images were mixed; where hidden the teacher's."""
        if self.known is None:
            return self.targets
        return self.targets.where(self.known[:, None], (teacher_logits > 0).to(self.targets.dtype))


@dataclass(frozen=True)
class Facts:
    """What a method is told once, before training: the task, and what both networks say of two images."""

    task: str
    num_classes: int
    train_size: int
    student: Outputs
    teacher: Outputs
    key: str = "kd"  # of the config, under which the method's own keys stand


class Objective(nn.Module):
    """A method: compares the outputs of a student with those of one teacher.

    Its parameters are trained and its buffers saved with the student. A subclass names the layers that it wants to
    see, what it is defined for, and overrides `forward`, and `prepare` where it needs adapters or a memory.
    """

    version: ClassVar[int] = 1  # raise it when the formula changes: stages of the old one are not reused
    layers: Sequence[str] = ()  # words for the student's; set by `look_at`
    teacher_layers: Sequence[str] | None = None  # None: the same words as `layers`
    tasks: ClassVar[Sequence[str]] = TASKS
    min_classes: ClassVar[int] = 2
    whole: ClassVar[bool] = False  # True: its loss is all of what is minimised, the labels' part included
    instead: ClassVar[str] = "hinton"  # what to choose where this method is not defined
    relates: ClassVar[bool] = True  # False: a mean over images, of which each of several ranks computes its part
    remembers: ClassVar[bool] = False  # True: its buffers move with every batch, by the images of all ranks
    task: str = ""
    gather: Callable[[Tensor], Tensor] | None = None  # the rows (N, ...) of all ranks, where several train as one

    @property
    def teaches_classes(self) -> bool:
        """Whether the student's classifier learns from it; from what layers before it give, it does not."""
        return not self.layers

    def look_at(self, layers: Words, teacher_layers: Words | None = None) -> None:
        """Ask for features of these layers, of the teacher under the same words where it has none of its own."""
        self.layers = _several(layers)
        self.teacher_layers = None if teacher_layers is None else _several(teacher_layers)

    def prepare(self, facts: Facts) -> None:
        """Build what depends on the networks and the data; called once, before the optimizer is built.

        A `KdxError` begins with the method's own key, without what stands before it in a config.
        """
        self.task = facts.task

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        """Named scalars: `loss`, unweighted, and any others that are worth a column in the log."""
        raise TypeError(f"{type(self).__name__} has no forward(student, teacher, lesson)")

    @property
    def multi_label(self) -> bool:
        return self.task == MULTI_LABEL

    def refusal(self, task: str, num_classes: int) -> str | None:
        """Why the method cannot be used for a task, and what to choose instead; None where it can."""
        if task not in self.tasks:
            return f"is not defined for {task} sets; choose {self.instead}"
        if num_classes < self.min_classes:
            return f"teaches nothing with {num_classes} classes, {self.min_classes} are needed; choose {self.instead}"
        return None

    @property
    def words_of_teacher(self) -> Sequence[str]:
        """The words for the teacher's layers."""
        return self.layers if self.teacher_layers is None else self.teacher_layers

    def maps_of(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        """The features of the layers that were asked for, in order; the teacher's without gradient."""
        seen = [tensor.detach() for tensor in _flat(teacher.features, self.words_of_teacher)]
        return _flat(student.features, self.layers), seen


def no_loss(student: Tensor) -> Tensor:
    """0 with a graph: what a method says where a part of a batch is too small for it."""
    return student.sum() * 0


def refusal_of_two_classes(beta: float, num_classes: int) -> str | None:
    """Why a loss among the other classes, of weight `beta`, cannot teach with two, where there is one other or none."""
    if num_classes < 3 and beta > 0:
        return f"teaches nothing by beta={beta:g} with 2 classes, 3 are needed; choose hinton or beta=0"
    return None


def total(losses: Iterable[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(tuple(losses)).sum()


def _several(layers: Words) -> tuple[str, ...]:
    """The words that `layers` names, one or several; `ValueError` where it names none."""
    found = (layers,) if isinstance(layers, str) else tuple(layers)
    if not found or not all(isinstance(word, str) and word for word in found):
        raise ValueError(f"layers={layers}: names of layers are needed, or stages, last_map, pooled")
    return found


def _flat(features: Mapping[str, Sequence[Tensor]], words: Sequence[str]) -> list[Tensor]:
    return [tensor for word in words for tensor in features[word]]
