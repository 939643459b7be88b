"""How far a training has come: the best epoch so far, and what is known of the epoch under way."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Best:
    """The epoch that validation chose so far."""

    epoch: int
    accuracy: float
    loss: float
    file: str

    def beaten_by(self, accuracy: float, loss: float) -> bool:
        """Higher accuracy wins; the lower loss decides between equals. NaN never wins."""
        return accuracy > self.accuracy or (accuracy == self.accuracy and loss < self.loss)


@dataclass
class Partial:
    """An epoch under way: the sums of losses weighted by the batch's size, and what was predicted so far."""

    step: int = 0
    count: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    predictions: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, step: int, terms: dict[str, Tensor], predictions: Tensor, labels: Tensor) -> None:
        """Count a step; everything stays on the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value * len(labels) if name in self.sums else value * len(labels)
        self.step, self.count = step, self.count + len(labels)
        self.predictions.append(predictions)
        self.labels.append(labels)

    def mean_losses(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}

    def plain(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        kept = {"sums": {name: value.cpu() for name, value in self.sums.items()}}
        for name in ("predictions", "labels"):
            kept[name] = [torch.cat(getattr(self, name)).cpu()]  # type: ignore[assignment]
        return {"step": self.step, "count": self.count, "seconds": self.seconds, **kept}

    @classmethod
    def of(cls, kept: dict[str, Any], device: torch.device) -> "Partial":
        moved = {name: [value.to(device) for value in kept[name]] for name in ("predictions", "labels")}
        sums = {name: value.to(device) for name, value in kept["sums"].items()}
        return cls(kept["step"], kept["count"], kept["seconds"], sums, **moved)
