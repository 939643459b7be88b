"""The loss by the labels; the task chooses its form, once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.losses.objective import Lesson
from kdx.tasks import MULTI_LABEL


def balanced_weights(labels: Tensor, task: str, num_classes: int) -> list[float]:
    """A weight a class by inverse frequency: N / (C * images of the class); 0 where a class has none.

    Of a multi-label set, images without a label for each that has it.
    """
    if task == MULTI_LABEL:
        present = labels.double().sum(dim=0)
        return ((len(labels) - present) / present.clamp(min=1)).tolist()
    counts = torch.bincount(labels, minlength=num_classes).double()
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), 0.0).tolist()


LEAST = 1e-12  # where nothing counts, the loss is 0


class HardLoss(nn.Module):
    """Cross-entropy by the labels that are known, or binary cross-entropy for each label of a multi-label set.

    `label_smoothing` gives that share of a label to all classes alike (1512.00567). `class_weights` (C,) count a class
    so much more; of a multi-label set they count the images that have the label.
    """

    weights: Tensor | None

    def __init__(self, task: str, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.multi_label, self.label_smoothing = task == MULTI_LABEL, label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def counts(self, targets: Tensor, known: Tensor | None) -> Tensor | None:
        """What each image (B,) counts in the mean over a batch: 0 where its label is hidden; None for 1 everywhere."""
        counts = None
        if self.weights is not None and not self.multi_label and targets.ndim == 1:  # of shares, the mean is plain
            counts = self.weights[targets]
        if known is None:
            return counts
        return known.float() if counts is None else counts * known

    def forward(self, logits: Tensor, lesson: Lesson) -> Tensor:
        """The mean over the images whose label is known (and over labels, if multi-label); 0 where none counts.

        Times the lesson's `share`, so that parts of a batch add up to the mean over all of its known labels.
        """
        targets = lesson.targets
        if lesson.known is not None:
            logits, targets = logits[lesson.known], targets[lesson.known]
            if not len(targets):
                return logits.sum()  # 0, with a graph
        if self.multi_label:
            shares = targets.to(logits.dtype)
            if self.label_smoothing:
                shares = shares * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, shares, pos_weight=self.weights)
        elif targets.ndim == 1 and self.weights is not None:
            total = F.cross_entropy(
                logits, targets, self.weights, label_smoothing=self.label_smoothing, reduction="sum"
            )
            loss = total / self.weights[targets].sum().clamp(min=LEAST)  # torch's mean of classes that weigh 0 is nan
        else:
            loss = F.cross_entropy(logits, targets, self.weights, label_smoothing=self.label_smoothing)
        return loss * lesson.share
