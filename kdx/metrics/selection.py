"""What on the validation split chooses: the best epoch, the best configuration, the trial that is given up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdx.errors import KdxError, suggest
from kdx.metrics.auc import has_auc
from kdx.recipe import ACCURACY, AUC, AUTO, DECIMALS, F1, LOSS, SCORES, SELECTIONS
from kdx.tasks import MULTI_LABEL

SHORT = {ACCURACY: "acc", AUC: "auc", F1: "f1", LOSS: "loss"}

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """The quantity that chooses: accuracy, auc, f1 or loss."""

    name: str

    @classmethod
    def resolve(cls, name: str, task: str) -> "Selection":
        """`auto` as `auc` for a multi-label set, where accuracy is flat, else as `accuracy`; the others as they are."""
        if name not in SELECTIONS:
            raise KdxError(f"select={name}: choose {', '.join(SELECTIONS)}{suggest(name, SELECTIONS)}")
        if name == AUTO:
            return cls(AUC if task == MULTI_LABEL else ACCURACY)
        return cls(name)

    def check(self, labels: Tensor, task: str, num_classes: int) -> None:
        """`KdxError` where the labels of the validation split leave the quantity undefined, in every epoch."""
        if self.name == AUC and not has_auc(labels, task, num_classes):
            raise KdxError(
                "select=auc: no class of the validation split has images both in it and out of it; choose loss"
            )

    @property
    def higher_is_better(self) -> bool:
        return self.name != LOSS

    def value_of(self, scores: Scores) -> float:
        """The quantity, of the scores of a split; NaN where it is not defined."""
        value = scores[SCORES[self.name]]
        return math.nan if value is None else float(value)

    def is_better(self, new: Scores, old: Scores | None) -> bool:
        """Whether one epoch's scores beat the best before, of which there is none at first.

        NaN never wins against a number; between equals, and where both are NaN, the lower loss decides.
        """
        if old is None:
            return True
        ours, theirs = self.value_of(new), self.value_of(old)
        if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
            return _below(float(new[LOSS]), float(old[LOSS]))
        return _below(-ours, -theirs) if self.higher_is_better else _below(ours, theirs)

    def best_file(self, scores: Scores) -> str:
        """The name of the best checkpoint's file, e.g. `best_acc_95.23.pth` or `best_auc_0.9312.pth`."""
        return f"best_{SHORT[self.name]}_{self.value_of(scores):.{DECIMALS[self.name]}f}.pth"


def _below(new: float, old: float) -> bool:
    return new < old or (math.isnan(old) and not math.isnan(new))
